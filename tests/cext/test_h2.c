/* h2.c: client and server sessions that talk through memory. */
#include "tunnel_ends.h"

#define PIPELINE "10.77.2.10:8080"

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

struct pair {
    struct end *client, *server;
};

static struct pair pair_new(void)
{
    struct pair pair = {end_new(0), end_new(1)};
    return pair;
}

static void pair_free(struct pair *pair)
{
    end_free(pair->client);
    end_free(pair->server);
}

/* A pair with one open stream; [0] of both ends. */
static struct pair pair_open(void)
{
    struct pair pair = pair_new();
    end_open(pair.client, PIPELINE, 0, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.client->streams[0].status, 200);
    CHECK_EQUAL(pair.server->count, 1);
    return pair;
}

/* ---- requests and answers ---- */

TEST(request_shows_the_authority_and_the_client)
{
    struct pair pair = pair_open();
    struct ns_address authority = address_of(PIPELINE), client = address_of("10.77.1.10:40000");
    struct stream *seen = &pair.server->streams[0];
    CHECK(memcmp(&seen->authority.ip, &authority.ip, 16) == 0);
    CHECK_EQUAL(seen->authority.port, 8080);
    CHECK(address_same_ip(&seen->client, &client));
    CHECK_EQUAL(seen->client.port, 40000);
    pair_free(&pair);
}

TEST(request_shows_an_ipv6_authority)
{
    struct pair pair = pair_new();
    struct ns_address authority = address_of("[2001:db8::7]:443");
    end_open(pair.client, "[2001:db8::7]:443", 0, 0);
    settle(pair.client, pair.server);
    CHECK(address_same_ip(&pair.server->streams[0].authority, &authority));
    CHECK_EQUAL(pair.server->streams[0].authority.port, 443);
    pair_free(&pair);
}

TEST(client_sends_nothing_before_it_is_answered_only_if_it_has_nothing)
{
    /* Bytes that the source already has may follow the request at once: the owner keeps its source back until
     * 200. */
    struct pair pair = pair_new();
    pair.server->status = 0;
    struct stream *stream = end_open(pair.client, PIPELINE, 0, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(stream->status, 0);
    CHECK_EQUAL(stream->sent, 0);
    h2_respond(pair.server->h2, stream->id, OUTCOME_OPEN);
    settle(pair.client, pair.server);
    CHECK_EQUAL(stream->status, 200);
    stream_send(stream, 10, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, 10);
    pair_free(&pair);
}

static void check_refusal(int status)
{
    struct pair pair = pair_new();
    pair.server->status = status;
    struct stream *stream = end_open(pair.client, PIPELINE, 0, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(stream->answered, 1);
    CHECK_EQUAL(stream->status, status);
    CHECK_EQUAL(stream->closed, 1);
    CHECK_EQUAL(stream->code, H2_NO_ERROR);
    CHECK_EQUAL(pair.server->count, 0);
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL);
    pair.server->status = 200;
    struct stream *next = end_open(pair.client, PIPELINE, 100, 1); /* the tunnel itself goes on */
    settle(pair.client, pair.server);
    CHECK_EQUAL(next->status, 200);
    CHECK_EQUAL(pair.server->streams[0].received, 100);
    pair_free(&pair);
}

TEST(denied_request_is_answered_401)
{
    check_refusal(401);
}

TEST(application_that_refuses_is_answered_502)
{
    check_refusal(502);
}

TEST(limit_is_answered_503)
{
    check_refusal(503);
}

TEST(silent_application_is_answered_504)
{
    check_refusal(504);
}

TEST(every_answer_arrives_as_what_it_is)
{
    struct pair pair = pair_new();
    pair.server->status = 0;
    for (int i = OUTCOME_REFUSED; i < OUTCOME_TOO_LARGE; i++) {
        struct stream *stream = end_open(pair.client, PIPELINE, 0, 0);
        settle(pair.client, pair.server);
        h2_respond(pair.server->h2, stream->id, (enum outcome)i);
        settle(pair.client, pair.server);
        CHECK_EQUAL(stream->status, outcome_status((enum outcome)i));
        CHECK_EQUAL(stream->outcome, i);
    }
    pair_free(&pair);
}

TEST(wrong_authority_is_answered_400)
{
    check_refusal(400);
}

TEST(a_refused_stream_that_was_already_sending_is_closed)
{
    struct pair pair = pair_new();
    pair.server->status = 401;
    struct stream *stream = end_open(pair.client, PIPELINE, 5000000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(stream->status, 401);
    CHECK_EQUAL(stream->closed, 1);
    CHECK(stream->to_send > 0);
    pair_free(&pair);
}

TEST(answer_may_come_after_other_streams_have_come_and_gone)
{
    struct pair pair = pair_new();
    pair.server->status = 0;
    struct stream *late = end_open(pair.client, PIPELINE, 0, 0);
    settle(pair.client, pair.server);
    pair.server->status = 200;
    pair.server->reply_end = 1;
    for (int i = 0; i < 50; i++) {
        end_open(pair.client, PIPELINE, 1000, 1);
        settle(pair.client, pair.server);
    }
    h2_respond(pair.server->h2, late->id, OUTCOME_OPEN);
    settle(pair.client, pair.server);
    CHECK_EQUAL(late->status, 200);
    CHECK_EQUAL(late->closed, 0);
    pair_free(&pair);
}

/* ---- data ---- */

/* Runs `count` streams at once and checks every byte both ways. */
static void check_streams(size_t count, uint64_t up, uint64_t down, size_t capacity)
{
    struct pair pair = pair_new();
    pair.client->capacity = pair.server->capacity = capacity;
    pair.server->reply = down;
    pair.server->reply_end = 1;
    settle(pair.client, pair.server); /* the server's limits are known */
    size_t opened = 0;
    while (opened < count) {
        size_t room = h2_room(pair.client->h2);
        CHECK(room > 0);
        for (; room > 0 && opened < count; room--, opened++)
            end_open(pair.client, PIPELINE, up + opened, 1);
        settle(pair.client, pair.server);
    }
    CHECK_EQUAL(pair.server->count, count);
    for (size_t i = 0; i < count; i++) {
        struct stream *ours = &pair.client->streams[i], *theirs = &pair.server->streams[i];
        CHECK_CASE(ours->status == 200, "stream %zu", i);
        CHECK_CASE(ours->code == H2_NO_ERROR && theirs->code == H2_NO_ERROR, "stream %zu: codes %u %u", i,
                   ours->code, theirs->code);
        CHECK_CASE(theirs->received == up + i, "stream %zu", i);
        CHECK_CASE(ours->received == down, "stream %zu", i);
        CHECK_CASE(ours->ended == 1 && theirs->ended == 1, "stream %zu", i);
        CHECK_CASE(ours->closed == 1 && theirs->closed == 1, "stream %zu", i);
    }
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL);
    pair_free(&pair);
}

TEST(one_stream_carries_data_both_ways)
{
    check_streams(1, 3000000, 3000000, CAPACITY);
}

TEST(empty_streams_open_and_close)
{
    check_streams(1, 0, 0, CAPACITY);
}

TEST(two_hundred_streams_in_turn_carry_data_both_ways)
{
    check_streams(200, 20000, 30000, CAPACITY);
}

TEST(sixty_busy_streams_share_the_buffer_without_loss)
{
    check_streams(60, 200000, 100000, CAPACITY);
}

TEST(a_hundred_busy_streams_share_the_buffer_without_loss)
{
    check_streams(100, 200000, 100000, CAPACITY);
}

TEST(a_hundred_busy_streams_share_the_smallest_buffer_without_loss)
{
    check_streams(100, 150000, 70000, CAPACITY_LEAST);
}

TEST(two_hundred_busy_streams_towards_the_client_lose_nothing)
{
    /* More than we open ourselves: a peer may open all that our server side accepts. */
    struct pair pair = pair_new();
    pair.server->reply = 100000;
    pair.server->reply_end = 1;
    for (int i = 0; i < H2_STREAMS_ACCEPTED; i++)
        end_open(pair.client, PIPELINE, 0, 1);
    settle(pair.client, pair.server);
    for (int i = 0; i < H2_STREAMS_ACCEPTED; i++) {
        CHECK_CASE(pair.client->streams[i].code == H2_NO_ERROR, "stream %d: code %u", i,
                   pair.client->streams[i].code);
        CHECK_CASE(pair.client->streams[i].received == 100000, "stream %d", i);
    }
    pair_free(&pair);
}

TEST(busy_streams_take_turns)
{
    struct pair pair = pair_new();
    settle(pair.client, pair.server);
    for (int i = 0; i < 20; i++)
        end_open(pair.client, PIPELINE, 0, 0);
    settle(pair.client, pair.server);
    for (int i = 0; i < 20; i++)
        stream_send(&pair.client->streams[i], 900000, 0);
    for (int i = 0; i < 10; i++) /* twice as many frames as streams */
        move_once(pair.client, pair.server);
    for (int i = 0; i < 20; i++)
        CHECK_CASE(pair.server->streams[i].received > 0, "stream %d", i);
    settle(pair.client, pair.server);
    pair_free(&pair);
}

TEST(no_frame_is_written_past_the_end_of_the_buffer)
{
    /* Streams end inside a buffer that is nearly full, which lets requests that waited for room leave. */
    for (size_t capacity = CAPACITY_LEAST; capacity < CAPACITY_LEAST + 24; capacity++) {
        struct pair pair = pair_new();
        pair.client->capacity = pair.server->capacity = capacity;
        pair.server->reply_end = 1;
        for (int i = 0; i < 250; i++) /* more at once than the server accepts */
            end_open(pair.client, PIPELINE, (uint64_t)(i % 3) * 30000, 1);
        settle(pair.client, pair.server);
        pair_free(&pair);
    }
}

TEST(a_source_that_fails_in_a_full_buffer_writes_nothing_past_its_end)
{
    for (size_t spare = 0; spare < 40; spare++) {
        struct pair pair = pair_open();
        struct stream *fills = &pair.client->streams[0];
        struct stream *fails = end_open(pair.client, PIPELINE, 0, 0);
        settle(pair.client, pair.server);
        pair.client->capacity = CAPACITY_LEAST;
        fails->failing = 1;
        stream_send(fills, CAPACITY_LEAST - 9 - spare, 0);
        h2_resume(pair.client->h2, fails->id);
        settle(pair.client, pair.server);
        CHECK_EQUAL(pair.server->streams[0].received, CAPACITY_LEAST - 9 - spare);
        CHECK_EQUAL(pair.server->streams[1].closed, 1);
        pair_free(&pair);
    }
}

TEST(later_is_continued_by_resume)
{
    struct pair pair = pair_open();
    struct stream *stream = &pair.client->streams[0];
    uint64_t total = 0;
    for (int i = 0; i < 300; i++) {
        stream_send(stream, (uint64_t)i * 7, 0);
        total += (uint64_t)i * 7;
        settle(pair.client, pair.server);
        CHECK_EQUAL(pair.server->streams[0].received, total);
    }
    pair_free(&pair);
}

TEST(resume_of_a_stream_that_does_not_wait_is_harmless)
{
    struct pair pair = pair_open();
    struct stream *stream = &pair.client->streams[0];
    h2_resume(pair.client->h2, stream->id);
    h2_resume(pair.client->h2, stream->id);
    h2_resume(pair.client->h2, 4711);
    stream_send(stream, 100, 0);
    h2_resume(pair.client->h2, stream->id);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, 100);
    pair_free(&pair);
}

TEST(what_is_enough_for_now_leaves_the_rest_for_the_next_buffer)
{
    enum { REQUESTS = 3 };
    struct pair pair = pair_open();
    pair.client->frames_at_once = 1;
    for (int i = 0; i < REQUESTS; i++)
        end_open(pair.client, PIPELINE, 0, 0);
    for (size_t i = 1; i <= REQUESTS; i++) {
        CHECK(h2_wants_produce(pair.client->h2));
        move_once(pair.client, pair.server);
        CHECK_EQUAL(pair.server->count, 1 + i);
    }
    pair.client->frames_at_once = 2;
    for (size_t i = 0; i <= REQUESTS; i++)
        stream_send(&pair.client->streams[i], 50000, 1);
    settle(pair.client, pair.server);
    for (size_t i = 0; i <= REQUESTS; i++)
        CHECK_EQUAL(pair.server->streams[i].received, 50000);
    pair_free(&pair);
}

TEST(data_frames_are_no_larger_than_announced)
{
    struct pair pair = pair_open();
    stream_send(&pair.client->streams[0], 5000000, 1);
    settle(pair.client, pair.server);
    CHECK(pair.client->streams[0].largest <= H2_FRAME_MAX);
    CHECK(pair.client->streams[0].largest > 16384); /* the peer's limit was used, not the default */
    pair_free(&pair);
}

/* ---- the end of a direction ---- */

TEST(client_half_close_leaves_the_other_direction_open)
{
    struct pair pair = pair_open();
    struct stream *ours = &pair.client->streams[0], *theirs = &pair.server->streams[0];
    stream_send(ours, 1000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(theirs->received, 1000);
    CHECK_EQUAL(theirs->ended, 1);
    CHECK_EQUAL(theirs->closed, 0);
    CHECK_EQUAL(ours->closed, 0);
    stream_send(theirs, 500000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(ours->received, 500000);
    CHECK_EQUAL(ours->ended, 1);
    CHECK_EQUAL(ours->closed, 1);
    CHECK_EQUAL(theirs->closed, 1);
    CHECK_EQUAL(ours->code, H2_NO_ERROR);
    pair_free(&pair);
}

TEST(server_half_close_leaves_the_other_direction_open)
{
    struct pair pair = pair_open();
    struct stream *ours = &pair.client->streams[0], *theirs = &pair.server->streams[0];
    stream_send(theirs, 1000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(ours->received, 1000);
    CHECK_EQUAL(ours->ended, 1);
    CHECK_EQUAL(ours->closed, 0);
    stream_send(ours, 500000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(theirs->received, 500000);
    CHECK_EQUAL(theirs->ended, 1);
    CHECK_EQUAL(theirs->closed, 1);
    CHECK_EQUAL(ours->closed, 1);
    pair_free(&pair);
}

TEST(an_end_without_bytes_is_passed_on)
{
    struct pair pair = pair_open();
    stream_send(&pair.server->streams[0], 0, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.client->streams[0].ended, 1);
    CHECK_EQUAL(pair.client->streams[0].received, 0);
    pair_free(&pair);
}

/* ---- resets ---- */

static void check_reset(struct end *from, struct end *to, uint32_t code)
{
    h2_stream_set(from->h2, from->streams[0].id, NULL);
    h2_reset(from->h2, from->streams[0].id, code);
    settle(from, to);
    CHECK_EQUAL(to->streams[0].closed, 1);
    CHECK_EQUAL(to->streams[0].code, code);
    CHECK_EQUAL(to->streams[0].ended, 0);
    CHECK_EQUAL(from->streams[0].closed, 0); /* it was detached: no call may follow */
}

TEST(reset_reaches_the_server_with_its_code)
{
    static const uint32_t CODES[] = {H2_CANCEL, H2_CONNECT_ERROR, H2_PROTOCOL_ERROR};
    for (int i = 0; i < 3; i++) {
        struct pair pair = pair_open();
        check_reset(pair.client, pair.server, CODES[i]);
        CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL);
        pair_free(&pair);
    }
}

TEST(reset_reaches_the_client_with_its_code)
{
    static const uint32_t CODES[] = {H2_CANCEL, H2_CONNECT_ERROR, H2_PROTOCOL_ERROR};
    for (int i = 0; i < 3; i++) {
        struct pair pair = pair_open();
        check_reset(pair.server, pair.client, CODES[i]);
        CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL);
        pair_free(&pair);
    }
}

TEST(a_failing_source_resets_only_its_stream)
{
    struct pair pair = pair_open();
    struct stream *other = end_open(pair.client, PIPELINE, 100000, 1);
    pair.client->streams[0].failing = 1;
    h2_resume(pair.client->h2, pair.client->streams[0].id);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].closed, 1);
    CHECK_EQUAL(pair.server->streams[0].code, H2_CONNECT_ERROR);
    CHECK_EQUAL(pair.server->streams[0].ended, 0);
    CHECK_EQUAL(pair.server->streams[1].received, 100000);
    CHECK_EQUAL(other->closed, 0);
    pair_free(&pair);
}

TEST(a_request_reset_before_it_left_is_never_seen)
{
    struct pair pair = pair_open();
    struct stream *stream = end_open(pair.client, PIPELINE, 100, 1);
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL - 2);
    h2_stream_set(pair.client->h2, stream->id, NULL);
    h2_reset(pair.client->h2, stream->id, H2_CANCEL);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->count, 1);
    CHECK_EQUAL(stream->closed, 0);
    CHECK_EQUAL(stream->sent, 0);
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL - 1);
    pair_free(&pair);
}

TEST(data_for_a_reset_stream_does_not_use_up_the_connections_window)
{
    struct pair pair = pair_new();
    settle(pair.client, pair.server);
    enum { RESET = 2 * CONNECTION_WINDOW / H2_STREAM_WINDOW + 1 };
    for (int i = 0; i < RESET; i++) { /* their windows are more than two of the connection's */
        struct stream *stream = end_open(pair.client, PIPELINE, H2_STREAM_WINDOW, 0);
        move_once(pair.client, pair.server);
        struct stream *theirs = &pair.server->streams[pair.server->count - 1];
        h2_stream_set(pair.server->h2, theirs->id, NULL);
        h2_reset(pair.server->h2, theirs->id, H2_CANCEL);
        for (int turn = 0; turn < 5; turn++) /* what is sent before the reset arrives */
            move_once(pair.client, pair.server);
        settle(pair.client, pair.server);
        CHECK_EQUAL(stream->closed, 1);
    }
    struct stream *last = end_open(pair.client, PIPELINE, 3000000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(last->to_send, 0);
    CHECK_EQUAL(pair.server->streams[RESET].received, 3000000);
    pair_free(&pair);
}

TEST(freeing_a_session_calls_nobody_back)
{
    struct pair pair = pair_open();
    end_open(pair.client, PIPELINE, 100, 0);
    stream_send(&pair.client->streams[0], 100, 0);
    h2_free(pair.client->h2);
    h2_free(pair.server->h2);
    CHECK_EQUAL(pair.client->streams[0].closed, 0);
    CHECK_EQUAL(pair.server->streams[0].closed, 0);
    pair.client->h2 = pair.server->h2 = NULL;
    pair_free(&pair);
}

/* ---- flow control ---- */

TEST(a_stream_that_takes_nothing_gets_one_window_and_stops_nobody)
{
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    settle(pair.client, pair.server);
    struct stream *slow = end_open(pair.client, PIPELINE, 4 * H2_STREAM_WINDOW, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, H2_STREAM_WINDOW);
    CHECK(h2_stream_blocked(pair.client->h2, slow->id));
    pair.server->hoard_after = -1;
    struct stream *quick = end_open(pair.client, PIPELINE, 4 * H2_STREAM_WINDOW, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(quick->to_send, 0);
    CHECK_EQUAL(pair.server->streams[1].received, 4 * H2_STREAM_WINDOW);
    CHECK(!h2_stream_blocked(pair.client->h2, quick->id) || quick->closed ||
          quick->sent == 4 * H2_STREAM_WINDOW);
    CHECK_EQUAL(pair.server->streams[0].received, H2_STREAM_WINDOW);
    pair_free(&pair);
}

TEST(many_streams_that_take_nothing_do_not_stop_another)
{
    enum { SLOW = CONNECTION_WINDOW / H2_STREAM_WINDOW + 1 }; /* their windows together exceed it */
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    settle(pair.client, pair.server);
    for (int i = 0; i < SLOW; i++)
        end_open(pair.client, PIPELINE, 2 * H2_STREAM_WINDOW, 1);
    settle(pair.client, pair.server);
    for (int i = 0; i < SLOW; i++)
        CHECK_EQUAL(pair.server->streams[i].received, H2_STREAM_WINDOW);
    pair.server->hoard_after = -1;
    struct stream *quick = end_open(pair.client, PIPELINE, 1000000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(quick->to_send, 0);
    CHECK_EQUAL(pair.server->streams[SLOW].received, 1000000);
    pair_free(&pair);
}

TEST(what_is_withheld_stops_the_peer_at_the_connections_window)
{
    enum { WINDOW = 65535, SLOW = 8, PART = 10000 };
    struct pair pair = {.client = end_new(0), .server = end_new(1)};
    h2_free(pair.server->h2); /* one with the window that a connection begins with */
    pair.server->h2 = h2_new(1, &END_EVENTS, pair.server);
    pair.server->hoard_after = 0;
    pair.server->withholding = 1;
    h2_withhold(pair.server->h2, 1);
    settle(pair.client, pair.server);
    for (int i = 0; i < SLOW; i++)
        end_open(pair.client, PIPELINE, PART, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->withheld, WINDOW);
    struct stream *slow = &pair.server->streams[0];
    CHECK_EQUAL(slow->held, PART);
    /* What one takes, another gets, though much less than half of the window is free. */
    stream_take(slow, PART);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->withheld, WINDOW);
    /* And one that takes goes on beside those that do not. */
    stream_take(&pair.server->streams[1], PART);
    pair.server->hoard_after = -1;
    struct stream *quick = end_open(pair.client, PIPELINE, 1000000, 1);
    settle(pair.client, pair.server);
    uint64_t received = 0;
    for (int i = 0; i < SLOW; i++)
        received += pair.server->streams[i].received;
    CHECK_EQUAL(received, SLOW * PART);
    CHECK_EQUAL(pair.server->streams[SLOW].received, 1000000);
    CHECK_EQUAL(quick->to_send, 0);
    pair_free(&pair);
}

TEST(a_window_made_smaller_swallows_what_was_granted_beyond_it)
{
    enum { SMALL = 1 << 20, STREAMS_OF_WINDOW = CONNECTION_WINDOW / H2_STREAM_WINDOW };
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    pair.server->withholding = 1;
    h2_withhold(pair.server->h2, 1);
    settle(pair.client, pair.server);
    h2_connection_window(pair.server->h2, SMALL);
    for (int i = 0; i < STREAMS_OF_WINDOW; i++)
        end_open(pair.client, PIPELINE, H2_STREAM_WINDOW, 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->withheld, CONNECTION_WINDOW); /* it had been granted */
    end_open(pair.client, PIPELINE, H2_STREAM_WINDOW, 0);
    settle(pair.client, pair.server);
    const struct stream *last = &pair.server->streams[STREAMS_OF_WINDOW];
    int taken = 0;
    for (; taken < STREAMS_OF_WINDOW - 1; taken++) {
        CHECK_CASE(last->received == 0, "%d were taken", taken);
        stream_take(&pair.server->streams[taken], H2_STREAM_WINDOW);
        settle(pair.client, pair.server);
    }
    CHECK_EQUAL(last->received, 0); /* what is withheld is all of the small one */
    stream_take(&pair.server->streams[taken], H2_STREAM_WINDOW);
    settle(pair.client, pair.server);
    CHECK_EQUAL(last->received, H2_STREAM_WINDOW);
    pair_free(&pair);
}

TEST(a_widened_stream_gets_as_much_as_its_window)
{
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    settle(pair.client, pair.server);
    end_open(pair.client, PIPELINE, 8 * H2_STREAM_WINDOW, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, H2_STREAM_WINDOW);
    h2_widen(pair.server->h2, pair.server->streams[0].id, 4 * H2_STREAM_WINDOW);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, 4 * H2_STREAM_WINDOW);
    pair_free(&pair);
}

TEST(a_slow_reader_gets_the_rest_as_it_takes)
{
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    settle(pair.client, pair.server);
    struct stream *ours = end_open(pair.client, PIPELINE, 3 * H2_STREAM_WINDOW, 1);
    settle(pair.client, pair.server);
    struct stream *slow = &pair.server->streams[0];
    struct noise noise = noise_new(5);
    while (slow->held > 0) {
        stream_take(slow, least(slow->held, 1 + noise_below(&noise, 300000)));
        settle(pair.client, pair.server);
        CHECK(slow->held <= H2_STREAM_WINDOW);
    }
    CHECK_EQUAL(slow->received, 3 * H2_STREAM_WINDOW);
    CHECK_EQUAL(slow->ended, 1);
    CHECK_EQUAL(ours->to_send, 0);
    pair_free(&pair);
}

TEST(bytes_taken_after_the_stream_is_gone_are_no_error)
{
    struct pair pair = pair_new();
    pair.server->hoard_after = 0;
    pair.server->reply_end = 1;
    end_open(pair.client, PIPELINE, 50000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].closed, 1);
    stream_take(&pair.server->streams[0], 50000);
    h2_taken(pair.server->h2, 4711, 10);
    settle(pair.client, pair.server);
    CHECK(
        h2_stream_blocked(pair.server->h2, pair.server->streams[0].id)); /* one that is gone sends nothing */
    pair_free(&pair);
}

/* ---- the connection ---- */

TEST(room_is_the_least_of_both_limits)
{
    struct pair pair = pair_new();
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL); /* before the peer's settings */
    settle(pair.client, pair.server);
    CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL);
    for (int i = 1; i <= H2_STREAMS_PER_TUNNEL; i++) {
        end_open(pair.client, PIPELINE, 0, 0);
        CHECK_EQUAL(h2_room(pair.client->h2), H2_STREAMS_PER_TUNNEL - i);
    }
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->count, H2_STREAMS_PER_TUNNEL);
    pair_free(&pair);
}

TEST(goaway_stops_new_streams_and_leaves_running_ones)
{
    struct pair pair = pair_open();
    h2_goaway(pair.server->h2);
    h2_goaway(pair.server->h2);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.client->goaways, 1);
    CHECK_EQUAL(h2_room(pair.client->h2), 0);
    stream_send(&pair.client->streams[0], 500000, 1);
    stream_send(&pair.server->streams[0], 500000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, 500000);
    CHECK_EQUAL(pair.client->streams[0].received, 500000);
    CHECK_EQUAL(pair.client->streams[0].code, H2_NO_ERROR);
    pair_free(&pair);
}

TEST(goaway_of_our_own_stops_new_streams)
{
    struct pair pair = pair_open();
    h2_goaway(pair.client->h2);
    CHECK_EQUAL(h2_room(pair.client->h2), 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->goaways, 1);
    stream_send(&pair.client->streams[0], 1000, 1);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->streams[0].received, 1000);
    pair_free(&pair);
}

TEST(a_request_that_crosses_a_goaway_is_refused_for_another_try)
{
    enum { REFUSED_STREAM = 7 };
    struct pair pair = pair_open();
    h2_goaway(pair.server->h2);
    struct stream *crossing = end_open(pair.client, PIPELINE, 0, 0);
    move_once(pair.client, NULL); /* sent, but the server has said goodbye before it sees it */
    move_once(pair.server, pair.client);
    CHECK_EQUAL(crossing->closed, 1);
    CHECK_EQUAL(crossing->code, REFUSED_STREAM);
    CHECK_EQUAL(pair.client->streams[0].closed, 0);
    pair_free(&pair);
}

TEST(a_request_that_crosses_the_notice_of_a_goaway_is_served)
{
    struct pair pair = pair_open();
    h2_goaway_notice(pair.server->h2);
    struct stream *crossing = end_open(pair.client, PIPELINE, 1000, 1);
    move_once(pair.client, pair.server);
    move_once(pair.server, pair.client);
    CHECK_EQUAL(h2_room(pair.client->h2), 0);
    settle(pair.client, pair.server);
    CHECK_EQUAL(crossing->status, 200);
    CHECK_EQUAL(pair.server->streams[1].received, 1000);
    h2_goaway(pair.server->h2);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.client->goaways, 2);
    CHECK_EQUAL(pair.client->streams[0].closed, 0);
    pair_free(&pair);
}

TEST(requests_that_wait_when_a_goaway_comes_are_refused_for_another_try)
{
    enum { REFUSED_STREAM = 7 };
    struct pair pair = pair_open();
    h2_goaway(pair.server->h2);
    struct stream *waiting = end_open(pair.client, PIPELINE, 0, 0);
    move_once(pair.server, pair.client);
    settle(pair.client, pair.server);
    CHECK_EQUAL(waiting->closed, 1);
    CHECK_EQUAL(waiting->code, REFUSED_STREAM);
    CHECK_EQUAL(pair.server->count, 1);
    pair_free(&pair);
}

TEST(requests_waiting_when_we_say_goaway_still_leave)
{
    struct pair pair = pair_open();
    struct stream *waiting = end_open(pair.client, PIPELINE, 1000, 1);
    h2_goaway(pair.client->h2);
    settle(pair.client, pair.server);
    CHECK_EQUAL(waiting->status, 200);
    CHECK_EQUAL(pair.server->streams[1].received, 1000);
    pair_free(&pair);
}

TEST(ping_is_answered_from_either_side)
{
    struct pair pair = pair_open();
    h2_ping(pair.client->h2);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.client->pongs, 1);
    CHECK_EQUAL(pair.server->pongs, 0);
    h2_ping(pair.server->h2);
    settle(pair.client, pair.server);
    CHECK_EQUAL(pair.server->pongs, 1);
    pair_free(&pair);
}

TEST(wants_produce_says_whether_there_is_something_to_send)
{
    struct pair pair = pair_open();
    CHECK(!h2_wants_produce(pair.client->h2));
    h2_ping(pair.client->h2);
    CHECK(h2_wants_produce(pair.client->h2));
    settle(pair.client, pair.server);
    stream_send(&pair.client->streams[0], 10, 0);
    CHECK(h2_wants_produce(pair.client->h2));
    settle(pair.client, pair.server);
    CHECK(!h2_wants_produce(pair.client->h2));
    pair_free(&pair);
}

CHECK_MAIN
