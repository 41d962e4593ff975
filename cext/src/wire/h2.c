/*
 * h2.c: see h2.h.
 *
 * The part that needs care is h2_produce. nghttp2_session_mem_send returns the bytes of one frame at a time,
 * except for DATA frames: for those it calls source_read (how many bytes, and place them) and then send_data
 * (write the header). Between those two calls nghttp2 writes nothing else, so source_read may put the bytes
 * where they will be sent from: 9 bytes behind the end of what has been produced. If the buffer is too full
 * for a frame worth sending, source_read pauses nghttp2, which goes on with the same stream in the next
 * h2_produce.
 */
#include "wire/h2.h"

#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <string.h>

#include "base/link.h"
#include "wire/allowance.h"
#include "wire/frames.h"
#include "wire/h2_options.h"
#include "wire/head.h"
#include "wire/message.h"

enum {
    FRAME_HEADER = 9,
    WORTHWHILE = 4096,       /* less room than this in the buffer: wait for the next one */
    CONTROL_MAX = 16384 + 9, /* the largest frame but DATA: what every peer must accept, with its header */
    H2_MAGIC = 0x6e736832,
};

struct h2 {
    uint32_t magic;
    int server;
    nghttp2_session *session;
    const struct h2_events *events;
    void *owner;
    /* Valid during h2_produce only. */
    uint8_t *out;
    size_t out_length;
    size_t out_capacity;
    int full; /* a stream has something to send, and there was no room for it */

    size_t open_streams;          /* client: opened by us and not closed */
    int goaway_seen, goaway_sent; /* by the peer and by us: no new streams */
    int broken;                   /* the peer violated the protocol: it is not listened to any more */
    int said;                     /* a GOAWAY that says so was produced, the last frame */
    int withholding;              /* the connection's window */
    struct allowance allowance;
    struct frames frames;
    struct message message; /* whose header fields are arriving; HTTP/2 never interleaves two */
};

static void *stream_of(const struct h2 *h2, int32_t id)
{
    return nghttp2_session_get_stream_user_data(h2->session, id);
}

/* ---- receiving ---- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    (void)frame;
    memset(&((struct h2 *)user)->message, 0, sizeof(struct message));
    return 0;
}

/* The peer has gone too far: a GOAWAY with this code is the last that it hears. */
static void h2_end(struct h2 *h2, uint32_t code)
{
    nghttp2_session_terminate_session(h2->session, code);
    h2->broken = 1;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_length, const uint8_t *value, size_t value_length, uint8_t flags, void *user)
{
    (void)session;
    (void)flags;
    struct h2 *h2 = user;
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    if (h2->server)
        message_request_field(&h2->message, name, name_length, value, value_length);
    else
        message_response_field(&h2->message, name, name_length, value, value_length);
    if (h2->message.bytes <= MESSAGE_BYTES_ABUSE)
        return 0;
    h2_end(h2, NGHTTP2_ENHANCE_YOUR_CALM);
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* the session is deaf: what it does with the stream is
                                                     nothing */
}

static void request_complete(struct h2 *h2, int32_t id)
{
    enum outcome outcome = message_refusal(&h2->message);
    if (outcome == OUTCOME_OPEN) {
        h2->events->request(h2->owner, id, &h2->message.authority, &h2->message.client);
        return;
    }
    h2_respond(h2, id, outcome);
    if (h2->events->malformed != NULL)
        h2->events->malformed(h2->owner, outcome);
}

/* Headers have come in on a stream. -1 if none may: malformed ones, and all that come behind a request or the
 * answer that opens a tunnel (RFC 9113 section 8.5). */
static int headers_complete(struct h2 *h2, const nghttp2_frame *frame)
{
    int32_t id = frame->hd.stream_id;
    if (h2->server && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        request_complete(h2, id);
        return 0;
    }
    if (stream_of(h2, id) == NULL)
        return 0; /* it was answered already, or reset */
    int status = h2->server ? 0 : message_status(&h2->message);
    if (status == 0 || (status < 200 && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)))
        return -1;
    enum outcome outcome = status < 300 ? OUTCOME_OPEN : outcome_of(h2->message.said, status);
    h2->events->response(h2->owner, stream_of(h2, id), status, outcome);
    return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct h2 *h2 = user;
    int32_t id = frame->hd.stream_id;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        if (headers_complete(h2, frame) != 0) {
            h2_reset(h2, id, H2_PROTOCOL_ERROR);
            return 0;
        }
        break;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK)
            h2->events->pong(h2->owner);
        break;
    case NGHTTP2_GOAWAY:
        h2->goaway_seen = 1;
        h2->events->goaway(h2->owner);
        break;
    default:
        break;
    }
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) && nghttp2_session_find_stream(session, id) != NULL &&
        stream_of(h2, id) != NULL)
        h2->events->end(h2->owner, stream_of(h2, id));
    return 0;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes,
                         size_t length, void *user)
{
    (void)flags;
    struct h2 *h2 = user;
    void *stream = stream_of(h2, id);
    if (stream == NULL) { /* reset by us, but the peer did not know yet */
        allowance_took(&h2->allowance, session, length);
        nghttp2_session_consume_stream(session, id, length);
        return 0;
    }
    if (!h2->withholding)
        allowance_took(&h2->allowance, session, length);
    h2->events->data(h2->owner, stream, bytes, length);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    struct h2 *h2 = user;
    void *stream = stream_of(h2, id);
    if (nghttp2_session_get_stream_remote_close(session, id) != 1)
        frames_reset(&h2->frames, id);
    if (!h2->server && h2->open_streams > 0)
        h2->open_streams--;
    if (stream != NULL) {
        nghttp2_session_set_stream_user_data(h2->session, id, NULL);
        h2->events->closed(h2->owner, stream, code);
    }
    return 0;
}

/* Among them are requests for which no stream begins (REFUSED_STREAM). */
static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    (void)session;
    (void)error;
    if (frame->hd.type == NGHTTP2_HEADERS)
        frames_reset(&((struct h2 *)user)->frames, frame->hd.stream_id);
    return 0;
}

/* An answer that ends our side before the client's: NO_ERROR ends the client's (RFC 9113 section 8.1). Only
 * once the answer has been written, because nghttp2 sends nothing more for a stream whose reset has been
 * submitted. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct h2 *h2 = user;
    int32_t id = frame->hd.stream_id;
    if (h2->server && frame->hd.type == NGHTTP2_HEADERS && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
        nghttp2_session_get_stream_remote_close(session, id) == 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_NO_ERROR);
    /* nghttp2 answers most violations with a GOAWAY of its own, and is deaf from then on. */
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
        h2->broken = h2->said = 1;
    else if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.last_stream_id != INT32_MAX) /* no notice */
        h2->frames.closing = 1;
    return 0;
}

int h2_broken(const struct h2 *h2)
{
    return h2->broken;
}

int h2_feed(struct h2 *h2, const uint8_t *bytes, size_t length)
{
    NS_CHECK(h2, H2_MAGIC);
    uint32_t error;
    if (!h2->broken && frames_feed(&h2->frames, h2->session, bytes, length, &error) != 0)
        return -1;
    if (!h2->broken && error != 0)
        h2_end(h2, error);
    return h2->said ? -1 : 0;
}

void h2_taken(struct h2 *h2, int32_t id, size_t length)
{
    nghttp2_session_consume_stream(h2->session, id, length); /* a stream that is gone is no error here */
}

void h2_connection_window(struct h2 *h2, uint32_t window)
{
    allowance_set(&h2->allowance, h2->session, window);
}

void h2_withhold(struct h2 *h2, int on)
{
    h2->withholding = on;
}

void h2_give_back(struct h2 *h2, size_t length, size_t withheld)
{
    allowance_give_back(&h2->allowance, h2->session, length, withheld);
}

void h2_widen(struct h2 *h2, int32_t id, uint32_t window)
{
    nghttp2_session_set_local_window_size(h2->session, NGHTTP2_FLAG_NONE, id, (int32_t)window);
}

void h2_windows(struct h2 *h2, uint32_t window)
{
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window}};
    nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, settings, 1);
}

/* ---- sending ---- */

static ssize_t frame_length(nghttp2_session *session, uint8_t type, int32_t id, int32_t connection_window,
                            int32_t stream_window, uint32_t peer_frame_max, void *user)
{
    (void)session;
    (void)type;
    (void)id;
    (void)connection_window;
    (void)stream_window;
    (void)user;
    return peer_frame_max < H2_FRAME_MAX ? (ssize_t)peer_frame_max : H2_FRAME_MAX;
}

static ssize_t source_read(nghttp2_session *session, int32_t id, uint8_t *unused, size_t length,
                           uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)unused;
    (void)source;
    struct h2 *h2 = user;
    void *stream = stream_of(h2, id);
    if (stream == NULL)
        return NGHTTP2_ERR_DEFERRED;
    size_t used = h2->out_length + CONTROL_MAX + FRAME_HEADER;
    if (used + WORTHWHILE > h2->out_capacity) {
        h2->full = 1;
        return NGHTTP2_ERR_PAUSE;
    }
    if (length > h2->out_capacity - used)
        length = h2->out_capacity - used;
    int end = 0;
    ssize_t got =
        h2->events->source(h2->owner, stream, h2->out + h2->out_length + FRAME_HEADER, length, &end);
    if (got == H2_SOURCE_LATER)
        return NGHTTP2_ERR_DEFERRED;
    if (got == H2_SOURCE_FAILED) {
        /* The callback's own way to fail would be told to the peer as INTERNAL_ERROR. */
        h2_reset(h2, id, H2_CONNECT_ERROR);
        return NGHTTP2_ERR_DEFERRED;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (end)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return got;
}

static int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header, size_t length,
                     nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)frame;
    (void)source;
    struct h2 *h2 = user;
    memcpy(h2->out + h2->out_length, header, FRAME_HEADER);
    h2->out_length += FRAME_HEADER + length;
    return 0;
}

int h2_wants_produce(const struct h2 *h2)
{
    return !h2->said && nghttp2_session_want_write(h2->session);
}

size_t h2_produce(struct h2 *h2, uint8_t *out, size_t capacity, int *more)
{
    NS_CHECK(h2, H2_MAGIC);
    h2->out = out;
    h2->out_length = 0;
    h2->out_capacity = capacity;
    h2->full = 0;
    while (!h2->full && !h2->said) {
        h2->full =
            h2->out_length + CONTROL_MAX > capacity || (h2->out_length > 0 && h2->events->enough(h2->owner));
        if (h2->full)
            break;
        const uint8_t *frame;
        ssize_t length = nghttp2_session_mem_send(h2->session, &frame);
        if (length < 0) {
            h2->out = NULL;
            return (size_t)-1;
        }
        if (length == 0)
            break;
        if ((size_t)length > capacity - h2->out_length)
            abort(); /* CONTROL_MAX is wrong: better no process than bytes behind the buffer */
        memcpy(h2->out + h2->out_length, frame, (size_t)length);
        h2->out_length += (size_t)length;
    }
    *more = h2->full;
    h2->out = NULL;
    return h2->out_length;
}

/* ---- streams ---- */

int32_t h2_connect(struct h2 *h2, const struct ns_address *authority, const struct ns_address *client,
                   void *stream)
{
    NS_CHECK(h2, H2_MAGIC);
    struct head head;
    head_request(&head, authority, client);
    nghttp2_data_provider provider = {.read_callback = source_read};
    int32_t id = nghttp2_submit_request(h2->session, NULL, head.fields, head.count, &provider, stream);
    if (id < 0)
        return -1;
    h2->open_streams++;
    return id;
}

size_t h2_room(const struct h2 *h2)
{
    if (h2->goaway_seen || h2->goaway_sent)
        return 0;
    if (nghttp2_session_get_next_stream_id(h2->session) > (1u << 30))
        return 0;
    uint32_t peer = nghttp2_session_get_remote_settings(h2->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    size_t limit = peer < H2_STREAMS_PER_TUNNEL ? peer : H2_STREAMS_PER_TUNNEL;
    return h2->open_streams < limit ? limit - h2->open_streams : 0;
}

void h2_stream_set(struct h2 *h2, int32_t id, void *stream)
{
    nghttp2_session_set_stream_user_data(h2->session, id, stream);
}

void h2_respond(struct h2 *h2, int32_t id, enum outcome outcome)
{
    NS_CHECK(h2, H2_MAGIC);
    struct head head;
    head_response(&head, outcome);
    nghttp2_data_provider provider = {.read_callback = source_read};
    nghttp2_submit_response(h2->session, id, head.fields, head.count,
                            outcome == OUTCOME_OPEN ? &provider : NULL);
    frames_answered(&h2->frames);
}

void h2_resume(struct h2 *h2, int32_t id)
{
    /* Fails when the stream is not deferred: nothing to do then. */
    nghttp2_session_resume_data(h2->session, id);
}

void h2_reset(struct h2 *h2, int32_t id, uint32_t code)
{
    nghttp2_submit_rst_stream(h2->session, NGHTTP2_FLAG_NONE, id, code);
}

int h2_stream_blocked(struct h2 *h2, int32_t id)
{
    return nghttp2_session_get_stream_remote_window_size(h2->session, id) <= 0 ||
           nghttp2_session_get_remote_window_size(h2->session) <= 0;
}

void h2_ping(struct h2 *h2)
{
    nghttp2_submit_ping(h2->session, NGHTTP2_FLAG_NONE, NULL);
}

void h2_goaway_notice(struct h2 *h2)
{
    nghttp2_submit_shutdown_notice(h2->session);
}

void h2_goaway(struct h2 *h2)
{
    if (h2->goaway_sent)
        return;
    h2->goaway_sent = 1;
    nghttp2_submit_goaway(h2->session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(h2->session), NGHTTP2_NO_ERROR, NULL, 0);
}

/* ---- life ---- */

static nghttp2_session *session_new(struct h2 *h2)
{
    nghttp2_session *session = NULL;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option = h2_options_new(h2->server);
    if (option == NULL || nghttp2_session_callbacks_new(&callbacks) != 0) {
        nghttp2_option_del(option);
        return NULL;
    }
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, frame_length);
    int failed = h2->server ? nghttp2_session_server_new2(&session, callbacks, h2, option)
                            : nghttp2_session_client_new2(&session, callbacks, h2, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    return failed ? NULL : session;
}

struct h2 *h2_new(int server, const struct h2_events *events, void *owner)
{
    struct h2 *h2 = ns_alloc(sizeof(*h2));
    h2->magic = H2_MAGIC;
    h2->server = server;
    h2->events = events;
    h2->owner = owner;
    frames_init(&h2->frames, server);
    h2->session = session_new(h2);
    if (h2->session == NULL) {
        fprintf(stderr, "nodeseal core: out of memory (HTTP/2 session)\n");
        abort();
    }
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, H2_FRAME_MAX},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, server ? MESSAGE_BYTES_MAX : 16384},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, server ? H2_STREAMS_ACCEPTED : 0},
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
    };
    size_t count =
        sizeof(settings) / sizeof(settings[0]) - (server ? 1 : 0); /* push is the client's to refuse */
    nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, settings, count);
    return h2;
}

void h2_free(struct h2 *h2)
{
    if (h2 == NULL)
        return;
    NS_CHECK(h2, H2_MAGIC);
    h2->magic = 0;
    nghttp2_session_del(h2->session);
    free(h2);
}
