/*
 * flow.h: one application connection on its way through the core.
 *
 * `near` is the socket towards the workload's application: accepted from it (outbound) or connected to it
 * (inbound). The far side is either a socket (`far`, plaintext) or a stream of a tunnel (mutual TLS).
 *
 *   outbound: application -> near | far -> endpoint, or tunnel to its node
 *   inbound:  client -> far, or tunnel | near -> application
 *
 * A flow that begins with a parked SYN (loop/parking.h) has no near side before its far side is there: the
 * application's connect() ends when the SYN is released, and the near side is what is accepted then. If the
 * far side does not come to be, the SYN is answered by what `cause` says. Inbound such a flow is a question
 * only: it ends with the answer, and the client is connected to the application itself.
 *
 * What is here is how a flow begins and ends. route.h brings it from acceptance to the first byte, relay.h
 * moves its bytes.
 */
#ifndef NS_FLOW_H
#define NS_FLOW_H

#include "base/cause.h"
#include "flow/stream.h"
#include "loop/parking.h"
#include "loop/sockets.h"

enum { FLOW_MAGIC = 0x6e73666c };

/* Ordered; a flow that is retried goes back from CONNECTING to DECIDING's end, never further. */
enum flow_state {
    FLOW_DECIDING = 0,   /* waits for an answer */
    FLOW_CONNECTING = 1, /* outbound: to the endpoint; inbound: to the application */
    FLOW_RELEASED = 2,   /* the far side is there: its SYN was released, and is to be accepted */
    FLOW_OPEN = 3,       /* bytes move */
    FLOW_CLOSED = 4,     /* in the graveyard */
};

/* One direction of a flow. */
enum half_state {
    HALF_OPEN = 0,
    /* Its reader saw the end; bytes may still be pending. */
    HALF_ENDING = 1,
    /* Nobody takes the bytes any more: outbound they are read and dropped until the end, inbound the first
       resets the application. */
    HALF_DISCARDING = 2,
    /* The end was passed on, or there is nobody to pass it on to. */
    HALF_ENDED = 3,
};

struct half {
    enum half_state state;
    /* Read, counted, not yet written. */
    struct byte_queue pending;
    /* Read so far. */
    uint64_t bytes;
    /* Plaintext: the last read was large, the next is spliced. */
    int bulk;
    /* Plaintext: read, counted, not yet written, as `pending` is; NULL: none. */
    struct splice_pipe *pipe;
};

struct flow {
    uint32_t magic;
    enum flow_state state;
    enum ns_direction direction;
    int mtls;
    uint64_t id;
    struct worker *worker;
    struct workload *workload;
    /* In its workload's flows, oldest recheck_round first; the graveyard once closed. */
    struct link link;
    /* In its workload's budget. */
    struct task task;
    /* In worker->bearings, from when the ends of its near connection are known (bearing.h). */
    struct link bearing_link;
    /* Of the core's end of the near connection, as the application has it. */
    uint16_t near_port;
    /* Inbound: waits for the end of `leader`, since it is to have the same ends of the near connection: its
     * client has begun again from the port of one that it has ended. NULL: none. */
    struct flow *leader;
    struct flow *follower;
    /* What its application has said. */
    struct tolerance tolerance;
    /* In worker->live.waiting until OPEN. */
    struct link waiting_link;
    /* In worker->live.timed; harmless to be there without `wake_ms`. */
    struct link timed_link;
    struct decision_waiter waiter;
    /* Held; NULL until answered. */
    struct decision *decision;
    /* The decision's endpoints that were tried in this round, a bit for each. */
    uint32_t tried;
    /* The number of the one that was tried last. */
    uint32_t at;
    /* When that began. */
    uint64_t begun_ms;
    /* How often an endpoint was tried on another tunnel in this round. */
    uint32_t repeats;
    /* The worker's when it was last asked about. */
    uint64_t recheck_round;
    /* The SYN that it began with, until that is answered. */
    struct held held;
    /* Rounds of attempts that came to nothing. */
    uint32_t rounds;
    /* Until OPEN: when it wants to go on by itself; 0: something else will tell it. */
    uint64_t wake_ms;
    /* Why it comes to nothing, for its SYN or its stream's peer. */
    enum cause cause;
    struct pollable near;
    /* fd -1 when the far side is a stream. */
    struct pollable far;
    struct stream stream;
    struct half to_far;
    struct half to_near;
    struct ns_address source;
    struct ns_address destination;
    struct ns_address endpoint;
    uint64_t accepted_ms;
    /* Until OPEN; 0: none, the application waits for as long as it likes. */
    uint64_t deadline_ms;
    /* Its far side was reset since its SYN was released; `reason` says why. */
    int is_cut;
    /* It never was a connection: it stands among the refusals (refusals.h) instead, or is none of ours. */
    int unlisted;
    /* Plaintext: why. */
    char reason[NS_REASON_MAX];
    /* mtls: survives the tunnel, for the list of connections. */
    char peer[NS_IDENTITY_MAX];
    struct tls_facts facts;
};

/* A flow without a far or a near side yet, for a connection that was counted in (quota_admit); DECIDING. */
struct flow *flow_new(struct worker *worker, struct workload *workload, enum ns_direction direction);
void flow_free(struct flow *flow);

/* Takes over a socket as one of its two sides, and counts it. */
void flow_adopt(struct flow *flow, struct pollable *side, int fd);
/* Closes the socket with `how`, socket_close or socket_abort; harmless if the side has none. */
void flow_close_side(struct flow *flow, struct pollable *side, void (*how)(int));
/* Gives a direction's pipe back, and what is in it up. */
void flow_give_pipe(struct flow *flow, struct half *half);
/* Counts a pipe that is kept, its bytes and its two descriptors, for the workload. */
void flow_count_pipe(struct flow *flow, struct splice_pipe *pipe);

/* Not OPEN yet: to be woken in `ms` (route_wake), or somewhat later. */
void flow_wake_in(struct flow *flow, uint64_t ms);
/* CONNECTING: from now on it waits for `leader`; once that has ended, it has its turn. */
void flow_follow(struct flow *flow, struct flow *leader);
/* Harmless if it waits for none. */
void flow_follow_no_more(struct flow *flow);

/* Fills a row of the list of connections, which is all zero. */
void flow_describe(const struct flow *flow, struct ns_connection *out);
/* Inbound, and it comes to nothing. `outcome`: what its stream is told; OUTCOME_OPEN: it has none. */
void flow_note_refused(struct flow *flow, enum outcome outcome, const char *reason);
/* Same, of a stream that was not answered yet: answers it. */
void flow_answer_refused(struct flow *flow, enum outcome outcome, const char *reason);

/* Both directions have ended and everything is written: closes in order. */
void flow_finish(struct flow *flow);
/* Its far side was reset. It ends; but an application whose SYN was released is let in first, and then reset.
 */
void flow_cut(struct flow *flow, const char *reason);
/* Ends it with a reset; flow_fail also counts it, and answers an inbound stream that was not answered yet, by
 * its `cause`. */
void flow_abort(struct flow *flow, const char *reason);
void flow_fail(struct flow *flow, const char *reason);

#endif
