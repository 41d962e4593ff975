/*
 * flow.c: see flow.h. From acceptance to the first byte, and the end; relay.c moves the bytes in between, and
 * stream.c tells what a tunnel's peer says of it.
 *
 * The application on the near side of an outbound flow has a connected socket from the start: the kernel
 * completed its handshake with us. Whatever goes wrong afterwards is told to it as a reset. Nothing is read
 * from it before the far side is up, so nothing is lost when another endpoint or tunnel is tried, and a far
 * side that never comes up gets not one byte.
 */
#include "flow/flow.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "wire/names.h"
#include "flow/relay.h"
#include "snapshot.h"
#include "flow/tunnel_bytes.h"
#include "flow/warm.h"

enum {
    ATTEMPTS_MAX = 3, /* tunnels tried for one endpoint when they break before the stream was answered */
    DEADLINE_SPARE_MS = 5000, /* a flow outlives the connection attempts it waits for */
};

struct flow *flow_new(struct worker *worker, struct workload *workload, enum ns_direction direction)
{
    struct flow *flow = ns_alloc(sizeof(*flow));
    flow->magic = FLOW_MAGIC;
    flow->direction = direction;
    flow->id = ((uint64_t)worker->index << 48) + worker->next_flow_id++;
    flow->worker = worker;
    flow->workload = workload;
    flow->window = H2_STREAM_WINDOW;
    link_init(&flow->tunnel_link);
    link_init(&flow->task.link);
    flow->task.kind = TASK_FLOW;
    link_init(&flow->waiting_link);
    link_init(&flow->waiter.link);
    flow->near.fd = -1;
    flow->near.kind = POLL_NEAR;
    flow->far.fd = -1;
    flow->far.kind = POLL_FAR;
    flow->to_near.pending.account = flow->to_far.pending.account = &workload->quota->memory;
    flow->recheck_round = worker->recheck_round;
    flow->accepted_ms = worker->now_ms;
    flow->deadline_ms = worker->now_ms + worker->options->connect_timeout_ms + DEADLINE_SPARE_MS;
    link_append(&workload->flows, &flow->link);
    link_append(&worker->waiting_flows, &flow->waiting_link);
    worker->live_flows++;
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

static void side_adopt(struct flow *flow, struct pollable *side, int fd)
{
    quota_descriptors(flow->workload->quota, 1);
    socket_reset_at_death(fd);
    side->fd = fd;
    side->readable = side->writable = side->ending = side->failed = 0;
    side->finished = side->urgent = 0;
}

static void side_close(struct flow *flow, struct pollable *side, void (*how)(int))
{
    if (side->fd < 0)
        return;
    how(side->fd);
    side->fd = -1;
    quota_descriptors(flow->workload->quota, -1);
}

/* ---- the end ---- */

void flow_join_tunnel(struct flow *flow, struct tunnel *tunnel)
{
    flow->tunnel = tunnel;
    link_append(&tunnel->flows, &flow->tunnel_link);
    if (tunnel->holder != NULL)
        byte_queue_charge(&flow->to_near.pending, &tunnel->holder->account);
}

void flow_leave_tunnel(struct flow *flow)
{
    struct tunnel *tunnel = flow->tunnel;
    if (tunnel == NULL)
        return;
    windows_parted(flow);
    /* A holder lasts while anything is held of it, and no longer. */
    if (flow->to_near.pending.length == 0)
        byte_queue_charge(&flow->to_near.pending, &flow->workload->quota->memory);
    flow->tunnel = NULL;
    link_remove(&flow->tunnel_link);
    tunnel_flow_left(tunnel);
}

/* Ends the flow: sockets are closed by `close_side`, the rest is taken apart. */
static void flow_close(struct flow *flow, const char *reason, void (*close_side)(int))
{
    struct worker *worker = flow->worker;
    if (!flow->unlisted)
        snapshot_remember(flow, reason);
    if (flow->tunnel != NULL && flow->stream > 0) {
        h2_stream_set(flow->tunnel->h2, flow->stream, NULL);
        h2_reset(flow->tunnel->h2, flow->stream, flow->state == FLOW_OPEN ? H2_CONNECT_ERROR : H2_CANCEL);
        tunnel_touch(flow->tunnel);
    }
    byte_queue_clear(&flow->to_near.pending, &worker->blocks);
    byte_queue_clear(&flow->to_far.pending, &worker->blocks);
    if (flow->tunnel != NULL)
        windows_dropped(flow);
    flow_leave_tunnel(flow);
    flow->state = FLOW_CLOSED;
    side_close(flow, &flow->near, close_side);
    side_close(flow, &flow->far, close_side);
    relay_give_pipe(flow, &flow->to_near);
    relay_give_pipe(flow, &flow->to_far);
    if (worker->gathered.flow == flow)
        worker->gathered.flow = NULL;
    decision_waiter_cancel(&flow->waiter);
    link_remove(&flow->task.link);
    link_remove(&flow->waiting_link);
    link_remove(&flow->link);
    link_append(&worker->dead_flows, &flow->link);
    worker->live_flows--;
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

/* An inbound flow that comes to nothing. `status`: what its stream is answered; 0: it has none. */
static void flow_note_refused(struct flow *flow, int status, const char *reason)
{
    const struct refusal refusal = {
        .kind = flow->mtls ? NS_REFUSED_STREAM : NS_REFUSED_PLAINTEXT,
        .direction = NS_INBOUND,
        .status = status,
        .source = flow->source,
        .destination = flow->destination,
        .peer = flow->peer,
        .reason = reason,
    };
    flow->unlisted = 1;
    refusals_note(flow->workload->quota->refusals, &refusal, flow->worker->now_ms);
}

/* Answers an inbound stream that was not answered yet. */
static void flow_answer_refused(struct flow *flow, int status, const char *reason)
{
    flow_note_refused(flow, status, reason);
    h2_stream_set(flow->tunnel->h2, flow->stream, NULL);
    h2_respond(flow->tunnel->h2, flow->stream, status);
    tunnel_touch(flow->tunnel);
    flow->stream = 0;
}

void flow_fail(struct flow *flow, const char *reason)
{
    flow->workload->stats.failed++;
    if (flow->direction == NS_INBOUND && flow->tunnel != NULL && flow->state < FLOW_OPEN)
        flow_answer_refused(flow, 503, reason);
    flow_abort(flow, reason);
}

/* ---- open ---- */

void flow_open(struct flow *flow)
{
    flow->state = FLOW_OPEN;
    link_remove(&flow->waiting_link);
    if (flow->mtls)
        flow->workload->stats.tunnelled++;
    else
        flow->workload->stats.plaintext++;
    flow_relay(flow);
}

/* ---- outbound: towards an endpoint ---- */

static int endpoint_begin(struct flow *flow, const struct ns_endpoint *endpoint)
{
    struct worker *worker = flow->worker;
    turns_spend(&flow->workload->share, TURN_DIAL);
    flow->endpoint = endpoint->address;
    flow->mtls = endpoint->tunnel != 0;
    if (flow->mtls) {
        struct tunnel *tunnel = tunnel_to(worker, flow->workload, &endpoint->address, endpoint->identity,
                                          endpoint->tunnel == NS_TUNNEL_BY_NAME);
        if (tunnel == NULL)
            return -1;
        flow->stream = h2_connect(tunnel->h2, &endpoint->address, &flow->source, flow);
        if (flow->stream < 0)
            return -1;
        flow_join_tunnel(flow, tunnel);
        warm_used(tunnel, &flow->destination);
        tunnel_touch(tunnel);
        return 0;
    }
    snprintf(flow->reason, sizeof(flow->reason), "%s", endpoint->reason);
    int fd = socket_connect(&flow->workload->netns, &endpoint->address, NULL, NS_MARK_CORE, 0);
    if (fd < 0)
        return -1;
    side_adopt(flow, &flow->far, fd);
    return worker_watch(worker, &flow->far);
}

/* Tries endpoints in turn, starting at the decision's next one, until one can be dialled. */
static void flow_route(struct flow *flow, const char *failure)
{
    struct decision *decision = flow->decision;
    uint32_t limit = decision->endpoint_count > ATTEMPTS_MAX ? decision->endpoint_count : ATTEMPTS_MAX;
    flow->state = FLOW_CONNECTING;
    while (flow->attempts < limit) {
        uint32_t chosen = decision->next_endpoint++ % decision->endpoint_count;
        flow->attempts++;
        if (endpoint_begin(flow, &decision->endpoints[chosen]) == 0)
            return;
        side_close(flow, &flow->far, socket_close);
        failure = "the endpoint cannot be dialled";
    }
    flow_fail(flow, failure);
}

void flow_route_failed(struct flow *flow, int again, const char *reason)
{
    side_close(flow, &flow->far, socket_close);
    flow->stream = 0;
    flow_leave_tunnel(flow);
    if (again || flow->attempts < flow->decision->endpoint_count)
        flow_route(flow, reason);
    else
        flow_fail(flow, reason);
}

void flow_tunnel_lost(struct flow *flow, const char *reason)
{
    NS_CHECK(flow, FLOW_MAGIC);
    h2_stream_set(flow->tunnel->h2, flow->stream, NULL);
    flow->stream = 0;
    if (flow->state == FLOW_CONNECTING && flow->direction == NS_OUTBOUND) {
        /* A pooled tunnel may have died unnoticed: then a fresh one is tried. One that never opened is told.
         */
        int again = flow->tunnel->opened && flow->tunnel->tls.error[0] == 0;
        flow_route_failed(flow, again, reason);
        return;
    }
    flow_leave_tunnel(flow);
    flow_abort(flow, reason);
}

/* ---- inbound: towards the application ---- */

static void flow_dial_application(struct flow *flow)
{
    flow->state = FLOW_CONNECTING;
    flow->endpoint = flow->destination;
    turns_spend(&flow->workload->share, TURN_DIAL);
    int fd = socket_connect(&flow->workload->netns, &flow->destination, &flow->source, NS_MARK_TO_APP,
                            quota_buffers(flow->workload->quota));
    if (fd < 0) {
        flow_fail(flow, "no socket to the application");
        return;
    }
    side_adopt(flow, &flow->near, fd);
    if (worker_watch(flow->worker, &flow->near) != 0)
        flow_fail(flow, "no socket to the application");
}

static void application_connected(struct flow *flow)
{
    if (flow->tunnel != NULL) {
        h2_respond(flow->tunnel->h2, flow->stream, 200);
        tunnel_touch(flow->tunnel);
    }
    flow_open(flow);
}

/* ---- decisions ---- */

void outbound_question(const struct workload *workload, const struct ns_address *destination,
                       struct ns_question *question)
{
    memset(question, 0, sizeof(*question));
    question->workload = workload->key;
    question->kind = NS_ASK_OUTBOUND;
    question->source = workload->address;
    question->destination = *destination;
}

static void flow_question(const struct flow *flow, struct ns_question *question, int established)
{
    outbound_question(flow->workload, &flow->destination, question);
    question->established = established && !flow->mtls;
    if (flow->direction == NS_INBOUND) {
        question->kind = flow->mtls ? NS_ASK_INBOUND_TUNNEL : NS_ASK_INBOUND_PLAINTEXT;
        question->source = flow->source;
        if (flow->mtls)
            memcpy(question->peer, flow->peer, sizeof(question->peer));
    }
    question->source.port = 0;
}

static void flow_refuse(struct flow *flow, const struct decision *decision)
{
    flow->workload->stats.refused++;
    if (flow->direction == NS_INBOUND && flow->state < FLOW_OPEN) {
        if (flow->tunnel != NULL)
            flow_answer_refused(flow, decision->verdict == NS_REFUSE ? 401 : 503, decision->reason);
        else
            flow_note_refused(flow, 0, decision->reason);
    }
    flow_abort(flow, decision->reason);
}

/* A live flow was asked about again. Only a refusal changes anything. */
static void flow_rechecked(struct flow *flow, const struct decision *decision)
{
    if (decision->verdict == NS_REFUSE)
        flow_refuse(flow, decision);
    else if (decision->verdict == NS_ALLOW && !flow->mtls && flow->state == FLOW_OPEN)
        snprintf(flow->reason, sizeof(flow->reason), "%s",
                 flow->direction == NS_INBOUND  ? decision->reason
                 : decision->endpoint_count > 0 ? decision->endpoints[0].reason
                                                : flow->reason);
}

void flow_decided(struct flow *flow, struct decision *decision)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state != FLOW_DECIDING) {
        flow_rechecked(flow, decision);
        return;
    }
    flow->decision = decision_hold(decision);
    if (decision->verdict != NS_ALLOW) {
        flow_refuse(flow, decision);
    } else if (flow->direction == NS_INBOUND) {
        snprintf(flow->reason, sizeof(flow->reason), "%s", flow->mtls ? "" : decision->reason);
        flow_dial_application(flow);
    } else if (decision->endpoint_count == 0) {
        flow_fail(flow, "the answer names no endpoint");
    } else {
        flow_route(flow, "no endpoint can be reached");
    }
}

static void flow_ask(struct flow *flow, int established)
{
    struct ns_question question;
    int waiting;
    flow_question(flow, &question, established);
    struct decision *decision = decisions_get(flow->worker->decisions, &flow->workload->decisions, &question,
                                              &flow->waiter, &waiting);
    if (decision != NULL) {
        flow_decided(flow, decision);
    } else if (!waiting && flow->state == FLOW_DECIDING) {
        quota_refused(flow->workload->quota, NS_LIMIT_QUESTIONS, flow->worker->now_ms);
        flow_fail(flow, quota_reason(NS_LIMIT_QUESTIONS));
    } else if (!waiting)
        flow->worker->recheck_missed = 1; /* a live flow is asked about again at the next tick */
}

void flow_recheck(struct flow *flow)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state >= FLOW_CONNECTING && flow->state < FLOW_CLOSED && link_empty(&flow->waiter.link))
        flow_ask(flow, flow->state == FLOW_OPEN);
}

/* ---- its turn ---- */

void flow_continue(struct flow *flow)
{
    NS_CHECK(flow, FLOW_MAGIC);
    if (flow->state == FLOW_DECIDING)
        flow_ask(flow, 0); /* it has just begun; or the answer has come, and is in the cache */
    else
        flow_relay(flow);
}

/* ---- acceptance ---- */

void flow_accept(struct worker *worker, struct workload *workload, enum ns_direction direction, int fd,
                 const struct ns_address *peer)
{
    struct flow *flow = flow_new(worker, workload, direction);
    struct pollable *side = direction == NS_OUTBOUND ? &flow->near : &flow->far;
    if (direction == NS_OUTBOUND)
        socket_bound(fd, quota_buffers(workload->quota));
    side_adopt(flow, side, fd);
    flow->source = *peer;
    if (socket_local_address(fd, &flow->destination) != 0 || worker_watch(worker, side) != 0) {
        flow_fail(flow, "the connection could not be set up");
        return;
    }
    flow->endpoint = flow->destination;
    flow_ask(flow, 0);
}

/* ---- events ---- */

static void side_connected(struct flow *flow, struct pollable *side, uint32_t events)
{
    int error = 0;
    if (events & (EPOLLERR | EPOLLHUP)) {
        error = socket_error(side->fd);
        if (error == 0)
            error = ECONNRESET; /* made, and reset before we looked */
    }
    if (error == 0) {
        if (side == &flow->near)
            application_connected(flow);
        else
            flow_open(flow);
    } else if (flow->direction == NS_OUTBOUND) {
        flow_route_failed(flow, 0,
                          error == ECONNREFUSED ? "the endpoint refused" : "the endpoint cannot be reached");
    } else {
        flow_fail(flow,
                  error == ECONNREFUSED ? "the application refused" : "the application cannot be reached");
    }
}

void flow_event(struct flow *flow, struct pollable *side, uint32_t events)
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
        if (turns_event(turns, &flow->workload->share))
            flow_relay(flow);
        else
            task_wait(turns, &flow->workload->share, &flow->task);
    } else if (side->failed)
        flow_abort(flow, "the client went away");
}
