/*
 * bearing.h: what applications bear of their peers' silence (loop/ring.h, PARKED_TOLERANCE).
 *
 * They say it of their ends of connections, and may do so at any time. A worker has a table of its flows by
 * the two ends of the near connection, as the application's socket has them: its own first.
 */
#ifndef NS_BEARING_H
#define NS_BEARING_H

#include "flow/flow.h"

/* The near connection's addresses are known from now on: inbound, by its socket. */
void bearing_enter(struct flow *flow);
/* 1, or 0: no flow of this worker is meant. */
int bearing_tell(struct worker *worker, const struct tuple *ends, const struct tolerance *tolerance);
/* The one with these ends; NULL: there is none on this worker. */
struct flow *bearing_find(struct worker *worker, const struct tuple *ends);
/* The flow has another socket as its far side. */
void bearing_renew(struct flow *flow);

#endif
