/* The whole core: connections that cannot be. */
#include "core_calls.h"
#include "core_ends.h"

TEST(closed_application_port_resets_the_client)
{
    struct lab *lab = lab_new();
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(closed));
    close(closed);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).failed == 1);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).failed == 1);
    lab_free(lab);
}

/* Of two that come at once the first is led to the endpoint that refuses, and the second to the other one:
 * then it is the refusing one's turn again. */
TEST(an_endpoint_that_has_refused_a_connection_is_not_what_it_tries_next)
{
    struct lab *lab = lab_new_of_one_worker();
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, first, local_of(closed));
    close(closed);
    LAB_SET(lab, tunnel, NS_PLAINTEXT);
    LAB_SET(lab, stuck, 1);
    int clients[2] = {dial(lab->outbound), dial(lab->outbound)};
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).accepted == 2);
    LAB_SET(lab, stuck, 0);
    for (int i = 0; i < 2; i++)
        close(take_connection(lab->application));
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 0);
    close(clients[0]);
    close(clients[1]);
    lab_free(lab);
}

TEST(refused_outbound_connection_is_reset)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).refused, 1);
    lab_free(lab);
}

static void check_denied_stream(uint32_t verdict, const char *reason)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, tunnel_verdict, verdict);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).refused == 1);
    struct ns_connection list[8];
    size_t count = core_connections(lab->core, list, 8);
    int told = 0;
    for (size_t i = 0; i < count && i < 8; i++)
        told += list[i].direction == NS_OUTBOUND && strcmp(list[i].reason, reason) == 0;
    CHECK_EQUAL(told, 1);
    lab_free(lab);
}

TEST(stream_denied_by_policy_resets_the_client)
{
    check_denied_stream(NS_REFUSE, "the peer's policy denied it");
}

TEST(unavailable_stream_resets_the_client)
{
    check_denied_stream(NS_UNAVAILABLE, "the peer refused the request");
}

TEST(stream_that_is_not_known_of_yet_resets_a_client_that_cannot_wait)
{
    check_denied_stream(NS_NOT_YET, "the peer cannot serve it now");
}

TEST(peer_with_another_identity_gets_no_byte)
{
    struct lab *lab = lab_new();
    struct sockaddr_in peer = local_of(lab->hbone);
    LAB_SET(lab, identity, "spiffe://example.org/ns/default/sa/siem");
    gate_close(&peer);
    int client = dial(lab->outbound);
    send_stream(client, 1, 0, 100); /* before the core can know */
    gate_open();
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tls_failed >= 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).accepted, 0);
    lab_free(lab);
}

TEST(peer_that_does_not_listen_resets_the_client_after_the_retries)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 1);
    lab_free(lab);
}

TEST(peer_that_closes_in_the_handshake_resets_the_client)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    close(take_connection(silent));
    expect_reset(client);
    close(client);
    close(silent);
    lab_free(lab);
}

TEST(peer_that_hangs_up_before_the_core_sees_the_connection_resets_the_client)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    struct sockaddr_in address = local_of(silent);
    LAB_SET(lab, endpoint, host(3, 8080));
    gate_close(&address);
    int client = dial(lab->outbound);
    close(take_connection(silent));
    gate_open();
    expect_reset(client); /* at once, not when the time for the handshake is up */
    close(client);
    close(silent);
    lab_free(lab);
}

TEST(client_that_goes_away_while_the_tunnel_is_dialled_is_forgotten)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    int peer = take_connection(silent);
    reset(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    close(peer);
    close(silent);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels == 0);
    lab_free(lab);
}

static int writes_fail;

enum tls_result __real_tls_write(struct tls *tls, struct tls_sink *sink, const uint8_t *bytes, size_t length);
enum tls_result __wrap_tls_write(struct tls *tls, struct tls_sink *sink, const uint8_t *bytes, size_t length);

enum tls_result __wrap_tls_write(struct tls *tls, struct tls_sink *sink, const uint8_t *bytes, size_t length)
{
    if (COUNT(writes_fail) && tls->record.failure == NULL)
        tls->record.failure = "it is broken";
    return __real_tls_write(tls, sink, bytes, length);
}

TEST(who_was_in_a_tunnel_that_cannot_be_written_is_told_why)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    __atomic_store_n(&writes_fail, 1, __ATOMIC_RELAXED);
    send_stream(ends.client, 1, 100, 100);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    struct ns_connection list[8];
    size_t count = core_connections(lab->core, list, 8);
    int told = 0;
    for (size_t i = 0; i < count && i < 8; i++)
        told += list[i].direction == NS_OUTBOUND && strcmp(list[i].reason, "TLS: it is broken") == 0;
    CHECK_EQUAL(told, 1);
    ends_close(&ends);
    lab_free(lab);
}

CHECK_MAIN
