/* The whole core: peers that are dialled ahead of need. */
#include "core_calls.h"
#include "core_ends.h"

enum { PRECONNECT_MS = 600000 };

/* Peers used in the last `preconnect_ms` are dialled ahead of need. */
static struct lab *lab_preconnecting(uint32_t preconnect_ms)
{
    struct core_options options = options_default();
    options.workers = 1;
    options.preconnect_ms = preconnect_ms;
    return lab_with(options);
}

/* One flow from beginning to end; afterwards the tunnel is idle. */
static void lab_use(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    ends_close(&ends);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
}

TEST(a_used_peer_is_dialled_ahead_of_need_after_new_credentials)
{
    struct lab *lab = lab_preconnecting(PRECONNECT_MS);
    lab_use(lab);
    CHECK_EQUAL(calls.tunnels_dialled, 1);
    for (int i = 2; i < 4; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        WAIT_UNTIL(calls.tunnels_dialled == i && lab_core_stats(lab).live_tunnels == 2);
        lab_use(lab); /* through the tunnel that is there */
        CHECK_EQUAL(calls.tunnels_dialled, i);
    }
    lab_free(lab);
}

TEST(a_peer_used_too_long_ago_is_left_alone)
{
    struct lab *lab = lab_preconnecting(1);
    lab_use(lab);
    usleep(5000);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    CHECK_EQUAL(calls.tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_peer_that_is_no_longer_allowed_is_not_dialled_ahead)
{
    struct lab *lab = lab_preconnecting(PRECONNECT_MS);
    lab_use(lab);
    uint64_t questions = lab_core_stats(lab).questions;
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    lab_move_on(lab);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).questions == questions + 1); /* nobody but the peer's place asks */
    int refused = dial(lab->outbound);
    expect_reset(refused); /* the same question: now it is answered */
    close(refused);
    CHECK_EQUAL(lab_core_stats(lab).questions, questions + 1);
    CHECK_EQUAL(lab_core_stats(lab).live_tunnels, 0);
    CHECK_EQUAL(calls.tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_peer_with_another_identity_than_before_is_not_dialled_ahead)
{
    struct lab *lab = lab_preconnecting(PRECONNECT_MS);
    lab_use(lab);
    uint64_t questions = lab_core_stats(lab).questions;
    LAB_SET(lab, identity, SHIPPER);
    lab_move_on(lab);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).questions == questions + 1);
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    lab_move_on(lab);
    int refused = dial(lab->outbound);
    expect_reset(refused); /* the question before it is answered, too */
    close(refused);
    CHECK_EQUAL(calls.tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_peer_that_is_away_is_dialled_again_when_it_is_back)
{
    struct lab *lab = lab_preconnecting(PRECONNECT_MS);
    char error[NS_REASON_MAX] = "";
    lab_use(lab);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    close(lab->hbone);
    WAIT_UNTIL(calls.tunnels_dialled >= 2 && lab_core_stats(lab).live_tunnels == 0);
    lab_workload(lab, PIPELINE_KEY, 2, PIPELINE);
    lab->hbone = lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, listen_at(host(2, NS_HBONE_PORT)));
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 2);
    lab_free(lab);
}

TEST(an_idle_tunnel_that_was_used_lately_is_made_anew)
{
    struct core_options options = options_default();
    options.workers = 1;
    options.preconnect_ms = PRECONNECT_MS;
    options.idle_timeout_ms = 1;
    struct lab *lab = lab_with(options);
    lab_use(lab);
    WAIT_UNTIL(calls.tunnels_dialled >= 3);
    lab_free(lab);
}

TEST(a_removed_workload_dials_nobody_ahead)
{
    struct lab *lab = lab_preconnecting(PRECONNECT_MS);
    char error[NS_REASON_MAX] = "";
    lab_use(lab);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    CHECK(calls.tunnels_dialled <= 2); /* a tick may have come in between */
    lab_free(lab);
}

CHECK_MAIN
