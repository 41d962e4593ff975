/* The whole core: who reaches port 15008 and proves nothing. */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"
#include "loop/strangers.h"

/* Connects to pipeline's port 15008 from 127.9.9.`number`. */
static int stranger_from(struct lab *lab, int number)
{
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(0x7f090900u + (uint32_t)number)};
    struct sockaddr_in to = local_of(lab->hbone);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQUAL(bind(fd, (struct sockaddr *)&from, sizeof(from)), 0);
    CHECK_EQUAL(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static int is_over(int fd)
{
    struct pollfd poll_one = {.fd = fd, .events = POLLIN};
    return poll(&poll_one, 1, 0) > 0;
}

static void close_all(int fds[], int count)
{
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

TEST(connections_that_say_nothing_cost_a_workload_neither_its_connections_nor_its_descriptors)
{
    enum { SILENT = 40, LIMIT = 3 };
    char error[NS_REASON_MAX] = "";
    struct lab *lab = lab_new_of_one_worker();
    struct ns_limits limits = {.connections = LIMIT, .new_connections = 1000};
    int silent[SILENT];
    CHECK_EQUAL(core_workload_limits(lab->core, PIPELINE_KEY, &limits, error, sizeof(error)), 0);
    for (int i = 0; i < SILENT; i++)
        silent[i] = stranger_from(lab, 1);
    WAIT_UNTIL(lab_core_stats(lab).strangers == SILENT);
    struct ns_workload_stats stats = lab_stats(lab, PIPELINE_KEY);
    CHECK_EQUAL(stats.tunnels, 0);
    CHECK_EQUAL(stats.descriptors, 0);
    CHECK_EQUAL(stats.memory, 0);
    struct ends ends = lab_connect(lab); /* a tunnel and a stream */
    exchange(&ends, 0);
    stats = lab_stats(lab, PIPELINE_KEY);
    CHECK_EQUAL(stats.tunnels, 1);
    for (int i = 0; i < NS_LIMITS; i++)
        CHECK_EQUAL(stats.limited[i].refused, 0);
    CHECK_EQUAL(lab_core_stats(lab).strangers, SILENT);
    CHECK_EQUAL(lab_core_stats(lab).live_tunnels, 2);
    close_all(silent, SILENT);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    exchange(&ends, 100);
    ends_close(&ends);
    lab_free(lab);
}

TEST(of_too_many_from_one_source_the_oldest_are_reset_told_and_counted)
{
    enum { MORE = 10, SILENT = STRANGERS_OF_SOURCE + MORE };
    struct lab *lab = lab_new_of_one_worker();
    int silent[SILENT];
    int other = stranger_from(lab, 2); /* older than all */
    WAIT_UNTIL(lab_core_stats(lab).strangers == 1);
    for (int i = 0; i < SILENT; i++)
        silent[i] = stranger_from(lab, 1);
    for (int i = 0; i < MORE; i++)
        expect_reset(silent[i]);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).limited[NS_LIMIT_HANDSHAKES].refused == MORE);
    struct ns_core_stats stats = lab_core_stats(lab);
    CHECK_EQUAL(stats.strangers, STRANGERS_OF_SOURCE + 1);
    CHECK_EQUAL(stats.strangers_ended, MORE);
    for (int i = MORE; i < SILENT; i++)
        CHECK(!is_over(silent[i]));
    CHECK(!is_over(other));
    struct ns_refusal refusal;
    CHECK_EQUAL(core_refusals(lab->core, &refusal, 1), 1); /* of one source */
    CHECK_EQUAL(refusal.workload, PIPELINE_KEY);
    CHECK_EQUAL(refusal.kind, NS_REFUSED_HANDSHAKE);
    CHECK_EQUAL(refusal.count, MORE);
    CHECK_TEXT(refusal.reason, "limit-handshakes");
    struct ns_limit_notice notice;
    WAIT_UNTIL(core_limit_notices(lab->core, &notice, 1) == 1);
    CHECK_EQUAL(notice.workload, PIPELINE_KEY);
    CHECK_EQUAL(notice.limit, NS_LIMIT_HANDSHAKES);
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    ends_close(&ends);
    close_all(silent, SILENT);
    close(other);
    lab_free(lab);
}

/* What a client without a certificate, and with an endless hello, may send before it is shown the door. */
TEST(one_that_sends_without_end_is_closed)
{
    static const uint8_t HELLO_OF_128_KIB[] = {0x01, 0x02, 0x00, 0x00};
    enum { RECORD = 16384, RECORDS = 7 };
    static uint8_t record[5 + RECORD] = {0x16, 0x03, 0x03, RECORD >> 8, 0};
    struct lab *lab = lab_new_of_one_worker();
    int endless = stranger_from(lab, 1);
    ssize_t sent = 0;
    memcpy(record + 5, HELLO_OF_128_KIB, sizeof(HELLO_OF_128_KIB));
    for (int i = 0; i < RECORDS && sent >= 0; i++) {
        sent = send(endless, record, sizeof(record), MSG_NOSIGNAL);
        memset(record + 5, 0, sizeof(HELLO_OF_128_KIB));
    }
    struct pollfd poll_one = {.fd = endless, .events = POLLIN};
    CHECK_EQUAL(poll(&poll_one, 1, WAIT_SECONDS * 1000), 1);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    close(endless);
    lab_free(lab);
}

TEST(a_workload_is_removed_with_its_strangers)
{
    enum { SILENT = 20 };
    char error[NS_REASON_MAX] = "";
    struct lab *lab = lab_new();
    int silent[SILENT];
    for (int i = 0; i < SILENT; i++)
        silent[i] = stranger_from(lab, i);
    WAIT_UNTIL(lab_core_stats(lab).strangers == SILENT);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    for (int i = 0; i < SILENT; i++)
        expect_end(silent[i]);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    close_all(silent, SILENT);
    lab_free(lab);
}

TEST(a_flood_does_not_keep_a_listener_from_being_closed)
{
    enum { FLOOD = 3000 };
    char error[NS_REASON_MAX] = "";
    struct lab *lab = lab_new_of_one_worker();
    (void)lab_core_stats(lab); /* the listener is open */
    __atomic_store_n(&calls.accepts_flood, FLOOD, __ATOMIC_RELAXED);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    CHECK_EQUAL(COUNT(calls.accepts_flood), FLOOD); /* they were not there when it was to be closed */
    lab_free(lab);
}

TEST(a_published_peer_connects_while_others_fill_all_room)
{
    struct lab *lab = lab_new_of_one_worker();
    /* The kernel dials from there within 127.0.0.0/8. */
    struct ns_address dialled_from = mapped((struct sockaddr_in){.sin_addr.s_addr = htonl(INADDR_LOOPBACK)});
    const int most = (int)STRANGERS_OF_WORKLOAD[STRANGER_OTHER];
    int *silent = calloc((size_t)most + 10, sizeof(silent[0]));
    CHECK(silent != NULL);
    core_publish(lab->core, dialled_from.ip, 1);
    for (int i = 0; i < most + 10; i++)
        silent[i] = stranger_from(lab, i % 250);
    WAIT_UNTIL(lab_core_stats(lab).strangers_ended == 10);
    CHECK_EQUAL(lab_core_stats(lab).strangers, most);
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    CHECK_EQUAL(lab_core_stats(lab).strangers, most); /* none had to go for it */
    CHECK_EQUAL(lab_core_stats(lab).strangers_ended, 10);
    core_withdraw(lab->core, dialled_from.ip, 1);
    ends_close(&ends);
    close_all(silent, most + 10);
    free(silent);
    lab_free(lab);
}

/* The home worker holds so many that it hands over what comes. */
TEST(strangers_that_are_handed_over_to_another_worker_are_counted_once)
{
    enum { FLOWS = 150, SILENT = 30 };
    struct lab *lab = lab_new();
    struct ends ends[FLOWS];
    int silent[SILENT];
    for (int i = 0; i < FLOWS; i++)
        ends[i] = lab_connect(lab);
    uint64_t descriptors = lab_core_stats(lab).descriptors;
    for (int i = 0; i < SILENT; i++)
        silent[i] = stranger_from(lab, i);
    WAIT_UNTIL(lab_core_stats(lab).strangers == SILENT);
    CHECK_EQUAL(lab_core_stats(lab).descriptors, descriptors + SILENT);
    close_all(silent, SILENT);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    CHECK_EQUAL(lab_core_stats(lab).descriptors, descriptors);
    for (int i = 0; i < FLOWS; i++) {
        exchange(&ends[i], 0);
        ends_close(&ends[i]);
    }
    lab_free(lab);
}

CHECK_MAIN
