/*
 * route.h: a flow from its acceptance to its first byte: what is decided about it, and to whom it is
 * connected; and the events that it meets.
 *
 * An outbound flow begins with a parked SYN, and the application learns what became of it as it would from
 * the far side itself. Where SYNs are not parked, it has a connected socket from the start: the kernel
 * completed its handshake with us, and whatever goes wrong afterwards is told to it as a reset. Nothing is
 * read from it before the far side is up, so nothing is lost when another endpoint or tunnel is tried, and a
 * far side that never comes up gets not one byte.
 */
#ifndef NS_ROUTE_H
#define NS_ROUTE_H

#include "flow/flow.h"

/* What streams tell their flows. */
extern const struct stream_events ROUTE_EVENTS;

/* Takes over an accepted connection that was counted in (quota_admit). */
void route_accept(struct worker *worker, struct workload *workload, enum ns_direction direction, int fd,
                  const struct ns_address *peer);
/* Begins a flow with a parked SYN, which was counted in likewise and is taken over. `mark`: of its release;
 * `native`: it may go on as it is if it is to go in plaintext to where it was dialled. */
void route_park(struct worker *worker, struct workload *workload, enum ns_direction direction,
                struct syn *syn, uint32_t mark, int native);
/* The same SYN came again. */
void route_again(struct worker *worker, const struct tuple *tuple, uint32_t sequence);
/* Nobody waits for the answer to that SYN any more. */
void route_gave_up(struct worker *worker, const struct tuple *tuple, uint32_t sequence);
/* Gives an accepted connection to the flow whose SYN was released for it, and returns 1; 0: there is none. */
int route_pair(struct worker *worker, const struct tuple *tuple, int fd);
/* The decision that the flow waited for. */
void route_decided(struct flow *flow, struct decision *decision);
/* A new epoch: asks again whether a live flow is allowed, if it may be one of those that are concerned. */
void route_recheck(struct flow *flow, const struct concern *concern);
/* Not OPEN yet: what it wanted to be woken for (flow_wake_in) is due. */
void route_wake(struct flow *flow);
/* Its turn: at once when it begins, or after it had to wait for one. */
void route_continue(struct flow *flow);
/* Of epoll, on one of its sides; re-arms what it has not used up by noting it there. */
void route_event(struct flow *flow, struct pollable *side, uint32_t events);

#endif
