/*
 * handshakes.h: a thread beside each worker that makes the steps of its TLS handshakes.
 *
 * A step is public-key cryptography: it takes as long as dozens of requests, and cannot be divided. On the
 * worker every open stream would wait for it. So the worker gives the session and what the peer has sent to
 * this thread, and goes on; from then until the step is taken back, the session is the thread's alone.
 *
 * Which step comes next is the worker's choice (turns.h), made as late as possible: STEPS_OUT are given away
 * at most, so that the thread has one to go on with while the worker is busy.
 *
 * The thread belongs to SCHED_BATCH, whatever the worker belongs to: where CPU time is short, open streams go
 * before new ones.
 */
#ifndef NS_HANDSHAKES_H
#define NS_HANDSHAKES_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/link.h"
#include "wire/tls.h"

enum { STEPS_OUT = 2 };

/* One step of a session, embedded in what owns the session; lasts until it was taken back. */
struct step {
    struct link link;
    struct tls *tls;
    /* What the peer has sent; tls->feed points into it until it is used up. */
    uint8_t *input;
    /* Made: what is to be sent to the peer; NULL: nothing. */
    uint8_t *output;
    /* Bytes. */
    size_t output_length;
    /* Made: of tls_handshake. */
    enum tls_result result;
    /* Made: CPU time that it took. */
    uint64_t cost_us;
    /* Given and not taken back: `tls` is not to be touched. */
    int out;
};

struct handshakes {
    pthread_t thread;
    /* Held for a few instructions only. */
    pthread_mutex_t mutex;
    pthread_cond_t given;
    /* Steps to be made. */
    struct link waiting;
    struct link made;
    int stopping;
    /* The worker's eventfd, raised when the first is made. */
    int wake_fd;
    /* The worker's own: steps given and not taken back. */
    int out;
    /* The thread's own: room for one step's. */
    uint8_t *output;
};

/* The thread is the caller's to start: with handshakes_main, on these handshakes. */
void handshakes_init(struct handshakes *handshakes, int wake_fd);
void *handshakes_main(void *handshakes);
/* Makes what waits, on the calling thread: what handshakes_main does whenever something was given. */
void handshakes_make(struct handshakes *handshakes);
static inline int handshakes_room(const struct handshakes *handshakes)
{
    return handshakes->out < STEPS_OUT;
}
/* Gives a step whose session was fed with its input. */
void handshakes_give(struct handshakes *handshakes, struct step *step);
/* Appends those that were made since to `made`. */
void handshakes_take(struct handshakes *handshakes, struct link *made);
/* Ends the thread. All that were given can be taken now: those that it did not come to have no output, and
 * TLS_WANT. */
void handshakes_stop(struct handshakes *handshakes);
/* The thread was stopped, or never started. */
void handshakes_dispose(struct handshakes *handshakes);

void step_init(struct step *step, struct tls *tls);
/* It is not out. */
void step_dispose(struct step *step);

#endif
