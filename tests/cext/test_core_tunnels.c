/* The whole core: connections through a tunnel, also to several workloads at one address. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sys/mman.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "core_ends.h"
#include "loop/sockets.h"

TEST(tunnel_carries_bytes_both_ways)
{
    struct lab *lab = lab_new();
    check_both_ways(lab, 8000000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnelled, 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnelled, 1);
    lab_free(lab);
}

TEST(server_may_speak_first)
{
    struct lab *lab = lab_new();
    check_server_speaks_first(lab);
    lab_free(lab);
}

TEST(server_may_speak_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_new();
    check_server_speaks_at_once(lab, 0);
    lab_free(lab);
}

TEST(server_may_speak_and_hang_up_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_new();
    check_server_speaks_at_once(lab, 1);
    lab_free(lab);
}

TEST(client_half_close_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_client_half_close(lab);
    lab_free(lab);
}

TEST(server_half_close_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_server_half_close(lab);
    lab_free(lab);
}

TEST(client_reset_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_client_reset(lab);
    lab_free(lab);
}

TEST(server_reset_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_server_reset(lab);
    lab_free(lab);
}

TEST(bytes_sent_right_before_the_end_arrive)
{
    struct lab *lab = lab_new();
    for (int i = 0; i < 40; i++) {
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 50000);
        close(ends.client);
        receive_stream(ends.server, 1, 0, 50000);
        expect_end(ends.server);
        close(ends.server);
    }
    lab_free(lab);
}

/* Client and application share a namespace here. Where we are not privileged, the client's port is the
 * client's. */
TEST(application_sees_the_peers_address_and_the_clients_port_or_a_high_one)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    struct sockaddr_in peer, client;
    socklen_t length = sizeof(peer);
    CHECK_EQUAL(getpeername(ends.server, (struct sockaddr *)&peer, &length), 0);
    CHECK_EQUAL(getsockname(ends.client, (struct sockaddr *)&client, &length), 0);
    CHECK_EQUAL(ntohl(peer.sin_addr.s_addr), INADDR_LOOPBACK); /* what the tunnel dialled from */
    CHECK(peer.sin_port == client.sin_port || ntohs(peer.sin_port) >= 61000);
    ends_close(&ends);
    lab_free(lab);
}

/* An application that is bound to a further address of its workload: the peer takes for its address what the
 * tunnel comes from. */
TEST(application_sees_the_address_that_its_client_is_bound_to)
{
    static const uint32_t FROM[] = {0x7f000001, 0x7f000009, 0x7f000009, 0x7f000001};
    struct lab *lab = lab_new_of_one_worker();
    struct sockaddr_in outbound = local_of(lab->outbound);
    for (size_t i = 0; i < sizeof(FROM) / sizeof(FROM[0]); i++) {
        struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(FROM[i])}, peer;
        struct ends ends = {.client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        socklen_t length = sizeof(peer);
        CHECK_EQUAL(bind(ends.client, (struct sockaddr *)&own, sizeof(own)), 0);
        CHECK_EQUAL(connect(ends.client, (struct sockaddr *)&outbound, sizeof(outbound)), 0);
        ends.server = take_connection(lab->application);
        CHECK_EQUAL(getpeername(ends.server, (struct sockaddr *)&peer, &length), 0);
        CHECK_EQUAL(ntohl(peer.sin_addr.s_addr), FROM[i]);
        exchange(&ends, 0);
        ends_close(&ends);
    }
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 2);
    lab_free(lab);
}

TEST(question_about_a_tunnels_stream_names_peer_and_authority)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    struct ns_address expected = mapped(lab->endpoint);
    pthread_mutex_lock(&lab->mutex);
    struct ns_question question = lab->last_tunnel;
    pthread_mutex_unlock(&lab->mutex);
    CHECK_TEXT(question.peer, SHIPPER);
    CHECK_EQUAL(question.workload, PIPELINE_KEY);
    CHECK(memcmp(question.destination.ip, expected.ip, 16) == 0);
    CHECK_EQUAL(question.destination.port, expected.port);
    CHECK_EQUAL(question.established, 0);
    ends_close(&ends);
    lab_free(lab);
}

TEST(connections_are_listed_with_identities_and_bytes)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 1000);
    receive_stream(ends.server, 1, 0, 1000);
    send_stream(ends.server, 2, 0, 500);
    receive_stream(ends.client, 2, 0, 500);
    struct ns_connection list[8];
    CHECK_EQUAL(core_connections(lab->core, list, 8), 2);
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(list[i].state, NS_STATE_OPEN);
        CHECK_EQUAL(list[i].mtls, 1);
        CHECK_EQUAL(list[i].bytes_sent, 1000);
        CHECK_EQUAL(list[i].bytes_received, 500);
        CHECK_TEXT(list[i].tls, "TLSv1.3 TLS_AES_128_GCM_SHA256");
        CHECK_TEXT(list[i].peer, list[i].direction == NS_OUTBOUND ? PIPELINE : SHIPPER);
        CHECK_EQUAL(list[i].workload, list[i].direction == NS_OUTBOUND ? SHIPPER_KEY : PIPELINE_KEY);
    }
    CHECK_EQUAL(core_connections(lab->core, list, 1), 2);
    CHECK_EQUAL(core_connections(lab->core, NULL, 0), 2);
    ends_close(&ends);
    lab_free(lab);
}

/* Whether either end of the connection is the port for tunnels. */
static int is_of_a_tunnel(int fd)
{
    struct ns_address local, remote;
    struct sockaddr_storage storage;
    socklen_t length = sizeof(storage);
    return getpeername(fd, (struct sockaddr *)&storage, &length) == 0 &&
           address_from_sockaddr(&storage, &remote) == 0 && socket_local_address(fd, &local) == 0 &&
           (local.port == NS_HBONE_PORT || remote.port == NS_HBONE_PORT);
}

TEST(both_ends_of_a_tunnel_hold_little_that_is_not_sent)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    int found = 0;
    for (int fd = 3; fd < 256; fd++) {
        int most = 0;
        socklen_t size = sizeof(most);
        if (!is_of_a_tunnel(fd))
            continue;
        CHECK_EQUAL(getsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &most, &size), 0);
        CHECK_CASE(most > 0 && most <= 262144, "%d", most);
        found++;
    }
    CHECK_EQUAL(found, 2);
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_reader_that_stops_stalls_only_itself)
{
    enum { LENGTH = 20000000 };
    struct lab *lab = lab_new();
    struct ends stalled[4], quick;
    struct sender senders[4];
    for (int i = 0; i < 4; i++) {
        stalled[i] = lab_connect(lab);
        sender_start(&senders[i], stalled[i].server, 10 + (uint64_t)i, LENGTH / 4);
    }
    quick = lab_connect(lab);
    for (int i = 0; i < 100; i++) {
        send_stream(quick.client, 1, (uint64_t)i * 1000, 1000);
        receive_stream(quick.server, 1, (uint64_t)i * 1000, 1000);
        send_stream(quick.server, 2, (uint64_t)i * 1000, 1000);
        receive_stream(quick.client, 2, (uint64_t)i * 1000, 1000);
    }
    for (int i = 0; i < 4; i++) {
        receive_stream(stalled[i].client, 10 + (uint64_t)i, 0, LENGTH / 4);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&quick);
    lab_free(lab);
}

TEST(many_connections_at_once_share_few_tunnels)
{
    enum { COUNT = 150 };
    struct lab *lab = lab_new();
    struct ends ends[COUNT];
    for (int i = 0; i < COUNT; i++)
        ends[i].client = dial(lab->outbound);
    for (int i = 0; i < COUNT; i++) {
        send_stream(ends[i].client, (uint64_t)i, 0, 4);
        ends[i].server = take_connection(lab->application);
    }
    for (int i = 0; i < COUNT; i++)
        send_stream(ends[i].server, 1, 0, 20000);
    for (int i = 0; i < COUNT; i++)
        receive_stream(ends[i].client, 1, 0, 20000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, COUNT);
    CHECK(lab_stats(lab, SHIPPER_KEY).tunnels <= 4); /* two workers, a hundred streams each */
    for (int i = 0; i < COUNT; i++)
        ends_close(&ends[i]);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 0);
    lab_free(lab);
}

TEST(many_busy_connections_at_once_lose_nothing)
{
    enum { COUNT = 150, LENGTH = 300000 };
    struct lab *lab = lab_new();
    struct ends ends[COUNT];
    struct sender senders[COUNT];
    for (int i = 0; i < COUNT; i++)
        ends[i] = lab_connect(lab);
    for (int i = 0; i < COUNT; i++)
        sender_start(&senders[i], ends[i].server, (uint64_t)i, LENGTH);
    for (int i = 0; i < COUNT; i++)
        receive_stream(ends[i].client, (uint64_t)i, 0, LENGTH);
    for (int i = 0; i < COUNT; i++)
        sender_join(&senders[i]);
    for (int i = 0; i < COUNT; i++)
        ends_close(&ends[i]);
    lab_free(lab);
}

/* ---- several workloads at one address ---- */

/* The pipeline and the siem live in one namespace, and both have the listener at 15008 from the start. */
static struct lab *lab_new_of_neighbours(void)
{
    struct lab *lab = lab_new();
    char error[NS_REASON_MAX] = "";
    int netns = memfd_create("node", MFD_CLOEXEC);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    lab_workload_in(lab, netns, PIPELINE_KEY, 2, PIPELINE);
    lab_workload_in(lab, netns, SIEM_KEY, 2, SIEM);
    lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, lab->hbone);
    lab_listen(lab, SIEM_KEY, NS_LISTEN_HBONE, lab->hbone);
    close(netns);
    return lab;
}

TEST(each_neighbour_is_reached_by_its_name_whoever_accepts)
{
    struct lab *lab = lab_new_of_neighbours();
    LAB_SET(lab, tunnel, NS_TUNNEL_BY_NAME);
    for (int i = 0; i < 8; i++) {
        int siem = i % 2;
        LAB_SET(lab, identity, siem ? SIEM : PIPELINE);
        lab_credentials(lab, SHIPPER_KEY, SHIPPER); /* a tunnel of its own for each connection */
        lab_move_on(lab);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        CHECK_EQUAL(lab->last_tunnel.workload, siem ? SIEM_KEY : PIPELINE_KEY);
        ends_close(&ends);
    }
    CHECK_EQUAL(lab_stats(lab, SIEM_KEY).tunnelled, 4);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnelled, 4);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tls_failed, 0);
    /* The last one waits in the shipper's pool. */
    WAIT_UNTIL(lab_stats(lab, SIEM_KEY).tunnels == 1 && lab_stats(lab, PIPELINE_KEY).tunnels == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    lab_free(lab);
}

TEST(who_asks_for_no_name_reaches_the_first_neighbour_and_no_other)
{
    struct lab *lab = lab_new_of_neighbours();
    for (int i = 0; i < 4; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        CHECK_EQUAL(lab->last_tunnel.workload, PIPELINE_KEY);
        ends_close(&ends);
    }
    LAB_SET(lab, identity, SIEM);
    lab_move_on(lab);
    int refused = dial(lab->outbound);
    expect_reset(refused);
    close(refused);
    CHECK_EQUAL(lab_stats(lab, SIEM_KEY).tunnelled, 0);
    lab_free(lab);
}

CHECK_MAIN
