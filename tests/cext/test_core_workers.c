/* The whole core: which worker has a connection, and how those of a worker share it. */
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "core_calls.h"
#include "core_ends.h"
#include "wire/h2.h"
#include "loop/worker.h"

/* How many workers have outbound connections; an id's upper bits name the worker. */
static int workers_in_use(struct lab *lab, uint64_t expected)
{
    static struct ns_connection list[1024];
    uint64_t outbound[4] = {0};
    size_t count = core_connections(lab->core, list, 1024);
    CHECK(count <= 1024);
    for (size_t i = 0; i < count; i++)
        outbound[list[i].id >> 48] += list[i].direction == NS_OUTBOUND;
    CHECK_EQUAL(outbound[0] + outbound[1] + outbound[2] + outbound[3], expected);
    return (outbound[0] > 0) + (outbound[1] > 0) + (outbound[2] > 0) + (outbound[3] > 0);
}

TEST(connections_of_a_workload_share_a_worker_until_they_are_many)
{
    enum { FEW = 20, MANY = 150 };
    struct core_options options = options_default();
    options.workers = 4;
    struct lab *lab = lab_with(options);
    struct ends ends[MANY];
    for (int i = 0; i < FEW; i++)
        ends[i] = lab_connect(lab);
    CHECK_EQUAL(workers_in_use(lab, FEW), 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1);
    for (int i = FEW; i < MANY; i++)
        ends[i] = lab_connect(lab);
    CHECK(workers_in_use(lab, MANY) > 1);
    for (int i = 0; i < MANY; i++) {
        send_stream(ends[i].client, (uint64_t)i, 0, 1000);
        receive_stream(ends[i].server, (uint64_t)i, 0, 1000);
        ends_close(&ends[i]);
    }
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    lab_free(lab);
}

static int looks_within(unsigned int microseconds)
{
    COUNT_RESET(calls.looks);
    usleep(microseconds);
    return COUNT(calls.looks);
}

TEST(a_worker_spins_only_while_there_is_traffic)
{
    struct core_options options = options_default();
    options.spin_us = 1000;
    struct lab *lab = lab_with(options);
    struct ends ends = lab_connect(lab);
    COUNT_RESET(calls.looks);
    for (uint64_t i = 0; i < 1000; i++) {
        send_stream(ends.client, 1, i * 100, 100);
        receive_stream(ends.server, 1, i * 100, 100);
        send_stream(ends.server, 2, i * 100, 100);
        receive_stream(ends.client, 2, i * 100, 100);
    }
    CHECK(COUNT(calls.looks) > 0);
    /* One that spins on for nothing looks thousands of times; one that is to stop needs a processor for it.
     */
    for (int windows = 1; looks_within(50000) >= 100; windows++)
        CHECK(windows < 20);
    ends_close(&ends);
    lab_free(lab);
}

TEST(an_unknown_congestion_control_is_refused_at_the_start)
{
    struct core_options options = options_default();
    char error[NS_REASON_MAX] = "";
    strcpy(options.congestion_control, "nosuchthing");
    CHECK(core_start(&options, error, sizeof(error)) == NULL);
    CHECK_TEXT(error, "congestion control nosuchthing cannot be used: No such file or directory");
    strcpy(options.congestion_control, "reno");
    struct lab *lab = lab_with(options);
    check_both_ways(lab, 100000);
    lab_free(lab);
}

/* ---- sharing a worker ---- */

/* The workload beside the loud one: its listener, and an open connection. */
struct quiet {
    int listener;
    struct ends ends;
};

static struct quiet quiet_begin(struct lab *lab, uint64_t key)
{
    struct quiet quiet;
    lab_workload(lab, key, (int)key, SHIPPER);
    quiet.listener = lab_listen(lab, key, NS_LISTEN_OUTBOUND, listen_at(host((int)key, 0)));
    quiet.ends.client = dial(quiet.listener);
    quiet.ends.server = take_connection(lab->application);
    exchange(&quiet.ends, 0);
    return quiet;
}

static void quiet_end(struct quiet *quiet)
{
    ends_close(&quiet->ends);
    close(quiet->listener);
}

/* Holds the worker that dials the application for the quiet one, in connect(), until gate_open. Returns the
 * connection that it dials for. */
static int quiet_hold(struct lab *lab, struct quiet *quiet)
{
    gate_close(&lab->endpoint);
    int held = dial(quiet->listener);
    WAIT_UNTIL(gate_held() == 1);
    return held;
}

/* Shipper's worker has nobody else, and writes as much as it can; the quiet one (of an even key) is beside
 * pipeline. */
static struct lab *lab_new_of_two_workers(void)
{
    struct core_options options = options_default();
    options.workers = 2;
    return lab_with(options);
}

TEST(a_thousand_busy_flows_leave_each_turn_to_others_as_well)
{
    enum { BUSY = 200, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    LAB_SET(lab, tunnel, 0);
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends busy[BUSY];
    for (int i = 0; i < BUSY; i++)
        busy[i] = lab_connect(lab);
    for (int i = 0; i < BUSY; i++)
        exchange(&busy[i], 0);
    /* The worker is held in a connect() while all of them speak. */
    int held = quiet_hold(lab, &quiet);
    for (int i = 0; i < BUSY; i++)
        send_stream(busy[i].client, 1, 100, 100);
    send_stream(quiet.ends.client, 1, 100, 100);
    COUNT_RESET(calls.relays_most);
    gate_open();
    receive_stream(quiet.ends.server, 1, 100, 100);
    for (int i = 0; i < BUSY; i++)
        receive_stream(busy[i].server, 1, 100, 100);
    (void)lab_core_stats(lab); /* the turn has ended */
    CHECK_CASE(COUNT(calls.relays_most) > 1 && COUNT(calls.relays_most) <= TURN_BUDGET + 1, "%d",
               COUNT(calls.relays_most));
    close(held);
    for (int i = 0; i < BUSY; i++)
        ends_close(&busy[i]);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(plaintext_bulk_is_spliced_in_the_small_pieces_beside_a_light_workload_too)
{
    enum { ONCE = 40000, LENGTH = 2000000, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    LAB_SET(lab, tunnel, 0);
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends loud = lab_connect(lab);
    send_stream(loud.client, 1, 0, ONCE); /* enough to be heavy, and not to be spliced */
    receive_stream(loud.server, 1, 0, ONCE);
    /* The worker is held in a connect(), the quiet one's, until there is much to read. */
    int held = quiet_hold(lab, &quiet);
    struct sender up;
    sender_start(&up, loud.client, 2, LENGTH);
    int waiting = 0;
    WAIT_UNTIL(ioctl(loud.client, SIOCOUTQNSD, &waiting) == 0 && waiting > 0);
    COUNT_RESET(calls.splices);
    gate_open();
    receive_stream(loud.server, 2, 0, LENGTH);
    sender_join(&up);
    CHECK_CASE(COUNT(calls.splices) > 4, "%d", COUNT(calls.splices));
    close(held);
    ends_close(&loud);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(messages_of_many_streams_in_one_read_leave_each_turn_to_others_as_well)
{
    enum { BUSY = 90, ROUNDS = 6, LENGTH = 100, QUIET_KEY = 4 };
    struct lab *lab = lab_new_of_two_workers();
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends busy[BUSY];
    for (int i = 0; i < BUSY; i++) {
        busy[i] = lab_connect(lab);
        exchange(&busy[i], 0);
    }
    exchange(&quiet.ends, LENGTH);
    /* Pipeline's worker is held in a connect() while all of them speak. */
    int held = quiet_hold(lab, &quiet);
    COUNT_RESET(calls.produced);
    for (int round = 1; round <= ROUNDS; round++) {
        for (int i = 0; i < BUSY; i++)
            send_stream(busy[i].client, 1, (uint64_t)round * LENGTH, LENGTH);
        WAIT_UNTIL(COUNT(calls.produced) >= round * BUSY * LENGTH); /* each in a frame of its own */
    }
    COUNT_RESET(calls.fed_most);
    gate_open();
    for (int i = 0; i < BUSY; i++)
        receive_stream(busy[i].server, 1, LENGTH, ROUNDS * LENGTH);
    (void)lab_core_stats(lab); /* the turn has ended */
    /* A turn goes on twice with a tunnel: with its event, and with what that has left. */
    int most = 2 * (TURN_BUDGET * (LENGTH + 16) + 2 * SLICE_LEAST);
    CHECK_CASE(COUNT(calls.fed_most) >= LENGTH && COUNT(calls.fed_most) <= most, "%d", COUNT(calls.fed_most));
    close(held);
    for (int i = 0; i < BUSY; i++)
        ends_close(&busy[i]);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(requests_that_come_at_once_are_dialled_in_several_turns)
{
    enum { MANY = 60, QUIET_KEY = 4, REQUEST_LEAST = 9 };
    struct lab *lab = lab_new_of_two_workers();
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends first = lab_connect(lab), many[MANY];
    exchange(&first, 0);
    /* Pipeline's worker is held in a connect() while all of them dial. */
    int held = quiet_hold(lab, &quiet);
    COUNT_RESET(calls.produced);
    for (int i = 0; i < MANY; i++)
        many[i].client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(calls.produced) > MANY * REQUEST_LEAST);
    COUNT_RESET(calls.dials_most);
    gate_open();
    close(take_connection(lab->application)); /* the one that was held */
    for (int i = 0; i < MANY; i++)
        many[i].server = take_connection(lab->application);
    (void)lab_core_stats(lab); /* the turn has ended */
    CHECK_CASE(COUNT(calls.dials_most) > 1 && COUNT(calls.dials_most) <= 2 * (TURN_BUDGET / TURN_DIAL + 1),
               "%d", COUNT(calls.dials_most));
    close(held);
    for (int i = 0; i < MANY; i++)
        ends_close(&many[i]);
    ends_close(&first);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(a_workload_that_reads_nothing_in_many_streams_slows_nobody)
{
    enum { STALLED = 30, LENGTH = 6000000, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    lab_workload(lab, QUIET_KEY, 3, SHIPPER);
    int quiet_listener = lab_listen(lab, QUIET_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    struct ends stalled[STALLED], same = lab_connect(lab), other = {.client = dial(quiet_listener)};
    struct sender senders[STALLED];
    other.server = take_connection(lab->application);
    for (int i = 0; i < STALLED; i++)
        stalled[i] = lab_connect(lab);
    for (int i = 0; i < STALLED; i++)
        sender_start(&senders[i], stalled[i].server, (uint64_t)i, LENGTH);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory >= 8 * H2_STREAM_WINDOW);
    for (int i = 0; i < 200; i++) {
        exchange(&same, (uint64_t)i * 100);
        exchange(&other, (uint64_t)i * 100);
    }
    for (int i = 0; i < STALLED; i++) {
        receive_stream(stalled[i].client, (uint64_t)i, 0, LENGTH);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&same);
    ends_close(&other);
    close(quiet_listener);
    lab_free(lab);
}

CHECK_MAIN
