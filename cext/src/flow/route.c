/* route.c: see route.h. */
#include "flow/route.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "flow/attempt.h"
#include "flow/bearing.h"
#include "flow/relay.h"
#include "loop/syn_answer.h"
#include "wire/names.h"

enum { FOLLOW_MS = 1000 }; /* for the end of the client's former connection; then it has another port */

/* What it is connected to is up: bytes move. */
static void route_open(struct flow *flow)
{
    flow->state = FLOW_OPEN;
    link_remove(&flow->waiting_link);
    link_remove(&flow->timed_link);
    if (flow->mtls)
        flow->workload->stats.tunnelled++;
    else
        flow->workload->stats.plaintext++;
    struct ns_event *event = events_room(&flow->worker->events, NS_EVENT_OPENED);
    if (event != NULL) {
        event->ago_ms = flow->worker->now_ms;
        flow_describe(flow, &event->connection);
        events_put(&flow->worker->events);
    }
    relay_begin(flow);
}

/* The same, but an application whose SYN is held has to be let in first. */
static void route_reached(struct flow *flow)
{
    attempt_reached(flow);
    if (!held_is(&flow->held)) {
        route_open(flow);
        return;
    }
    flow->state = FLOW_RELEASED;
    flow->deadline_ms = flow->worker->now_ms + RELEASED_MS;
    flow->cause = CAUSE_SILENT; /* should it be lost from here on, the SYN may come again */
    syn_release(flow->worker, flow->workload, &flow->held);
}

/* ---- inbound: towards the application ---- */

/* The client's own port is taken while its former connection from there has not ended here: the end may come
 * behind the request for the next, since it waits for its turn among the bytes. Without nodeseal the client's
 * SYN would be sent again after a second. Whether it waits. */
static int route_follow(struct flow *flow)
{
    struct worker *worker = flow->worker;
    if (!flow->mtls || flow->source.port == 0 || worker->now_ms - flow->accepted_ms >= FOLLOW_MS)
        return 0;
    const struct tuple ends = {
        .workload = flow->workload->key, .source = flow->destination, .destination = flow->source};
    struct flow *leader = bearing_find(worker, &ends);
    if (leader == NULL || leader->direction != NS_INBOUND || leader->follower != NULL ||
        strcmp(leader->peer, flow->peer) != 0)
        return 0;
    flow_follow(flow, leader);
    flow_wake_in(flow, FOLLOW_MS);
    return 1;
}

static void route_to_application(struct flow *flow)
{
    flow->state = FLOW_CONNECTING;
    flow->endpoint = flow->destination;
    if (route_follow(flow))
        return;
    turns_spend(&flow->workload->budget, TURN_DIAL);
    struct ns_address source = flow->source;
    if (!flow->mtls)
        source.port = 0; /* its own connection with us is here, and has these two ends */
    int fd = socket_connect_for(&flow->workload->netns, workload_asking(flow->workload), &source,
                                &flow->destination, NS_MARK_TO_APP, quota_buffers(flow->workload->quota));
    if (fd < 0) {
        flow->cause = cause_of_errno(errno);
        flow_fail(flow, "no socket to the application");
        return;
    }
    flow_adopt(flow, &flow->near, fd);
    bearing_enter(flow);
    if (worker_watch(flow->worker, &flow->near) != 0) {
        flow->cause = cause_of_errno(errno);
        flow_fail(flow, "no socket to the application");
    }
}

static void application_connected(struct flow *flow)
{
    stream_let_in(&flow->stream);
    route_open(flow);
}

/* ---- decisions ---- */

static void route_question(const struct flow *flow, struct ns_question *question, int established)
{
    workload_question(flow->workload, &flow->destination, question);
    question->established = established && !flow->mtls;
    if (flow->direction == NS_INBOUND) {
        question->kind = flow->mtls ? NS_ASK_INBOUND_TUNNEL : NS_ASK_INBOUND_PLAINTEXT;
        question->source = flow->source;
        if (flow->mtls)
            memcpy(question->peer, flow->peer, sizeof(question->peer));
    }
    question->source.port = 0;
}

static enum outcome outcome_of_verdict(uint32_t verdict)
{
    return verdict == NS_REFUSE    ? OUTCOME_DENIED
           : verdict == NS_NOT_YET ? OUTCOME_UNAVAILABLE
                                   : OUTCOME_PROHIBITED;
}

static void route_refuse(struct flow *flow, const struct decision *decision)
{
    flow->workload->stats.refused++;
    flow->cause = outcome_cause(outcome_of_verdict(decision->verdict));
    if (flow->direction == NS_INBOUND && flow->state < FLOW_OPEN) {
        if (flow->stream.tunnel != NULL)
            flow_answer_refused(flow, outcome_of_verdict(decision->verdict), decision->reason);
        else
            flow_note_refused(flow, OUTCOME_OPEN, decision->reason);
    }
    flow_abort(flow, decision->reason);
}

/* A live flow was asked about again. Only a refusal changes anything. */
static void route_rechecked(struct flow *flow, const struct decision *decision)
{
    if (decision->verdict == NS_REFUSE)
        route_refuse(flow, decision);
    else if (decision->verdict == NS_ALLOW && !flow->mtls && flow->state == FLOW_OPEN)
        snprintf(flow->reason, sizeof(flow->reason), "%s",
                 flow->direction == NS_INBOUND  ? decision->reason
                 : decision->endpoint_count > 0 ? decision->endpoints[0].reason
                                                : flow->reason);
}

/* Whether its SYN is to go on, and the rest with it. */
static int goes_natively(const struct flow *flow, const struct decision *decision)
{
    if (!held_is(&flow->held) || flow->direction == NS_INBOUND)
        return held_is(&flow->held);
    const struct ns_endpoint *only = &decision->endpoints[0];
    return flow->held.native && decision->endpoint_count == 1 && only->tunnel == NS_PLAINTEXT &&
           only->address.port == flow->destination.port &&
           address_same_ip(&only->address, &flow->destination);
}

/* None of our connections from here on: the kernel counts it (bpf/lib/natives.h). */
static void route_natively(struct flow *flow)
{
    flow->workload->stats.plaintext++;
    flow->unlisted = 1;
    syn_send_on(flow->worker, flow->workload, &flow->held,
                flow->direction == NS_OUTBOUND ? NS_MARK_NATIVE : NS_MARK_ADMITTED);
    flow_finish(flow);
}

void route_decided(struct flow *flow, struct decision *decision)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state != FLOW_DECIDING) {
        route_rechecked(flow, decision);
        return;
    }
    flow->decision = decision_hold(decision);
    if (decision->verdict == NS_NOT_YET && flow->direction == NS_OUTBOUND && held_is(&flow->held)) {
        attempt_give_up(flow, CAUSE_PASSING, decision->reason);
    } else if (decision->verdict != NS_ALLOW) {
        route_refuse(flow, decision);
    } else if (goes_natively(flow, decision)) {
        route_natively(flow);
    } else if (flow->direction == NS_INBOUND) {
        snprintf(flow->reason, sizeof(flow->reason), "%s", flow->mtls ? "" : decision->reason);
        route_to_application(flow);
    } else if (decision->endpoint_count == 0) {
        flow_fail(flow, "the answer names no endpoint");
    } else {
        attempt_begin(flow);
    }
}

static void route_ask(struct flow *flow, int established)
{
    struct ns_question question;
    int waiting;
    route_question(flow, &question, established);
    struct decision *decision = decisions_get(flow->worker->decisions, &flow->workload->decisions, &question,
                                              &flow->waiter, &waiting);
    if (decision != NULL) {
        route_decided(flow, decision);
    } else if (!waiting && flow->state == FLOW_DECIDING) {
        quota_refused(flow->workload->quota, NS_LIMIT_QUESTIONS, flow->worker->now_ms);
        flow->cause = CAUSE_PASSING;
        flow_fail(flow, quota_reason(NS_LIMIT_QUESTIONS));
    } else if (!waiting)
        flow->worker->rechecks.missed = 1; /* a live flow is asked about again at the next tick */
}

static int concerned(const struct flow *flow, const struct concern *concern, int established)
{
    struct ns_question question;
    route_question(flow, &question, established);
    return concern_has(concern, &question);
}

void route_recheck(struct flow *flow, const struct concern *concern)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (!link_empty(&flow->waiter.link))
        return;
    int established = flow->state == FLOW_OPEN;
    if (flow->state == FLOW_DECIDING && flow->wake_ms != 0)
        route_wake(flow);
    else if (flow->state >= FLOW_CONNECTING && flow->state < FLOW_CLOSED &&
             concerned(flow, concern, established))
        route_ask(flow, established);
}

void route_wake(struct flow *flow)
{
    NS_CHECK(flow, FLOW_MAGIC);
    flow->wake_ms = 0;
    if (flow->state == FLOW_DECIDING) {
        route_ask(flow, 0);
    } else if (flow->leader != NULL) {
        flow_follow_no_more(flow);
        route_to_application(flow);
    } else if (flow->state == FLOW_CONNECTING && flow->direction == NS_OUTBOUND) {
        attempt_overdue(flow);
    }
}

/* ---- its turn ---- */

void route_continue(struct flow *flow)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state == FLOW_DECIDING)
        route_ask(flow, 0); /* it has just begun; or the answer has come, and is in the cache */
    else if (flow->state == FLOW_CONNECTING && flow->direction == NS_INBOUND && flow->near.fd < 0)
        route_to_application(flow); /* it has followed another */
    else
        relay_flow(flow);
}

void route_accept(struct worker *worker, struct workload *workload, enum ns_direction direction, int fd,
                  const struct ns_address *peer)
{
    struct flow *flow = flow_new(worker, workload, direction);
    struct pollable *side = direction == NS_OUTBOUND ? &flow->near : &flow->far;
    if (direction == NS_OUTBOUND)
        socket_bound(fd, quota_buffers(workload->quota));
    flow_adopt(flow, side, fd);
    flow->source = *peer;
    if (socket_local_address(fd, &flow->destination) != 0 || worker_watch(worker, side) != 0) {
        flow_fail(flow, "the connection could not be set up");
        return;
    }
    flow->endpoint = flow->destination;
    if (direction == NS_OUTBOUND)
        bearing_enter(flow);
    route_ask(flow, 0);
}

/* ---- with a parked SYN ---- */

static struct flow *flow_held(struct worker *worker, const struct tuple *tuple)
{
    struct held *held = held_find(&worker->parking, tuple);
    return held != NULL ? container_of(held, struct flow, held) : NULL;
}

void route_park(struct worker *worker, struct workload *workload, enum ns_direction direction,
                struct syn *syn, uint32_t mark, int native)
{
    struct flow *flow = flow_new(worker, workload, direction);
    flow->source = syn->source;
    flow->destination = flow->endpoint = syn->destination;
    flow->deadline_ms = 0;
    held_begin(&worker->parking, workload->key, &flow->held, syn, mark);
    flow->held.native = native;
    if (direction == NS_OUTBOUND)
        bearing_enter(flow);
    if (turns_event(&worker->turns, &workload->budget))
        route_ask(flow, 0);
    else
        task_wait(&worker->turns, &workload->budget, &flow->task);
}

void route_again(struct worker *worker, const struct tuple *tuple, uint32_t sequence)
{
    struct flow *flow = flow_held(worker, tuple);
    if (flow == NULL || flow->held.syn->sequence != sequence || flow->state != FLOW_RELEASED)
        return;
    flow->deadline_ms = worker->now_ms + RELEASED_MS;
    syn_release(worker, flow->workload, &flow->held);
}

void route_gave_up(struct worker *worker, const struct tuple *tuple, uint32_t sequence)
{
    struct flow *flow = flow_held(worker, tuple);
    if (flow == NULL || flow->held.syn->sequence != sequence)
        return;
    held_end(&flow->held);
    /* What it waited for, if it was tried in vain. */
    flow_abort(flow,
               flow->state == FLOW_DECIDING && flow->rounds > 0 ? flow->reason : "the application gave up");
}

int route_pair(struct worker *worker, const struct tuple *tuple, int fd)
{
    struct flow *flow = flow_held(worker, tuple);
    if (flow == NULL || flow->state != FLOW_RELEASED)
        return 0;
    held_end(&flow->held);
    socket_bound(fd, quota_buffers(flow->workload->quota));
    flow_adopt(flow, &flow->near, fd);
    if (flow->is_cut)
        flow_abort(flow, flow->reason);
    else if (worker_watch(worker, &flow->near) != 0)
        flow_fail(flow, "the connection could not be set up");
    else
        route_open(flow);
    return 1;
}

/* ---- events of its sockets ---- */

static void side_connected(struct flow *flow, struct pollable *side, uint32_t events)
{
    int error = 0;
    if (events & (EPOLLERR | EPOLLHUP)) {
        error = socket_error(side->fd);
        if (error == 0 || error == ECONNRESET) {
            side->failed = ECONNRESET; /* made, and reset before we looked */
            error = 0;
        }
    }
    if (error == 0) {
        if (side == &flow->near)
            application_connected(flow);
        else
            route_reached(flow);
        return;
    }
    enum cause cause = cause_of_errno(error);
    if (flow->direction == NS_OUTBOUND) {
        attempt_failed(flow, 0, cause,
                       error == ECONNREFUSED ? "the endpoint refused" : "the endpoint cannot be reached");
    } else {
        flow->cause = cause;
        flow_fail(flow,
                  error == ECONNREFUSED ? "the application refused" : "the application cannot be reached");
    }
}

void route_event(struct flow *flow, struct pollable *side, uint32_t events)
{
    NS_CHECK(flow, FLOW_MAGIC);
    int dialled = side == (flow->direction == NS_OUTBOUND ? &flow->far : &flow->near);
    /* Noted in every state: an application that speaks first may do so in the very event that tells of its
     * acceptance, and an edge is told once. */
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        side->ending = 1;
    if (events & EPOLLPRI)
        side->urgent = 1;
    if ((events & EPOLLRDHUP) && !(events & EPOLLERR) && !side->urgent)
        side->finished = 1;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        side->readable = 1;
    if (events & EPOLLOUT)
        side->writable = 1;
    if (flow->state == FLOW_CONNECTING && dialled) {
        if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            side_connected(flow, side, events);
        return;
    }
    if (events & EPOLLERR) {
        int error = socket_error(side->fd);
        side->failed = error != 0 ? error : ECONNRESET;
    }
    if (flow->state == FLOW_OPEN) {
        struct turns *turns = &flow->worker->turns;
        if (turns_event(turns, &flow->workload->budget))
            relay_flow(flow);
        else
            task_wait(turns, &flow->workload->budget, &flow->task);
    } else if (side->failed && flow->state != FLOW_RELEASED)
        flow_abort(flow, "the client went away");
}

/* ---- what its stream tells ---- */

static struct flow *flow_of(struct stream *stream)
{
    struct flow *flow = container_of(stream, struct flow, stream);
    NS_CHECK(flow, FLOW_MAGIC);
    return flow;
}

static void flow_note_tls(struct flow *flow)
{
    stream_describe(&flow->stream, flow->peer, &flow->facts);
}

static void on_requested(struct tunnel *tunnel, int32_t id, const struct ns_address *source,
                         const struct ns_address *destination)
{
    struct flow *flow = flow_new(tunnel->worker, tunnel->workload, NS_INBOUND);
    struct budget *budget = &tunnel->workload->budget;
    flow->mtls = 1;
    flow->source = *source;
    flow->destination = flow->endpoint = *destination;
    flow->deadline_ms = 0; /* the peer resets it when its application gives up */
    stream_accept(&flow->stream, tunnel, id);
    flow_note_tls(flow);
    /* A hundred may come at once, behind a handshake. */
    if (turns_event(&flow->worker->turns, budget))
        route_continue(flow);
    else
        task_wait(&flow->worker->turns, budget, &flow->task);
}

static void on_answered(struct stream *stream)
{
    flow_note_tls(flow_of(stream));
}

static void on_opened(struct stream *stream)
{
    route_reached(flow_of(stream));
}

static void on_refused(struct stream *stream, int again, enum cause cause, const char *reason)
{
    attempt_failed(flow_of(stream), again, cause, reason);
}

static void on_delayed(struct stream *stream, const char *reason)
{
    attempt_delayed(flow_of(stream), CAUSE_PASSING, reason);
}

static void on_broken(struct stream *stream, const char *reason)
{
    flow_cut(flow_of(stream), reason);
}

static void on_lost(struct stream *stream, int again, enum cause cause, const char *reason)
{
    struct flow *flow = flow_of(stream);
    if (flow->state == FLOW_CONNECTING && flow->direction == NS_OUTBOUND) {
        attempt_failed(flow, again, cause, reason);
        return;
    }
    stream_leave(stream);
    flow_cut(flow, reason);
}

const struct stream_events ROUTE_EVENTS = {
    .requested = on_requested,
    .answered = on_answered,
    .opened = on_opened,
    .refused = on_refused,
    .delayed = on_delayed,
    .data = relay_data,
    .end = relay_end,
    .closed = relay_closed,
    .broken = on_broken,
    .lost = on_lost,
    .source = relay_source,
    .read = relay_gathered,
};
