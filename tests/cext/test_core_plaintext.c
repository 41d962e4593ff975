/* The whole core: connections in plaintext. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"

TEST(plaintext_carries_bytes_both_ways)
{
    struct lab *lab = lab_plain();
    check_both_ways(lab, 8000000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).plaintext, 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 0);
    lab_free(lab);
}

/* The receiver waits until the sender is stopped by all that stands between them, so that reads are large. */
static void check_bulk(struct lab *lab, uint64_t length)
{
    struct ends ends = lab_connect(lab);
    struct sender up;
    sender_start(&up, ends.client, 1, length);
    uint64_t before = 0;
    for (int calm = 0; calm < 3; calm++) { /* reads nothing until nothing moves any more */
        struct ns_connection list[2];
        CHECK(core_connections(lab->core, list, 2) >= 1);
        if (list[0].bytes_sent != before)
            calm = 0;
        before = list[0].bytes_sent;
        usleep(2000);
    }
    receive_stream(ends.server, 1, 0, length);
    sender_join(&up);
    send_stream(ends.server, 2, 0, 1000);
    receive_stream(ends.client, 2, 0, 1000);
    shutdown(ends.client, SHUT_WR);
    expect_end(ends.server);
    shutdown(ends.server, SHUT_WR);
    expect_end(ends.client);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

TEST(plaintext_bulk_is_spliced_and_small_messages_are_not)
{
    struct lab *lab = lab_plain();
    COUNT_RESET(calls.splices);
    check_server_speaks_first(lab);
    CHECK_EQUAL(COUNT(calls.splices), 0);
    check_bulk(lab, 48000000);
    CHECK(COUNT(calls.splices) > 10);
    lab_free(lab);
}

TEST(plaintext_bulk_goes_on_when_no_pipe_can_be_had)
{
    struct lab *lab = lab_plain();
    COUNT_RESET(calls.splices);
    __atomic_store_n(&calls.pipes_refused, 1, __ATOMIC_RELAXED);
    check_bulk(lab, 16000000);
    CHECK_EQUAL(COUNT(calls.splices), 0);
    __atomic_store_n(&calls.pipes_refused, 0, __ATOMIC_RELAXED);
    lab_free(lab);
}

TEST(bulk_that_is_being_spliced_can_be_reset_at_either_end)
{
    struct lab *lab = lab_plain();
    for (int server = 0; server < 2; server++) {
        struct ends ends = lab_connect(lab);
        int flags = fcntl(ends.client, F_GETFL);
        CHECK_EQUAL(fcntl(ends.client, F_SETFL, flags | O_NONBLOCK), 0);
        uint8_t bytes[65536] = {0};
        for (int i = 0; i < 400; i++)
            (void)!send(ends.client, bytes, sizeof(bytes), MSG_NOSIGNAL);
        reset(server ? ends.server : ends.client);
        close(server ? ends.client : ends.server);
        WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    }
    lab_free(lab);
}

TEST(half_closes_and_resets_cross_in_plaintext)
{
    struct lab *lab = lab_plain();
    check_client_half_close(lab);
    check_server_half_close(lab);
    check_client_reset(lab);
    check_server_reset(lab);
    lab_free(lab);
}

TEST(plaintext_server_may_speak_first)
{
    struct lab *lab = lab_plain();
    check_server_speaks_first(lab);
    lab_free(lab);
}

TEST(plaintext_server_may_speak_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_plain();
    check_server_speaks_at_once(lab, 0);
    check_server_speaks_at_once(lab, 1);
    lab_free(lab);
}

TEST(plaintext_endpoint_that_refuses_resets_the_client)
{
    struct lab *lab = lab_plain();
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(closed));
    close(closed);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 1);
    lab_free(lab);
}

CHECK_MAIN
