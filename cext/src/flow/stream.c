/* stream.c: see stream.h. What begins with on_ runs inside h2_feed and h2_produce. */
#include "flow/stream.h"

#include <errno.h>
#include <string.h>

#include "flow/pool.h"
#include "flow/windows.h"
#include "wire/h2.h"
#include "wire/names.h"

enum { REFUSED_STREAM = 7 }; /* RFC 9113 section 7: the peer did not begin to process the stream */

_Static_assert((int)STREAM_LATER == (int)H2_SOURCE_LATER && (int)STREAM_FAILED == (int)H2_SOURCE_FAILED,
               "what a source returns goes through");

static const struct stream_events *events_of(const struct tunnel *tunnel)
{
    return tunnel->worker->stream_events;
}

void stream_init(struct stream *stream, struct byte_queue *unread)
{
    stream->unread = unread;
    stream->window = H2_STREAM_WINDOW;
    link_init(&stream->link);
}

/* ---- its tunnel ---- */

static void stream_join(struct stream *stream, struct tunnel *tunnel, int32_t id, enum stream_state state)
{
    stream->id = id;
    stream->state = state;
    stream->tunnel = tunnel;
    link_append(&tunnel->streams, &stream->link);
    tunnel->stream_count++;
    if (stream->patience_ms != 0)
        tunnel_note_patience(tunnel, stream->patience_ms);
    if (tunnel->holder != NULL)
        byte_queue_charge(stream->unread, &tunnel->holder->account);
}

void stream_leave(struct stream *stream)
{
    struct tunnel *tunnel = stream->tunnel;
    if (tunnel == NULL)
        return;
    windows_parted(stream);
    /* A holder lasts while anything is held of it, and no longer. */
    if (stream->unread->length == 0)
        byte_queue_charge(stream->unread, &tunnel->workload->quota->memory);
    stream->id = 0;
    stream->state = STREAM_NONE;
    stream->tunnel = NULL;
    link_remove(&stream->link);
    tunnel->stream_count--;
    tunnel_stream_left(tunnel);
}

/* The session forgets it. */
static void stream_forget(struct stream *stream)
{
    h2_stream_set(stream->tunnel->h2, stream->id, NULL);
    tunnel_touch(stream->tunnel);
}

static void stream_reset(struct stream *stream, uint32_t code)
{
    stream_forget(stream);
    h2_reset(stream->tunnel->h2, stream->id, code);
    stream->id = 0;
}

void stream_close(struct stream *stream, int was_open)
{
    if (stream->tunnel == NULL)
        return;
    if (stream->id > 0)
        stream_reset(stream, was_open ? H2_CONNECT_ERROR : H2_CANCEL);
    windows_dropped(stream);
    stream_leave(stream);
}

void stream_describe(const struct stream *stream, char peer[NS_IDENTITY_MAX], struct tls_facts *facts)
{
    memcpy(peer, stream->tunnel->tls.peer, NS_IDENTITY_MAX);
    *facts = stream->tunnel->tls.facts;
}

/* ---- beginning ---- */

int stream_connect(struct stream *stream, struct worker *worker, struct workload *workload,
                   const struct ns_endpoint *endpoint, const struct ns_address *client,
                   const struct ns_address *destination)
{
    struct tunnel *tunnel = pool_tunnel(worker, workload, client, &endpoint->address, endpoint->identity,
                                        endpoint->tunnel == NS_TUNNEL_BY_NAME);
    if (tunnel == NULL)
        return -1;
    int32_t id = h2_connect(tunnel->h2, &endpoint->address, client, stream);
    if (id < 0) {
        errno = ENOMEM;
        return -1;
    }
    stream_join(stream, tunnel, id, STREAM_ASKED);
    preconnect_used(worker, &tunnel->use, destination);
    tunnel_touch(tunnel);
    return 0;
}

static void on_request(void *owner, int32_t id, const struct ns_address *authority,
                       const struct ns_address *client)
{
    struct tunnel *tunnel = owner;
    if (!address_same_ip(authority, &tunnel->local)) {
        h2_respond(tunnel->h2, id, OUTCOME_MALFORMED);
        tunnel_note_refused(tunnel, OUTCOME_MALFORMED, authority, "wrong-address");
        return;
    }
    struct workload *workload = tunnel->workload;
    enum ns_limit limit = quota_admit(workload->quota, tunnel->worker->now_us);
    if (limit != NS_LIMITS) {
        /* Not REFUSED_STREAM, which asks to try the same again at once: another endpoint may do. */
        h2_respond(tunnel->h2, id, OUTCOME_LIMIT);
        tunnel_note_refused(tunnel, OUTCOME_LIMIT, authority, quota_reason(limit));
        return;
    }
    turns_spend(&workload->budget, TURN_ACCEPT);
    /* The port is told by the peer; the address is the one that the connection came from. */
    struct ns_address source = tunnel->peer;
    source.port = address_same_ip(client, &tunnel->peer) ? client->port : 0;
    events_of(tunnel)->requested(tunnel, id, &source, authority);
}

static void on_malformed(void *owner, enum outcome outcome)
{
    struct tunnel *tunnel = owner;
    tunnel_note_refused(tunnel, outcome, &tunnel->local,
                        outcome == OUTCOME_MALFORMED ? "peer sent a request that is no CONNECT to an address"
                                                     : "peer sent a request with too many header fields");
}

void stream_accept(struct stream *stream, struct tunnel *tunnel, int32_t id)
{
    stream_join(stream, tunnel, id, STREAM_OPEN);
    h2_stream_set(tunnel->h2, id, stream);
}

void stream_let_in(struct stream *stream)
{
    if (stream->tunnel == NULL)
        return;
    h2_respond(stream->tunnel->h2, stream->id, OUTCOME_OPEN);
    tunnel_touch(stream->tunnel);
}

void stream_refuse(struct stream *stream, enum outcome outcome)
{
    stream_forget(stream);
    h2_respond(stream->tunnel->h2, stream->id, outcome);
    stream->id = 0;
}

/* The peer has sent what does not belong there: no tunnel's bytes before its answer, or headers behind it.
 */
static void stream_out_of_turn(struct stream *stream)
{
    const struct stream_events *events = events_of(stream->tunnel);
    int unanswered = stream->state == STREAM_ASKED;
    stream_reset(stream, H2_PROTOCOL_ERROR);
    if (unanswered)
        events->refused(stream, 0, CAUSE_REFUSED, "the peer refused the request");
    else
        events->broken(stream, "the peer reset the stream");
}

/* What the list of connections says of a request that was answered so. */
static const char *reason_of(enum outcome outcome)
{
    switch (outcome) {
    case OUTCOME_REFUSED:
        return "the application refused the peer";
    case OUTCOME_UNROUTABLE:
        return "the peer has no way to the application";
    case OUTCOME_TIMEOUT:
        return "the application does not answer the peer";
    case OUTCOME_UNAVAILABLE:
        return "the peer cannot serve it now";
    case OUTCOME_LIMIT:
        return "the peer has met a limit";
    case OUTCOME_DENIED:
        return "the peer's policy denied it";
    case OUTCOME_FAILED:
        return "the peer could not reach the application";
    default:
        return "the peer refused the request";
    }
}

static void on_response(void *owner, void *of, int status, enum outcome outcome)
{
    struct tunnel *tunnel = owner;
    struct stream *stream = of;
    if (stream->state != STREAM_ASKED) {
        stream_out_of_turn(stream);
        return;
    }
    if (status < 200)
        return;
    if (status < 300) {
        stream->state = STREAM_OPEN;
        events_of(tunnel)->answered(stream);
        events_of(tunnel)->opened(stream);
        return;
    }
    stream_reset(stream, H2_CANCEL);
    events_of(tunnel)->answered(stream);
    events_of(tunnel)->refused(stream, 0, outcome_cause(outcome), reason_of(outcome));
}

/* ---- bytes ---- */

/* What on_data and stream_taken seldom come to stands apart: what they do for each frame then needs no frame
 * on the stack. */
#define SELDOM static __attribute__((noinline)) void

SELDOM on_data_withheld(struct tunnel *tunnel, struct stream *stream, const uint8_t *bytes, size_t length)
{
    windows_received(stream, length);
    events_of(tunnel)->data(tunnel, stream, bytes, length);
}

/* For each frame: its calls are its last steps, so that it needs no frame on the stack; so is stream_taken.
 */
static void on_data(void *owner, void *of, const uint8_t *bytes, size_t length)
{
    struct tunnel *tunnel = owner;
    struct stream *stream = of;
    if (stream->state == STREAM_ASKED) {
        stream_out_of_turn(stream);
        return;
    }
    if (tunnel->withholding)
        on_data_withheld(tunnel, stream, bytes, length);
    else
        events_of(tunnel)->data(tunnel, stream, bytes, length);
}

static void on_end(void *owner, void *of)
{
    struct tunnel *tunnel = owner;
    struct stream *stream = of;
    if (stream->state == STREAM_ASKED)
        stream_out_of_turn(stream);
    else
        events_of(tunnel)->end(stream);
}

static ssize_t on_source(void *owner, void *of, uint8_t *out, size_t capacity, int *end)
{
    return events_of(owner)->source(owner, of, out, capacity, end);
}

void stream_ready(struct stream *stream)
{
    h2_resume(stream->tunnel->h2, stream->id);
    tunnel_touch(stream->tunnel);
}

SELDOM stream_taken_and_look(struct stream *stream, size_t length, uint64_t received)
{
    windows_taken(stream, length, received);
    if (stream->id > 0)
        h2_taken(stream->tunnel->h2, stream->id, length);
}

void stream_taken(struct stream *stream, size_t length, uint64_t received)
{
    struct tunnel *tunnel = stream->tunnel;
    tunnel->taken += length;
    if (stream->owed > 0 || tunnel->taken >= tunnel->widen_bytes || received >= stream->widen_bytes)
        stream_taken_and_look(stream, length, received);
    else if (stream->id > 0) /* else it has just ended */
        h2_taken(tunnel->h2, stream->id, length);
}

int stream_is_blocked(const struct stream *stream)
{
    return h2_stream_blocked(stream->tunnel->h2, stream->id);
}

/* ---- the end ---- */

static void on_closed(void *owner, void *of, uint32_t code)
{
    struct tunnel *tunnel = owner;
    struct stream *stream = of;
    stream->id = 0;
    events_of(tunnel)->read(tunnel->worker);
    if (stream->tunnel == NULL)
        return; /* what was written last has ended it */
    if (stream->state == STREAM_ASKED && code == H2_CONNECT_ERROR) {
        /* The application had accepted: it was its connection that was reset (RFC 9113 section 8.5). */
        stream->state = STREAM_OPEN;
        events_of(tunnel)->answered(stream);
        events_of(tunnel)->opened(stream);
        if (stream->tunnel == NULL)
            return;
    }
    if (stream->state == STREAM_ASKED) {
        int again = code == REFUSED_STREAM;
        events_of(tunnel)->refused(stream, again, again ? CAUSE_PASSING : CAUSE_REFUSED,
                                   "the peer reset the request");
        return;
    }
    stream_leave(stream);
    events_of(tunnel)->closed(stream, code == H2_NO_ERROR);
}

void stream_bear(struct stream *stream, uint32_t patience_ms)
{
    stream->patience_ms =
        patience_ms != 0 && patience_ms < PATIENCE_LEAST_MS ? PATIENCE_LEAST_MS : patience_ms;
    if (stream->tunnel != NULL && patience_ms != 0)
        tunnel_note_patience(stream->tunnel, stream->patience_ms);
}

void stream_give_up(struct stream *stream, const char *reason)
{
    const struct stream_events *events = events_of(stream->tunnel);
    int unanswered = stream->state == STREAM_ASKED;
    stream_reset(stream, H2_CANCEL);
    if (unanswered)
        events->refused(stream, 1, CAUSE_SILENT, reason);
    else
        events->broken(stream, reason);
}

/* ---- the tunnel ---- */

/* A frame costs about half of a unit. */
static int on_enough(void *owner)
{
    struct tunnel *tunnel = owner;
    struct budget *budget = &tunnel->workload->budget;
    turns_spend(budget, 1);
    return !turns_left(&tunnel->worker->turns, budget, TURN_BUDGET);
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

const struct h2_events STREAM_H2_EVENTS = {
    .request = on_request,
    .malformed = on_malformed,
    .response = on_response,
    .data = on_data,
    .end = on_end,
    .closed = on_closed,
    .source = on_source,
    .enough = on_enough,
    .goaway = on_goaway,
    .pong = on_pong,
};
