/* occupant.c, with a kernel: who has a pair of ends. */
#include "loop/occupant.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "loop/sockets.h"
#include "loopback.h"
#include "own_namespace.h"

static const struct netns HERE = {.fd = -1, .serial = 1};

int __wrap_setns(int fd, int kind);

int __wrap_setns(int fd, int kind)
{
    (void)fd;
    (void)kind;
    return 0;
}

static int asking(void)
{
    int fd = socket_asking_in(&HERE);
    CHECK_CASE(fd >= 0, "%s", strerror(errno));
    return fd;
}

/* A connection over loopback, by its ends. */
struct pair {
    int ask;
    int listener;
    int client;
    int server;
    struct ns_address near;
    struct ns_address far;
};

static struct pair pair_of(int family, const char *listen, const char *from)
{
    struct pair pair = {.near = address_of(from), .ask = asking()};
    struct ns_address peer;
    pair.listener = listen_at(family, listen, 0, &pair.far);
    pair.client = connect_as(&pair.near, &pair.far);
    pair.server = accept_in_time(pair.listener, &peer);
    return pair;
}

static void pair_close(struct pair *pair)
{
    int fds[] = {pair->ask, pair->listener, pair->client, pair->server};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Until the other end has closed. */
static void see_end(int fd)
{
    char byte;
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    CHECK_EQUAL(poll(&waiting, 1, 20000), 1);
    CHECK_EQUAL(recv(fd, &byte, 1, 0), 0);
}

TEST(of_a_connection_both_sockets_are_found)
{
    static const struct {
        int family;
        const char *listen, *from;
    } CASES[] = {{AF_INET, "127.0.0.1", "127.0.0.9:5000"},
                 {AF_INET6, "::1", "[::1]:5000"},
                 {AF_INET6, "::ffff:127.0.0.1", "127.0.0.9:5000"}};
    own_namespace();
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct pair pair = pair_of(CASES[i].family, CASES[i].listen, CASES[i].from);
        CHECK_EQUAL(occupant_find(pair.ask, &pair.near, &pair.far), OCCUPANT_SOME);
        CHECK_EQUAL(occupant_find(pair.ask, &pair.far, &pair.near), OCCUPANT_SOME);
        pair_close(&pair);
    }
}

TEST(another_port_of_either_end_is_another_pair)
{
    own_namespace();
    struct pair pair = pair_of(AF_INET, "127.0.0.1", "127.0.0.9:5000");
    pair.near.port++;
    CHECK_EQUAL(occupant_find(pair.ask, &pair.near, &pair.far), OCCUPANT_NONE);
    CHECK_EQUAL(occupant_find(pair.ask, &pair.far, &pair.near), OCCUPANT_NONE);
    pair_close(&pair);
}

TEST(a_listener_is_no_occupant)
{
    own_namespace();
    struct ns_address where, anybody = address_of("127.0.0.9:5000");
    int ask = asking(), listener = listen_at(AF_INET, "0.0.0.0", 0, &where);
    struct ns_address own = address_of("127.0.0.1:1");
    own.port = where.port;
    CHECK_EQUAL(occupant_find(ask, &own, &anybody), OCCUPANT_NONE);
    close(ask);
    close(listener);
}

TEST(who_has_sent_its_end_and_waits_for_the_other_is_an_occupant)
{
    own_namespace();
    struct pair pair = pair_of(AF_INET, "127.0.0.1", "127.0.0.9:5000");
    close(pair.client);
    pair.client = -1;
    see_end(pair.server);
    CHECK_EQUAL(occupant_find(pair.ask, &pair.near, &pair.far), OCCUPANT_SOME);
    CHECK_EQUAL(occupant_find(pair.ask, &pair.far, &pair.near), OCCUPANT_SOME);
    pair_close(&pair);
}

/* The end that closes first waits (RFC 9293, 3.6.1); the other is gone. */
TEST(what_has_ended_gives_way)
{
    own_namespace();
    for (int server_first = 0; server_first < 2; server_first++) {
        struct pair pair = pair_of(AF_INET, "127.0.0.1", "127.0.0.9:5000");
        int *first = server_first ? &pair.server : &pair.client;
        int *second = server_first ? &pair.client : &pair.server;
        close(*first);
        see_end(*second);
        close(*second);
        *first = *second = -1;
        struct ns_address *own = server_first ? &pair.far : &pair.near;
        struct ns_address *other = server_first ? &pair.near : &pair.far;
        CHECK_EQUAL(occupant_find(pair.ask, other, own), OCCUPANT_NONE);
        CHECK_EQUAL(occupant_find(pair.ask, own, other), OCCUPANT_NONE);
        /* connect() would refuse the pair otherwise. */
        if (!server_first)
            close(connect_as(&pair.near, &pair.far));
        pair_close(&pair);
    }
}

TEST(without_anybody_to_ask_it_is_not_known)
{
    struct ns_address own = address_of("127.0.0.1:80"), far = address_of("127.0.0.9:5000");
    CHECK_EQUAL(occupant_find(-1, &own, &far), OCCUPANT_UNKNOWN);
    int closed = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_EQUAL(occupant_find(closed, &own, &far), OCCUPANT_UNKNOWN);
    close(closed);
}

TEST(a_socket_of_another_protocol_cannot_be_asked)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQUAL(occupant_prepare(fd), -1);
    close(fd);
}

CHECK_MAIN
