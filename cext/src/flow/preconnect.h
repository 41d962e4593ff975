/*
 * preconnect.h: peers that are to be dialled ahead of need, an option (core_options.preconnect_ms).
 *
 * A client tunnel that ends or takes no more streams (idle, new credentials, a GOAWAY, lost) leaves its peer
 * on its workload's list if flows used it less than preconnect_ms ago. At a tick the core asks what it would
 * do with a new flow to where the last one went, and dials the peer only if the answer is a tunnel to the
 * same address and identity (pool.h). So a peer that has left the mesh, or is no longer allowed, is never
 * dialled, whatever epochs went by. One that cannot be reached is tried more and more seldom (endpoint.h).
 */
#ifndef NS_PRECONNECT_H
#define NS_PRECONNECT_H

#include "loop/worker.h"
#include "loop/workload.h"

/* Of a worker: peers to be dialled, and tunnels that were and have had no flow since. */
enum { PRECONNECTS_MOST = 256 };

/* What a client tunnel was used for; embedded in it. */
struct preconnect_use {
    /* Where its last flow went. */
    struct ns_address destination;
    /* When its last flow left; dialled ahead: that of the tunnel before. */
    uint64_t used_ms;
    /* When it was first dialled. */
    uint64_t begun_ms;
    /* 1: dialled ahead of need, and no flow has come yet. */
    uint32_t ahead;
};

/* A peer to be dialled. */
struct preconnect {
    /* In its workload's preconnects. */
    struct link link;
    struct decision_waiter waiter;
    struct worker *worker;
    struct workload *workload;
    struct ns_address peer;
    /* Where the last flow through the tunnel went. */
    struct ns_address destination;
    /* When a flow last used the peer. */
    uint64_t used_ms;
    char identity[NS_IDENTITY_MAX];
};

/* A flow to `destination` goes through the tunnel. */
void preconnect_used(struct worker *worker, struct preconnect_use *use, const struct ns_address *destination);
/* A tunnel to the peer is about to leave the pool: it was `opened` or not, and has streams or not. */
void preconnect_remember(struct worker *worker, struct workload *workload, const struct ns_address *peer,
                         const char *identity, struct preconnect_use *use, int opened, int in_use);
/* Not to be dialled for a while, twice as long each time. */
void preconnect_delay(const struct preconnect *preconnect);
/* Whether it may be dialled now. */
int preconnect_is_due(const struct preconnect *preconnect);
void preconnect_free(struct preconnect *preconnect);
/* Forgets all of a workload's. */
void preconnects_forget(struct workload *workload);

#endif
