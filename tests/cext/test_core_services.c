/* The whole core: destinations with two endpoints, one of which refuses or is silent. */
#include <sys/socket.h>

#include "parked_client.h"

enum { MANY = 20 };

static struct lab *lab_of_two(int tunnel, struct sockaddr_in first)
{
    struct core_options options = options_default();
    options.workers = 1;
    options.refused_retry_ms = 2 * WAIT_SECONDS * 1000; /* nobody here waits for that */
    struct lab *lab = lab_with(options);
    LAB_SET(lab, tunnel, tunnel);
    LAB_SET(lab, first, first);
    lab_listen(lab, SHIPPER_KEY, NS_LISTEN_PARKED, parked_ring());
    return lab;
}

static void lab_close(struct lab *lab)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_PARKED, error, sizeof(error)), 0);
    lab_free(lab);
}

static struct sockaddr_in closed_at(int number)
{
    int listener = listen_at(host(number, 0));
    struct sockaddr_in address = local_of(listener);
    close(listener);
    return address;
}

/* Its queue is full: the kernel drops SYNs. */
struct silent {
    int listener, filler;
};

static struct silent silent_at(struct sockaddr_in address)
{
    struct silent silent = {.listener = listen_at(address)};
    CHECK_EQUAL(listen(silent.listener, 0), 0);
    silent.filler = dial(silent.listener);
    return silent;
}

static void silent_close(struct silent *silent)
{
    close(silent->listener);
    close(silent->filler);
}

static struct sent expect_released(void)
{
    struct sent sent = parked_sent();
    CHECK_EQUAL(sent.mark, NS_MARK_RELEASED);
    return sent;
}

/* The application whose SYN it is. */
static int client_of(const struct sent *sent, const int clients[MANY])
{
    for (int i = 0; i < MANY; i++) {
        in_port_t port = local_of(clients[i]).sin_port;
        if (memcmp(sent->bytes + 20, &port, sizeof(port)) == 0)
            return clients[i];
    }
    check_failed(__FILE__, __LINE__, "nobody's SYN was released");
}

/* All at once; each is to be released. */
static void connect_many(struct lab *lab, int clients[MANY])
{
    for (int i = 0; i < MANY; i++) {
        clients[i] = parked_client();
        parked_syn(lab, clients[i], 7, 0);
    }
    for (int i = 0; i < MANY; i++) {
        struct sent sent = expect_released();
        parked_connect(lab, client_of(&sent, clients));
        close(take_connection(lab->application));
    }
    for (int i = 0; i < MANY; i++)
        close(clients[i]);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 0);
}

static void connect_one(struct lab *lab)
{
    int client = parked_client();
    parked_syn(lab, client, 7, 0);
    expect_released();
    parked_connect(lab, client);
    close(take_connection(lab->application));
    close(client);
}

/* ---- it refuses ---- */

TEST(endpoint_that_refuses_is_left_for_the_other)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_of_two(tunnel, closed_at(2));
        int clients[MANY];
        connect_many(lab, clients);
        lab_close(lab);
    }
}

TEST(endpoint_that_has_refused_is_not_the_choice_of_those_that_follow)
{
    struct lab *lab = lab_of_two(1, closed_at(2));
    for (int i = 0; i < 4 * MANY; i++)
        connect_one(lab);
    /* Each second, or more seldom, one has tried whether it is back; half of them would have without memory.
     */
    CHECK(lab_stats(lab, PIPELINE_KEY).failed >= 1);
    CHECK(lab_stats(lab, PIPELINE_KEY).failed <= MANY);
    lab_close(lab);
}

TEST(peer_whose_core_starts_is_left_for_the_other)
{
    struct lab *lab = lab_of_two(1, host(3, 8080));
    int clients[MANY];
    connect_many(lab, clients);
    lab_close(lab);
}

TEST(when_all_refuse_it_is_refused)
{
    for (int tunnel = 0; tunnel < 2; tunnel++) {
        struct lab *lab = lab_of_two(tunnel, closed_at(2));
        LAB_SET(lab, endpoint, closed_at(2));
        int client = parked_client();
        parked_syn(lab, client, 7, 0);
        struct sent sent = parked_sent();
        CHECK_EQUAL(sent.mark, NS_MARK_CORE);
        CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 1);
        close(client);
        lab_close(lab);
    }
}

/* ---- it is silent ---- */

TEST(endpoint_that_is_silent_is_left_for_the_other)
{
    /* By plaintext; by a new tunnel; by one that is open. */
    for (int way = 0; way < 3; way++) {
        struct silent silent = silent_at(way == 0   ? host(4, 0)
                                         : way == 1 ? host(3, NS_HBONE_PORT)
                                                    : host(2, 0));
        struct sockaddr_in address = way == 1 ? host(3, 8080) : local_of(silent.listener);
        struct lab *lab = lab_of_two(way > 0, address);
        int clients[MANY];
        connect_many(lab, clients);
        connect_many(lab, clients); /* who follows does not wait as long for it */
        lab_close(lab);
        silent_close(&silent);
    }
}

TEST(last_endpoint_is_waited_for)
{
    struct silent first = silent_at(host(4, 0)), last = silent_at(host(4, 0));
    struct lab *lab = lab_of_two(0, local_of(first.listener));
    LAB_SET(lab, endpoint, local_of(last.listener));
    int client = parked_client();
    for (int second = 0; second < 5; second++) {
        parked_syn(lab, client, 7, 0);
        sleep(1);
    }
    CHECK_EQUAL(parked_sent_count(), 0);
    close(take_connection(first.listener)); /* the filler; one of both serves it */
    close(take_connection(last.listener));
    parked_syn(lab, client, 7, 0);
    expect_released();
    close(client);
    lab_close(lab);
    silent_close(&first);
    silent_close(&last);
}

TEST(endpoint_that_is_back_is_used_again)
{
    struct silent silent = silent_at(host(4, 0));
    struct lab *lab = lab_of_two(0, local_of(silent.listener));
    int clients[MANY];
    connect_many(lab, clients);
    close(take_connection(silent.listener));
    CHECK_EQUAL(listen(silent.listener, 128), 0);
    struct sockaddr_in back = local_of(silent.listener);
    LAB_SET(lab, endpoint, back); /* from the next answer on both are it */
    lab_move_on(lab);
    int client = parked_client();
    parked_syn(lab, client, 7, 0);
    expect_released();
    close(take_connection(silent.listener));
    close(client);
    lab_close(lab);
    silent_close(&silent);
}

CHECK_MAIN
