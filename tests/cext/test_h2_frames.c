/*
 * h2.c and frames.c facing frames made by hand: what ends a connection and with which word, what is dropped,
 * and floods.
 */
#include "tunnel_ends.h"

#define PIPELINE "10.77.2.10:8080"

#define MAGIC "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define SETTINGS_FRAME "\0\0\0\4\0\0\0\0\0"

/* Whether our server, fed with these bytes behind a valid beginning, gives the connection up. It is fed pings
 * until it has said so: a violation may be answered by a GOAWAY first. */
static int server_gives_up(const char *bytes, size_t length)
{
    static const uint8_t PING[17] = {0, 0, 8, 6};
    struct end *server = end_new(1);
    end_feed(server, (const uint8_t *)MAGIC SETTINGS_FRAME, 24 + 9);
    CHECK(!server->failed);
    move_once(server, NULL);
    end_feed(server, (const uint8_t *)bytes, length);
    for (int i = 0; i < 3 && !server->failed; i++) {
        move_once(server, NULL);
        end_feed(server, PING, sizeof(PING));
    }
    int failed = server->failed;
    end_free(server);
    return failed;
}

TEST(violations_end_the_connection)
{
    static const struct {
        const char *what;
        const char *bytes;
        size_t length;
    } CASES[] = {
        {"DATA on stream 0", "\0\0\1\0\0\0\0\0\0x", 10},
        {"DATA on an idle stream", "\0\0\1\0\0\0\0\0\1x", 10},
        {"HEADERS on stream 0", "\0\0\1\1\4\0\0\0\0\x88", 10},
        {"HEADERS on an even stream", "\0\0\1\1\4\0\0\0\2\x88", 10},
        {"HEADERS that do not decompress", "\0\0\2\1\4\0\0\0\1\xff\xff", 11},
        {"CONTINUATION without HEADERS", "\0\0\1\11\4\0\0\0\1\x88", 10},
        {"HEADERS interrupted by PING", "\0\0\1\1\0\0\0\0\1\x88\0\0\10\6\0\0\0\0\0abcdefgh", 27},
        {"RST_STREAM on an idle stream", "\0\0\4\3\0\0\0\0\1\0\0\0\0", 13},
        {"SETTINGS of odd length", "\0\0\1\4\0\0\0\0\0x", 10},
        {"SETTINGS on a stream", "\0\0\0\4\0\0\0\0\1", 9},
        {"SETTINGS with a window too large", "\0\0\6\4\0\0\0\0\0\0\4\xff\xff\xff\xff", 15},
        {"SETTINGS with a frame size too small", "\0\0\6\4\0\0\0\0\0\0\5\0\0\0\1", 15},
        {"PING of odd length", "\0\0\7\6\0\0\0\0\0abcdefg", 16},
        {"PING on a stream", "\0\0\10\6\0\0\0\0\1abcdefgh", 17},
        {"GOAWAY on a stream", "\0\0\10\7\0\0\0\0\1\0\0\0\0\0\0\0\0", 17},
        {"WINDOW_UPDATE of 0 on the connection", "\0\0\4\10\0\0\0\0\0\0\0\0\0", 13},
        {"WINDOW_UPDATE beyond the largest window", "\0\0\4\10\0\0\0\0\0\x7f\xff\xff\xff", 13},
        {"WINDOW_UPDATE on an idle stream", "\0\0\4\10\0\0\0\0\1\0\0\0\1", 13},
        {"PUSH_PROMISE from a client", "\0\0\5\5\4\0\0\0\1\0\0\0\2\x88", 14},
        {"frame larger than announced", "\1\0\1\0\0\0\0\0\1", 9},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        CHECK_CASE(server_gives_up(CASES[i].bytes, CASES[i].length), "%s", CASES[i].what);
}

TEST(frames_of_unknown_types_are_ignored)
{
    CHECK(!server_gives_up("\0\0\3\x77\xff\0\0\0\0abc", 12));
    CHECK(!server_gives_up("\0\0\5\2\0\0\0\0\3\0\0\0\0\1", 14)); /* PRIORITY of an idle stream */
    CHECK(!server_gives_up("\0\0\6\4\0\0\0\0\0\0\x77\0\0\0\1", 15));
}

TEST(a_connection_that_is_not_http2_fails_at_once)
{
    static const char *const BEGINNINGS[] = {"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
                                             "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
                                             "\x16\x03\x01\x02\x00\x01\x00\x01\xfc"};
    for (int i = 0; i < 3; i++) {
        struct end *server = end_new(1);
        end_feed(server, (const uint8_t *)BEGINNINGS[i], strlen(BEGINNINGS[i]));
        CHECK_CASE(server->failed, "%d", i);
        end_free(server);
    }
}

/* ---- streams that have ended ---- */

/* Everything that the end has to say; the code of the GOAWAY that ends it, or -1. */
static int goaway_of(struct end *end)
{
    enum { GOAWAY = 7, SETTINGS_ACK = 1 };
    uint8_t *buffer = malloc(CAPACITY);
    int code = -1, more = 1;
    while (more) {
        size_t length = h2_produce(end->h2, buffer, CAPACITY, &more);
        CHECK(length <= CAPACITY);
        for (size_t at = length > 24 && memcmp(buffer, "PRI", 3) == 0 ? 24 : 0; at < length;) {
            size_t payload = (size_t)buffer[at] << 16 | (size_t)buffer[at + 1] << 8 | buffer[at + 2];
            CHECK_CASE(code == -1, "a frame of type %d behind the GOAWAY", buffer[at + 3]);
            if (buffer[at + 3] == GOAWAY && buffer[at + 16] != 0)
                code = buffer[at + 16];
            at += 9 + payload;
            CHECK(at <= length);
        }
    }
    free(buffer);
    CHECK_EQUAL(h2_broken(end->h2), code != -1);
    if (code != -1) {
        CHECK(!h2_wants_produce(end->h2));
        CHECK(!end->failed);
        end_feed(end, (const uint8_t *)"\0\0\10\6\0\0\0\0\0abcdefgh", 17);
        CHECK(end->failed); /* it was told: the next byte is one too many */
    }
    return code;
}

/* A server that has had a client's preface, and has said its own. */
static struct end *server_begun(void)
{
    struct end *server = end_new(1);
    end_feed(server, (const uint8_t *)MAGIC SETTINGS_FRAME, 24 + 9);
    CHECK_EQUAL(goaway_of(server), -1);
    return server;
}

static void feed_frame(struct end *end, int type, int flags, int32_t id, const void *payload, size_t length)
{
    uint8_t frame[9 + 256] = {0, 0, (uint8_t)length, (uint8_t)type, (uint8_t)flags};
    CHECK(length <= 255);
    for (int i = 0; i < 4; i++)
        frame[5 + i] = (uint8_t)((uint32_t)id >> (24 - 8 * i));
    memcpy(frame + 9, payload, length);
    end_feed(end, frame, 9 + length);
}

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, WINDOW_UPDATE = 8, CONTINUATION = 9 };
enum { END_STREAM = 1, END_HEADERS = 4 };
enum { CLOSED_ERROR = 5, CALM_ERROR = 11 };
static const char CANCELLED[] = {0, 0, 0, H2_CANCEL};

static void feed_request(struct end *server, int32_t id, int flags)
{
    feed_frame(server, HEADERS, flags | END_HEADERS, id, "\x02\7CONNECT\x01\x0f" PIPELINE, 26);
}

/* Of a CONNECT stream that has come to its end in some way: the GOAWAY that the next frame brings, or -1. */
static int goaway_behind(void (*end_stream)(struct end *server, int32_t id), int32_t ended, int type,
                         int32_t id)
{
    struct end *server = server_begun();
    for (int32_t opened = 1; opened <= 9; opened += 4)
        feed_request(server, opened, 0);
    CHECK_EQUAL(server->count, 3);
    end_stream(server, ended);
    CHECK(!server->failed);
    if (type == HEADERS)
        feed_request(server, id, 0);
    else
        feed_frame(server, type, 0, id, "late", 4);
    int code = goaway_of(server);
    end_free(server);
    return code;
}

static struct stream *stream_in(struct end *end, int32_t id)
{
    for (size_t i = 0; i < end->count; i++)
        if (end->streams[i].id == id)
            return &end->streams[i];
    CHECK(0);
    return NULL;
}

static void end_both(struct end *server, int32_t id)
{
    feed_frame(server, DATA, END_STREAM, id, "", 0);
    stream_send(stream_in(server, id), 0, 1);
    CHECK_EQUAL(goaway_of(server), -1);
    CHECK_EQUAL(stream_in(server, id)->closed, 1);
}

static void end_theirs(struct end *server, int32_t id)
{
    feed_frame(server, DATA, END_STREAM, id, "", 0);
}

static void reset_theirs(struct end *server, int32_t id)
{
    feed_frame(server, RST_STREAM, 0, id, CANCELLED, 4);
    CHECK_EQUAL(stream_in(server, id)->closed, 1);
}

static void reset_ours(struct end *server, int32_t id)
{
    h2_stream_set(server->h2, id, NULL);
    h2_reset(server->h2, id, H2_CONNECT_ERROR);
    CHECK_EQUAL(goaway_of(server), -1);
}

static void reset_both(struct end *server, int32_t id)
{
    reset_ours(server, id);
    feed_frame(server, RST_STREAM, 0, id, CANCELLED, 4);
}

static void leave_open(struct end *server, int32_t id)
{
    (void)server;
    (void)id;
}

TEST(what_comes_on_a_stream_that_the_peer_has_ended_is_STREAM_CLOSED)
{
    void (*const ends[])(struct end *, int32_t) = {end_both, end_theirs, reset_theirs};
    for (size_t i = 0; i < 3; i++)
        for (int32_t id = 1; id <= 9; id += 4) {
            CHECK_CASE(goaway_behind(ends[i], id, DATA, id) == CLOSED_ERROR, "DATA, %zu, %d", i, id);
            CHECK_CASE(goaway_behind(ends[i], id, HEADERS, id) == CLOSED_ERROR, "HEADERS, %zu, %d", i, id);
        }
}

TEST(what_comes_on_a_stream_that_never_began_is_an_error)
{
    for (int32_t id = 3; id <= 7; id += 2) { /* 5 is open, 3 and 7 were passed over */
        if (id == 5)
            continue;
        CHECK_EQUAL(goaway_behind(leave_open, 1, HEADERS, id), H2_PROTOCOL_ERROR);
        CHECK_EQUAL(goaway_behind(leave_open, 1, DATA, id), CLOSED_ERROR);
    }
    CHECK_EQUAL(goaway_behind(leave_open, 1, DATA, 11), H2_PROTOCOL_ERROR); /* idle */
    CHECK_EQUAL(goaway_behind(leave_open, 1, HEADERS, 11), -1);
}

TEST(what_comes_on_a_stream_that_we_have_reset_is_dropped)
{
    void (*const ends[])(struct end *, int32_t) = {reset_ours, reset_both};
    for (size_t i = 0; i < 2; i++)
        for (int32_t id = 1; id <= 9; id += 4) {
            CHECK_CASE(goaway_behind(ends[i], id, DATA, id) == -1, "DATA, %zu, %d", i, id);
            CHECK_CASE(goaway_behind(ends[i], id, HEADERS, id) == -1, "HEADERS, %zu, %d", i, id);
        }
}

TEST(many_streams_that_we_have_reset_do_not_end_the_connection)
{
    enum { MANY = 1000 };
    struct end *server = server_begun();
    server->status = 503; /* answered, and reset with NO_ERROR: the peer may be sending */
    for (int32_t id = 1; id < 2 * MANY; id += 2) {
        feed_request(server, id, 0);
        CHECK_EQUAL(goaway_of(server), -1);
    }
    for (int32_t id = 1; id < 2 * MANY; id += 2)
        feed_frame(server, DATA, END_STREAM, id, "late", 4);
    CHECK_EQUAL(goaway_of(server), -1);
    server->status = 200;
    feed_request(server, 2 * MANY + 1, END_STREAM);
    CHECK_EQUAL(server->count, 1);
    feed_frame(server, DATA, 0, 2 * MANY + 1, "late", 4); /* and what is new is judged as before */
    CHECK_EQUAL(goaway_of(server), CLOSED_ERROR);
    end_free(server);
}

TEST(requests_that_were_not_taken_may_go_on_sending)
{
    enum { TOO_MANY = 2 * H2_STREAMS_ACCEPTED + 21 };
    struct end *server = server_begun();
    for (int32_t id = 1; id <= TOO_MANY; id += 2) /* our limit was not acknowledged: REFUSED_STREAM */
        feed_request(server, id, 0);
    CHECK_EQUAL(server->count, H2_STREAMS_ACCEPTED);
    feed_frame(server, DATA, 0, TOO_MANY, "late", 4);
    CHECK_EQUAL(goaway_of(server), -1);
    end_free(server);

    server = server_begun();
    feed_request(server, 1, 0);
    h2_goaway(server->h2);
    CHECK_EQUAL(goaway_of(server), -1);
    feed_request(server, 3, 0);
    feed_frame(server, DATA, END_STREAM, 3, "late", 4);
    feed_frame(server, DATA, 0, 1, "", 0);
    CHECK_EQUAL(goaway_of(server), -1);
    CHECK_EQUAL(server->count, 1);
    end_free(server);
}

TEST(the_frames_of_one_buffer_are_judged_one_after_the_other)
{
    /* Opened, ended and used again in one: nghttp2 has seen none of it when it comes. */
    uint8_t frames[3 * (9 + 26)] = {0, 0, 26, HEADERS, END_HEADERS, 0, 0, 0, 1};
    memcpy(frames + 9, "\x02\7CONNECT\x01\x0f" PIPELINE, 26);
    memcpy(frames + 35, "\0\0\4\0\0\0\0\0\1", 9); /* DATA of the stream just opened */
    memcpy(frames + 48, "\0\0\4\3\0\0\0\0\1\0\0\0\10", 13);
    memcpy(frames + 61, "\0\0\4\0\0\0\0\0\1late", 13);
    for (int late = 0; late < 2; late++) {
        struct end *server = server_begun();
        struct stream *stream = &server->streams[0];
        noise_fill(2, 0, frames + 44, 4); /* what end_data expects of stream 1 */
        CHECK_EQUAL(h2_feed(server->h2, frames, late ? 74 : 61), 0);
        CHECK_EQUAL(stream->received, 4);
        CHECK_EQUAL(stream->closed, 1);
        CHECK_EQUAL(goaway_of(server), late ? CLOSED_ERROR : -1);
        end_free(server);
    }
}

/* A client that keeps the rules, and learns late what the server has done. */
struct polite {
    int32_t next;
    enum { NEVER, BEGUN, HALF_DONE, DONE } streams[640];
    uint64_t sent[640];
};

static void polite_begin(struct polite *client, struct end *server, struct noise *noise)
{
    client->next += 2 * (int32_t)(noise_below(noise, 8) == 0); /* one is passed over */
    if (client->next >= 600)
        return;
    int ends = noise_below(noise, 4) == 0;
    client->streams[client->next] = ends ? HALF_DONE : BEGUN;
    feed_request(server, client->next, ends ? END_STREAM : 0);
    client->next += 2;
}

/* Something on a stream that was begun once. */
static void polite_go_on(struct polite *client, struct end *server, struct noise *noise)
{
    static const uint8_t MORE[4] = {0, 0, 1, 0};
    int32_t id = 1 + 2 * (int32_t)noise_below(noise, (size_t)(client->next + 1) / 2);
    uint8_t bytes[60];
    size_t length = noise_below(noise, sizeof(bytes));
    size_t what = noise_below(noise, 8);
    if (client->streams[id] == BEGUN && what > 1) {
        int ends = noise_below(noise, 6) == 0;
        noise_fill(2 * (uint64_t)id, client->sent[id], bytes, length);
        client->sent[id] += length;
        client->streams[id] = ends ? HALF_DONE : BEGUN;
        feed_frame(server, DATA, ends ? END_STREAM : 0, id, bytes, length);
    } else if ((client->streams[id] == BEGUN || client->streams[id] == HALF_DONE) && what == 1) {
        client->streams[id] = DONE;
        feed_frame(server, RST_STREAM, 0, id, CANCELLED, 4);
    } else if (client->streams[id] != NEVER) {
        feed_frame(server, WINDOW_UPDATE, 0, id, MORE, 4);
    }
}

static void server_do(struct end *server, struct noise *noise)
{
    static const int STATUS[] = {200, 200, 503, 0};
    struct stream *stream = &server->streams[noise_below(noise, server->count + 1)];
    server->status = STATUS[noise_below(noise, 4)];
    if (stream->end != NULL && !stream->closed && noise_below(noise, 2)) {
        h2_stream_set(server->h2, stream->id, NULL);
        h2_reset(server->h2, stream->id, H2_CONNECT_ERROR);
        stream->closed = 1;
    }
}

TEST(a_client_that_keeps_the_rules_is_never_ended)
{
    enum { ROUNDS = 40, STEPS = 1000 };
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct noise noise = noise_new(100 + round);
        struct polite client = {.next = 1};
        struct end *server = server_begun();
        server->reply = 100;
        server->reply_end = round % 2;
        for (int step = 0; step < STEPS; step++) {
            size_t what = noise_below(&noise, 16);
            if (what < 4)
                polite_begin(&client, server, &noise);
            else if (what < 12)
                polite_go_on(&client, server, &noise);
            else if (what < 14)
                server_do(server, &noise);
            else
                CHECK_CASE(goaway_of(server) == -1, "round %d, step %d", (int)round, step);
            CHECK_CASE(!server->failed && !h2_broken(server->h2), "round %d, step %d", (int)round, step);
        }
        CHECK(server->count > 50);
        end_free(server);
    }
}

TEST(a_servers_late_frames_are_judged_too)
{
    for (int ours = 0; ours < 2; ours++) {
        struct end *client = end_new(0);
        struct stream *stream = end_open(client, PIPELINE, 0, 0);
        CHECK_EQUAL(goaway_of(client), -1);
        feed_frame(client, SETTINGS, 0, 0, "", 0);
        feed_frame(client, HEADERS, END_HEADERS, stream->id, "\x88", 1);
        CHECK_EQUAL(stream->status, 200);
        if (ours) {
            h2_stream_set(client->h2, stream->id, NULL);
            h2_reset(client->h2, stream->id, H2_CONNECT_ERROR);
        } else {
            stream_send(stream, 0, 1);
            feed_frame(client, DATA, END_STREAM, stream->id, "", 0);
        }
        CHECK_EQUAL(goaway_of(client), -1);
        feed_frame(client, DATA, 0, stream->id, "late", 4);
        CHECK_EQUAL(goaway_of(client), ours ? -1 : CLOSED_ERROR);
        end_free(client);
    }
}

/* ---- floods ---- */

TEST(floods_are_told_to_calm_down_before_they_fill_memory)
{
    static const struct {
        const char *what;
        uint8_t frame[32];
        size_t length;
    } FLOODS[] = {
        {"PING", {0, 0, 8, 6}, 17},
        {"SETTINGS", {0, 0, 0, 4}, 9},
        {"SETTINGS with a value", {0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 1, 0}, 15},
    };
    for (size_t i = 0; i < sizeof(FLOODS) / sizeof(FLOODS[0]); i++) {
        struct end *server = server_begun();
        int sent = 0;
        for (; sent < 20000 && !h2_broken(server->h2); sent++)
            end_feed(server, FLOODS[i].frame, FLOODS[i].length);
        CHECK_CASE(sent < 20000, "%s", FLOODS[i].what);
        CHECK_CASE(goaway_of(server) == CALM_ERROR, "%s", FLOODS[i].what);
        end_free(server);
    }
}

TEST(endless_headers_are_told_to_calm_down)
{
    static const uint8_t EMPTY[1] = {0x82};
    for (size_t length = 0; length < 2; length++) { /* without, and with, a field in each */
        struct end *server = server_begun();
        feed_frame(server, HEADERS, 0, 1, "\x02\7CONNECT\x01\x0f" PIPELINE, 26);
        int sent = 0;
        for (; sent < 20000 && !h2_broken(server->h2); sent++)
            feed_frame(server, CONTINUATION, 0, 1, EMPTY, length);
        CHECK_CASE(sent < 20, "%d", sent);
        CHECK_EQUAL(goaway_of(server), CALM_ERROR);
        CHECK_EQUAL(server->count, 0);
        end_free(server);
    }
}

TEST(a_header_block_that_unpacks_to_far_more_is_told_to_calm_down)
{
    enum { FIELDS = 16000 };
    static uint8_t block[9 + FIELDS + 64];
    struct end *server = server_begun();
    memcpy(block, "\0\0\0\1\4\0\0\0\1\x40\1x",
           12); /* x: of 50 letters, into the table; then its index, again */
    block[12] = 50;
    memset(block + 13, 'y', 50);
    memset(block + 63, 0xbe, FIELDS);
    block[1] = (54 + FIELDS) >> 8;
    block[2] = (54 + FIELDS) & 255;
    end_feed(server, block, 63 + FIELDS);
    CHECK_EQUAL(goaway_of(server), CALM_ERROR);
    CHECK_EQUAL(server->count, 0);
    end_free(server);
}

TEST(requests_that_are_reset_before_they_are_answered_are_told_to_calm_down)
{
    struct end *server = server_begun();
    server->status = 0; /* the application is being dialled */
    int32_t id = 1;
    for (; id < 20000 && !h2_broken(server->h2); id += 2) {
        server->count = 0; /* the test's streams are not as many */
        feed_request(server, id, 0);
        feed_frame(server, RST_STREAM, 0, id, CANCELLED, 4);
    }
    CHECK_CASE(id > 2000 && id < 10000, "%d", id);
    CHECK_EQUAL(goaway_of(server), CALM_ERROR);
    end_free(server);
}

TEST(applications_that_end_with_a_reset_are_no_flood)
{
    struct end *client = end_new(0), *server = end_new(1);
    for (int i = 0; i < 5000; i++) {
        client->count = server->count = 0;
        memset(client->streams, 0, sizeof(client->streams[0]));
        memset(server->streams, 0, sizeof(server->streams[0]));
        struct stream *stream = end_open(client, PIPELINE, 0, 0);
        settle(client, server);
        CHECK_EQUAL(stream->status, 200);
        h2_stream_set(client->h2, stream->id, NULL);
        h2_reset(client->h2, stream->id, H2_CONNECT_ERROR);
        settle(client, server);
        CHECK_EQUAL(server->streams[0].closed, 1);
    }
    CHECK(!h2_broken(server->h2) && !client->failed);
    end_free(client);
    end_free(server);
}

TEST(data_beyond_the_streams_window_ends_the_stream_or_the_connection)
{
    enum { PIECE = 16384 };
    static uint8_t frame[9 + PIECE] = {0, PIECE >> 8, 0, 0, 0, 0, 0, 0, 1};
    struct end *client = end_new(0), *server = end_new(1);
    server->hoard_after = 0;
    end_open(client, PIPELINE, 0, 0);
    settle(client, server);
    int pieces = 0;
    for (; pieces < 200 && !server->failed && !server->streams[0].closed; pieces++) {
        noise_fill(server->streams[0].receive_seed, (uint64_t)pieces * PIECE, frame + 9, PIECE);
        end_feed(server, frame, sizeof(frame));
        move_once(server, NULL);
    }
    CHECK(server->failed || server->streams[0].closed);
    /* nghttp2 still delivers the frame that it resets the stream for. */
    CHECK(server->streams[0].received <= H2_STREAM_WINDOW + PIECE);
    end_free(client);
    end_free(server);
}

TEST(data_beyond_the_connections_window_ends_the_connection)
{
    enum { PIECE = 16384, WINDOW = 65535 };
    static uint8_t frame[9 + PIECE] = {0, PIECE >> 8, 0, 0, 0, 0, 0, 0, 1};
    struct end *client = end_new(0), *server = end_new(1);
    h2_free(server->h2);
    server->h2 = h2_new(1, &END_EVENTS, server); /* it never gets more than a connection begins with */
    server->hoard_after = 0;
    server->withholding = 1;
    h2_withhold(server->h2, 1);
    end_open(client, PIPELINE, 0, 0);
    settle(client, server);
    for (int i = 0; i < 200 && !server->failed; i++) {
        noise_fill(server->streams[0].receive_seed, (uint64_t)i * PIECE, frame + 9, PIECE);
        end_feed(server, frame, sizeof(frame));
        move_once(server, client);
    }
    CHECK(server->failed);
    CHECK_EQUAL(client->goaways, 1);
    CHECK(server->streams[0].received <= WINDOW + PIECE);
    end_free(client);
    end_free(server);
}

CHECK_MAIN
