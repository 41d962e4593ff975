/* windows.c: how wide a window should be, and what many peers cost. What windows bound is tested in
 * test_core_memory.c. */
#include "flow/windows.h"

#include <time.h>

#include "check.h"
#include "wire/h2.h"
#include "flow/stream.h"
#include "flow/tunnel.h"

enum { MB = 1000000, MS = 1000 };

TEST(a_near_peer_keeps_its_window_however_fast_it_is)
{
    /* 1 GB/s over a veth: what limits is the CPU. */
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, 4 * MB, 4 * MS, 60), H2_STREAM_WINDOW);
}

TEST(a_far_peer_gets_twice_the_window_until_it_is_enough)
{
    uint32_t window = H2_STREAM_WINDOW;
    /* Each round trip of 50 ms carries one window: the window is the limit. */
    for (int i = 0; i < 10; i++)
        window = window_wanted(window, H2_STREAM_WINDOW_MAX, window, 50 * MS, 50 * MS);
    CHECK_EQUAL(window, H2_STREAM_WINDOW_MAX);
    /* 20 MB/s over 50 ms are 1 MB on the way: 2 are enough, and 4 are not asked for. */
    CHECK_EQUAL(window_wanted(2 << 20, H2_STREAM_WINDOW_MAX, 20 * MB, 1000 * MS, 50 * MS), 2 << 20);
}

TEST(a_slow_stream_keeps_its_window_over_any_distance)
{
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, MB, 1000 * MS, 200 * MS),
                H2_STREAM_WINDOW);
}

TEST(a_window_is_never_larger_than_the_largest)
{
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW_MAX, H2_STREAM_WINDOW_MAX, 1000 * MB, 1, 1000 * MS),
                H2_STREAM_WINDOW_MAX);
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, MB, 0, 0), 2 * H2_STREAM_WINDOW);
}

/* ---- many peers ---- */

static int compared; /* pairs of texts, in all */
int __wrap_strcmp(const char *a, const char *b);
int __real_strcmp(const char *a, const char *b);

int __wrap_strcmp(const char *a, const char *b)
{
    compared++;
    return __real_strcmp(a, b);
}

enum { TUNNELS = 4000 };

/* A workload with so many tunnels, each of a peer of its own, or all of one. */
struct crowd {
    struct worker worker;
    struct workload workload;
    struct descriptors descriptors;
    struct notices notices;
    struct tunnel tunnels[TUNNELS];
};

static void crowd_join(struct crowd *crowd, struct tunnel *tunnel, int number)
{
    tunnel->magic = TUNNEL_MAGIC;
    tunnel->state = TUNNEL_HANDSHAKE;
    tunnel->worker = &crowd->worker;
    tunnel->workload = &crowd->workload;
    link_init(&tunnel->dirty_link);
    link_init(&tunnel->holder_link);
    link_init(&tunnel->streams);
    tunnel->pending.account = tunnel->unfed.account = &crowd->workload.quota->memory;
    tunnel->h2 = h2_new(1, &STREAM_H2_EVENTS, tunnel);
    snprintf(tunnel->tls.peer, sizeof(tunnel->tls.peer), "spiffe://example.org/ns/n/sa/peer-%d", number);
    link_append(&crowd->workload.tunnels, &tunnel->link);
    CHECK_EQUAL(windows_open(tunnel), NS_LIMITS);
}

static struct crowd *crowd_new(int peers)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    CHECK(crowd != NULL);
    for (int i = 0; i < HOLDER_BUCKETS; i++)
        link_init(&crowd->worker.holders[i]);
    turns_init(&crowd->worker.turns);
    budget_init(&crowd->workload.budget);
    link_init(&crowd->workload.tunnels);
    link_init(&crowd->workload.holders);
    crowd->workload.quota = quota_new(1, &crowd->descriptors, &crowd->notices);
    for (int i = 0; i < TUNNELS; i++)
        crowd_join(crowd, &crowd->tunnels[i], i % peers);
    return crowd;
}

static void crowd_free(struct crowd *crowd)
{
    for (int i = 0; i < TUNNELS; i++) {
        windows_close(&crowd->tunnels[i]);
        h2_free(crowd->tunnels[i].h2);
    }
    CHECK_EQUAL(crowd->workload.quota->promised, 0);
    link_init(&crowd->workload.tunnels);
    windows_tick(&crowd->workload);
    CHECK(link_empty(&crowd->workload.holders)); /* they last as long as they have anything */
    quota_release(crowd->workload.quota);
    free(crowd);
}

TEST(a_tunnel_finds_its_peer_among_thousands)
{
    enum { FEW = 10 };
    compared = 0;
    struct crowd *crowd = crowd_new(TUNNELS);
    CHECK_CASE(compared <= FEW * TUNNELS, "%d comparisons for %d tunnels", compared, TUNNELS);
    crowd_free(crowd);
}

/* CPU time of the tick that finds that there is too little memory for all. */
static clock_t tick_that_tightens(struct crowd *crowd)
{
    const struct ns_limits low = {.memory = 1 << 20};
    quota_set_limits(crowd->workload.quota, &low);
    clock_t begun = clock();
    windows_tick(&crowd->workload);
    clock_t cost = clock() - begun;
    for (int i = 0; i < TUNNELS; i++)
        CHECK(crowd->tunnels[i].holder->tight && !link_empty(&crowd->tunnels[i].dirty_link));
    return cost;
}

TEST(thousands_of_peers_become_tight_at_about_the_cost_of_their_tunnels)
{
    enum { TIMES = 5 };
    struct crowd *one = crowd_new(1);
    clock_t of_one = tick_that_tightens(one);
    crowd_free(one);
    struct crowd *all = crowd_new(TUNNELS);
    clock_t of_all = tick_that_tightens(all);
    crowd_free(all);
    CHECK_CASE(of_all <= TIMES * of_one, "%ld us for %d peers, %ld for one", (long)of_all, TUNNELS,
               (long)of_one);
}

CHECK_MAIN
