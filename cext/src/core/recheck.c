/* recheck.c: see recheck.h. */
#include "core/recheck.h"

#include "flow/route.h"

enum { RECHECKS_PER_TURN = 64 };

static void recheck_later(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    if (!link_empty(&workload->flows) && link_empty(&workload->recheck_link))
        link_append(&worker->rechecks.workloads, &workload->recheck_link);
}

void recheck_begin(struct worker *worker, struct concern *concern)
{
    /* Some may not have been asked about since the epoch before, which concerned others. */
    int unfinished = !link_empty(&worker->rechecks.workloads);
    concern_release(worker->rechecks.concern);
    worker->rechecks.concern = unfinished ? NULL : concern_hold(concern);
    worker->rechecks.round++;
    workloads_each(worker, recheck_later, NULL);
}

/* The next flow of the workload that is due; 0 if there is none. Flows lie in the order of their rounds. */
static int recheck_next(struct worker *worker, struct workload *workload)
{
    struct flow *flow = container_of(workload->flows.next, struct flow, link);
    if (link_empty(&workload->flows) || flow->recheck_round == worker->rechecks.round)
        return 0;
    flow->recheck_round = worker->rechecks.round;
    link_remove(&flow->link);
    link_append(&workload->flows, &flow->link);
    route_recheck(flow, worker->rechecks.concern);
    return 1;
}

void recheck_continue(struct worker *worker)
{
    for (int i = 0; i < RECHECKS_PER_TURN && !link_empty(&worker->rechecks.workloads); i++) {
        struct workload *workload =
            container_of(worker->rechecks.workloads.next, struct workload, recheck_link);
        link_remove(&workload->recheck_link);
        if (recheck_next(worker, workload))
            link_append(&worker->rechecks.workloads, &workload->recheck_link);
    }
}
