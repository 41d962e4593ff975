/*
 * recheck.h: asking about live flows again, after the mesh state has moved on: some in each turn, of each
 * workload in turn.
 */
#ifndef NS_RECHECK_H
#define NS_RECHECK_H

#include "loop/worker.h"

/* Every live flow is to be asked about again. */
void recheck_begin(struct worker *worker, struct concern *concern);
/* Asks about a turn's worth of them; none are left once worker->rechecks.workloads is empty. */
void recheck_continue(struct worker *worker);

#endif
