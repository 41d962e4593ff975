/* The whole core: what changes while connections run, and all of it at once. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"
#include "noise.h"

TEST(new_credentials_leave_running_connections_and_serve_new_ones)
{
    struct lab *lab = lab_new();
    struct ends old = lab_connect(lab);
    for (int i = 0; i < 5; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        lab_credentials(lab, PIPELINE_KEY, PIPELINE);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        send_stream(old.client, 2, (uint64_t)i * 1000, 1000);
        receive_stream(old.server, 2, (uint64_t)i * 1000, 1000);
        ends_close(&ends);
    }
    ends_close(&old);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels <= 2); /* those that retired have ended */
    lab_free(lab);
}

TEST(new_anchors_leave_running_connections_and_count_for_new_ones)
{
    struct lab *lab = lab_new();
    struct authority other = authority_new();
    struct ends old = lab_connect(lab);
    for (int i = 0; i < 5; i++) {
        uint64_t failed = lab_stats(lab, PIPELINE_KEY).tls_failed;
        lab_trust(lab, &other);
        int client = dial(lab->outbound);
        expect_reset(client);
        close(client);
        WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).tls_failed > failed);
        lab_trust(lab, &lab->authority);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        send_stream(old.client, 2, (uint64_t)i * 1000, 1000);
        receive_stream(old.server, 2, (uint64_t)i * 1000, 1000);
        ends_close(&ends);
    }
    ends_close(&old);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    authority_dispose(&other);
    lab_free(lab);
}

TEST(credentials_that_come_behind_new_anchors_trust_these)
{
    struct lab *lab = lab_new();
    struct authority other = authority_new();
    lab_trust(lab, &other);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    lab_credentials(lab, PIPELINE_KEY, PIPELINE);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    authority_dispose(&other);
    lab_free(lab);
}

TEST(anchors_that_cannot_be_read_change_nothing)
{
    static const char *const BUNDLES[] = {"", "nothing",
                                          "-----BEGIN CERTIFICATE-----\nAAAA\n"
                                          "-----END CERTIFICATE-----\n"};
    struct lab *lab = lab_new();
    struct ends old = lab_connect(lab);
    for (size_t i = 0; i < sizeof(BUNDLES) / sizeof(BUNDLES[0]); i++) {
        const struct ns_bundle own = {"example.org", BUNDLES[i]};
        char error[256] = "";
        CHECK_EQUAL(core_trust(lab->core, &own, 1, error, sizeof(error)), -1);
        CHECK_CASE(strstr(error, "the trust bundle cannot be read") == error, "%s", error);
        CHECK(strchr(error, '\n') == NULL);
    }
    struct ends ends = lab_connect(lab);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1); /* the one that there was */
    ends_close(&ends);
    ends_close(&old);
    lab_free(lab);
}

/* Closed before, it would be answered with a reset for what the peer sends meanwhile, and the peer would lose
 * what it has not received yet. */
TEST(a_retired_tunnel_stays_until_all_of_it_is_acknowledged)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends ends = lab_connect(lab);
    __atomic_store_n(&calls.unacknowledged, 1, __ATOMIC_RELAXED);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1);
    __atomic_store_n(&calls.unacknowledged, 0, __ATOMIC_RELAXED);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels == 0);
    lab_free(lab);
}

TEST(a_new_epoch_that_allows_leaves_connections_alone)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    for (int i = 0; i < 10; i++) {
        lab_move_on(lab);
        send_stream(ends.client, 1, (uint64_t)i * 100, 100);
        receive_stream(ends.server, 1, (uint64_t)i * 100, 100);
    }
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_new_epoch_that_refuses_resets_both_ends)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    LAB_SET(lab, tunnel_verdict, NS_REFUSE);
    lab_move_on(lab);
    expect_reset(ends.client);
    expect_reset(ends.server);
    ends_close(&ends);
    lab_free(lab);
}

/* Moves on by what concerns one workload. */
static void lab_move_on_for(struct lab *lab, uint64_t workload)
{
    pthread_mutex_lock(&lab->mutex);
    uint64_t epoch = ++lab->epoch;
    pthread_mutex_unlock(&lab->mutex);
    core_epoch(lab->core, epoch, &(struct ns_concern){.workloads = &workload, .workload_count = 1});
}

TEST(an_epoch_asks_again_about_the_connections_that_it_concerns)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends ends = lab_connect(lab);
    uint64_t questions = lab_core_stats(lab).questions;
    LAB_SET(lab, tunnel_verdict, NS_REFUSE);
    lab_move_on_for(lab, SIEM_KEY);
    exchange(&ends, 0);
    CHECK_EQUAL(lab_core_stats(lab).questions, questions);
    lab_move_on_for(lab, SHIPPER_KEY);
    WAIT_UNTIL(lab_core_stats(lab).questions == questions + 1);
    exchange(&ends, 100); /* what pipeline may take was not asked again */
    lab_move_on_for(lab, PIPELINE_KEY);
    expect_reset(ends.client);
    expect_reset(ends.server);
    ends_close(&ends);
    lab_free(lab);
}

TEST(removing_a_workload_resets_its_connections)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    expect_reset(ends.client);
    expect_reset(ends.server);
    ends_close(&ends);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), -1);
    CHECK(error[0] != 0);
    lab_free(lab);
}

TEST(closing_a_listener_leaves_its_connections_alone)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_OUTBOUND, error, sizeof(error)), 0);
    CHECK_EQUAL(core_workload_unlisten(lab->core, PIPELINE_KEY, NS_LISTEN_HBONE, error, sizeof(error)), 0);
    send_stream(ends.client, 1, 0, 100000);
    receive_stream(ends.server, 1, 0, 100000);
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_retired_core_leaves_what_is_new_to_others_and_finishes_what_runs)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    core_retire(lab->core);
    CHECK_EQUAL(lab_core_stats(lab).live_connections, 2); /* asked behind it: all workers have retired */
    /* Whoever else holds the listener has the connection: here the test. */
    int waiting = dial(lab->outbound);
    int taken = take_connection(lab->outbound);
    send_stream(waiting, 1, 0, 100);
    receive_stream(taken, 1, 0, 100);
    send_stream(ends.client, 2, 0, 200000);
    receive_stream(ends.server, 2, 0, 200000);
    CHECK_EQUAL(lab_core_stats(lab).live_connections, 2);
    ends_close(&ends);
    close(waiting);
    close(taken);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    lab_free(lab);
}

TEST(a_retired_core_takes_streams_that_its_peer_had_begun)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    LAB_SET(lab, stuck, 1);
    int client = dial(lab->outbound);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).accepted == 2);
    core_retire(lab->core);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, 2);
    LAB_SET(lab, stuck, 0);
    int server = take_connection(lab->application);
    send_stream(client, 1, 0, 100);
    receive_stream(server, 1, 0, 100);
    close(client);
    close(server);
    ends_close(&ends);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    lab_free(lab);
}

TEST(stopping_with_live_connections_resets_them)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 100000);
    lab_free(lab);
    expect_reset(ends.client);
    ends_close(&ends);
}

/* ---- all at once ---- */

struct rioter {
    struct lab *lab;
    uint64_t seed;
    int client; /* dials; otherwise accepts */
    pthread_t thread;
};

/* Does a few random things to a socket, then ends it in one of three ways. Errors are part of it. */
static void riot(int fd, struct noise *noise)
{
    uint8_t *bytes = calloc(1, 100000);
    for (size_t turns = noise_below(noise, 4); turns > 0; turns--) {
        if (noise_below(noise, 2))
            (void)!send(fd, bytes, noise_below(noise, 100000), MSG_NOSIGNAL | MSG_DONTWAIT);
        else
            (void)!recv(fd, bytes, 1 + noise_below(noise, 99999), MSG_DONTWAIT);
    }
    free(bytes);
    switch (noise_below(noise, 3)) {
    case 0:
        reset(fd);
        return;
    case 1:
        (void)shutdown(fd, SHUT_WR);
        break;
    default:
        break;
    }
    close(fd);
}

static void *rioter_main(void *argument)
{
    enum { ROUNDS = 150 };
    struct rioter *rioter = argument;
    struct noise noise = noise_new(rioter->seed);
    if (rioter->client) {
        for (int i = 0; i < ROUNDS; i++)
            riot(dial(rioter->lab->outbound), &noise);
        return NULL;
    }
    for (;;) {
        int fd = accept4(rioter->lab->application, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL; /* the listener was shut down */
        riot(fd, &noise);
    }
}

static void check_riot(struct lab *lab)
{
    struct rioter rioters[4];
    for (int i = 0; i < 4; i++) {
        rioters[i] = (struct rioter){.lab = lab, .seed = 20 + (uint64_t)i, .client = i < 2};
        CHECK_EQUAL(pthread_create(&rioters[i].thread, NULL, rioter_main, &rioters[i]), 0);
    }
    for (int i = 0; i < 10; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        lab_move_on(lab);
        (void)core_connections(lab->core, NULL, 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(rioters[i].thread, NULL);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 0);
    shutdown(lab->application, SHUT_RDWR);
    for (int i = 2; i < 4; i++)
        pthread_join(rioters[i].thread, NULL);
    lab_free(lab);
}

TEST(disorderly_applications_leave_no_connection_behind_in_tunnels)
{
    check_riot(lab_new());
}

TEST(disorderly_applications_leave_no_connection_behind_in_plaintext)
{
    check_riot(lab_plain());
}

TEST(what_cannot_be_read_is_no_ring)
{
    struct lab *lab = lab_new();
    char error[NS_REASON_MAX] = "";
    int fd = memfd_create("no ring", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQUAL(core_workload_listen(lab->core, SHIPPER_KEY, NS_LISTEN_PARKED, fd, error, sizeof(error)), -1);
    CHECK(strstr(error, "no usable descriptor") != NULL);
    close(fd);
    lab_free(lab);
}

CHECK_MAIN
