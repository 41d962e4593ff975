/*
 * core_calls.h: calls of the core that are taken out, held back, refused or counted at the linker's --wrap,
 * which tests/unit/test_cext.py asks for by the names of the __wrap_ functions in core_calls.c.
 *
 * What needs a capability is taken out: entering a namespace, socket marks, transparent sockets.
 */
#ifndef NS_CORE_CALLS_H
#define NS_CORE_CALLS_H

#include <netinet/in.h>

#define COUNT_RESET(counter) __atomic_store_n(&(counter), 0, __ATOMIC_RELAXED)
#define COUNT(counter) __atomic_load_n(&(counter), __ATOMIC_RELAXED)

/* Any thread counts and looks here, atomically. A turn: what a worker does between two looks or waits for
 * events. */
struct core_calls {
    /* Set by tests; 0: no. */
    int pipes_refused;  /* as when descriptors have run out */
    int accepts_fail;   /* likewise; not even one given up helps */
    int accepts_flood;  /* whenever nobody waits for acceptance, somebody comes: so many times */
    int unacknowledged; /* what the kernel has sent is not acknowledged, whatever it says */
    int steps_held;     /* no step of a handshake ends while it is set */

    /* Counted. */
    int splices; /* that moved something */
    int looks;   /* for events, without sleep */
    int accepts_tried;
    int steps; /* of handshakes */
    int steps_of_workers;
    int user_timeout;            /* as it was last set, in ms */
    int produced;                /* bytes of frames, in all */
    _Atomic int tunnels_dialled; /* connections to peers' port 15008 that were begun */

    /* The most in one turn. */
    int relays_most; /* of one workload's flows */
    int fed_most;    /* bytes of plaintext that were handed on */
    int dials_most;  /* connections to others than peers' port 15008 */
    int answers_most;
};

extern struct core_calls calls;

/*
 * A connection to this address is held back inside the core's connect() until the test has made the
 * application act on it, and opens the gate: then the core learns of the connection and of what the
 * application did in one and the same event.
 */
void gate_close(const struct sockaddr_in *address);
void gate_open(void);
/* How many are held back. */
int gate_held(void);

#endif
