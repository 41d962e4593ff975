/* The whole core: what a workload may have, and what the process has. */
#include <errno.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"

static void lab_limit(struct lab *lab, uint64_t key, struct ns_limits limits)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_limits(lab->core, key, &limits, error, sizeof(error)), 0);
}

static uint64_t lab_refused(struct lab *lab, uint64_t key, enum ns_limit limit)
{
    return lab_stats(lab, key).limited[limit].refused;
}

/* How many connections are shown with this reason. */
static int shown_with(struct lab *lab, uint64_t key, const char *reason)
{
    static struct ns_connection list[256];
    size_t count = core_connections(lab->core, list, 256);
    int shown = 0;
    for (size_t i = 0; i < count && i < 256; i++)
        shown += list[i].workload == key && list[i].state == NS_STATE_CLOSED &&
                 strcmp(list[i].reason, reason) == 0;
    return shown;
}

TEST(captured_connections_beyond_the_limit_are_reset_and_counted)
{
    enum { LIMIT = 3, MORE = 4 };
    struct lab *lab = lab_new();
    struct ends ends[LIMIT];
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.connections = LIMIT});
    for (int i = 0; i < LIMIT; i++)
        ends[i] = lab_connect(lab);
    for (int i = 0; i < MORE; i++) {
        int client = dial(lab->outbound);
        expect_reset(client);
        close(client);
    }
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_CONNECTIONS), MORE);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, LIMIT);
    CHECK(shown_with(lab, SHIPPER_KEY, "limit-connections") >= 1);
    struct ns_limit_notice notice;
    WAIT_UNTIL(core_limit_notices(lab->core, &notice, 1) == 1);
    CHECK_EQUAL(notice.workload, SHIPPER_KEY);
    CHECK_EQUAL(notice.limit, NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(notice.value, LIMIT);
    CHECK_EQUAL(notice.refused, MORE);
    for (int i = 0; i < LIMIT; i++)
        exchange(&ends[i], 0); /* those that run feel nothing */
    ends_close(&ends[0]);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == LIMIT - 1);
    ends[0] = lab_connect(lab);
    exchange(&ends[0], 0);
    for (int i = 0; i < LIMIT; i++)
        ends_close(&ends[i]);
    lab_free(lab);
}

TEST(streams_beyond_the_limit_are_answered_503_and_others_of_the_tunnel_run_on)
{
    struct lab *lab = lab_new();
    struct ends ends[2];
    /* The tunnel that the peer opened counts as well. */
    lab_limit(lab, PIPELINE_KEY, (struct ns_limits){.connections = 3});
    for (int i = 0; i < 2; i++)
        ends[i] = lab_connect(lab);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, PIPELINE_KEY, NS_LIMIT_CONNECTIONS), 1);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_CONNECTIONS), 0);
    CHECK_EQUAL(shown_with(lab, PIPELINE_KEY, "limit-connections"), 0);
    struct ns_refusal refusal;
    CHECK_EQUAL(core_refusals(lab->core, &refusal, 1), 1);
    CHECK_EQUAL(refusal.workload, PIPELINE_KEY);
    CHECK_EQUAL(refusal.kind, NS_REFUSED_STREAM);
    CHECK_EQUAL(refusal.status, 503);
    CHECK_EQUAL(refusal.count, 1);
    CHECK_TEXT(refusal.peer, SHIPPER);
    CHECK_TEXT(refusal.reason, "limit-connections");
    for (int i = 0; i < 2; i++) {
        exchange(&ends[i], 0);
        ends_close(&ends[i]);
    }
    lab_free(lab);
}

TEST(a_tunnel_beyond_the_limit_is_reset_when_its_peer_has_proven_who_it_is)
{
    enum { OTHER_KEY = 3 };
    struct lab *lab = lab_new();
    lab_workload(lab, OTHER_KEY, 3, SHIPPER);
    int listener = lab_listen(lab, OTHER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    struct ends ends = lab_connect(lab); /* a tunnel and a stream */
    lab_limit(lab, PIPELINE_KEY, (struct ns_limits){.connections = 2});
    int client = dial(listener); /* of another workload, which needs a tunnel of its own */
    expect_reset(client);
    uint64_t refused = lab_refused(lab, PIPELINE_KEY, NS_LIMIT_CONNECTIONS);
    CHECK(refused >= 1 && refused <= 3); /* a flow tries as many tunnels that break */
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnels, 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tls_failed, 0);
    exchange(&ends, 0);
    ends_close(&ends);
    close(client);
    close(listener);
    lab_free(lab);
}

TEST(connections_that_come_too_fast_are_reset)
{
    enum { TRIES = 10 };
    struct lab *lab = lab_new();
    int reset_ones = 0;
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.new_connections = 1});
    for (int i = 0; i < TRIES; i++) {
        int client = dial(lab->outbound);
        uint8_t byte;
        shutdown(client, SHUT_WR);
        struct pollfd poll_one = {.fd = client, .events = POLLIN};
        struct pollfd polls[2] = {poll_one, {.fd = lab->application, .events = POLLIN}};
        CHECK(poll(polls, 2, WAIT_SECONDS * 1000) > 0);
        if (polls[1].revents != 0)
            close(take_connection(lab->application));
        else
            reset_ones += recv(client, &byte, 1, 0) < 0 && errno == ECONNRESET;
        close(client);
    }
    CHECK(reset_ones >= 1);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_RATE), reset_ones);
    CHECK(shown_with(lab, SHIPPER_KEY, "limit-rate") >= 1);
    lab_free(lab);
}

/* Connections whose clients read nothing hold what the server sends, until the workload may hold no more:
 * then new ones are refused, those that run are slowed down, and nothing is lost. */
static void check_memory(struct lab *lab, uint64_t slack)
{
    enum { COUNT_OF = 40, LENGTH = 6000000 };
    const uint64_t limit = 8 << 20;
    struct ends stalled[COUNT_OF], quick;
    struct sender senders[COUNT_OF];
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.memory = limit});
    quick = lab_connect(lab);
    for (int i = 0; i < COUNT_OF; i++)
        stalled[i] = lab_connect(lab);
    for (int i = 0; i < COUNT_OF; i++)
        sender_start(&senders[i], stalled[i].server, (uint64_t)i, LENGTH);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory >= limit / 4);
    for (int i = 0; i < 300; i++) { /* another stream of the same tunnel, while they press */
        exchange(&quick, (uint64_t)i * 100);
        uint64_t held = lab_stats(lab, SHIPPER_KEY).memory;
        CHECK_CASE(held <= limit + slack, "%llu bytes held", (unsigned long long)held);
    }
    struct ns_limits tiny = {.memory = 1 << 20};
    lab_limit(lab, SHIPPER_KEY, tiny);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_MEMORY), 1);
    CHECK_EQUAL(shown_with(lab, SHIPPER_KEY, "limit-memory"), 1);
    for (int i = 0; i < COUNT_OF; i++) {
        receive_stream(stalled[i].client, (uint64_t)i, 0, LENGTH);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&quick);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory == 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).descriptors, lab_stats(lab, SHIPPER_KEY).tunnels);
    struct ends ends = lab_connect(lab); /* and windows are wide again */
    struct sender sender;
    sender_start(&sender, ends.server, 1, LENGTH);
    receive_stream(ends.client, 1, 0, LENGTH);
    sender_join(&sender);
    ends_close(&ends);
}

TEST(a_workload_holds_no_more_memory_than_its_limit_in_tunnels)
{
    struct lab *lab = lab_new();

    check_memory(lab, 0);
    lab_free(lab);
}

TEST(a_workload_holds_no_more_memory_than_its_limit_in_plaintext)
{
    struct lab *lab = lab_plain();
    check_memory(lab, 4 << 20);
    lab_free(lab);
}

TEST(descriptors_that_run_out_refuse_new_connections_only)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends ends = lab_connect(lab);
    struct rlimit before, low;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 40;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &low), 0);
    WAIT_UNTIL(lab_core_stats(lab).descriptor_limit == 40); /* it is looked at once a second */
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_DESCRIPTORS), 1);
    CHECK_EQUAL(shown_with(lab, SHIPPER_KEY, "limit-descriptors"), 1);
    exchange(&ends, 0);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &before), 0);
    WAIT_UNTIL(lab_core_stats(lab).descriptor_limit == before.rlim_cur);
    struct ends after = lab_connect(lab);
    exchange(&after, 0);
    ends_close(&after);
    ends_close(&ends);
    lab_free(lab);
}

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

TEST(a_connection_that_cannot_even_be_refused_waits_and_wakes_nobody)
{
    enum { TICKS = 8, TICK_MS = 50 };
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    __atomic_store_n(&calls.accepts_fail, 1, __ATOMIC_RELAXED);
    int client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(calls.accepts_tried) >= 2); /* the second gives a descriptor up first */
    uint64_t begun = monotonic_ms();
    WAIT_UNTIL(COUNT(calls.accepts_tried) >= 2 + 2 * TICKS);
    CHECK(monotonic_ms() - begun >= (TICKS - 2) * TICK_MS); /* one that does not wait is done in no time */
    __atomic_store_n(&calls.accepts_fail, 0, __ATOMIC_RELAXED);
    struct ends late = {.client = client, .server = take_connection(lab->application)};
    exchange(&open, 0);
    exchange(&late, 0);
    ends_close(&open);
    ends_close(&late);
    lab_free(lab);
}

CHECK_MAIN
