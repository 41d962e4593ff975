/*
 * pool.h: the tunnels to peers that a worker's workloads share among their flows, and how they are dialled:
 * at once for a flow, or ahead of need (preconnect.h).
 */
#ifndef NS_POOL_H
#define NS_POOL_H

#include "flow/tunnel.h"

/* Of a worker in a tick. */
enum { POOL_PRECONNECTS = 8 };

/* A tunnel of `workload` to `identity` at address:15008 with room for a stream: from the pool, or a new one.
 * It comes from the address of `client`, whose stream it is for, if that is of the same family: the peer
 * takes for a stream's source what its tunnel comes from. NULL: whichever there is. `by_name`: several
 * identities live there, and the peer is told which is meant. NULL with errno if none can be made (no
 * credentials, no descriptor). */
struct tunnel *pool_tunnel(struct worker *worker, struct workload *workload, const struct ns_address *client,
                           const struct ns_address *address, const char *identity, int by_name);
/* WAITING: dials again. */
void pool_dial_again(struct tunnel *tunnel);
/* CONNECTING: what the dialling has come to; the tunnel waits to dial again, or ends. */
void pool_dial_failed(struct tunnel *tunnel, int error);

/* Asks about the workload's peers that are due, to dial them; `*dials` is what is left of POOL_PRECONNECTS.
 */
void pool_preconnect(struct worker *worker, struct workload *workload, int *dials);
/* The decision that the peer waited for: dials it, if it is still where flows would go. */
void pool_preconnect_decided(struct preconnect *preconnect, const struct decision *decision);

#endif
