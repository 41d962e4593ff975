/*
 * flow.h: one application connection on its way through the core.
 *
 * `near` is the socket towards the workload's application: accepted from it (outbound) or connected to it
 * (inbound). The far side is either a socket (plaintext) or a stream of a tunnel (mutual TLS).
 *
 *   outbound: application -> near | far -> endpoint, or tunnel to its node
 *   inbound:  client -> far, or tunnel | near -> application
 */
#ifndef NS_FLOW_H
#define NS_FLOW_H

#include "flow/splice.h"
#include "flow/tunnel.h"

enum { FLOW_MAGIC = 0x6e73666c };

/* Ordered; a flow that is retried goes back from CONNECTING to DECIDING's end, never further. */
enum flow_state {
    FLOW_DECIDING = 0,   /* waits for an answer */
    FLOW_CONNECTING = 1, /* outbound: to the endpoint; inbound: to the application */
    FLOW_OPEN = 2,       /* bytes move */
    FLOW_CLOSED = 3,     /* in the graveyard */
};

/* One direction of a flow. */
enum half_state {
    HALF_OPEN = 0,
    HALF_ENDING = 1,     /* its reader saw the end; bytes may still be pending */
    HALF_DISCARDING = 2, /* nobody takes the bytes any more: outbound they are read and dropped until the end,
                            inbound the first resets the application */
    HALF_ENDED = 3,      /* the end was passed on, or there is nobody to pass it on to */
};

struct half {
    enum half_state state;
    struct byte_queue pending; /* read, counted, not yet written */
    uint64_t bytes;            /* read so far */
    int bulk;                  /* plaintext: the last read was large, the next is spliced */
    struct splice_pipe *pipe;  /* plaintext: read, counted, not yet written, as `pending` is; NULL: none */
};

struct flow {
    uint32_t magic;
    enum flow_state state;
    enum ns_direction direction;
    uint64_t id;
    struct worker *worker;
    struct workload *workload;
    struct link link; /* in its workload's flows, oldest recheck_round first; the graveyard once closed */
    struct link tunnel_link;  /* in its tunnel's flows */
    struct task task;         /* in its workload's share of the turns */
    struct link waiting_link; /* in worker->waiting_flows until OPEN */
    struct decision_waiter waiter;
    struct decision *decision; /* held; NULL until answered */
    uint32_t attempts;         /* endpoints or tunnels tried */
    uint64_t recheck_round;    /* the worker's when it was last asked about */
    struct pollable near;
    struct pollable far; /* fd -1 when the far side is a tunnel */
    struct tunnel
        *tunnel; /* NULL when plaintext, or when the stream has ended and only `to_near` is left to write */
    int32_t stream;
    struct half to_far;
    struct half to_near;
    uint32_t window;      /* its stream's receive window */
    size_t owed;          /* of its tunnel's window: received for it, and not given back yet */
    uint64_t widen_bytes; /* received, from which on it is looked at again */
    uint64_t widen_us;    /* when it was last looked at, 0: never */
    struct ns_address source;
    struct ns_address destination;
    struct ns_address endpoint;
    uint64_t accepted_ms;
    uint64_t deadline_ms; /* until OPEN */
    int mtls;
    int unlisted; /* it never was a connection: it stands among the refusals (refusals.h) instead */
    char reason[NS_REASON_MAX]; /* plaintext: why */
    char peer[NS_IDENTITY_MAX]; /* mtls: survives the tunnel, for the list of connections */
    char tls[64];
};

/* What is asked for a new connection of the workload to `destination`; the id is left 0. */
void outbound_question(const struct workload *workload, const struct ns_address *destination,
                       struct ns_question *question);
/* Takes over an accepted connection that was counted in (quota_admit). */
void flow_accept(struct worker *worker, struct workload *workload, enum ns_direction direction, int fd,
                 const struct ns_address *peer);
/* A flow without a far or a near side yet, for a connection that was counted in; DECIDING. */
struct flow *flow_new(struct worker *worker, struct workload *workload, enum ns_direction direction);
void flow_event(struct flow *flow, struct pollable *side, uint32_t events);
/* What it is connected to is up: bytes move. */
void flow_open(struct flow *flow);
/* Outbound, CONNECTING: the attempt failed before a byte was relayed. `again`: the same endpoint may do on
 * another tunnel. */
void flow_route_failed(struct flow *flow, int again, const char *reason);
/* Moves bytes as far as they go now. */
void flow_relay(struct flow *flow);
/* Its turn: at once when it begins, or after it had to wait for one. */
void flow_continue(struct flow *flow);
/* The decision that the flow waited for. */
void flow_decided(struct flow *flow, struct decision *decision);
/* A new epoch: asks again whether a live flow is allowed. */
void flow_recheck(struct flow *flow);
/* Its far side is a stream of the tunnel. */
void flow_join_tunnel(struct flow *flow, struct tunnel *tunnel);
/* Parts it from its tunnel, where its stream is no more; harmless if it has none. */
void flow_leave_tunnel(struct flow *flow);
/* Its tunnel ends. */
void flow_tunnel_lost(struct flow *flow, const char *reason);
/* Ends it with a reset; flow_fail also counts it, and answers an inbound stream that was not answered yet. */
void flow_abort(struct flow *flow, const char *reason);
void flow_fail(struct flow *flow, const char *reason);
void flow_free(struct flow *flow);

#endif
