/*
 * route.h: a flow from its acceptance to its first byte: what is decided about it, and to whom it is
 * connected; and the events that it meets.
 *
 * The application on the near side of an outbound flow has a connected socket from the start: the kernel
 * completed its handshake with us. Whatever goes wrong afterwards is told to it as a reset. Nothing is read
 * from it before the far side is up, so nothing is lost when another endpoint or tunnel is tried, and a far
 * side that never comes up gets not one byte.
 */
#ifndef NS_ROUTE_H
#define NS_ROUTE_H

#include "flow/flow.h"

/* What streams tell their flows. */
extern const struct stream_events ROUTE_EVENTS;

/* Takes over an accepted connection that was counted in (quota_admit). */
void route_accept(struct worker *worker, struct workload *workload, enum ns_direction direction, int fd,
                  const struct ns_address *peer);
/* The decision that the flow waited for. */
void route_decided(struct flow *flow, struct decision *decision);
/* A new epoch: asks again whether a live flow is allowed. */
void route_recheck(struct flow *flow);
/* Its turn: at once when it begins, or after it had to wait for one. */
void route_continue(struct flow *flow);
/* Of epoll, on one of its sides; re-arms what it has not used up by noting it there. */
void route_event(struct flow *flow, struct pollable *side, uint32_t events);

#endif
