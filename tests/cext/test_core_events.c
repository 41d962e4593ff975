/* The whole core: what it tells to one who listens, of connections, refused peers and limits. */
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"

enum { HEARD = 256 };

struct heard {
    struct ns_event events[HEARD];
    size_t count;
    uint64_t lost;
};

static void hear(struct lab *lab, struct heard *heard)
{
    heard->count +=
        core_next_events(lab->core, heard->events + heard->count, HEARD - heard->count, &heard->lost);
}

/* Number `n` of the events of a kind that are about the workload, once there are so many. */
static const struct ns_event *hear_of(struct lab *lab, struct heard *heard, uint64_t workload,
                                      enum ns_event_kind kind, int n)
{
    time_t end = deadline();
    for (;;) {
        int found = 0;
        for (size_t i = 0; i < heard->count; i++) {
            const struct ns_event *event = &heard->events[i];
            uint64_t key = kind == NS_EVENT_LIMIT     ? event->limit.workload
                           : kind == NS_EVENT_REFUSED ? event->refusal.workload
                                                      : event->connection.workload;
            if (event->kind == kind && key == workload && ++found == n)
                return event;
        }
        CHECK_CASE(time(NULL) < end, "event %d of kind %d, workload %llu", n, (int)kind,
                   (unsigned long long)workload);
        (void)lab_core_stats(lab);
        hear(lab, heard);
    }
}

TEST(both_ends_of_a_connection_tell_its_beginning_and_its_end)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    core_events_listen(lab->core, 1);
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    const struct ns_event *opened = hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_OPENED, 1);
    CHECK_EQUAL(opened->connection.direction, NS_OUTBOUND);
    CHECK_EQUAL(opened->connection.state, NS_STATE_OPEN);
    CHECK_EQUAL(opened->connection.mtls, 1);
    CHECK_TEXT(opened->connection.peer, PIPELINE);
    CHECK(opened->connection.tls[0] != 0);
    CHECK(opened->ago_ms < 60000);
    uint64_t id = opened->connection.id;
    CHECK_TEXT(hear_of(lab, &heard, PIPELINE_KEY, NS_EVENT_OPENED, 1)->connection.peer, SHIPPER);
    ends_close(&ends);
    const struct ns_event *closed = hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_CLOSED, 1);
    CHECK_EQUAL(closed->connection.id, id);
    CHECK_EQUAL(closed->connection.state, NS_STATE_CLOSED);
    CHECK_EQUAL(closed->connection.bytes_sent, 100);
    CHECK_EQUAL(closed->connection.bytes_received, 100);
    CHECK_EQUAL(closed->connection.closed_ms, 0);
    closed = hear_of(lab, &heard, PIPELINE_KEY, NS_EVENT_CLOSED, 1);
    CHECK_EQUAL(closed->connection.direction, NS_INBOUND);
    CHECK_EQUAL(heard.count, 4);
    CHECK_EQUAL(heard.lost, 0);
    lab_free(lab);
}

TEST(a_connection_in_plaintext_tells_why)
{
    struct lab *lab = lab_plain();
    struct heard heard = {.count = 0};
    core_events_listen(lab->core, 1);
    struct ends ends = lab_connect(lab);
    const struct ns_event *opened = hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_OPENED, 1);
    CHECK_EQUAL(opened->connection.mtls, 0);
    CHECK(opened->connection.reason[0] != 0);
    ends_close(&ends);
    (void)hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_CLOSED, 1);
    lab_free(lab);
}

TEST(a_connection_that_a_decision_refuses_has_failed)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    core_events_listen(lab->core, 1);
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK(hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_FAILED, 1)->connection.reason[0] != 0);
    CHECK_EQUAL(heard.count, 1);
    lab_free(lab);
}

TEST(a_denied_stream_is_told_at_both_ends)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    core_events_listen(lab->core, 1);
    LAB_SET(lab, tunnel_verdict, NS_REFUSE);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    const struct ns_event *refused = hear_of(lab, &heard, PIPELINE_KEY, NS_EVENT_REFUSED, 1);
    CHECK_EQUAL(refused->refusal.kind, NS_REFUSED_STREAM);
    CHECK_EQUAL(refused->refusal.status, 401);
    CHECK_EQUAL(refused->refusal.count, 1);
    CHECK_TEXT(refused->refusal.peer, SHIPPER);
    CHECK(refused->refusal.reason[0] != 0);
    (void)hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_FAILED, 1);
    CHECK_EQUAL(heard.count, 2);
    lab_free(lab);
}

TEST(a_handshake_that_fails_is_told_with_its_reason)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    core_events_listen(lab->core, 1);
    int fd = dial(lab->hbone);
    CHECK_EQUAL(send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    const struct ns_event *refused = hear_of(lab, &heard, PIPELINE_KEY, NS_EVENT_REFUSED, 1);
    CHECK_EQUAL(refused->refusal.kind, NS_REFUSED_HANDSHAKE);
    CHECK_TEXT(refused->refusal.reason, "peer speaks plain HTTP, not TLS");
    close(fd);
    lab_free(lab);
}

TEST(a_limit_that_is_reached_is_told_once_in_a_second)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    char error[256];
    struct ns_limits limits = {.connections = 1};
    core_events_listen(lab->core, 1);
    CHECK_EQUAL(core_workload_limits(lab->core, SHIPPER_KEY, &limits, error, sizeof(error)), 0);
    struct ends ends = lab_connect(lab);
    for (int i = 0; i < 5; i++) {
        int client = dial(lab->outbound);
        expect_reset(client);
        close(client);
    }
    const struct ns_event *limit = hear_of(lab, &heard, SHIPPER_KEY, NS_EVENT_LIMIT, 1);
    CHECK_EQUAL(limit->limit.limit, NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(limit->limit.value, 1);
    CHECK(limit->limit.refused >= 1 && limit->limit.refused <= 5);
    ends_close(&ends);
    lab_free(lab);
}

TEST(nobody_who_listens_gets_nothing_and_costs_nothing)
{
    struct lab *lab = lab_new();
    struct heard heard = {.count = 0};
    struct ends ends = lab_connect(lab);
    ends_close(&ends);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    core_events_listen(lab->core, 1);
    hear(lab, &heard);
    CHECK_EQUAL(heard.count, 0);
    core_events_listen(lab->core, 0);
    ends = lab_connect(lab);
    ends_close(&ends);
    hear(lab, &heard);
    CHECK_EQUAL(heard.count, 0);
    CHECK_EQUAL(heard.lost, 0);
    lab_free(lab);
}

CHECK_MAIN
