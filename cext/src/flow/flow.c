/* flow.c: see flow.h. */
#include "flow/flow.h"

#include <stdio.h>
#include <string.h>

#include "loop/syn_answer.h"

enum {
    DEADLINE_SPARE_MS = 5000, /* a flow outlives the connection attempts it waits for */
    WAKE_GRAIN_MS = 50,
};

struct flow *flow_new(struct worker *worker, struct workload *workload, enum ns_direction direction)
{
    struct flow *flow = ns_alloc(sizeof(*flow));
    flow->magic = FLOW_MAGIC;
    flow->direction = direction;
    flow->id = worker_next_id(worker);
    flow->worker = worker;
    flow->workload = workload;
    flow->facts = TLS_NO_FACTS;
    stream_init(&flow->stream, &flow->to_near.pending);
    link_init(&flow->task.link);
    link_init(&flow->bearing_link);
    flow->task.kind = TASK_FLOW;
    link_init(&flow->waiting_link);
    link_init(&flow->timed_link);
    link_init(&flow->waiter.link);
    held_init(&flow->held);
    flow->near.fd = -1;
    flow->near.kind = POLL_NEAR;
    flow->far.fd = -1;
    flow->far.kind = POLL_FAR;
    flow->to_near.pending.account = flow->to_far.pending.account = &workload->quota->memory;
    flow->recheck_round = worker->rechecks.round;
    flow->accepted_ms = worker->now_ms;
    flow->deadline_ms = worker->now_ms + worker->options->connect_timeout_ms + DEADLINE_SPARE_MS;
    link_append(&workload->flows, &flow->link);
    link_append(&worker->live.waiting, &flow->waiting_link);
    worker->live.flows++;
    workload->live_flows++;
    workload->stats.accepted++;
    return flow;
}

void flow_free(struct flow *flow)
{
    NS_CHECK(flow, FLOW_MAGIC);
    link_remove(&flow->link);
    decision_release(flow->decision);
    flow->magic = 0;
    free(flow);
}

/* ---- its sides ---- */

void flow_adopt(struct flow *flow, struct pollable *side, int fd)
{
    quota_descriptors(flow->workload->quota, 1);
    socket_reset_at_death(fd);
    side->fd = fd;
    side->readable = side->writable = side->ending = side->failed = 0;
    side->finished = side->urgent = 0;
}

void flow_close_side(struct flow *flow, struct pollable *side, void (*how)(int))
{
    if (side->fd < 0)
        return;
    how(side->fd);
    side->fd = -1;
    quota_descriptors(flow->workload->quota, -1);
}

void flow_count_pipe(struct flow *flow, struct splice_pipe *pipe)
{
    struct quota *quota = flow->workload->quota;
    if (pipe->held == pipe->counted)
        return;
    quota_memory(quota, (int64_t)pipe->held - (int64_t)pipe->counted);
    if (pipe->counted == 0 || pipe->held == 0)
        quota_descriptors(quota, pipe->counted == 0 ? 2 : -2);
    pipe->counted = pipe->held;
}

void flow_give_pipe(struct flow *flow, struct half *half)
{
    struct splice_pipe *pipe = half->pipe;
    if (pipe == NULL)
        return;
    half->pipe = NULL;
    if (pipe->counted > 0) { /* it was kept */
        size_t held = pipe->held;
        pipe->held = 0;
        flow_count_pipe(flow, pipe);
        pipe->held = held;
    }
    splice_give(&flow->worker->pipes, pipe);
}

void flow_wake_in(struct flow *flow, uint64_t ms)
{
    struct live *live = &flow->worker->live;
    /* All that have a time are looked at then: not for each of them. */
    flow->wake_ms = (flow->worker->now_ms + ms) / WAKE_GRAIN_MS * WAKE_GRAIN_MS + WAKE_GRAIN_MS;
    if (flow->wake_ms < live->wake_ms)
        live->wake_ms = flow->wake_ms;
    if (link_empty(&flow->timed_link))
        link_append(&live->timed, &flow->timed_link);
}

/* ---- one after another ---- */

void flow_follow(struct flow *flow, struct flow *leader)
{
    flow->leader = leader;
    leader->follower = flow;
}

void flow_follow_no_more(struct flow *flow)
{
    if (flow->leader != NULL)
        flow->leader->follower = NULL;
    flow->leader = NULL;
}

static void flow_let_follow(struct flow *flow)
{
    struct flow *follower = flow->follower;
    if (follower == NULL)
        return;
    flow_follow_no_more(follower);
    task_wait(&follower->worker->turns, &follower->workload->budget, &follower->task);
}

/* ---- what is told of it ---- */

/* Of storage that lasts, into zeros; snprintf would take hundreds of instructions for each. */
static void put_word(char *out, size_t size, const char *word)
{
    size_t length = strlen(word);
    memcpy(out, word, length < size ? length : size - 1);
}

void flow_describe(const struct flow *flow, struct ns_connection *out)
{
    out->id = flow->id;
    out->workload = flow->workload->key;
    out->direction = flow->direction;
    out->state = flow->state == FLOW_DECIDING ? NS_STATE_DECIDING
                 : flow->state < FLOW_OPEN    ? NS_STATE_CONNECTING
                                              : NS_STATE_OPEN;
    out->mtls = flow->mtls && flow->peer[0] != 0;
    out->source = flow->source;
    out->destination = flow->destination;
    out->endpoint = flow->endpoint;
    const struct half *sent = flow->direction == NS_OUTBOUND ? &flow->to_far : &flow->to_near;
    const struct half *received = flow->direction == NS_OUTBOUND ? &flow->to_near : &flow->to_far;
    out->bytes_sent = sent->bytes;
    out->bytes_received = received->bytes;
    out->age_ms = flow->worker->now_ms - flow->accepted_ms;
    memcpy(out->peer, flow->peer, sizeof(out->peer));
    put_word(out->tls, sizeof(out->tls), flow->facts.suite);
    put_word(out->group, sizeof(out->group), flow->facts.group);
    put_word(out->signature, sizeof(out->signature), flow->facts.signature);
    memcpy(out->anchor, flow->facts.anchor, sizeof(out->anchor));
    memcpy(out->reason, flow->reason, sizeof(out->reason));
}

/* Puts it among the closed ones. `reason`: what ended it, NULL for an orderly end. */
static void flow_remember(const struct flow *flow, const char *reason)
{
    struct ns_connection *row = closed_add(&flow->worker->closed, flow->worker->now_ms);
    flow_describe(flow, row);
    row->state = NS_STATE_CLOSED;
    if (reason != NULL && !(flow->state == FLOW_OPEN && !flow->mtls))
        snprintf(row->reason, sizeof(row->reason), "%s", reason);
    enum ns_event_kind kind = flow->state == FLOW_OPEN ? NS_EVENT_CLOSED : NS_EVENT_FAILED;
    events_connection(&flow->worker->events, kind, row, flow->worker->now_ms);
}

void flow_note_refused(struct flow *flow, enum outcome outcome, const char *reason)
{
    const struct refusal refusal = {
        .kind = flow->mtls ? NS_REFUSED_STREAM : NS_REFUSED_PLAINTEXT,
        .direction = NS_INBOUND,
        .status = outcome != OUTCOME_OPEN ? outcome_status(outcome) : 0,
        .source = flow->source,
        .destination = flow->destination,
        .peer = flow->peer,
        .reason = reason,
    };
    flow->unlisted = 1;
    workload_note_refused(flow->worker, flow->workload, &refusal);
}

void flow_answer_refused(struct flow *flow, enum outcome outcome, const char *reason)
{
    flow_note_refused(flow, outcome, reason);
    stream_refuse(&flow->stream, outcome);
}

/* ---- the end ---- */

/* What it has brought and nobody has taken is dropped with it. */
static void flow_close_stream(struct flow *flow)
{
    struct worker *worker = flow->worker;
    byte_queue_clear(&flow->to_near.pending, &worker->blocks);
    stream_close(&flow->stream, flow->state >= FLOW_RELEASED);
    if (worker->scratch.gathered.flow == flow)
        worker->scratch.gathered.flow = NULL;
}

/* Ends the flow: sockets are closed by `how`, the rest is taken apart. */
static void flow_close(struct flow *flow, const char *reason, void (*how)(int))
{
    struct worker *worker = flow->worker;
    if (!flow->unlisted)
        flow_remember(flow, reason);
    if (held_is(&flow->held))
        syn_refuse(worker, flow->workload, &flow->held, flow->cause);
    byte_queue_clear(&flow->to_far.pending, &worker->blocks);
    flow_close_stream(flow);
    flow->state = FLOW_CLOSED;
    flow_close_side(flow, &flow->near, how);
    flow_close_side(flow, &flow->far, how);
    flow_give_pipe(flow, &flow->to_near);
    flow_give_pipe(flow, &flow->to_far);
    flow_follow_no_more(flow);
    flow_let_follow(flow);
    decision_waiter_cancel(&flow->waiter);
    link_remove(&flow->task.link);
    link_remove(&flow->bearing_link);
    link_remove(&flow->waiting_link);
    link_remove(&flow->timed_link);
    link_remove(&flow->link);
    link_append(&worker->graveyard.flows, &flow->link);
    worker->live.flows--;
    flow->workload->live_flows--;
    quota_leave(flow->workload->quota);
}

void flow_finish(struct flow *flow)
{
    flow_close(flow, NULL, socket_close);
}

void flow_abort(struct flow *flow, const char *reason)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state < FLOW_CLOSED)
        flow_close(flow, reason, socket_abort);
}

void flow_cut(struct flow *flow, const char *reason)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state != FLOW_RELEASED) {
        flow_abort(flow, reason);
        return;
    }
    flow_close_stream(flow);
    flow->is_cut = 1;
    snprintf(flow->reason, sizeof(flow->reason), "%s", reason);
}

void flow_fail(struct flow *flow, const char *reason)
{
    flow->workload->stats.failed++;
    if (flow->direction == NS_INBOUND && flow->stream.tunnel != NULL && flow->state < FLOW_OPEN)
        flow_answer_refused(flow, outcome_for(flow->cause), reason);
    flow_abort(flow, reason);
}
