/*
 * snapshot.h: what a worker tells of its flows and workloads when it is asked, and of flows that ended a
 * moment ago.
 */
#ifndef NS_SNAPSHOT_H
#define NS_SNAPSHOT_H

#include "flow.h"

/* Fills this worker's part and counts it off; the last worker wakes the caller. */
void snapshot_take(struct worker *worker, struct snapshot *snapshot);
/* Keeps a flow that is about to end in the worker's ring. `reason`: what ended it, NULL for an orderly end.
 */
void snapshot_remember(struct flow *flow, const char *reason);
/* Same for a connection that a limit refused; of many in a second one for each workload and limit. */
void snapshot_refused(struct worker *worker, struct workload *workload, enum ns_direction direction,
                      const struct ns_address *source, const struct ns_address *destination,
                      enum ns_limit limit);

#endif
