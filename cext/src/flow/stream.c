/* stream.c: see stream.h. All of it runs inside h2_feed and h2_produce. */
#include "flow/stream.h"

#include <string.h>

#include "flow/flow.h"
#include "wire/names.h"
#include "flow/relay.h"
#include "flow/tunnel_bytes.h"

enum { REFUSED_STREAM = 7 }; /* RFC 9113 section 7: the peer did not begin to process the stream */

static void flow_note_tls(struct flow *flow)
{
    memcpy(flow->peer, flow->tunnel->tls.peer, sizeof(flow->peer));
    tls_describe(&flow->tunnel->tls, flow->tls, sizeof(flow->tls));
}

static void on_request(void *owner, int32_t id, const struct ns_address *authority,
                       const struct ns_address *client)
{
    struct tunnel *tunnel = owner;
    if (!address_same_ip(authority, &tunnel->local)) {
        h2_respond(tunnel->h2, id, 400);
        tunnel_note_refused(tunnel, 400, authority, "wrong-address");
        return;
    }
    struct workload *workload = tunnel->workload;
    enum ns_limit limit = quota_admit(workload->quota, tunnel->worker->now_us);
    if (limit != NS_LIMITS) {
        /* Not REFUSED_STREAM, which asks to try the same again at once: another endpoint may do. */
        h2_respond(tunnel->h2, id, 503);
        tunnel_note_refused(tunnel, 503, authority, quota_reason(limit));
        return;
    }
    turns_spend(&workload->share, TURN_ACCEPT);
    struct flow *flow = flow_new(tunnel->worker, tunnel->workload, NS_INBOUND);
    flow->stream = id;
    flow->mtls = 1;
    flow_join_tunnel(flow, tunnel);
    h2_stream_set(tunnel->h2, id, flow);
    flow->source = tunnel->peer;
    /* The port is told by the peer; the address is the one that the connection came from. */
    flow->source.port = address_same_ip(client, &tunnel->peer) ? client->port : 0;
    flow->destination = *authority;
    flow->endpoint = *authority;
    flow_note_tls(flow);
    /* A hundred may come at once, behind a handshake. */
    if (turns_event(&flow->worker->turns, &workload->share))
        flow_continue(flow);
    else
        task_wait(&flow->worker->turns, &workload->share, &flow->task);
}

static void on_malformed(void *owner, int status)
{
    struct tunnel *tunnel = owner;
    tunnel_note_refused(tunnel, status, &tunnel->local,
                        status == 400 ? "peer sent a request that is no CONNECT to an address"
                                      : "peer sent a request with too many header fields");
}

/* The peer has sent what does not belong there: no tunnel's bytes before its answer, or headers behind it. */
static void flow_out_of_turn(struct flow *flow)
{
    h2_stream_set(flow->tunnel->h2, flow->stream, NULL);
    h2_reset(flow->tunnel->h2, flow->stream, H2_PROTOCOL_ERROR);
    flow->stream = 0;
    tunnel_touch(flow->tunnel);
    if (flow->state == FLOW_CONNECTING)
        flow_route_failed(flow, 0, "the peer refused the request");
    else
        flow_abort(flow, "the peer reset the stream");
}

static int is_unanswered(const struct flow *flow)
{
    return flow->state == FLOW_CONNECTING && flow->direction == NS_OUTBOUND;
}

static void on_response(void *owner, void *stream, int status)
{
    (void)owner;
    struct flow *flow = stream;
    NS_CHECK(flow, FLOW_MAGIC);
    if (!is_unanswered(flow)) {
        flow_out_of_turn(flow);
        return;
    }
    if (status < 200)
        return;
    if (status < 300) {
        flow_note_tls(flow);
        flow_open(flow);
        return;
    }
    h2_stream_set(flow->tunnel->h2, flow->stream, NULL);
    h2_reset(flow->tunnel->h2, flow->stream, H2_CANCEL);
    flow_note_tls(flow);
    flow_route_failed(flow, 0,
                      status == 401   ? "the peer's policy denied it"
                      : status == 503 ? "the peer could not reach the application"
                                      : "the peer refused the request");
}

static void on_data(void *owner, void *stream, const uint8_t *bytes, size_t length)
{
    if (is_unanswered(stream))
        flow_out_of_turn(stream);
    else
        relay_stream_data(owner, stream, bytes, length);
}

static void on_end(void *owner, void *stream)
{
    if (is_unanswered(stream))
        flow_out_of_turn(stream);
    else
        relay_stream_end(owner, stream);
}

/* Drops, or inbound refuses, what the application still sends, for as long as a connection may take to end.
 */
static void flow_discard(struct flow *flow)
{
    flow->to_far.state = HALF_DISCARDING;
    flow->deadline_ms = flow->worker->now_ms + flow->worker->options->connect_timeout_ms;
    link_append(&flow->worker->waiting_flows, &flow->waiting_link);
}

static void on_closed(void *owner, void *stream, uint32_t code)
{
    (void)owner;
    struct flow *flow = stream;
    NS_CHECK(flow, FLOW_MAGIC);
    flow->stream = 0;
    relay_gathered(flow->worker);
    if (flow->state == FLOW_CLOSED)
        return;
    if (flow->state == FLOW_CONNECTING && flow->direction == NS_OUTBOUND) {
        flow_route_failed(flow, code == REFUSED_STREAM, "the peer reset the request");
        return;
    }
    flow_leave_tunnel(flow);
    if (code == H2_NO_ERROR && flow->state == FLOW_OPEN && flow->to_near.state >= HALF_ENDING) {
        /* Complete: the application is to have all of it, also when the peer takes no more of ours (RFC 9113
         * section 8.1; Envoy resets so when its application ends first). Closing while it still sends would
         * reset it and destroy what it has not received yet. Only a server may so decline the rest of what it
         * answers. A client that does is one that has closed its socket: what is sent to it meets a reset,
         * once the application has what came before. */
        if (flow->to_far.state < HALF_ENDED)
            flow_discard(flow);
        flow_relay(flow); /* finishes once the application has taken what is pending */
    } else
        flow_abort(flow,
                   flow->near.failed ? "the application reset the connection" : "the peer reset the stream");
}

/* A frame costs about half of a unit. */
static int on_enough(void *owner)
{
    struct tunnel *tunnel = owner;
    struct share *share = &tunnel->workload->share;
    turns_spend(share, 1);
    return !turns_left(&tunnel->worker->turns, share, TURN_SHARE);
}

static void on_goaway(void *owner)
{
    tunnel_retire(owner);
}

static void on_pong(void *owner)
{
    struct tunnel *tunnel = owner;
    tunnel->ping_ms = 0;
}

const struct h2_events STREAM_EVENTS = {
    .request = on_request,
    .malformed = on_malformed,
    .response = on_response,
    .data = on_data,
    .end = on_end,
    .closed = on_closed,
    .source = relay_stream_source,
    .enough = on_enough,
    .goaway = on_goaway,
    .pong = on_pong,
};
