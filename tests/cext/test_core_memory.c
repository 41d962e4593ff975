/* The whole core: what peers with proper certificates can make it hold, and what that costs others. */
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"
#include "hostile_peer.h"

#define INTRUDER "spiffe://example.org/ns/default/sa/intruder"
#define ACCOMPLICE "spiffe://example.org/ns/default/sa/accomplice"

enum { PIECE = 16384, FLOW_CONTROL_ERROR = 3 };

static void limit_memory(struct lab *lab, uint64_t limit)
{
    struct ns_limits limits = {.memory = limit};
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_limits(lab->core, PIPELINE_KEY, &limits, error, sizeof(error)), 0);
}

static uint64_t refused(struct lab *lab)
{
    uint64_t sum = 0;
    struct ns_workload_stats stats = lab_stats(lab, PIPELINE_KEY);
    for (int i = 0; i < NS_LIMITS; i++)
        sum += stats.limited[i].refused;
    return sum;
}

/* An application that is too busy to take a connection: its queue is full, and SYNs are dropped. So the
 * kernel keeps nothing of what is sent to it. */
struct busy {
    int listener, waiting;
};

static struct busy busy_new(void)
{
    struct busy busy = {.listener = listen_at(host(2, 0))};
    CHECK_EQUAL(listen(busy.listener, 0), 0);
    busy.waiting = dial(busy.listener);
    return busy;
}

static void busy_close(struct busy *busy)
{
    close(busy->waiting);
    close(busy->listener);
}

struct flood {
    struct hostile_peer *peers[4];
    int32_t streams[4][64];
    int tunnels, streams_each;
    uint64_t sent;
    uint64_t most; /* held at once */
};

static void flood_begin(struct flood *flood, struct lab *lab, const char *identity, const struct busy *busy,
                        int tunnels, int streams_each)
{
    memset(flood, 0, sizeof(*flood));
    flood->tunnels = tunnels;
    flood->streams_each = streams_each;
    for (int i = 0; i < tunnels; i++) {
        flood->peers[i] = hostile_peer_new(lab, 7, identity);
        for (int j = 0; j < streams_each; j++)
            flood->streams[i][j] = hostile_peer_open(flood->peers[i], local_of(busy->listener));
    }
}

/* Each stream sends a piece, where the connection's window allows it. How much all of them sent. */
static uint64_t flood_round(struct flood *flood, struct lab *lab, size_t piece)
{
    uint64_t sent = 0;
    for (int i = 0; i < flood->tunnels; i++) {
        struct hostile_peer *peer = flood->peers[i];
        for (int j = 0; j < flood->streams_each; j++) {
            hostile_peer_listen(peer);
            if (peer->credit >= (int64_t)piece) {
                hostile_peer_send(peer, flood->streams[i][j], piece);
                sent += piece;
            }
        }
    }
    uint64_t held = lab_stats(lab, PIPELINE_KEY).memory; /* and the core has had a turn */
    flood->most = held > flood->most ? held : flood->most;
    flood->sent += sent;
    return sent;
}

/* Until it may send nothing any more, for as long as windows are looked at anew. */
static void flood_until_stopped(struct flood *flood, struct lab *lab, size_t piece)
{
    enum { STILL_MS = 1500 };
    struct timespec pause = {.tv_nsec = 5000000};
    for (int still = 0; still < STILL_MS;) {
        CHECK_CASE(flood->sent < 100u << 20, "%llu bytes are held", (unsigned long long)flood->most);
        if (flood_round(flood, lab, piece) > 0) {
            still = 0;
        } else {
            nanosleep(&pause, NULL);
            still += 5;
        }
    }
}

static void flood_end(struct flood *flood)
{
    for (int i = 0; i < flood->tunnels; i++)
        hostile_peer_free(flood->peers[i]);
}

static void check_served(struct lab *lab, int count)
{
    for (int i = 0; i < count; i++) {
        struct ends ends = lab_connect(lab);
        exchange(&ends, 0);
        ends_close(&ends);
    }
}

TEST(a_peer_that_ignores_small_windows_holds_its_part_of_the_memory_and_stops_nobody)
{
    const uint64_t limit = 24 << 20;
    struct lab *lab = lab_new();
    struct busy busy = busy_new();
    struct flood flood;
    limit_memory(lab, limit);
    check_served(lab, 1);
    flood_begin(&flood, lab, INTRUDER, &busy, 3, 60);
    struct ends running = lab_connect(lab);
    flood_until_stopped(&flood, lab, PIECE);
    check_served(lab, 20);
    exchange(&running, 0);
    CHECK_CASE(flood.most >= limit / 8 && flood.most <= limit / 2, "%llu bytes were held",
               (unsigned long long)flood.most);
    struct ns_workload_stats stats = lab_stats(lab, PIPELINE_KEY);
    CHECK(stats.memory + stats.promised <= limit);
    CHECK_EQUAL(refused(lab), 0);
    for (int i = 0; i < flood.tunnels; i++)
        CHECK(!flood.peers[i]->ended && flood.peers[i]->code == 0); /* it has sent no more than it might */
    /* A second peer does not get there what the first has left for others. */
    struct flood second;
    flood_begin(&second, lab, ACCOMPLICE, &busy, 3, 60);
    flood_until_stopped(&second, lab, PIECE);
    check_served(lab, 20);
    stats = lab_stats(lab, PIPELINE_KEY);
    CHECK(stats.memory + stats.promised <= limit);
    CHECK_EQUAL(refused(lab), 0);
    flood_end(&flood);
    flood_end(&second);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).memory == 0);
    exchange(&running, 100);
    ends_close(&running);
    busy_close(&busy);
    lab_free(lab);
}

TEST(small_pieces_on_many_streams_take_no_more_than_twice_their_bytes)
{
    const uint64_t limit = 24 << 20;
    struct lab *lab = lab_new();
    struct busy busy = busy_new();
    struct flood flood;
    limit_memory(lab, limit);
    flood_begin(&flood, lab, INTRUDER, &busy, 3, 60);
    flood_until_stopped(&flood, lab, 1500);
    check_served(lab, 20);
    /* The peer's half, and slabs that others have begun. */
    CHECK_CASE(flood.most <= limit / 2 + limit / 16, "%llu bytes were held", (unsigned long long)flood.most);
    flood_end(&flood);
    busy_close(&busy);
    lab_free(lab);
}

TEST(a_peer_that_exceeds_its_window_is_cut_and_nobody_else)
{
    struct lab *lab = lab_new();
    struct busy busy = busy_new();
    limit_memory(lab, 8 << 20);
    struct ends running = lab_connect(lab);
    struct hostile_peer *good = hostile_peer_new(lab, 7, INTRUDER);
    (void)hostile_peer_open(good, local_of(busy.listener));
    struct flood flood;
    flood_begin(&flood, lab, ACCOMPLICE, &busy, 1, 60);
    flood_until_stopped(&flood, lab, PIECE);
    struct hostile_peer *bad = flood.peers[0];
    CHECK(!bad->ended && bad->credit < PIECE);
    hostile_peer_send(bad, flood.streams[0][0], PIECE);
    WAIT_UNTIL((hostile_peer_listen(bad), bad->ended));
    CHECK_EQUAL(bad->code, FLOW_CONTROL_ERROR);
    CHECK(flood.most <= 4 << 20);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).memory == 0);
    exchange(&running, 0);
    check_served(lab, 5);
    hostile_peer_listen(good);
    CHECK(!good->ended && good->code == 0);
    hostile_peer_free(good);
    flood_end(&flood);
    ends_close(&running);
    busy_close(&busy);
    lab_free(lab);
}

TEST(a_peer_may_have_as_many_tunnels_as_their_windows_leave_for_others)
{
    enum { MOST = 64, LEAST_WINDOW = 65535 };
    const uint64_t limit = 2 << 20;
    struct lab *lab = lab_new_of_one_worker();
    struct hostile_peer *peers[MOST];
    int count = 0, ended = 0;
    limit_memory(lab, limit);
    while (!ended) {
        CHECK(count < MOST);
        peers[count] = hostile_peer_new(lab, 7, INTRUDER);
        WAIT_UNTIL(
            (hostile_peer_listen(peers[count]), peers[count]->ended || peers[count]->input_length > 0 ||
                                                    lab_stats(lab, PIPELINE_KEY).tunnels == count + 1u));
        struct timespec pause = {.tv_nsec = 20000000};
        nanosleep(&pause, NULL);
        hostile_peer_listen(peers[count]);
        ended = peers[count++]->ended;
    }
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).limited[NS_LIMIT_MEMORY].refused, 1);
    CHECK(count >= 8);
    CHECK(lab_stats(lab, PIPELINE_KEY).promised <= limit / 2 + LEAST_WINDOW);
    check_served(lab, 5); /* another's tunnel, and its streams */
    CHECK_EQUAL(refused(lab), 1);
    for (int i = 0; i < count; i++)
        hostile_peer_free(peers[i]);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).tunnels == 1);
    CHECK(lab_stats(lab, PIPELINE_KEY).promised <= 4 * LEAST_WINDOW);
    lab_free(lab);
}

/* What a peer was promised before stays with it, and is not held against its next tunnel. */
TEST(a_limit_that_is_lowered_leaves_room_for_new_tunnels)
{
    const uint64_t limit = 8 << 20;
    struct lab *lab = lab_new_of_one_worker();
    struct ends old = lab_connect(lab);
    exchange(&old, 0);
    CHECK(lab_stats(lab, PIPELINE_KEY).promised > limit);
    limit_memory(lab, limit);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).promised <= limit / 4);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER); /* the next connection needs a tunnel of its own */
    check_served(lab, 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnels, 2);
    CHECK_EQUAL(refused(lab), 0);
    struct sender sender; /* more than the window that it had, and through the smaller one */
    sender_start(&sender, old.client, 7, 48u << 20);
    receive_stream(old.server, 7, 0, 48u << 20);
    sender_join(&sender);
    CHECK(lab_stats(lab, PIPELINE_KEY).promised <= limit);
    ends_close(&old);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).memory == 0);
    lab_free(lab);
}

CHECK_MAIN
