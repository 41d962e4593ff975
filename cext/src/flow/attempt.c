/* attempt.c: see attempt.h. */
#include "flow/attempt.h"

#include <errno.h>
#include <stdio.h>

#include "balance/pick.h"
#include "flow/bearing.h"

enum {
    ATTEMPTS_MAX = 3, /* tunnels tried for one endpoint when they break before the stream was answered */
    PAUSE_MS = 50,    /* after the first round; doubled with each */
    PAUSE_DOUBLINGS = 5,
};

static int dial(struct flow *flow, const struct ns_endpoint *endpoint)
{
    struct worker *worker = flow->worker;
    turns_spend(&flow->workload->budget, TURN_DIAL);
    flow->endpoint = endpoint->address;
    flow->mtls = endpoint->tunnel != 0;
    snprintf(flow->reason, sizeof(flow->reason), "%s", flow->mtls ? "" : endpoint->reason);
    if (flow->mtls)
        return stream_connect(&flow->stream, worker, flow->workload, endpoint, &flow->source,
                              &flow->destination);
    int fd = socket_connect(&flow->workload->netns, &endpoint->address, NS_MARK_CORE);
    if (fd < 0)
        return -1;
    flow_adopt(flow, &flow->far, fd);
    bearing_renew(flow);
    return worker_watch(worker, &flow->far);
}

/* The number of the endpoint to try next. */
static uint32_t endpoint_next(struct flow *flow)
{
    struct decision *decision = flow->decision;
    uint32_t first = decision->next_endpoint++ % decision->endpoint_count;
    const struct endpoint *known[NS_ENDPOINTS_MAX];
    if (flow->worker->endpoints.count == 0)
        return first;
    for (uint32_t i = 0; i < decision->endpoint_count; i++)
        known[i] = endpoint_find(&flow->worker->endpoints, flow->workload->key,
                                 &decision->endpoints[i].address, decision->endpoints[i].identity);
    return pick(known, decision->endpoint_count, first, flow->accepted_ms);
}

/* Of several causes the one that leaves most hope is told; they are in that order. */
static void note_cause(struct flow *flow, enum cause cause)
{
    if (cause > flow->cause)
        flow->cause = cause;
}

static void try_next(struct flow *flow, const char *failure)
{
    struct decision *decision = flow->decision;
    uint32_t limit = decision->endpoint_count > ATTEMPTS_MAX ? decision->endpoint_count : ATTEMPTS_MAX;
    while (flow->attempts < limit) {
        flow->attempts++;
        flow->tried = endpoint_next(flow);
        if (dial(flow, &decision->endpoints[flow->tried]) == 0)
            return;
        note_cause(flow, cause_of_errno(errno));
        flow_close_side(flow, &flow->far, socket_close);
        failure = "the endpoint cannot be dialled";
    }
    attempt_give_up(flow, flow->cause, failure);
}

void attempt_begin(struct flow *flow)
{
    flow->state = FLOW_CONNECTING;
    flow->attempts = 0;
    flow->cause = CAUSE_REFUSED;
    try_next(flow, "no endpoint can be reached");
}

void attempt_failed(struct flow *flow, int again, enum cause cause, const char *reason)
{
    const struct ns_endpoint *endpoint = &flow->decision->endpoints[flow->tried];
    endpoint_note(&flow->worker->endpoints, flow->workload->key, &endpoint->address, endpoint->identity)
        ->refused_ms = flow->worker->now_ms;
    note_cause(flow, cause);
    flow_close_side(flow, &flow->far, socket_close);
    stream_leave(&flow->stream);
    if (again || flow->attempts < flow->decision->endpoint_count)
        try_next(flow, reason);
    else
        attempt_give_up(flow, flow->cause, reason);
}

void attempt_give_up(struct flow *flow, enum cause cause, const char *reason)
{
    flow->cause = cause;
    if (!held_is(&flow->held) || flow->direction == NS_INBOUND || cause < CAUSE_SILENT) {
        flow_fail(flow, reason);
        return;
    }
    flow->state = FLOW_DECIDING;
    decision_release(flow->decision);
    flow->decision = NULL;
    snprintf(flow->reason, sizeof(flow->reason), "%s", reason);
    flow_wake_in(flow,
                 (uint64_t)PAUSE_MS << (flow->rounds < PAUSE_DOUBLINGS ? flow->rounds : PAUSE_DOUBLINGS));
    flow->rounds++;
}
