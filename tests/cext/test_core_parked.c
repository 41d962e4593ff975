/* The whole core: SYNs that are parked, and what becomes of them. */
#include <poll.h>
#include <sys/socket.h>

#include "loop/mailbox.h"
#include "parked_client.h"

enum { SYN = 0x02, RST = 0x04, RST_ACK = 0x14 };

static struct lab *lab_parked_of(struct core_options options, int tunnel)
{
    struct lab *lab = lab_with(options);
    LAB_SET(lab, tunnel, tunnel);
    int ring = parked_ring();
    lab_listen(lab, SHIPPER_KEY, NS_LISTEN_PARKED, ring);
    return lab;
}

static struct lab *lab_parked(int tunnel)
{
    return lab_parked_of(options_default(), tunnel);
}

static void lab_close(struct lab *lab)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_PARKED, error, sizeof(error)), 0);
    lab_free(lab);
}

static void check_released(const struct sent *sent)
{
    CHECK_EQUAL(sent->mark, NS_MARK_RELEASED);
    CHECK_EQUAL(parked_flags(sent), SYN);
}

static void check_refused(const struct sent *sent)
{
    CHECK_EQUAL(sent->mark, NS_MARK_CORE);
    CHECK_EQUAL(parked_flags(sent), RST_ACK);
}

static void check_exchange(int client, int server)
{
    send_stream(client, 1, 0, 100000);
    receive_stream(server, 1, 0, 100000);
    send_stream(server, 2, 0, 100000);
    receive_stream(client, 2, 0, 100000);
}

static int nobody_waits_at(int listener)
{
    struct pollfd poll_for = {.fd = listener, .events = POLLIN};
    return poll(&poll_for, 1, 0) == 0;
}

static void check_connects(struct lab *lab)
{
    int client = parked_client();
    parked_syn(lab, client, 1000, 0);
    int server = take_connection(lab->application);
    struct sent sent = parked_sent();
    check_released(&sent);
    parked_connect(lab, client);
    check_exchange(client, server);
    close(client);
    expect_end(server);
    close(server);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    CHECK_EQUAL(parked_sent_count(), 0);
}

TEST(syn_is_released_when_the_far_side_is_there)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked(tunnel);
        check_connects(lab);
        CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, 1);
        lab_close(lab);
    }
}

TEST(syn_to_a_closed_port_is_refused)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked(tunnel);
        int client = parked_client(), closed = listen_at(host(2, 0));
        LAB_SET(lab, endpoint, local_of(closed));
        close(closed);
        parked_syn(lab, client, 1, 0);
        struct sent sent = parked_sent();
        check_refused(&sent);
        CHECK_EQUAL(memcmp(sent.bytes + 24, "\0\0\0\0\0\0\0\2", 8), 0); /* number 0, acknowledges 1 + 1 */
        close(client);
        WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
        lab_close(lab);
    }
}

TEST(syn_that_is_denied_is_refused_and_nobody_is_dialled)
{
    struct lab *lab = lab_parked(1);
    int client = parked_client();
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    parked_syn(lab, client, 1, 0);
    struct sent sent = parked_sent();
    check_refused(&sent);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).refused, 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 0);
    close(client);
    lab_close(lab);
}

TEST(syn_that_comes_again_is_one_connection)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    LAB_SET(lab, stuck, 1);
    for (int i = 0; i < 3; i++)
        parked_syn(lab, client, 7, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
    LAB_SET(lab, stuck, 0);
    struct sent sent = parked_sent();
    check_released(&sent);
    parked_syn(lab, client, 7, 0); /* the first was lost */
    sent = parked_sent();
    check_released(&sent);
    parked_connect(lab, client);
    int server = take_connection(lab->application);
    check_exchange(client, server);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, 1);
    close(client);
    close(server);
    lab_close(lab);
}

TEST(another_connection_from_the_same_port_ends_the_one_before)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    LAB_SET(lab, stuck, 1);
    parked_syn(lab, client, 7, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
    parked_syn(lab, client, 8, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).accepted == 2);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, 1);
    LAB_SET(lab, stuck, 0);
    struct sent sent = parked_sent();
    check_released(&sent);
    CHECK_EQUAL(sent.bytes[27], 8); /* its number */
    CHECK_EQUAL(parked_sent_count(), 0);
    close(client);
    lab_close(lab);
}

TEST(application_that_gives_up_leaves_nothing_behind)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked(tunnel);
        int client = parked_client();
        LAB_SET(lab, stuck, 1);
        parked_syn(lab, client, 7, 0);
        WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
        parked_gone(lab, client);
        WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
        LAB_SET(lab, stuck, 0);
        check_connects(lab); /* whoever comes next is served */
        CHECK(nobody_waits_at(lab->application));
        close(client);
        lab_close(lab);
    }
}

TEST(released_syn_that_nobody_follows_ends_the_far_side)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    parked_syn(lab, client, 7, 0);
    int server = take_connection(lab->application);
    struct sent sent = parked_sent();
    check_released(&sent);
    expect_reset(server);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    CHECK_EQUAL(parked_sent_count(), 0);
    close(server);
    close(client);
    lab_close(lab);
}

TEST(server_that_speaks_first_and_ends_is_heard_after_the_release)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked(tunnel);
        int client = parked_client();
        parked_syn(lab, client, 7, 0);
        int server = take_connection(lab->application);
        send_stream(server, 3, 0, 20000);
        close(server);
        struct sent sent = parked_sent();
        check_released(&sent);
        usleep(50000); /* all of it has come, and the end */
        parked_connect(lab, client);
        receive_stream(client, 3, 0, 20000);
        expect_end(client);
        close(client);
        WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
        lab_close(lab);
    }
}

TEST(server_that_resets_before_the_application_has_come_is_not_dialled_again)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_parked(tunnel);
        int client = parked_client();
        parked_syn(lab, client, 7, 0);
        int server = take_connection(lab->application);
        struct sent sent = parked_sent();
        check_released(&sent);
        reset(server);
        usleep(50000); /* the reset has come */
        parked_connect(lab, client);
        expect_reset(client);
        close(client);
        WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
        CHECK(nobody_waits_at(lab->application));
        CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, 1);
        lab_close(lab);
    }
}

TEST(limit_refuses_the_syn_and_counts_native_connections)
{
    struct lab *lab = lab_parked(0);
    char error[NS_REASON_MAX] = "";
    const struct ns_limits limits = {.connections = 10};
    CHECK_EQUAL(core_workload_limits(lab->core, SHIPPER_KEY, &limits, error, sizeof(error)), 0);
    int client = parked_client(), other = parked_client();
    parked_syn(lab, client, 7, 10);
    struct sent sent = parked_sent();
    check_refused(&sent);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).limited[NS_LIMIT_CONNECTIONS].refused, 1);
    parked_syn(lab, other, 7, 9);
    sent = parked_sent();
    check_released(&sent);
    close(client);
    close(other);
    lab_close(lab);
}

/* What is decided is as the lab's answers have it: the endpoint is where the application dialled. */
TEST(plaintext_to_where_it_was_dialled_goes_natively)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    LAB_SET(lab, endpoint, local_of(lab->outbound));
    parked_syn(lab, client, 7, PARKED_NATIVE);
    struct sent sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_NATIVE);
    CHECK_EQUAL(parked_flags(&sent), SYN);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    parked_syn(lab, client, 7, PARKED_NATIVE); /* was lost on its way */
    sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_NATIVE);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).plaintext, 2);
    close(client);
    lab_close(lab);
}

TEST(plaintext_of_a_process_of_the_node_goes_without_a_mark_behind_a_notice)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    LAB_SET(lab, endpoint, local_of(lab->outbound));
    parked_host_syn(lab, client, 7, PARKED_NATIVE);
    struct sent notice = parked_sent(), syn = parked_sent();
    CHECK_EQUAL(notice.mark, NS_MARK_NATIVE);
    CHECK_EQUAL(parked_flags(&notice), RST);
    CHECK_EQUAL(syn.mark, 0);
    CHECK_EQUAL(parked_flags(&syn), SYN);
    CHECK_EQUAL(memcmp(notice.bytes + 12, syn.bytes + 12, 16), 0); /* addresses, ports and number */
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    CHECK_EQUAL(parked_sent_count(), 0);
    close(client);
    lab_close(lab);
}

TEST(plaintext_to_elsewhere_goes_through_the_core)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    parked_syn(lab, client, 7, PARKED_NATIVE); /* the answer names another endpoint */
    struct sent sent = parked_sent();
    check_released(&sent);
    close(client);
    lab_close(lab);
}

TEST(arrival_that_is_allowed_is_admitted_and_one_that_is_denied_refused)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client(), other = parked_client();
    parked_arrival(lab, client, 7);
    struct sent sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_ADMITTED);
    CHECK_EQUAL(parked_flags(&sent), SYN);
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    lab_move_on(lab);
    parked_arrival(lab, other, 7);
    sent = parked_sent();
    check_refused(&sent);
    struct ns_refusal refusals[2];
    CHECK_EQUAL(core_refusals(lab->core, refusals, 2), 1);
    CHECK_EQUAL(refusals[0].kind, NS_REFUSED_PLAINTEXT);
    CHECK_EQUAL(lab_core_stats(lab).live_connections, 0);
    close(client);
    close(other);
    lab_close(lab);
}

TEST(core_that_ends_leaves_parked_syns_to_the_next)
{
    struct lab *lab = lab_parked(0);
    int client = parked_client();
    LAB_SET(lab, stuck, 1);
    parked_syn(lab, client, 7, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
    LAB_SET(lab, stuck, 0);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    for (int sent = parked_sent_count(); sent > 0; sent--) { /* unless it was decided in time */
        struct sent packet = parked_sent();
        check_released(&packet);
    }
    close(client);
    lab_free(lab);
}

TEST(reader_that_was_told_to_stop_reads_no_more)
{
    struct lab *lab = lab_parked(0);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_PARKED, error, sizeof(error)), 0);
    int client = parked_client();
    parked_syn(lab, client, 7, 0);
    usleep(50000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, 0);
    close(client);
    lab_free(lab);
}

TEST(another_worker_than_the_reader_may_hold_it)
{
    struct lab *lab = lab_parked(1);
    parked_elsewhere();
    check_connects(lab);
    check_connects(lab);
    int client = parked_client(), server;
    LAB_SET(lab, stuck, 1);
    lab_move_on(lab);
    parked_syn(lab, client, 7, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
    parked_syn(lab, client, 7, 0);
    parked_syn(lab, client, 8, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).accepted == 4);
    LAB_SET(lab, stuck, 0);
    struct sent sent = parked_sent();
    check_released(&sent);
    CHECK_EQUAL(sent.bytes[27], 8);
    parked_syn(lab, client, 8, 0);
    sent = parked_sent();
    check_released(&sent);
    parked_connect(lab, client);
    server = take_connection(lab->application);
    check_exchange(client, server);
    close(client);
    close(server);
    client = parked_client();
    LAB_SET(lab, stuck, 1);
    lab_move_on(lab);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    parked_syn(lab, client, 9, 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 1);
    parked_gone(lab, client);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    LAB_SET(lab, stuck, 0);
    close(client);
    lab_close(lab);
}

/* Of a flow in plaintext, whose far socket shows it. */
static void check_bears(struct lab *lab)
{
    int client = parked_client(), other = parked_client();
    for (int i = 0; i < 2; i++) {
        parked_syn(lab, i == 0 ? client : other, 1000, 0);
        struct sent sent = parked_sent();
        check_released(&sent);
        parked_connect(lab, i == 0 ? client : other);
    }
    int servers[] = {take_connection(lab->application), take_connection(lab->application)};
    COUNT_RESET(calls.user_timeout);
    parked_bears(lab, client, 9000, 4000);
    WAIT_UNTIL(COUNT(calls.user_timeout) == 4000);
    parked_bears(lab, other, 0, 5000);
    WAIT_UNTIL(COUNT(calls.user_timeout) == 5000);
    parked_bears(lab, client, 9000, 0);
    WAIT_UNTIL(COUNT(calls.user_timeout) == 0);
    close(client);
    close(other);
    close(servers[0]);
    close(servers[1]);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
}

TEST(what_an_application_bears_reaches_its_flow)
{
    struct lab *lab = lab_parked(0);
    check_bears(lab);
    lab_close(lab);
}

TEST(what_an_application_bears_reaches_its_flow_on_another_worker)
{
    struct lab *lab = lab_parked(0);
    parked_elsewhere();
    check_bears(lab);
    lab_close(lab);
}

static int posts[COMMAND_STOP + 1]; /* by kind; counted */
void __wrap_mailbox_post(struct mailbox *mailbox, struct command *command);
void __real_mailbox_post(struct mailbox *mailbox, struct command *command);

void __wrap_mailbox_post(struct mailbox *mailbox, struct command *command)
{
    __atomic_add_fetch(&posts[command->kind], 1, __ATOMIC_RELAXED);
    __real_mailbox_post(mailbox, command);
}

TEST(an_application_cannot_fill_the_mailbox_of_another_worker)
{
    enum { ROUNDS = 5, RECORDS = 40, MOST = 64 };
    struct lab *lab = lab_parked(0);
    struct sockaddr_in application = local_of(lab->application);
    int clients[ROUNDS + 1];
    parked_elsewhere();
    gate_close(&application);
    for (int i = 0; i <= ROUNDS; i++)
        clients[i] = parked_client();
    parked_syn(lab, clients[0], 1, 0);
    WAIT_UNTIL(gate_held() == 1); /* the other worker does nothing any more */
    COUNT_RESET(posts[COMMAND_PARKED]);
    for (int i = 1; i <= ROUNDS; i++) {
        for (int record = 0; record < RECORDS; record++)
            parked_bears(lab, clients[0], 1000, 0);
        parked_syn(lab, clients[i], 1, 0);
        while (COUNT(posts[COMMAND_PARKED]) < i)
            usleep(1000);
    }
    CHECK(COUNT(posts[COMMAND_TOLERANCE]) <= MOST);
    gate_open();
    for (int i = 0; i <= ROUNDS; i++) {
        struct sent sent = parked_sent();
        check_released(&sent);
    }
    COUNT_RESET(calls.user_timeout);
    parked_bears(lab, clients[0], 0, 4000);
    WAIT_UNTIL(COUNT(calls.user_timeout) == 4000); /* it is told again */
    for (int i = 0; i <= ROUNDS; i++)
        close(clients[i]);
    lab_close(lab);
}

TEST(connection_that_was_not_parked_is_accepted_as_before)
{
    struct lab *lab = lab_parked(1);
    int client = dial(lab->outbound);
    int server = take_connection(lab->application);
    check_exchange(client, server);
    close(client);
    close(server);
    lab_close(lab);
}

CHECK_MAIN
