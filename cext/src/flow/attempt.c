/* attempt.c: see attempt.h. */
#include "flow/attempt.h"

#include <errno.h>
#include <stdio.h>

#include "balance/pick.h"
#include "flow/bearing.h"

enum {
    REPEATS_MAX = 2, /* on other tunnels, when one breaks before the stream was answered */
    PAUSE_MS = 50,   /* after the first round; doubled with each */
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
    int fd = socket_connect(&flow->workload->netns, &flow->source, &endpoint->address, NS_MARK_CORE);
    if (fd < 0)
        return -1;
    flow_adopt(flow, &flow->far, fd);
    bearing_renew(flow);
    return worker_watch(worker, &flow->far);
}

/* What is remembered of one of the decision's endpoints; NULL: nothing. */
static struct endpoint *known_of(const struct flow *flow, uint32_t number)
{
    const struct ns_endpoint *endpoint = &flow->decision->endpoints[number];
    return endpoint_find(&flow->worker->endpoints, flow->workload->key, &endpoint->address,
                         endpoint->identity);
}

/* The same, begun if there was nothing. */
static struct endpoint *note_of(const struct flow *flow, uint32_t number)
{
    const struct ns_endpoint *endpoint = &flow->decision->endpoints[number];
    return endpoint_note(&flow->worker->endpoints, flow->workload->key, &endpoint->address,
                         endpoint->identity);
}

static uint32_t all_of(const struct flow *flow)
{
    return UINT32_MAX >> (NS_ENDPOINTS_MAX - flow->decision->endpoint_count);
}

/* The number of the endpoint to try next, of those that are left. */
static uint32_t endpoint_next(struct flow *flow)
{
    struct decision *decision = flow->decision;
    uint32_t first = decision->next_endpoint++ % decision->endpoint_count;
    const struct endpoint *known[NS_ENDPOINTS_MAX] = {NULL};
    if (flow->worker->endpoints.count == 0 && flow->tried == 0)
        return first;
    for (uint32_t i = 0; i < decision->endpoint_count; i++)
        known[i] = known_of(flow, i);
    return pick(known, decision->endpoint_count, flow->tried, first, flow->worker->now_ms);
}

/* Of several causes the one that leaves most hope is told; they are in that order. */
static void note_cause(struct flow *flow, enum cause cause)
{
    if (cause > flow->cause)
        flow->cause = cause;
}

/* It has until then, unless it is the last. */
static void limit_attempt(struct flow *flow)
{
    struct endpoint *known = flow->decision->endpoint_count > 1 ? known_of(flow, flow->at) : NULL;
    flow->begun_ms = flow->worker->now_ms;
    flow->wake_ms = 0;
    if (flow->tried != all_of(flow))
        flow_wake_in(flow, endpoint_patience_ms(known));
    if (known != NULL && known->misses > 0)
        endpoint_probed(known, flow->worker->now_ms);
}

static void note_missed(const struct flow *flow)
{
    if (flow->decision->endpoint_count > 1)
        endpoint_missed(note_of(flow, flow->at), flow->worker->now_ms);
}

static void try_next(struct flow *flow, const char *failure)
{
    while (flow->tried != all_of(flow)) {
        flow->at = endpoint_next(flow);
        flow->tried |= 1u << flow->at;
        limit_attempt(flow);
        if (dial(flow, &flow->decision->endpoints[flow->at]) == 0)
            return;
        note_cause(flow, cause_of_errno(errno));
        note_missed(flow);
        flow_close_side(flow, &flow->far, socket_close);
        failure = "the endpoint cannot be dialled";
    }
    attempt_give_up(flow, flow->cause, failure);
}

void attempt_begin(struct flow *flow)
{
    flow->state = FLOW_CONNECTING;
    flow->tried = 0;
    flow->repeats = 0;
    flow->cause = CAUSE_REFUSED;
    try_next(flow, "no endpoint can be reached");
}

void attempt_failed(struct flow *flow, int again, enum cause cause, const char *reason)
{
    note_cause(flow, cause);
    flow_close_side(flow, &flow->far, socket_close);
    stream_leave(&flow->stream);
    if (again && flow->repeats < REPEATS_MAX) {
        flow->repeats++;
        flow->tried &= ~(1u << flow->at);
    } else {
        note_missed(flow);
    }
    try_next(flow, reason);
}

static void leave_for_another(struct flow *flow, enum cause cause, const char *reason)
{
    stream_close(&flow->stream, 0);
    attempt_failed(flow, 0, cause, reason);
}

void attempt_delayed(struct flow *flow, enum cause cause, const char *reason)
{
    if (flow->state == FLOW_CONNECTING && flow->tried != all_of(flow))
        leave_for_another(flow, cause, reason);
}

void attempt_overdue(struct flow *flow)
{
    leave_for_another(flow, CAUSE_SILENT, "the endpoint does not answer");
}

void attempt_reached(struct flow *flow)
{
    uint64_t took_ms = flow->worker->now_ms - flow->begun_ms;
    flow->wake_ms = 0;
    if (flow->decision->endpoint_count == 1 ||
        (flow->worker->endpoints.count == 0 && !endpoint_is_slow(took_ms)))
        return;
    struct endpoint *known = endpoint_is_slow(took_ms) ? note_of(flow, flow->at) : known_of(flow, flow->at);
    if (known != NULL)
        endpoint_answered(known, took_ms);
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
