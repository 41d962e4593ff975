/*
 * h2.c facing peers that are odd, wrong or hostile: requests and answers made with nghttp2 itself, and
 * damaged recordings of a valid exchange. test_h2_frames.c has frames made by hand.
 */
#include <nghttp2/nghttp2.h>

#include "tunnel_ends.h"

#define PIPELINE "10.77.2.10:8080"

/* ---- a peer made with nghttp2 ---- */

/* What a foreign peer saw of the stream that was answered last. */
struct foreign {
    nghttp2_session *session;
    int status;
    int resets;
    uint32_t code;
    size_t received;
};

static int foreign_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                          size_t name_length, const uint8_t *value, size_t value_length, uint8_t flags,
                          void *user)
{
    (void)session;
    (void)frame;
    (void)flags;
    (void)value_length;
    struct foreign *foreign = user;
    if (name_length == 7 && memcmp(name, ":status", 7) == 0)
        foreign->status = atoi((const char *)value);
    return 0;
}

static int foreign_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    struct foreign *foreign = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        foreign->resets++;
        foreign->code = frame->rst_stream.error_code;
    }
    return 0;
}

static int foreign_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes,
                        size_t length, void *user)
{
    (void)session;
    (void)flags;
    (void)id;
    (void)bytes;
    ((struct foreign *)user)->received += length;
    return 0;
}

static void foreign_init(struct foreign *foreign, int server)
{
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    memset(foreign, 0, sizeof(*foreign));
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, foreign_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, foreign_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, foreign_data);
    nghttp2_option_new(&option);
    nghttp2_option_set_no_http_messaging(option, 1);
    nghttp2_option_set_max_send_header_block_length(option, 1 << 20);
    if (server)
        nghttp2_session_server_new2(&foreign->session, callbacks, foreign, option);
    else
        nghttp2_session_client_new2(&foreign->session, callbacks, foreign, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    CHECK_EQUAL(nghttp2_submit_settings(foreign->session, NGHTTP2_FLAG_NONE, NULL, 0), 0);
}

static void foreign_dispose(struct foreign *foreign)
{
    nghttp2_session_del(foreign->session);
}

/* All that the peer has to say. */
static void foreign_send(struct foreign *foreign, struct end *end)
{
    const uint8_t *frame;
    ssize_t length;
    while ((length = nghttp2_session_mem_send(foreign->session, &frame)) > 0)
        end_feed(end, frame, (size_t)length);
}

/* Until both are quiet. */
static void foreign_settle(struct foreign *foreign, struct end *end)
{
    int moved = 1;
    while (moved) {
        const uint8_t *frame;
        ssize_t length;
        moved = 0;
        while ((length = nghttp2_session_mem_send(foreign->session, &frame)) > 0) {
            end_feed(end, frame, (size_t)length);
            moved = 1;
        }
        int more;
        uint8_t *buffer = malloc(CAPACITY);
        size_t produced = h2_produce(end->h2, buffer, CAPACITY, &more);
        CHECK(produced <= CAPACITY);
        if (produced > 0) {
            CHECK_EQUAL(nghttp2_session_mem_recv(foreign->session, buffer, produced), produced);
            moved = 1;
        }
        free(buffer);
    }
}

struct field {
    const char *name, *value;
};

/* Sends one request with these fields, ended by a NULL name; `ended`: it carries END_STREAM. Returns its id.
 */
static int32_t foreign_request(struct foreign *foreign, const struct field *fields, int ended)
{
    nghttp2_nv headers[16];
    size_t count = 0;
    for (; fields[count].name != NULL; count++) {
        CHECK(count < 16);
        nghttp2_nv nv = {(uint8_t *)fields[count].name, (uint8_t *)fields[count].value,
                         strlen(fields[count].name), strlen(fields[count].value), NGHTTP2_NV_FLAG_NONE};
        headers[count] = nv;
    }
    int32_t id = nghttp2_submit_headers(foreign->session, ended ? NGHTTP2_FLAG_END_STREAM : NGHTTP2_FLAG_NONE,
                                        -1, NULL, headers, count, NULL);
    CHECK(id > 0);
    return id;
}

/* ---- requests ---- */

/* One request to our server: the status it answers, or 0 if it only resets the stream. The tunnel must go on.
 */
static int status_of(const struct field *fields, int ended)
{
    static const struct field GOOD[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    foreign_request(&peer, fields, ended);
    foreign_settle(&peer, server);
    int status = peer.status;
    CHECK(!server->failed);
    if (status != 200) {
        CHECK_EQUAL(server->count, 0);
        CHECK(ended || peer.resets == 1);
        CHECK(status == 0 || ended || peer.code == NGHTTP2_NO_ERROR);
    }
    size_t before = server->count;
    foreign_request(&peer, GOOD, 0);
    foreign_settle(&peer, server);
    CHECK_EQUAL(peer.status, 200);
    CHECK_EQUAL(server->count, before + 1);
    foreign_dispose(&peer);
    end_free(server);
    return status;
}

TEST(plain_connect_is_accepted)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    CHECK_EQUAL(status_of(FIELDS, 0), 200);
}

TEST(connect_with_the_fields_that_meshes_add_is_accepted)
{
    static const struct field FIELDS[] = {
        {":method", "CONNECT"},
        {":authority", PIPELINE},
        {"baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=default"},
        {"forwarded", "for=\"10.77.1.10:40000\""},
        {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {NULL, NULL},
    };
    CHECK_EQUAL(status_of(FIELDS, 0), 200);
}

TEST(request_that_is_not_connect_is_answered_400)
{
    static const struct field GET[] = {
        {":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", PIPELINE}, {NULL, NULL}};
    static const struct field POST[] = {
        {":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {":authority", PIPELINE}, {NULL, NULL}};
    CHECK_EQUAL(status_of(GET, 1), 400);
    CHECK_EQUAL(status_of(POST, 0), 400);
}

TEST(connect_with_a_bad_authority_is_answered_400)
{
    static const char *const AUTHORITIES[] = {
        "example.org:80", "10.77.2.10", "10.77.2.10:0",  "10.77.2.10:65536", "10.77.2.10:80x",
        "[::1]",          ":80",        "10.77.2.10:-1", "010.77.2.10:80",   "10.77.2.10:80:",
        "user@[::1]:8080"};
    for (size_t i = 0; i < sizeof(AUTHORITIES) / sizeof(AUTHORITIES[0]); i++) {
        struct field fields[] = {{":method", "CONNECT"}, {":authority", AUTHORITIES[i]}, {NULL, NULL}};
        int status = status_of(fields, 0);
        /* nghttp2 itself resets the stream for an authority that is no host and port at all. */
        CHECK_CASE(status == 400 || status == 0, "%s: %d", AUTHORITIES[i], status);
        CHECK_CASE(i > 3 || status == 400, "%s: %d", AUTHORITIES[i], status);
    }
}

TEST(connect_without_authority_is_refused)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"}, {NULL, NULL}};
    CHECK(status_of(FIELDS, 0) != 200);
}

TEST(connect_with_two_authorities_is_refused)
{
    static const struct field FIELDS[] = {
        {":method", "CONNECT"}, {":authority", PIPELINE}, {":authority", "10.77.2.11:80"}, {NULL, NULL}};
    CHECK(status_of(FIELDS, 0) != 200);
}

TEST(extended_connect_is_refused)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"},   {":protocol", "websocket"},
                                          {":scheme", "http"},      {":path", "/"},
                                          {":authority", PIPELINE}, {NULL, NULL}};
    CHECK(status_of(FIELDS, 0) != 200);
}

TEST(host_header_does_not_stand_in_for_the_authority)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"}, {"host", PIPELINE}, {NULL, NULL}};
    CHECK(status_of(FIELDS, 0) != 200);
}

TEST(headers_beyond_the_announced_size_are_answered_431)
{
    enum { LONG = 9000 };
    char value[LONG + 1];
    memset(value, 'a', LONG);
    value[LONG] = 0;
    struct field fields[] = {
        {":method", "CONNECT"}, {":authority", PIPELINE}, {"baggage", value}, {"baggage", value},
        {"baggage", value},     {"baggage", value},       {"baggage", value}, {"baggage", value},
        {"baggage", value},     {"baggage", value},       {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    foreign_request(&peer, fields, 0);
    foreign_settle(&peer, server);
    CHECK_EQUAL(server->count, 0);
    CHECK_EQUAL(peer.status, 431);
    CHECK_EQUAL(peer.code, NGHTTP2_NO_ERROR);
    CHECK(!server->failed);
    foreign_dispose(&peer);
    end_free(server);
}

static struct ns_address client_told_by(const char *forwarded)
{
    struct field fields[] = {
        {":method", "CONNECT"}, {":authority", PIPELINE}, {"forwarded", forwarded}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    foreign_request(&peer, fields, 0);
    foreign_settle(&peer, server);
    CHECK_EQUAL(server->count, 1);
    struct ns_address client = server->streams[0].client;
    foreign_dispose(&peer);
    end_free(server);
    return client;
}

TEST(forwarded_header_names_the_client)
{
    struct ns_address expected = address_of("10.77.1.10:40000");
    struct ns_address client = client_told_by("for=\"10.77.1.10:40000\"");
    CHECK(address_same_ip(&client, &expected) && client.port == 40000);
    client = client_told_by("for=\"10.77.1.10:40000\";proto=https");
    CHECK(address_same_ip(&client, &expected) && client.port == 40000);
    expected = address_of("[2001:db8::1]:1");
    client = client_told_by("for=\"[2001:db8::1]:1\"");
    CHECK(address_same_ip(&client, &expected) && client.port == 1);
}

TEST(forwarded_header_that_cannot_be_read_names_nobody)
{
    static const char *const VALUES[] = {
        "",
        "for=",
        "for=\"",
        "for=\"\"",
        "for=\"10.77.1.10\"",
        "for=10.77.1.10:1",
        "by=\"1\"",
        "for=\"unknown\"",
        "for=\"_hidden:1\"",
        "for=\"1.2.3.4:5",
        "for=\"1.2.3.4:99999\"",
    };
    static const struct ns_address NOBODY;
    for (size_t i = 0; i < sizeof(VALUES) / sizeof(VALUES[0]); i++) {
        struct ns_address client = client_told_by(VALUES[i]);
        CHECK_CASE(address_same_ip(&client, &NOBODY) && client.port == 0, "%s", VALUES[i]);
    }
}

TEST(client_of_one_request_is_not_told_for_the_next)
{
    static const struct field FIRST[] = {{":method", "CONNECT"},
                                         {":authority", PIPELINE},
                                         {"forwarded", "for=\"10.77.1.10:4\""},
                                         {NULL, NULL}};
    static const struct field SECOND[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    foreign_request(&peer, FIRST, 0);
    foreign_request(&peer, SECOND, 0);
    foreign_settle(&peer, server);
    CHECK_EQUAL(server->count, 2);
    CHECK_EQUAL(server->streams[0].client.port, 4);
    CHECK_EQUAL(server->streams[1].client.port, 0);
    foreign_dispose(&peer);
    end_free(server);
}

TEST(request_that_ends_at_once_is_a_half_close)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    server->reply = 1000;
    server->reply_end = 1;
    foreign_init(&peer, 0);
    foreign_request(&peer, FIELDS, 1);
    foreign_settle(&peer, server);
    CHECK_EQUAL(server->streams[0].ended, 1);
    CHECK_EQUAL(server->streams[0].closed, 1);
    CHECK_EQUAL(peer.received, 1000);
    foreign_dispose(&peer);
    end_free(server);
}

/* ---- a foreign server ---- */

static void foreign_fields(struct foreign *foreign, int32_t id, const struct field *fields, uint8_t flags)
{
    nghttp2_nv headers[4];
    size_t count = 0;
    for (; fields[count].name != NULL; count++) {
        CHECK(count < 4);
        nghttp2_nv nv = {(uint8_t *)fields[count].name, (uint8_t *)fields[count].value,
                         strlen(fields[count].name), strlen(fields[count].value), NGHTTP2_NV_FLAG_NONE};
        headers[count] = nv;
    }
    CHECK_EQUAL(nghttp2_submit_headers(foreign->session, flags, id, NULL, headers, count, NULL), 0);
}

static void foreign_respond(struct foreign *foreign, int32_t id, const char *status, uint8_t flags)
{
    struct field fields[] = {{":status", status}, {NULL, NULL}};
    foreign_fields(foreign, id, fields, flags);
}

/* Feeds the client with a DATA frame of its stream, as the noise that it expects. */
static void feed_data(struct end *client, struct stream *stream, size_t length)
{
    uint8_t frame[9 + 1000] = {0, (uint8_t)(length >> 8), (uint8_t)length};
    CHECK(length <= 1000 && stream->id < 256);
    frame[8] = (uint8_t)stream->id;
    noise_fill(stream->receive_seed, stream->received, frame + 9, length);
    end_feed(client, frame, 9 + length);
}

/* A client, and the peer to which it has sent one request. */
static struct end *client_with_request(struct foreign *peer, struct stream **stream)
{
    struct end *client = end_new(0);
    foreign_init(peer, 1);
    *stream = end_open(client, PIPELINE, 0, 0);
    foreign_settle(peer, client);
    return client;
}

TEST(interim_answers_come_before_the_final_one)
{
    struct foreign peer;
    struct stream *stream;
    struct end *client = client_with_request(&peer, &stream);
    foreign_respond(&peer, stream->id, "103", NGHTTP2_FLAG_NONE);
    foreign_settle(&peer, client);
    CHECK_EQUAL(stream->status, 103);
    foreign_respond(&peer, stream->id, "200", NGHTTP2_FLAG_NONE);
    foreign_settle(&peer, client);
    CHECK_EQUAL(stream->status, 200);
    CHECK_EQUAL(stream->answered, 2);
    foreign_dispose(&peer);
    end_free(client);
}

TEST(every_2xx_answer_opens_a_tunnel)
{
    /* Also 204, which has no content elsewhere (RFC 9110 section 9.3.6), and a length that means nothing
     * here. */
    static const struct field OUTCOMES[][4] = {
        {{":status", "200"}, {NULL, NULL}},
        {{":status", "201"}, {NULL, NULL}},
        {{":status", "204"}, {NULL, NULL}},
        {{":status", "204"}, {"content-length", "0"}, {NULL, NULL}},
        {{":status", "200"}, {"content-length", "3"}, {"transfer-encoding", "chunked"}, {NULL, NULL}},
        {{":status", "299"}, {"server", "envoy"}, {NULL, NULL}},
    };
    for (size_t i = 0; i < sizeof(OUTCOMES) / sizeof(OUTCOMES[0]); i++) {
        struct foreign peer;
        struct stream *stream;
        struct end *client = client_with_request(&peer, &stream);
        foreign_fields(&peer, stream->id, OUTCOMES[i], NGHTTP2_FLAG_NONE);
        foreign_settle(&peer, client);
        CHECK_CASE(stream->status == atoi(OUTCOMES[i][0].value), "%zu: %d", i, stream->status);
        feed_data(client, stream, 1000);
        stream_send(stream, 5000, 1);
        foreign_settle(&peer, client);
        CHECK_CASE(peer.received == 5000 && peer.resets == 0, "%zu", i);
        CHECK_CASE(stream->received == 1000 && !stream->closed && !client->failed, "%zu", i);
        foreign_dispose(&peer);
        end_free(client);
    }
}

TEST(answers_that_break_the_rules_are_reset)
{
    static const struct field OUTCOMES[][4] = {
        {{"server", "envoy"}, {NULL, NULL}},
        {{":status", "20"}, {NULL, NULL}},
        {{":status", "2000"}, {NULL, NULL}},
        {{":status", "+20"}, {NULL, NULL}},
        {{":status", "099"}, {NULL, NULL}},
        {{":status", "200"}, {":status", "200"}, {NULL, NULL}},
        {{":status", "503"}, {":status", "200"}, {NULL, NULL}},
        {{"server", "envoy"}, {":status", "200"}, {NULL, NULL}},
        {{":status", "200"}, {":path", "/"}, {NULL, NULL}},
        {{":status", "200"}, {"ser ver", "envoy"}, {NULL, NULL}},
        {{":status", "200"}, {"server", "en\nvoy"}, {NULL, NULL}},
        {{":status", "200"}, {"connection", "close"}, {NULL, NULL}},
        {{":status", "200"}, {"upgrade", "h2c"}, {NULL, NULL}},
    };
    for (size_t i = 0; i < sizeof(OUTCOMES) / sizeof(OUTCOMES[0]); i++) {
        struct foreign peer;
        struct stream *stream;
        struct end *client = client_with_request(&peer, &stream);
        foreign_fields(&peer, stream->id, OUTCOMES[i], NGHTTP2_FLAG_NONE);
        foreign_settle(&peer, client);
        CHECK_CASE(stream->answered == 0, "%zu: %d", i, stream->status);
        CHECK_CASE(stream->closed == 1 && stream->code == H2_PROTOCOL_ERROR, "%zu: %u", i, stream->code);
        CHECK_CASE(peer.resets == 1 && peer.code == NGHTTP2_PROTOCOL_ERROR, "%zu: %u", i, peer.code);
        CHECK_CASE(!client->failed, "%zu", i);
        foreign_dispose(&peer);
        end_free(client);
    }
}

TEST(an_answer_that_comes_before_the_final_one_ends_nothing)
{
    struct foreign peer;
    struct stream *stream;
    struct end *client = client_with_request(&peer, &stream);
    foreign_respond(&peer, stream->id, "103", NGHTTP2_FLAG_END_STREAM);
    foreign_settle(&peer, client);
    CHECK_EQUAL(stream->ended, 0);
    CHECK_EQUAL(stream->closed, 1);
    CHECK_EQUAL(stream->code, H2_PROTOCOL_ERROR);
    foreign_dispose(&peer);
    end_free(client);
}

/* RFC 9113 section 8.5: a tunnel carries DATA, and an end that trailers announce is none. */
TEST(headers_within_a_tunnel_reset_it_in_both_roles)
{
    static const struct field TRAILERS[] = {{"grpc-status", "14"}, {NULL, NULL}};
    static const struct field REQUEST[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *client = end_new(0), *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 1);
    struct stream *stream = end_open(client, PIPELINE, 0, 0);
    foreign_settle(&peer, client);
    foreign_respond(&peer, stream->id, "200", NGHTTP2_FLAG_NONE);
    foreign_settle(&peer, client);
    foreign_fields(&peer, stream->id, TRAILERS, NGHTTP2_FLAG_END_STREAM);
    foreign_settle(&peer, client);
    CHECK_EQUAL(stream->ended, 0);
    CHECK_EQUAL(stream->code, H2_PROTOCOL_ERROR);
    CHECK_EQUAL(peer.code, NGHTTP2_PROTOCOL_ERROR);
    foreign_dispose(&peer);

    foreign_init(&peer, 0);
    int32_t id = foreign_request(&peer, REQUEST, 0);
    foreign_settle(&peer, server);
    foreign_fields(&peer, id, TRAILERS, NGHTTP2_FLAG_END_STREAM);
    foreign_settle(&peer, server);
    CHECK_EQUAL(server->streams[0].ended, 0);
    CHECK_EQUAL(server->streams[0].closed, 1);
    CHECK_EQUAL(server->streams[0].code, H2_PROTOCOL_ERROR);
    CHECK_EQUAL(peer.code, NGHTTP2_PROTOCOL_ERROR);
    foreign_dispose(&peer);
    end_free(client);
    end_free(server);
}

TEST(trailers_of_a_request_that_is_refused_do_not_take_its_answer)
{
    static const struct field TRAILERS[] = {{"grpc-status", "14"}, {NULL, NULL}};
    static const struct field POST[] = {
        {":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    int32_t id = foreign_request(&peer, POST, 0);
    foreign_send(&peer, server);
    foreign_fields(&peer, id, TRAILERS, NGHTTP2_FLAG_END_STREAM);
    foreign_send(&peer, server); /* before it has the answer */
    foreign_settle(&peer, server);
    CHECK_EQUAL(peer.status, 400);
    CHECK_EQUAL(peer.resets, 0);
    foreign_dispose(&peer);
    end_free(server);
}

TEST(a_smaller_limit_of_the_peer_bounds_the_room)
{
    struct end *client = end_new(0);
    struct foreign peer;
    foreign_init(&peer, 1);
    nghttp2_settings_entry limit = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 2};
    nghttp2_submit_settings(peer.session, NGHTTP2_FLAG_NONE, &limit, 1);
    foreign_settle(&peer, client);
    CHECK_EQUAL(h2_room(client->h2), 2);
    end_open(client, PIPELINE, 0, 0);
    CHECK_EQUAL(h2_room(client->h2), 1);
    limit.value = 0;
    nghttp2_submit_settings(peer.session, NGHTTP2_FLAG_NONE, &limit, 1);
    foreign_settle(&peer, client);
    CHECK_EQUAL(h2_room(client->h2), 0);
    foreign_dispose(&peer);
    end_free(client);
}

TEST(a_smaller_frame_size_of_the_peer_is_kept)
{
    struct end *client = end_new(0);
    struct foreign peer;
    foreign_init(&peer, 1); /* announces nothing: 16 KiB frames, windows of 64 KiB - 1 */
    struct stream *stream = end_open(client, PIPELINE, 1000000, 0);
    foreign_settle(&peer, client);
    foreign_respond(&peer, stream->id, "200", NGHTTP2_FLAG_NONE);
    foreign_settle(&peer, client);
    CHECK_EQUAL(stream->to_send, 0); /* nghttp2 gives windows back by itself */
    CHECK_EQUAL(peer.received, 1000000);
    CHECK(stream->largest <= 16384);
    foreign_dispose(&peer);
    end_free(client);
}

TEST(more_streams_than_announced_are_refused)
{
    static const struct field FIELDS[] = {{":method", "CONNECT"}, {":authority", PIPELINE}, {NULL, NULL}};
    struct end *server = end_new(1);
    struct foreign peer;
    foreign_init(&peer, 0);
    for (int i = 0; i < H2_STREAMS_ACCEPTED + 20; i++)
        foreign_request(&peer, FIELDS, 0);
    foreign_send(&peer, server); /* before it has read our limit */
    foreign_settle(&peer, server);
    CHECK(server->count <= H2_STREAMS_ACCEPTED);
    foreign_dispose(&peer);
    end_free(server);
}

/* ---- damaged recordings ---- */

/* A valid exchange: streams of all kinds, in the end everything closed. Both directions are recorded. */
static void record(struct end *client, struct end *server)
{
    server->reply = 3000;
    server->reply_end = 1;
    end_record(client);
    end_record(server);
    settle(client, server);
    for (int i = 0; i < 6; i++)
        end_open(client, PIPELINE, (uint64_t)i * 500, i % 2);
    settle(client, server);
    server->status = 503;
    end_open(client, PIPELINE, 10, 1);
    settle(client, server);
    server->status = 200;
    h2_stream_set(client->h2, client->streams[0].id, NULL);
    h2_reset(client->h2, client->streams[0].id, H2_CANCEL);
    h2_ping(client->h2);
    h2_ping(server->h2);
    for (int i = 2; i < 6; i += 2)
        stream_send(&client->streams[i], 100, 1);
    settle(client, server);
    h2_goaway(client->h2);
    move_once(client, server);
    h2_goaway(server->h2);
    move_once(server, client);
}

/* The owner of a session that is fed with damaged bytes: contents cannot be checked, only that calls keep the
 * rules. */
static void careless_data(void *owner, void *of, const uint8_t *bytes, size_t length)
{
    struct stream *stream = of;
    volatile uint8_t sum = 0;
    CHECK(stream->end == owner && !stream->closed);
    for (size_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + bytes[i]);
    stream->received += length;
    h2_taken(stream->end->h2, stream->id, length);
}

static void careless_request(void *owner, int32_t id, const struct ns_address *authority,
                             const struct ns_address *client)
{
    struct end *end = owner;
    if (end->count < STREAMS)
        end_request(owner, id, authority, client);
    else
        h2_respond(end->h2, id, OUTCOME_LIMIT);
}

static const struct h2_events CARELESS_EVENTS = {
    .request = careless_request,
    .response = end_response,
    .data = careless_data,
    .end = end_end,
    .closed = end_closed,
    .source = end_source,
    .enough = end_enough,
    .goaway = end_goaway,
    .pong = end_pong,
};

/* Feeds a damaged copy in pieces, producing now and then as a tunnel would. */
static void replay(struct end *end, struct noise *noise, const uint8_t *bytes, size_t length)
{
    h2_free(end->h2);
    end->h2 = h2_new(end->server, &CARELESS_EVENTS, end);
    if (!end->server) {
        for (int i = 0; i < 7; i++)
            end_open(end, PIPELINE, (uint64_t)i * 500, i % 2);
        move_once(end, NULL);
    }
    end->reply = 3000;
    end->reply_end = 1;
    while (length > 0 && !end->failed) {
        size_t part = 1 + noise_below(noise, 3000);
        if (part > length)
            part = length;
        end_feed(end, bytes, part);
        bytes += part;
        length -= part;
        int more;
        uint8_t *buffer = malloc(CAPACITY_LEAST);
        size_t produced = h2_produce(end->h2, buffer, CAPACITY_LEAST, &more);
        CHECK(produced == (size_t)-1 || produced <= CAPACITY_LEAST);
        free(buffer);
        if (produced == (size_t)-1)
            break;
    }
    for (size_t i = 0; i < end->count; i++)
        CHECK(end->streams[i].closed <= 1 && end->streams[i].ended <= 1);
}

static void fuzz(int server, uint64_t seed)
{
    enum { ROUNDS = 400 };
    struct end *one = end_new(0), *other = end_new(1);
    record(one, other);
    const struct end *recorded = server ? one : other; /* what the side under test would receive */
    struct noise noise = noise_new(seed);
    int failures = 0;
    for (int round = 0; round < ROUNDS; round++) {
        size_t length;
        uint8_t *damaged = noise_mutate(&noise, recorded->log, recorded->log_length, &length);
        struct end *end = end_new(server);
        replay(end, &noise, damaged, length);
        failures += end->failed;
        end_free(end);
        free(damaged);
    }
    CHECK(failures > ROUNDS / 10); /* it was damaged enough to matter */
    end_free(one);
    end_free(other);
}

TEST(damaged_client_bytes_never_crash_the_server)
{
    fuzz(1, 6);
}

TEST(damaged_server_bytes_never_crash_the_client)
{
    fuzz(0, 7);
}

CHECK_MAIN
