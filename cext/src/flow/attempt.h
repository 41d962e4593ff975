/*
 * attempt.h: an outbound flow on its way to one of the endpoints that its decision names.
 *
 * Nothing is read from the application before the far side is up, so nothing is lost when another endpoint or
 * tunnel is tried. While there are others, one that does not answer is left after some seconds
 * (balance/endpoint.h); the only or the last one has as much time as the flow.
 *
 * When all have come to nothing the flow ends, unless its application can still wait (its SYN is held) for
 * what may pass: then it is decided about and tried again, more and more seldom, for as long as that lasts.
 */
#ifndef NS_ATTEMPT_H
#define NS_ATTEMPT_H

#include "flow/flow.h"

/* Tries the endpoints in turn, from the decision's next one, until one can be dialled; CONNECTING. */
void attempt_begin(struct flow *flow);
/* CONNECTING: the attempt failed before a byte was relayed. `again`: the same endpoint may do on another
 * tunnel. */
void attempt_failed(struct flow *flow, int again, enum cause cause, const char *reason);
/* CONNECTING: its peer is tried again in a moment. Another endpoint is better, if there is one. */
void attempt_delayed(struct flow *flow, enum cause cause, const char *reason);
/* CONNECTING: it has had its time (flow->wake_ms). */
void attempt_overdue(struct flow *flow);
/* The endpoint is reached. */
void attempt_reached(struct flow *flow);
/* It comes to nothing for now: ends the flow, or lets it wait, DECIDING, until it wakes. */
void attempt_give_up(struct flow *flow, enum cause cause, const char *reason);

#endif
