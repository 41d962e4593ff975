/* bearing.c: which flow is meant by what an application says of its end, and what its far socket then has. */
#include "flow/bearing.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "check.h"
#include "wire/names.h"

enum { KEY = 7, OTHER_KEY = 8, MANY = 20000 };

static struct ns_address address_of(const char *text)
{
    struct ns_address address;
    CHECK_EQUAL(authority_parse(text, strlen(text), &address), 0);
    return address;
}

static struct tuple ends_of(uint64_t workload, const char *own, const char *other)
{
    struct tuple ends = {workload, address_of(own), address_of(other)};
    return ends;
}

static struct worker *worker_of_this_test(void)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    CHECK(worker != NULL);
    for (int i = 0; i < BEARING_BUCKETS; i++)
        link_init(&worker->bearings[i]);
    return worker;
}

static void flow_begin(struct flow *flow, struct worker *worker, struct workload *workload,
                       enum ns_direction direction)
{
    memset(flow, 0, sizeof(*flow));
    flow->worker = worker;
    flow->workload = workload;
    flow->direction = direction;
    flow->near.fd = flow->far.fd = -1;
    link_init(&flow->bearing_link);
}

static int option(int fd, int level, int name)
{
    int value;
    socklen_t length = sizeof(value);
    CHECK_EQUAL(getsockopt(fd, level, name, &value, &length), 0);
    return value;
}

/* What the kernel does by itself. */
static uint32_t silence_of(int fd)
{
    CHECK_EQUAL(option(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
    return (uint32_t)option(fd, IPPROTO_TCP, TCP_KEEPIDLE) +
           (uint32_t)option(fd, IPPROTO_TCP, TCP_KEEPINTVL) * (uint32_t)option(fd, IPPROTO_TCP, TCP_KEEPCNT);
}

TEST(an_outbound_flow_is_found_by_both_of_its_ends)
{
    struct worker *worker = worker_of_this_test();
    struct workload workload = {.key = KEY};
    struct flow flow;
    flow_begin(&flow, worker, &workload, NS_OUTBOUND);
    flow.source = address_of("10.0.0.1:40000");
    flow.destination = address_of("10.0.0.2:80");
    bearing_enter(&flow);
    const struct tolerance tolerance = {5000, 3000};
    const struct tuple others[] = {
        ends_of(OTHER_KEY, "10.0.0.1:40000", "10.0.0.2:80"), ends_of(KEY, "10.0.0.1:40001", "10.0.0.2:80"),
        ends_of(KEY, "10.0.0.1:40000", "10.0.0.2:81"),       ends_of(KEY, "10.0.0.3:40000", "10.0.0.2:80"),
        ends_of(KEY, "10.0.0.1:40000", "10.0.0.3:80"),       ends_of(KEY, "10.0.0.2:80", "10.0.0.1:40000"),
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        CHECK_CASE(!bearing_tell(worker, &others[i], &tolerance), "case %zu", i);
    CHECK_EQUAL(flow.stream.patience_ms, 0);
    const struct tuple ends = ends_of(KEY, "10.0.0.1:40000", "10.0.0.2:80");
    CHECK(bearing_tell(worker, &ends, &tolerance));
    CHECK_EQUAL(flow.stream.patience_ms, 3000);
    link_remove(&flow.bearing_link);
    CHECK(!bearing_tell(worker, &ends, &tolerance));
    free(worker);
}

TEST(a_stream_bears_the_least_that_was_said)
{
    struct worker *worker = worker_of_this_test();
    struct workload workload = {.key = KEY};
    struct flow flow;
    flow_begin(&flow, worker, &workload, NS_OUTBOUND);
    flow.source = address_of("[fd00::1]:40000");
    flow.destination = address_of("[fd00::2]:80");
    bearing_enter(&flow);
    const struct tuple ends = ends_of(KEY, "[fd00::1]:40000", "[fd00::2]:80");
    static const uint32_t CASES[][3] = {
        {5000, 0, 5000}, {0, 4000, 4000}, {5000, 4000, 4000}, {5000, 6000, 5000}, {0, 0, 0}, {1, 0, 1000},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        const struct tolerance tolerance = {CASES[i][0], CASES[i][1]};
        CHECK(bearing_tell(worker, &ends, &tolerance));
        CHECK_CASE(flow.stream.patience_ms == CASES[i][2], "case %zu: %u", i, flow.stream.patience_ms);
    }
    free(worker);
}

TEST(an_inbound_flow_is_found_by_the_port_of_its_near_socket)
{
    struct worker *worker = worker_of_this_test();
    struct workload workload = {.key = KEY};
    struct flow flow;
    flow_begin(&flow, worker, &workload, NS_INBOUND);
    flow.source = address_of("127.0.0.1:40000"); /* the client's own port is another */
    flow.destination = address_of("127.0.0.1:80");
    flow.near.fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_EQUAL(bind(flow.near.fd, (const struct sockaddr *)&from, sizeof(from)), 0);
    bearing_enter(&flow);
    struct tuple ends = ends_of(KEY, "127.0.0.1:80", "127.0.0.1:40000");
    const struct tolerance tolerance = {5000, 0};
    CHECK(!bearing_tell(worker, &ends, &tolerance));
    CHECK_EQUAL(socket_local_address(flow.near.fd, &ends.destination), 0);
    CHECK(bearing_tell(worker, &ends, &tolerance));
    CHECK_EQUAL(flow.stream.patience_ms, 5000);
    close(flow.near.fd);
    free(worker);
}

TEST(a_far_socket_bears_what_the_near_one_does)
{
    struct worker *worker = worker_of_this_test();
    struct workload workload = {.key = KEY};
    struct flow flow;
    flow_begin(&flow, worker, &workload, NS_OUTBOUND);
    flow.source = address_of("10.0.0.1:40000");
    flow.destination = address_of("10.0.0.2:80");
    bearing_enter(&flow);
    const struct tuple ends = ends_of(KEY, "10.0.0.1:40000", "10.0.0.2:80");
    const struct tolerance first = {15000, 4000}, second = {0, 0}, absurd = {UINT32_MAX, UINT32_MAX};
    flow.far.fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bearing_tell(worker, &ends, &first));
    CHECK_EQUAL(silence_of(flow.far.fd), 15);
    CHECK_EQUAL(option(flow.far.fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 4000);
    close(flow.far.fd);
    flow.far.fd = socket(AF_INET, SOCK_STREAM, 0); /* another endpoint is tried */
    bearing_renew(&flow);
    CHECK_EQUAL(silence_of(flow.far.fd), 15);
    CHECK(bearing_tell(worker, &ends, &second));
    CHECK_EQUAL(silence_of(flow.far.fd), 180 + 9 * 60);
    CHECK_EQUAL(option(flow.far.fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 0);
    CHECK(bearing_tell(worker, &ends, &absurd));
    CHECK_EQUAL(silence_of(flow.far.fd), 3 * 32767);
    CHECK_EQUAL(option(flow.far.fd, IPPROTO_TCP, TCP_USER_TIMEOUT), INT32_MAX);
    close(flow.far.fd);
    free(worker);
}

TEST(many_flows_to_one_port_are_spread)
{
    struct worker *worker = worker_of_this_test();
    struct workload workload = {.key = KEY};
    struct flow *flows = calloc(MANY, sizeof(*flows));
    CHECK(flows != NULL);
    for (int i = 0; i < MANY; i++) {
        flow_begin(&flows[i], worker, &workload, NS_OUTBOUND);
        flows[i].source = address_of("10.0.0.1:1");
        flows[i].source.port = (uint16_t)(30000 + i);
        flows[i].destination = address_of("10.0.0.2:80");
        bearing_enter(&flows[i]);
    }
    int longest = 0;
    for (int i = 0; i < BEARING_BUCKETS; i++) {
        int length = 0;
        for (struct link *at = worker->bearings[i].next; at != &worker->bearings[i]; at = at->next)
            length++;
        longest = length > longest ? length : longest;
    }
    CHECK_CASE(longest < 8 * MANY / BEARING_BUCKETS, "%d in one", longest);
    free(flows);
    free(worker);
}

CHECK_MAIN
