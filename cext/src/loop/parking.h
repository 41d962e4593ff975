/*
 * parking.h: SYNs that were parked (bpf/nodeseal.h, struct ns_parked) and wait for their answers.
 *
 * The programs keep nothing of a SYN, so the core tells a retransmission from a new connection: a workload's
 * home worker, which reads its ring, has an entry for each that was not answered yet, with the worker that
 * deals with it. There a flow holds the SYN (struct held) until it is answered. The answer is one of
 *
 *   released   the far side is there: the SYN again, which the workload's listener gets now
 *   native     the SYN again, to where it was going
 *   refused    a reset, or an ICMP error
 *   nothing    the application waits, as it would for anybody who is silent
 *
 * and what the listener accepts then is the held flow's, by the addresses of both tuple.
 *
 * An application that gives up is told of by the ring. Where that record is lost, or nothing writes it, its
 * silence tells: TCP sends a SYN again after a second at first, and then after twice as long each time at
 * most (tcp_retransmit_timer, tcp_syn_linear_timeouts).
 */
#ifndef NS_PARKING_H
#define NS_PARKING_H

#include "base/link.h"
#include "loop/tuple.h"
#include "wire/syn.h"

enum {
    PARKING_BUCKETS = 1024,
    PARKED_FIRST_MS = 1000,  /* until a SYN comes again (TCP_TIMEOUT_INIT) */
    PARKED_MOST_MS = 120000, /* the most between two (TCP_RTO_MAX) */
    PARKED_SPARE_MS = 3000,  /* it may come later by so much */
    PARKED_LEFT_MS = 10000,  /* from when another core reads the ring */
};

struct worker;

/* The home worker's: a SYN that was parked and not answered. */
struct parked {
    /* In its bucket. */
    struct link found_link;
    /* In parking->all. */
    struct link all_link;
    struct tuple tuple;
    uint32_t sequence;
    /* Index of the worker that holds it. */
    uint32_t worker;
    /* When it came first. */
    uint64_t first_ms;
    /* When it is to have come again: else its application has given up. */
    uint64_t due_ms;
};

/* A SYN that waits here; embedded in the flow that is made for it. */
struct held {
    /* In its bucket; unlinked while nothing is held. */
    struct link found_link;
    /* Owned; NULL: nothing is held. */
    struct syn *syn;
    struct tuple tuple;
    /* What it carries when it is released. */
    uint32_t mark;
    /* It may be sent on as it is. */
    int native;
};

/* One object per worker. */
struct parking {
    struct link parked[PARKING_BUCKETS];
    struct link held[PARKING_BUCKETS];
    /* All of `parked`. */
    struct link all;
    uint64_t count;
};

void parking_init(struct parking *parking);
void parking_dispose(struct parking *parking);

/* ---- the home worker's */

/* NULL: there is none. */
struct parked *parked_find(struct parking *parking, const struct tuple *tuple);
struct parked *parked_new(struct parking *parking, const struct tuple *tuple, uint32_t sequence,
                          uint64_t now_ms);
/* It came again. */
void parked_seen(struct parked *parked, uint64_t now_ms);
void parked_forget(struct parking *parking, struct parked *parked);
/* The SYN of this number was answered; harmless if it is not there. */
void parked_answered(struct parking *parking, const struct tuple *tuple, uint32_t sequence);
/* Calls `gave_up` for each whose application has been silent for too long; it may forget it. */
typedef void parked_gave_up(struct worker *worker, struct parked *parked);
void parked_each_silent(struct parking *parking, uint64_t now_ms, struct worker *worker,
                        parked_gave_up *gave_up);
/* Another core reads the workload's ring: what it gives up is not told here any more. */
void parked_left(struct parking *parking, uint64_t workload, uint64_t now_ms);

/* ---- who holds it */

static inline int held_is(const struct held *held)
{
    return held->syn != NULL;
}
void held_init(struct held *held);
/* Takes `syn` over. */
void held_begin(struct parking *parking, uint64_t workload, struct held *held, struct syn *syn,
                uint32_t mark);
/* NULL: there is none. */
struct held *held_find(struct parking *parking, const struct tuple *tuple);
/* It was answered, or need not be. */
void held_end(struct held *held);

#endif
