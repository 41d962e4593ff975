/*
 * cause.h: why a connection could not be made, as far as an application can tell the difference.
 *
 * The far core says it in Proxy-Status (wire/message.h), the kernel by an errno; what the application's own
 * connect() says in the end follows from it.
 */
#ifndef NS_CAUSE_H
#define NS_CAUSE_H

enum cause {
    /* Nobody listens there; also what is denied, and what has no better word. connect(): ECONNREFUSED. */
    CAUSE_REFUSED = 0,
    /* EHOSTUNREACH. */
    CAUSE_NO_HOST = 1,
    /* ENETUNREACH. */
    CAUSE_NO_NETWORK = 2,
    /* Nobody answers: the application waits for as long as it likes. */
    CAUSE_SILENT = 3,
    /* The mesh's own, and soon over: a core that starts, a tunnel that has just ended, a state of a moment
     * ago. The application waits, and it is tried again for as long as it does. */
    CAUSE_PASSING = 4,
};

/* Of a socket's error, as connect() and SO_ERROR give it. */
enum cause cause_of_errno(int error);

#endif
