/* The whole core: peers that are refused stand among the refusals, and in no list of connections. */
#include <sys/socket.h>

#include "core_calls.h"
#include "core_ends.h"
#include "wire/names.h"

enum { ROWS = 64 };

/* The refusals of a workload; how many. */
static size_t refusals_of(struct lab *lab, uint64_t key, struct ns_refusal rows[ROWS])
{
    size_t found = 0;
    size_t count = core_refusals(lab->core, rows, ROWS);
    for (size_t i = 0; i < count && i < ROWS; i++)
        if (rows[i].workload == key)
            rows[found++] = rows[i];
    return found;
}

static uint64_t refused(struct lab *lab, uint64_t key)
{
    struct ns_refusal rows[ROWS];
    uint64_t sum = 0;
    for (size_t i = refusals_of(lab, key, rows); i-- > 0;)
        sum += rows[i].count;
    return sum;
}

static int connections_of(struct lab *lab, uint64_t key)
{
    struct ns_connection list[ROWS];
    size_t count = core_connections(lab->core, list, ROWS);
    int found = 0;
    for (size_t i = 0; i < count && i < ROWS; i++)
        found += list[i].workload == key;
    return found;
}

/* What a stranger gets who sends these bytes to pipeline's port 15008. */
static void send_to_hbone(struct lab *lab, const char *bytes)
{
    char answer[4096];
    int fd = dial(lab->hbone);
    CHECK_EQUAL(send(fd, bytes, strlen(bytes), MSG_NOSIGNAL), (ssize_t)strlen(bytes));
    while (recv(fd, answer, sizeof(answer), 0) > 0)
        ;
    close(fd);
}

static void check_stream(uint32_t verdict, uint32_t status)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    LAB_SET(lab, tunnel_verdict, verdict);
    for (int i = 0; i < 3; i++) {
        int client = dial(lab->outbound);
        expect_reset(client);
        close(client);
    }
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 3);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_STREAM);
    CHECK_EQUAL(rows[0].direction, NS_INBOUND);
    CHECK_EQUAL(rows[0].status, status);
    CHECK_TEXT(rows[0].peer, SHIPPER);
    CHECK(rows[0].reason[0] != 0);
    CHECK(rows[0].first_ms >= rows[0].last_ms);
    struct ns_address application = mapped(local_of(lab->application));
    CHECK(address_same_ip(&rows[0].destination, &application));
    CHECK_EQUAL(rows[0].destination.port, application.port);
    CHECK_EQUAL(connections_of(lab, PIPELINE_KEY), 0);
    CHECK_EQUAL(refused(lab, SHIPPER_KEY), 0); /* its own end is a connection that failed */
    CHECK_EQUAL(connections_of(lab, SHIPPER_KEY), 3);
    lab_free(lab);
}

TEST(a_denied_stream_is_a_refusal_and_no_connection)
{
    check_stream(NS_REFUSE, 401);
}

TEST(an_unavailable_stream_is_a_refusal_and_no_connection)
{
    check_stream(NS_UNAVAILABLE, 502);
}

TEST(a_stream_that_is_not_known_of_yet_is_a_refusal_and_no_connection)
{
    check_stream(NS_NOT_YET, 503);
}

TEST(a_stream_whose_application_does_not_listen_is_a_refusal)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(closed));
    close(closed);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 1);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].status, 502);
    CHECK_TEXT(rows[0].reason, "the application refused");
    CHECK_EQUAL(connections_of(lab, PIPELINE_KEY), 0);
    lab_free(lab);
}

TEST(a_stranger_that_speaks_http_is_a_refusal)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    send_to_hbone(lab, "GET / HTTP/1.1\r\n\r\n");
    send_to_hbone(lab, "GET / HTTP/1.1\r\n\r\n");
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 2);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_HANDSHAKE);
    CHECK_EQUAL(rows[0].direction, NS_INBOUND);
    CHECK_EQUAL(rows[0].status, 0);
    CHECK_TEXT(rows[0].reason, "peer speaks plain HTTP, not TLS");
    CHECK_TEXT(rows[0].peer, "");
    CHECK_EQUAL(rows[0].destination.port, NS_HBONE_PORT);
    CHECK_EQUAL(connections_of(lab, PIPELINE_KEY), 0);
    lab_free(lab);
}

TEST(a_stranger_that_hangs_up_in_the_handshake_is_a_refusal_if_it_has_said_something)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    int silent = dial(lab->hbone);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 1);
    close(silent);
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0);
    int fd = dial(lab->hbone);
    CHECK_EQUAL(send(fd, "\x16\3\1", 3, MSG_NOSIGNAL), 3); /* the beginning of a record */
    WAIT_UNTIL(calls.steps > 0);
    shutdown(fd, SHUT_WR);
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 1);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_TEXT(rows[0].reason, "peer closed the connection in the handshake");
    close(fd);
    lab_free(lab);
}

TEST(a_stranger_that_sends_nothing_is_a_refusal_when_its_time_is_up)
{
    struct core_options options = options_default();
    struct ns_refusal rows[ROWS];
    options.connect_timeout_ms = 1000;
    struct lab *lab = lab_with(options);
    int silent = dial(lab->hbone);
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 1);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_HANDSHAKE);
    CHECK_TEXT(rows[0].reason, "peer connected and sent nothing");
    struct ns_address here = mapped(local_of(lab->hbone));
    CHECK(address_same_ip(&rows[0].destination, &here));
    CHECK_EQUAL(rows[0].destination.port, NS_HBONE_PORT);
    close(silent);
    lab_free(lab);
}

TEST(a_peer_that_was_dialled_and_refused_is_a_refusal_of_both_ends)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    LAB_SET(lab, identity, SIEM);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(refused(lab, SHIPPER_KEY) >= 1 && refused(lab, PIPELINE_KEY) >= 1);
    CHECK_EQUAL(refusals_of(lab, SHIPPER_KEY, rows), 1);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_HANDSHAKE);
    CHECK_EQUAL(rows[0].direction, NS_OUTBOUND);
    CHECK_TEXT(rows[0].reason, "peer has another identity than expected");
    CHECK_TEXT(rows[0].presented, PIPELINE);
    CHECK_TEXT(rows[0].expected, SIEM);
    struct ns_address peer = mapped(local_of(lab->hbone));
    CHECK(address_same_ip(&rows[0].destination, &peer));
    CHECK_EQUAL(rows[0].destination.port, NS_HBONE_PORT);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].direction, NS_INBOUND);
    CHECK_TEXT(rows[0].reason,
               "peer refused this workload's certificate: broken, or of another than it expected");
    CHECK_TEXT(rows[0].presented, PIPELINE);
    CHECK_TEXT(rows[0].expected, "");
    CHECK_EQUAL(connections_of(lab, SHIPPER_KEY), 1); /* whose reason is the same */
    lab_free(lab);
}

/* Of another CA, which trusts the lab's. */
static void lab_foreign_credentials(struct lab *lab, uint64_t key, const char *identity)
{
    struct authority same_name = authority_new(); /* as the lab's, whose source counts for itself */
    struct authority other = authority_new();
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&other.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &other.intermediate);
    char *private = certificate_key_pem(&leaf);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_credentials(lab->core, key, chain, private, error, sizeof(error)), 0);
    free(chain);
    free(private);
    certificate_dispose(&leaf);
    authority_dispose(&other);
    authority_dispose(&same_name);
}

TEST(a_peer_of_another_ca_is_a_refusal_of_both_ends)
{
    struct lab *lab = lab_new();
    struct ns_refusal rows[ROWS];
    lab_foreign_credentials(lab, SHIPPER_KEY, SHIPPER);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(refused(lab, SHIPPER_KEY) >= 1 && refused(lab, PIPELINE_KEY) >= 1);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_TEXT(rows[0].reason, "peer certificate is of a CA that is not trusted here");
    CHECK_EQUAL(refusals_of(lab, SHIPPER_KEY, rows), 1);
    CHECK_EQUAL(rows[0].direction, NS_OUTBOUND);
    CHECK_TEXT(rows[0].reason, "peer refused this workload's certificate: it does not trust its CA");
    lab_free(lab);
}

TEST(a_connection_refused_in_plaintext_is_a_refusal_and_no_connection)
{
    struct lab *lab = lab_plain();
    struct ns_refusal rows[ROWS];
    int inbound = lab_listen(lab, PIPELINE_KEY, NS_LISTEN_INBOUND, listen_at(host(2, 0)));
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    int client = dial(inbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 1);
    CHECK_EQUAL(refusals_of(lab, PIPELINE_KEY, rows), 1);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_PLAINTEXT);
    CHECK_EQUAL(rows[0].status, 0);
    CHECK_EQUAL(connections_of(lab, PIPELINE_KEY), 0);
    close(inbound);
    lab_free(lab);
}

TEST(refusals_are_told_once_for_a_log)
{
    struct lab *lab = lab_new();
    struct ns_refusal notice[2];
    send_to_hbone(lab, "GET / HTTP/1.1\r\n\r\n");
    WAIT_UNTIL(core_refusal_notices(lab->core, notice, 2) == 1);
    CHECK_EQUAL(notice[0].workload, PIPELINE_KEY);
    CHECK_EQUAL(notice[0].count, 1);
    CHECK_TEXT(notice[0].reason, "peer speaks plain HTTP, not TLS");
    send_to_hbone(lab, "GET / HTTP/1.1\r\n\r\n");
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 2);
    send_to_hbone(lab, "\x16\3\1\0\1x"); /* another reason */
    WAIT_UNTIL(core_refusal_notices(lab->core, notice, 2) == 1);
    CHECK(strcmp(notice[0].reason, "peer speaks plain HTTP, not TLS") != 0);
    lab_free(lab);
}

TEST(refusals_go_with_their_workload)
{
    struct lab *lab = lab_new();
    char error[NS_REASON_MAX] = "";
    send_to_hbone(lab, "GET / HTTP/1.1\r\n\r\n");
    WAIT_UNTIL(refused(lab, PIPELINE_KEY) == 1);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    CHECK_EQUAL(core_refusals(lab->core, NULL, 0), 0);
    lab_free(lab);
}

CHECK_MAIN
