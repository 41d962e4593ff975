/* The whole core: new flows that wait for handshakes, beside others. */
#include "core_calls.h"
#include "core_ends.h"

TEST(handshakes_with_many_peers_at_once_are_not_made_by_the_worker)
{
    enum { PEERS = 40, FIRST_KEY = 10 };
    struct lab *lab = lab_new_of_one_worker();
    int listeners[PEERS];
    struct ends ends[PEERS];
    for (int i = 0; i < PEERS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
    }
    LAB_SET(lab, stuck, 1); /* they shall all dial in the same turn */
    for (int i = 0; i < PEERS; i++)
        ends[i].client = dial(listeners[i]);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == PEERS);
    LAB_SET(lab, stuck, 0);
    for (int i = 0; i < PEERS; i++)
        send_stream(ends[i].client, 1, 0, 100);
    for (int i = 0; i < PEERS; i++) { /* in the order in which their tunnels were made */
        ends[i].server = take_connection(lab->application);
        receive_stream(ends[i].server, 1, 0, 100);
    }
    CHECK(COUNT(calls.steps) >= 3 * PEERS); /* a client makes two steps, a server too */
    CHECK_EQUAL(COUNT(calls.steps_of_workers), 0);
    for (int i = 0; i < PEERS; i++) {
        ends_close(&ends[i]);
        close(listeners[i]);
    }
    lab_free(lab);
}

TEST(open_connections_go_on_while_a_handshake_is_made)
{
    enum { OTHER_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    exchange(&open, 0);
    lab_workload(lab, OTHER_KEY, 3, SHIPPER);
    int listener = lab_listen(lab, OTHER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    __atomic_store_n(&calls.steps_held, 1, __ATOMIC_RELAXED);
    COUNT_RESET(calls.steps);
    struct ends new = {.client = dial(listener)};
    send_stream(new.client, 1, 0, 100);
    WAIT_UNTIL(COUNT(calls.steps) == 1);
    for (int i = 1; i < 20; i++)
        exchange(&open, (uint64_t)i * 100);
    CHECK_EQUAL(COUNT(calls.steps), 1);
    __atomic_store_n(&calls.steps_held, 0, __ATOMIC_RELAXED);
    new.server = take_connection(lab->application);
    receive_stream(new.server, 1, 0, 100);
    ends_close(&new);
    ends_close(&open);
    close(listener);
    lab_free(lab);
}

TEST(a_workload_is_removed_while_its_handshake_is_made)
{
    char error[NS_REASON_MAX] = "";
    struct lab *lab = lab_new_of_one_worker();
    __atomic_store_n(&calls.steps_held, 1, __ATOMIC_RELAXED);
    int client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(calls.steps) == 1);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    expect_reset(client);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    __atomic_store_n(&calls.steps_held, 0, __ATOMIC_RELAXED);
    close(client);
    close(lab->outbound);
    lab_workload(lab, SHIPPER_KEY, 1, SHIPPER);
    lab->outbound = lab_listen(lab, SHIPPER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(1, 0)));
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    ends_close(&ends);
    lab_free(lab);
}

static void *release_steps(void *unused)
{
    (void)unused;
    usleep(50000);
    __atomic_store_n(&calls.steps_held, 0, __ATOMIC_RELAXED);
    return NULL;
}

TEST(a_core_stops_while_handshakes_are_made)
{
    enum { CLIENTS = 3, FIRST_KEY = 10 }; /* one is made, one is given, one waits to be given */
    struct lab *lab = lab_new_of_one_worker();
    int clients[CLIENTS], listeners[CLIENTS];
    pthread_t thread;
    __atomic_store_n(&calls.steps_held, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < CLIENTS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
        clients[i] = dial(listeners[i]);
    }
    WAIT_UNTIL(COUNT(calls.steps) == 1 && lab_core_stats(lab).live_tunnels >= CLIENTS);
    CHECK_EQUAL(pthread_create(&thread, NULL, release_steps, NULL), 0);
    lab_free(lab);
    pthread_join(thread, NULL);
    for (int i = 0; i < CLIENTS; i++) {
        expect_reset(clients[i]);
        close(clients[i]);
        close(listeners[i]);
    }
}

/* The peer of this address takes connections, as the kernel does for it, and says nothing. */
TEST(a_peer_that_does_not_answer_delays_no_other)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    int silent = listen_at(host(3, NS_HBONE_PORT));
    struct sockaddr_in known = lab->endpoint;
    lab_workload(lab, 3, 4, SHIPPER);
    int other = lab_listen(lab, 3, NS_LISTEN_OUTBOUND, listen_at(host(4, 0)));
    LAB_SET(lab, endpoint, host(3, 80));
    int waiting = dial(other);
    int peer = take_connection(silent);
    LAB_SET(lab, endpoint, known);
    exchange(&open, 0);
    lab_workload(lab, 4, 5, SHIPPER);
    int third = lab_listen(lab, 4, NS_LISTEN_OUTBOUND, listen_at(host(5, 0)));
    struct ends fresh = {.client = dial(third), .server = take_connection(lab->application)};
    exchange(&fresh, 0); /* through a tunnel of its own, made meanwhile */
    struct ns_connection list[8];
    CHECK_EQUAL(core_connections(lab->core, list, 8), 5);
    int connecting = 0;
    for (int i = 0; i < 5; i++)
        connecting += list[i].state == NS_STATE_CONNECTING;
    CHECK_EQUAL(connecting, 1);
    int fds[] = {waiting, peer, silent, other, third};
    for (int i = 0; i < 5; i++)
        close(fds[i]);
    ends_close(&open);
    ends_close(&fresh);
    lab_free(lab);
}

CHECK_MAIN
