/* The whole core: what passes by itself holds a parked SYN, and is tried again; what does not refuses it. */
#include <sys/socket.h>

#include "parked_client.h"

enum { RST_ACK = 0x14 };

static struct lab *lab_parked_of(struct core_options options)
{
    struct lab *lab = lab_with(options);
    lab_listen(lab, SHIPPER_KEY, NS_LISTEN_PARKED, parked_ring());
    return lab;
}

static struct lab *lab_parked(void)
{
    return lab_parked_of(options_default());
}

static void lab_close(struct lab *lab)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_PARKED, error, sizeof(error)), 0);
    lab_free(lab);
}

static void expect_released(void)
{
    struct sent sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_RELEASED);
}

static void expect_refused(void)
{
    struct sent sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_CORE);
    CHECK_EQUAL(parked_flags(&sent), RST_ACK);
}

static int parked(struct lab *lab)
{
    int client = parked_client();
    parked_syn(lab, client, 7, 0);
    return client;
}

/* Where it is dialled at host 3 there is nobody yet. */
static void dial_nobody(struct lab *lab)
{
    LAB_SET(lab, identity, SIEM);
    LAB_SET(lab, endpoint, host(3, 8080));
}

static int tried_in_vain(struct lab *lab, const char *reason)
{
    struct ns_connection list[8];
    size_t count = core_connections(lab->core, list, 8);
    for (size_t i = 0; i < count && i < 8; i++)
        if (list[i].direction == NS_OUTBOUND && list[i].state != NS_STATE_CLOSED &&
            strcmp(list[i].reason, reason) == 0)
            return 1;
    return 0;
}

TEST(syn_waits_while_the_peers_core_starts)
{
    struct lab *lab = lab_parked();
    dial_nobody(lab);
    int client = parked(lab);
    WAIT_UNTIL(tried_in_vain(lab, "the peer's port 15008 refuses connections"));
    CHECK_EQUAL(parked_sent_count(), 0);
    int application = listen_at(host(3, 8080));
    lab_workload(lab, SIEM_KEY, 3, SIEM);
    int hbone = lab_listen(lab, SIEM_KEY, NS_LISTEN_HBONE, listen_at(host(3, NS_HBONE_PORT)));
    close(take_connection(application));
    expect_released();
    close(client);
    close(application);
    close(hbone);
    lab_close(lab);
}

TEST(application_that_gives_up_meanwhile_leaves_nothing_behind)
{
    struct lab *lab = lab_parked();
    dial_nobody(lab);
    int client = parked(lab);
    WAIT_UNTIL(tried_in_vain(lab, "the peer's port 15008 refuses connections"));
    parked_gone(lab, client);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    CHECK_EQUAL(parked_sent_count(), 0);
    struct ns_connection list[8];
    size_t count = core_connections(lab->core, list, 8);
    CHECK_EQUAL(count, 1);
    CHECK_TEXT(list[0].reason, "the peer's port 15008 refuses connections"); /* why it was in vain */
    close(client);
    lab_close(lab);
}

TEST(syn_waits_while_the_peer_does_not_know_its_workload)
{
    struct lab *lab = lab_parked();
    LAB_SET(lab, tunnel_verdict, NS_NOT_YET);
    int client = parked(lab);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).refused >= 2);
    CHECK_EQUAL(parked_sent_count(), 0);
    LAB_SET(lab, tunnel_verdict, NS_ALLOW);
    lab_move_on(lab);
    close(take_connection(lab->application));
    expect_released();
    close(client);
    lab_close(lab);
}

TEST(syn_waits_while_its_own_workload_is_not_known)
{
    struct lab *lab = lab_parked();
    LAB_SET(lab, outbound_verdict, NS_NOT_YET);
    int client = parked(lab);
    WAIT_UNTIL(tried_in_vain(lab, "strict"));
    CHECK_EQUAL(parked_sent_count(), 0);
    LAB_SET(lab, outbound_verdict, NS_ALLOW);
    lab_move_on(lab);
    close(take_connection(lab->application));
    expect_released();
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).refused, 0);
    close(client);
    lab_close(lab);
}

TEST(peer_with_another_identity_is_refused)
{
    struct lab *lab = lab_parked();
    LAB_SET(lab, identity, SIEM);
    int client = parked(lab);
    expect_refused();
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    close(client);
    lab_close(lab);
}

TEST(denial_by_the_peer_is_refused)
{
    static const uint32_t VERDICTS[] = {NS_REFUSE, NS_UNAVAILABLE};
    for (int i = 0; i < 2; i++) {
        struct lab *lab = lab_parked();
        LAB_SET(lab, tunnel_verdict, VERDICTS[i]);
        int client = parked(lab);
        expect_refused();
        CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).refused, 1);
        close(client);
        lab_close(lab);
    }
}

/* A kernel has accepted for it, so that connect() succeeds natively. */
TEST(application_that_resets_at_once_had_accepted)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked();
        struct sockaddr_in address = local_of(lab->application);
        LAB_SET(lab, tunnel, tunnel);
        gate_close(&address);
        int client = parked(lab);
        reset(take_connection(lab->application));
        gate_open();
        expect_released();
        CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 0);
        close(client);
        lab_close(lab);
    }
}

/* ---- an application that does not accept ---- */

/* Its queue is full: the kernel drops SYNs. */
struct full {
    int listener;
    int fillers[2];
};

static struct full full_at(struct sockaddr_in address)
{
    struct full full = {.listener = listen_at(address)};
    CHECK_EQUAL(listen(full.listener, 0), 0);
    full.fillers[0] = dial(full.listener);
    return full;
}

TEST(application_that_accepts_late_is_waited_for)
{
    struct core_options options = options_default();
    options.connect_timeout_ms = 1; /* a connection that the core has accepted itself would end */
    struct lab *lab = lab_parked_of(options);
    struct full full = full_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(full.listener));
    int client = parked(lab);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 1);
    for (int second = 0; second < 6; second++) { /* its kernel says that it still waits */
        sleep(1);
        parked_syn(lab, client, 7, 0);
    }
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).connections, 1);
    CHECK_EQUAL(parked_sent_count(), 0);
    close(take_connection(full.listener));
    close(take_connection(full.listener));
    expect_released();
    close(client);
    close(full.listener);
    close(full.fillers[0]);
    lab_close(lab);
}

TEST(far_core_stops_waiting_when_the_client_gives_up)
{
    struct lab *lab = lab_parked();
    struct full full = full_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(full.listener));
    int client = parked(lab);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 1);
    parked_gone(lab, client);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).failed, 0);
    close(client);
    close(full.listener);
    close(full.fillers[0]);
    lab_close(lab);
}

CHECK_MAIN
