/*
 * tunnel_ends.h: an HTTP/2 client and server session (h2.c) wired together in memory, with applications
 * behind them.
 *
 * A `struct end` owns a session and up to STREAMS streams. Each stream sends `to_send` bytes of the noise
 * stream named by its seed and checks what it receives against its peer's. Everything that a session produces
 * goes into a heap buffer of exactly the announced capacity, and is fed to the other end in heap pieces of
 * their exact size.
 */
#ifndef NS_TUNNEL_ENDS_H
#define NS_TUNNEL_ENDS_H

#include "check.h"
#include "wire/h2.h"
#include "wire/names.h"
#include "noise.h"

enum {
    STREAMS = 512,
    CAPACITY = 262144,             /* what a worker uses */
    CAPACITY_LEAST = H2_FRAME_MAX, /* what h2_produce asks for */
    CONNECTION_WINDOW = 32 << 20,
    LOG_MAX = 1 << 22,
};

struct end;

struct stream {
    struct end *end;
    int32_t id;
    uint64_t send_seed, receive_seed;
    uint64_t to_send; /* bytes still to be sent */
    int send_end;     /* END_STREAM behind them */
    uint64_t sent, received;
    size_t held;          /* received and not taken */
    int hoarding;         /* does not take what it receives */
    int failing;          /* its source fails */
    int answered;         /* client: responses seen */
    int status;           /* client: of the last response; 0: none */
    enum outcome outcome; /* client: what it amounts to */
    int ended;            /* times that the peer's end was seen */
    int closed;           /* times closed */
    uint32_t code;
    size_t largest; /* of the pieces that `source` was asked for */
    struct ns_address authority, client;
};

struct end {
    struct h2 *h2;
    int server;
    struct stream streams[STREAMS];
    size_t count;
    size_t capacity; /* of a produce buffer */
    struct noise pieces;
    int status;     /* server: how requests are answered; 0: not yet */
    uint64_t reply; /* server: bytes that each stream sends */
    int reply_end;
    int hoard_after; /* server: streams from this number on do not take; -1: all take */
    int withholding; /* the connection's window is given back as streams take, not on receipt */
    size_t withheld;
    int frames_at_once; /* that it produces; 0: as many as there is room for */
    int frames;         /* produced at once so far */
    int goaways, pongs;
    int failed;   /* h2_feed said -1 */
    uint8_t *log; /* all that was produced; NULL: not recorded */
    size_t log_length;
};

static inline struct ns_address address_of(const char *text)
{
    struct ns_address address;
    CHECK_EQUAL(authority_parse(text, strlen(text), &address), 0);
    return address;
}

static inline enum outcome outcome_with(int status)
{
    for (int i = 0; i < OUTCOMES; i++)
        if (outcome_status((enum outcome)i) == status)
            return (enum outcome)i;
    check_failed(__FILE__, __LINE__, "nothing is answered %d", status);
}

/* ---- the owner's side of both sessions ---- */

static inline void end_request(void *owner, int32_t id, const struct ns_address *authority,
                               const struct ns_address *client)
{
    struct end *end = owner;
    CHECK(end->server);
    if (end->status != 0 && end->status != 200) {
        h2_respond(end->h2, id, outcome_with(end->status));
        return;
    }
    CHECK(end->count < STREAMS);
    struct stream *stream = &end->streams[end->count];
    stream->end = end;
    stream->id = id;
    stream->authority = *authority;
    stream->client = *client;
    stream->send_seed = 2 * (uint64_t)id + 1;
    stream->receive_seed = 2 * (uint64_t)id;
    stream->to_send = end->reply;
    stream->send_end = end->reply_end;
    stream->hoarding = end->hoard_after >= 0 && (int)end->count >= end->hoard_after;
    end->count++;
    h2_stream_set(end->h2, id, stream);
    if (end->status == 200)
        h2_respond(end->h2, id, OUTCOME_OPEN);
}

static inline void end_response(void *owner, void *of, int status, enum outcome outcome)
{
    struct stream *stream = of;
    CHECK(stream->end == owner && !stream->end->server && !stream->closed);
    stream->answered++;
    stream->status = status;
    stream->outcome = outcome;
}

static inline void end_data(void *owner, void *of, const uint8_t *bytes, size_t length)
{
    struct stream *stream = of;
    CHECK(stream->end == owner && !stream->closed && !stream->ended);
    CHECK_CASE(noise_matches(stream->receive_seed, stream->received, bytes, length), "stream %d", stream->id);
    stream->received += length;
    if (stream->hoarding && stream->end->withholding)
        stream->end->withheld += length;
    else if (stream->end->withholding)
        h2_give_back(stream->end->h2, length, stream->end->withheld);
    if (stream->hoarding)
        stream->held += length;
    else
        h2_taken(stream->end->h2, stream->id, length);
}

static inline void end_end(void *owner, void *of)
{
    struct stream *stream = of;
    CHECK(stream->end == owner && !stream->closed);
    stream->ended++;
}

static inline void end_closed(void *owner, void *of, uint32_t code)
{
    struct stream *stream = of;
    CHECK(stream->end == owner);
    stream->closed++;
    stream->code = code;
}

static inline ssize_t end_source(void *owner, void *of, uint8_t *out, size_t capacity, int *last)
{
    struct stream *stream = of;
    CHECK(stream->end == owner && !stream->closed);
    CHECK(capacity > 0);
    if (capacity > stream->largest)
        stream->largest = capacity;
    if (stream->failing)
        return H2_SOURCE_FAILED;
    size_t part = stream->to_send < capacity ? (size_t)stream->to_send : capacity;
    noise_fill(stream->send_seed, stream->sent, out, part);
    stream->sent += part;
    stream->to_send -= part;
    if (stream->to_send == 0 && stream->send_end)
        *last = 1;
    else if (part == 0)
        return H2_SOURCE_LATER;
    return (ssize_t)part;
}

static inline int end_enough(void *owner)
{
    struct end *end = owner;
    return ++end->frames == end->frames_at_once;
}

static inline void end_goaway(void *owner)
{
    ((struct end *)owner)->goaways++;
}

static inline void end_pong(void *owner)
{
    ((struct end *)owner)->pongs++;
}

static const struct h2_events END_EVENTS = {
    .request = end_request,
    .response = end_response,
    .data = end_data,
    .end = end_end,
    .closed = end_closed,
    .source = end_source,
    .enough = end_enough,
    .goaway = end_goaway,
    .pong = end_pong,
};

/* ---- life ---- */

static inline struct end *end_new(int server)
{
    struct end *end = calloc(1, sizeof(*end));
    CHECK(end != NULL);
    end->server = server;
    end->capacity = CAPACITY;
    end->pieces = noise_new(server ? 11 : 12);
    end->status = 200;
    end->hoard_after = -1;
    end->h2 = h2_new(server, &END_EVENTS, end);
    h2_connection_window(end->h2, CONNECTION_WINDOW);
    return end;
}

static inline void end_free(struct end *end)
{
    h2_free(end->h2);
    free(end->log);
    free(end);
}

static inline void end_record(struct end *end)
{
    end->log = malloc(LOG_MAX);
    CHECK(end->log != NULL);
}

/* Client: a stream that sends `to_send` bytes, then its end if `send_end`. */
static inline struct stream *end_open(struct end *end, const char *authority, uint64_t to_send, int send_end)
{
    CHECK(end->count < STREAMS);
    struct stream *stream = &end->streams[end->count++];
    struct ns_address to = address_of(authority);
    struct ns_address from = address_of("10.77.1.10:40000");
    stream->end = end;
    stream->to_send = to_send;
    stream->send_end = send_end;
    stream->id = h2_connect(end->h2, &to, &from, stream);
    CHECK(stream->id > 0);
    stream->send_seed = 2 * (uint64_t)stream->id;
    stream->receive_seed = 2 * (uint64_t)stream->id + 1;
    return stream;
}

/* The application has more to send. */
static inline void stream_send(struct stream *stream, uint64_t length, int send_end)
{
    stream->to_send += length;
    stream->send_end = send_end;
    h2_resume(stream->end->h2, stream->id);
}

/* The application takes what it hoarded. */
static inline void stream_take(struct stream *stream, size_t length)
{
    CHECK(length <= stream->held);
    stream->held -= length;
    if (stream->end->withholding) {
        stream->end->withheld -= length;
        h2_give_back(stream->end->h2, length, stream->end->withheld);
    }
    h2_taken(stream->end->h2, stream->id, length);
}

/* ---- the wire ---- */

/* Feeds in random pieces of their exact size. */
static inline void end_feed(struct end *end, const uint8_t *bytes, size_t length)
{
    while (length > 0 && !end->failed) {
        size_t part = noise_below(&end->pieces, 4) == 0 ? 1 + noise_below(&end->pieces, 40)
                                                        : 1 + noise_below(&end->pieces, 100000);
        if (part > length)
            part = length;
        uint8_t *exact = noise_exact_copy(bytes, part);
        if (h2_feed(end->h2, exact, part) != 0)
            end->failed = 1;
        free(exact);
        bytes += part;
        length -= part;
    }
}

/* One buffer's worth from one end to the other; returns its length. */
static inline size_t move_once(struct end *from, struct end *to)
{
    int more = 0;
    uint8_t *buffer = malloc(from->capacity);
    CHECK(buffer != NULL);
    from->frames = 0;
    size_t length = h2_produce(from->h2, buffer, from->capacity, &more);
    CHECK(length != (size_t)-1);
    CHECK(length <= from->capacity);
    if (from->log != NULL) {
        CHECK(from->log_length + length <= LOG_MAX);
        memcpy(from->log + from->log_length, buffer, length);
        from->log_length += length;
    }
    if (to != NULL)
        end_feed(to, buffer, length);
    free(buffer);
    CHECK(!more || length > 0);
    return length;
}

/* Until both are quiet. */
static inline void settle(struct end *one, struct end *other)
{
    size_t moved;
    do {
        moved = move_once(one, other);
        moved += move_once(other, one);
        CHECK(!one->failed && !other->failed);
    } while (moved > 0);
    CHECK(!h2_wants_produce(one->h2) && !h2_wants_produce(other->h2));
}

#endif
