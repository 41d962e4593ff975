/*
 * warm.h: tunnels that are dialled ahead of need, an option (core_options.warm_ms).
 *
 * A client tunnel that ends or takes no more streams (idle, new credentials, a GOAWAY, lost) leaves its peer
 * on its workload's list if flows used it less than warm_ms ago. At a tick the core asks what it would do
 * with a new flow to where the last one went, and dials the peer only if the answer is a tunnel to the same
 * address and identity. So a peer that has left the mesh, or is no longer allowed, is never dialled, whatever
 * epochs went by. One that cannot be reached is tried more and more seldom.
 */
#ifndef NS_WARM_H
#define NS_WARM_H

#include "flow/tunnel.h"

enum {
    WARM_MAX = 256, /* of a worker: peers to be dialled, and tunnels that were and have had no flow since */
    WARM_DIALS = 8, /* of a worker in a tick */
};

struct warm_peer {
    struct link link; /* in its workload's warm_peers */
    struct decision_waiter waiter;
    struct worker *worker;
    struct workload *workload;
    struct ns_address peer;
    struct ns_address destination; /* where the last flow through the tunnel went */
    uint64_t used_ms;              /* when a flow last used the peer */
    uint64_t next_ms;              /* not dialled before */
    uint32_t failures;             /* tunnels dialled ahead that did not last, in a row */
    char identity[NS_IDENTITY_MAX];
};

/* A flow to `destination` goes through the tunnel. */
void warm_used(struct tunnel *tunnel, const struct ns_address *destination);
/* The tunnel is about to leave the pool. */
void warm_remember(struct tunnel *tunnel);
/* Dials what is due; `dials` is what is left of WARM_DIALS. */
void warm_tick(struct worker *worker, struct workload *workload, int *dials);
void warm_decided(struct warm_peer *peer, const struct decision *decision);
/* Forgets all of a workload's. */
void warm_forget(struct workload *workload);

#endif
