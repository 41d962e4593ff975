/* pollable.h: a descriptor that a worker watches (worker_watch), and what an epoll event points at. */
#ifndef NS_POLLABLE_H
#define NS_POLLABLE_H

/* Which object a pollable is embedded in; POLL_WAKE: the worker itself. */
enum pollable_kind { POLL_WAKE, POLL_LISTENER, POLL_RING, POLL_QUEUE, POLL_TUNNEL, POLL_NEAR, POLL_FAR };

/* A registered descriptor; edge triggered, so readiness is remembered here. */
struct pollable {
    /* -1: closed or never opened; its events are ignored. */
    int fd;
    enum pollable_kind kind;
    /* A read may give something: set by events, cleared by EAGAIN. */
    int readable;
    /* Same for writes. */
    int writable;
    /* The peer's end or an error was announced: a short read is not the last. */
    int ending;
    /* Nothing arrives after what is there now: the next short read is the last. */
    int finished;
    /* Urgent data was announced, at which reads stop short. */
    int urgent;
    /* errno that the kernel reported for the socket, 0 if none. */
    int failed;
};

#endif
