/*
 * sockets.c over loopback, both families. What needs a capability (entering a namespace, marks, transparent
 * sockets) is taken out at the linker's --wrap; what was asked for is noted.
 */
#define _GNU_SOURCE
#include "loop/sockets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "check.h"
#include "wire/names.h"

static const struct netns HERE = {.fd = -1, .serial = 1};

static int transparent_level, transparent_name; /* of the last socket that was made transparent */

int __wrap_setns(int fd, int kind);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t length);
int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t length);

int __wrap_setns(int fd, int kind)
{
    (void)fd;
    (void)kind;
    return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (level == SOL_SOCKET && name == SO_MARK)
        return 0;
    if ((level == IPPROTO_IP && name == IP_TRANSPARENT) ||
        (level == IPPROTO_IPV6 && name == IPV6_TRANSPARENT)) {
        transparent_level = level;
        transparent_name = name;
        return 0;
    }
    return __real_setsockopt(fd, level, name, value, length);
}

static struct ns_address address_of(const char *text)
{
    struct ns_address address;
    CHECK_EQUAL(authority_parse(text, strlen(text), &address), 0);
    return address;
}

static void check_is(const struct ns_address *address, const char *expected)
{
    char text[AUTHORITY_MAX];
    authority_format(address, text);
    CHECK_TEXT(text, expected);
}

/* A listener at "[::1]" or the like, and where it is. An IPv6 one at a mapped address takes IPv4 alone. */
static int listen_at(int family, const char *host, struct ns_address *where)
{
    struct sockaddr_storage storage = {.ss_family = (sa_family_t)family};
    socklen_t length = sizeof(struct sockaddr_in6);
    int off = 0;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    if (family == AF_INET6) {
        CHECK_EQUAL(__real_setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)), 0);
        CHECK_EQUAL(inet_pton(AF_INET6, host, &((struct sockaddr_in6 *)&storage)->sin6_addr), 1);
    } else {
        length = sizeof(struct sockaddr_in);
        CHECK_EQUAL(inet_pton(AF_INET, host, &((struct sockaddr_in *)&storage)->sin_addr), 1);
    }
    CHECK_CASE(bind(fd, (struct sockaddr *)&storage, length) == 0, "%s: %s", host, strerror(errno));
    CHECK_EQUAL(listen(fd, 16), 0);
    CHECK_EQUAL(socket_local_address(fd, where), 0);
    return fd;
}

static int accept_in_time(int listener, struct ns_address *peer)
{
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    CHECK_EQUAL(poll(&waiting, 1, 20000), 1);
    int fd = socket_accept(listener, peer);
    CHECK_CASE(fd >= 0, "%s", strerror(errno));
    return fd;
}

TEST(socket_addresses_of_both_families_are_read_back)
{
    static const char *const TEXTS[] = {"10.77.1.10:80", "[fd77::1:10]:15008", "0.0.0.0:1", "[::1]:65535"};
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        struct ns_address address = address_of(TEXTS[i]), again;
        struct sockaddr_storage storage;
        socklen_t length = address_to_sockaddr(&address, &storage);
        int v4 = TEXTS[i][0] != '[';
        CHECK_EQUAL(storage.ss_family, v4 ? AF_INET : AF_INET6);
        CHECK_EQUAL(length, v4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
        CHECK_EQUAL(address_from_sockaddr(&storage, &again), 0);
        check_is(&again, TEXTS[i]);
    }
}

TEST(socket_address_of_another_family_is_none)
{
    struct sockaddr_storage storage = {.ss_family = AF_UNIX};
    struct ns_address address;
    CHECK_EQUAL(address_from_sockaddr(&storage, &address), -1);
}

/* Connects, with a source or without, and looks at both ends. */
static void connect_to(int family, const char *host, const char *source)
{
    struct ns_address where, peer, near, own;
    int listener = listen_at(family, host, &where);
    if (source != NULL)
        own = address_of(source);
    int client = socket_connect(&HERE, &where, source == NULL ? NULL : &own, NS_MARK_TO_APP, 0);
    CHECK_CASE(client >= 0, "%s", strerror(errno));
    int server = accept_in_time(listener, &peer);
    CHECK_EQUAL(socket_local_address(server, &near), 0);
    CHECK(address_same_ip(&near, &where) && near.port == where.port);
    if (source != NULL) {
        CHECK(address_same_ip(&peer, &own));
        CHECK(peer.port >= 1024 && peer.port < 32768);
    }
    close(client);
    close(server);
    close(listener);
}

TEST(connections_of_both_families)
{
    connect_to(AF_INET, "127.0.0.1", NULL);
    connect_to(AF_INET6, "::1", NULL);
}

TEST(connections_of_both_families_with_a_source)
{
    connect_to(AF_INET, "127.0.0.1", "127.0.0.9:1");
    CHECK(transparent_level == IPPROTO_IP && transparent_name == IP_TRANSPARENT);
    connect_to(AF_INET6, "::1", "[::1]:1");
    CHECK(transparent_level == IPPROTO_IPV6 && transparent_name == IPV6_TRANSPARENT);
}

/* As a captured connection over IPv4 is, whose workload has an IPv6 address as well. */
TEST(ipv4_that_an_ipv6_listener_accepts_is_known_as_ipv4)
{
    connect_to(AF_INET6, "::ffff:127.0.0.1", "127.0.0.9:1");
    CHECK(transparent_level == IPPROTO_IP && transparent_name == IP_TRANSPARENT);
}

static int option_of(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof(value);
    CHECK_EQUAL(getsockopt(fd, level, name, &value, &length), 0);
    return value;
}

/* socket(7): Linux keeps twice what is asked for. */
TEST(a_bounded_connection_has_small_buffers_and_its_other_end_small_segments)
{
    enum { BUFFERS = 40000, RECEIVED = 16384, SEGMENT = 1400 };
    for (int v4 = 0; v4 < 2; v4++) {
        struct ns_address where, peer, own = address_of(v4 ? "127.0.0.9:1" : "[::1]:1");
        int listener = listen_at(v4 ? AF_INET : AF_INET6, v4 ? "127.0.0.1" : "::1", &where);
        int free_one = socket_connect(&HERE, &where, &own, NS_MARK_TO_APP, 0);
        int its_end = accept_in_time(listener, &peer);
        int bounded = socket_connect(&HERE, &where, &own, NS_MARK_TO_APP, BUFFERS);
        int end = accept_in_time(listener, &peer);
        CHECK_EQUAL(option_of(bounded, SOL_SOCKET, SO_SNDBUF), 2 * BUFFERS);
        CHECK_EQUAL(option_of(bounded, SOL_SOCKET, SO_RCVBUF), 2 * RECEIVED);
        CHECK(option_of(end, IPPROTO_TCP, TCP_MAXSEG) <= SEGMENT);
        CHECK(option_of(its_end, IPPROTO_TCP, TCP_MAXSEG) > SEGMENT);
        CHECK(option_of(end, SOL_SOCKET, SO_SNDBUF) < option_of(its_end, SOL_SOCKET, SO_SNDBUF) / 4);
        close(free_one);
        close(its_end);
        close(bounded);
        close(end);
        close(listener);
    }
}

TEST(source_and_destination_of_different_families_do_not_connect)
{
    struct ns_address where, source = address_of("127.0.0.9:1");
    int listener = listen_at(AF_INET6, "::1", &where);
    CHECK_EQUAL(socket_connect(&HERE, &where, &source, NS_MARK_TO_APP, 0), -1);
    CHECK(errno != EADDRNOTAVAIL); /* which would say that all source ports are taken */
    close(listener);
}

TEST(a_listener_tells_how_many_wait_for_acceptance)
{
    enum { CLIENTS = 3 };
    struct ns_address where, peer;
    int listener = listen_at(AF_INET, "127.0.0.1", &where);
    int clients[CLIENTS];
    CHECK_EQUAL(socket_waiting(listener), 0);
    for (int i = 0; i < CLIENTS; i++) {
        struct pollfd ready = {.events = POLLOUT};
        clients[i] = ready.fd = socket_connect(&HERE, &where, NULL, NS_MARK_CORE, 0);
        CHECK_EQUAL(poll(&ready, 1, 10000), 1);
        CHECK_EQUAL(socket_waiting(listener), i + 1);
    }
    close(accept_in_time(listener, &peer));
    CHECK_EQUAL(socket_waiting(listener), CLIENTS - 1);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    close(listener);
}

CHECK_MAIN

TEST(a_socket_whose_peer_reads_nothing_holds_little_that_is_not_sent)
{
    enum { MOST = 65536 };
    static const char piece[16384];
    struct ns_address where, peer;
    int listener = listen_at(AF_INET, "127.0.0.1", &where), unsent = 0;
    int client = socket_connect(&HERE, &where, NULL, NS_MARK_CORE, 0);
    int server = accept_in_time(listener, &peer);
    struct pollfd ready = {.fd = client, .events = POLLOUT};
    socket_limit_unsent(client, MOST);
    while (send(client, piece, sizeof(piece), MSG_DONTWAIT) > 0 || poll(&ready, 1, 200) == 1)
        ; /* until nothing moves any more */
    CHECK_EQUAL(errno, EAGAIN);
    CHECK_EQUAL(ioctl(client, SIOCOUTQNSD, &unsent), 0);
    CHECK_CASE(unsent > 0 && unsent < 2 * MOST, "%d", unsent);
    close(client);
    close(server);
    close(listener);
}
