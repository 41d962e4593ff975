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
#include "loopback.h"
#include "own_namespace.h"
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

static void check_is(const struct ns_address *address, const char *expected)
{
    char text[AUTHORITY_MAX];
    authority_format(address, text);
    CHECK_TEXT(text, expected);
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

/* Connects, with a source or without, and looks at both ends. Nobody can be asked who has the client's port.
 */
static void connect_to(int family, const char *host, const char *source)
{
    struct ns_address where, peer, near, own;
    int listener = listen_at(family, host, 0, &where);
    if (source != NULL)
        own = address_of(source);
    int client = source == NULL ? socket_connect(&HERE, NULL, &where, NS_MARK_CORE)
                                : socket_connect_for(&HERE, -1, &own, &where, NS_MARK_TO_APP, 0);
    CHECK_CASE(client >= 0, "%s", strerror(errno));
    int server = accept_in_time(listener, &peer);
    CHECK_EQUAL(socket_local_address(server, &near), 0);
    CHECK(address_same_ip(&near, &where) && near.port == where.port);
    CHECK_CASE(peer.port >= 61000, "%u", peer.port);
    if (source != NULL)
        CHECK(address_same_ip(&peer, &own));
    close(client);
    close(server);
    close(listener);
}

TEST(connections_of_both_families)
{
    connect_to(AF_INET, "127.0.0.1", NULL);
    connect_to(AF_INET6, "::1", NULL);
}

/* Where a connection to the loopback address of a family comes from that is asked to come from `from`. */
static void check_comes_from(int family, const char *from, const char *expected)
{
    struct ns_address where, peer, own = address_of(from), wanted = address_of(expected);
    int listener = listen_at(family, family == AF_INET ? "127.0.0.1" : "::1", 0, &where);
    int client = socket_connect(&HERE, &own, &where, NS_MARK_CORE);
    CHECK_CASE(client >= 0, "%s", strerror(errno));
    int server = accept_in_time(listener, &peer);
    CHECK_CASE(address_same_ip(&peer, &wanted), "%s", from);
    CHECK_CASE(peer.port >= 61000, "%u", peer.port);
    close(client);
    close(server);
    close(listener);
}

TEST(connection_comes_from_the_address_that_is_asked_for)
{
    check_comes_from(AF_INET, "127.0.0.9:5", "127.0.0.9:1");
    check_comes_from(AF_INET6, "[::1]:5", "[::1]:1");
}

TEST(connection_from_an_address_of_somebody_else_or_of_another_family_comes_from_ones_own)
{
    check_comes_from(AF_INET, "203.0.113.5:5", "127.0.0.1:1");
    check_comes_from(AF_INET6, "[2001:db8::5]:5", "[::1]:1");
    check_comes_from(AF_INET, "[::1]:5", "127.0.0.1:1");
    check_comes_from(AF_INET6, "127.0.0.9:5", "[::1]:1");
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
        int listener = listen_at(v4 ? AF_INET : AF_INET6, v4 ? "127.0.0.1" : "::1", 0, &where);
        int free_one = socket_connect_for(&HERE, -1, &own, &where, NS_MARK_TO_APP, 0);
        int its_end = accept_in_time(listener, &peer);
        int bounded = socket_connect_for(&HERE, -1, &own, &where, NS_MARK_TO_APP, BUFFERS);
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
    int listener = listen_at(AF_INET6, "::1", 0, &where);
    CHECK_EQUAL(socket_connect_for(&HERE, -1, &source, &where, NS_MARK_TO_APP, 0), -1);
    CHECK(errno != EADDRNOTAVAIL); /* which would say that all source ports are taken */
    close(listener);
}

TEST(a_listener_tells_how_many_wait_for_acceptance)
{
    enum { CLIENTS = 3 };
    struct ns_address where, peer;
    int listener = listen_at(AF_INET, "127.0.0.1", 0, &where);
    int clients[CLIENTS];
    CHECK_EQUAL(socket_waiting(listener), 0);
    for (int i = 0; i < CLIENTS; i++) {
        struct pollfd ready = {.events = POLLOUT};
        clients[i] = ready.fd = socket_connect(&HERE, NULL, &where, NS_MARK_CORE);
        CHECK_EQUAL(poll(&ready, 1, 10000), 1);
        CHECK_EQUAL(socket_waiting(listener), i + 1);
    }
    close(accept_in_time(listener, &peer));
    CHECK_EQUAL(socket_waiting(listener), CLIENTS - 1);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    close(listener);
}

TEST(a_socket_whose_peer_reads_nothing_holds_little_that_is_not_sent)
{
    enum { MOST = 65536 };
    static const char piece[16384];
    struct ns_address where, peer;
    int listener = listen_at(AF_INET, "127.0.0.1", 0, &where), unsent = 0;
    int client = socket_connect(&HERE, NULL, &where, NS_MARK_CORE);
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

/* ---- the client's own port ---- */

enum { OWN_FIRST = 61000, APPLICATION = 8080 };

/* An application that listens, and a client of it that is somewhere else. */
struct scene {
    int asking;
    int listener;
    struct ns_address application;
    struct ns_address client;
};

static struct scene scene_of(int v4, uint16_t port)
{
    struct scene scene = {.client = address_of(v4 ? "127.0.0.9:1" : "[::1]:1")};
    scene.client.port = port;
    own_namespace();
    scene.asking = socket_asking_in(&HERE);
    CHECK_CASE(scene.asking >= 0, "%s", strerror(errno));
    scene.listener =
        listen_at(v4 ? AF_INET : AF_INET6, v4 ? "127.0.0.1" : "::1", APPLICATION, &scene.application);
    return scene;
}

/* Connects for the client, and tells which port the application sees. */
static uint16_t dial(const struct scene *scene, int *client, int *server)
{
    struct ns_address peer;
    *client =
        socket_connect_for(&HERE, scene->asking, &scene->client, &scene->application, NS_MARK_TO_APP, 0);
    CHECK_CASE(*client >= 0, "%s", strerror(errno));
    *server = accept_in_time(scene->listener, &peer);
    CHECK(address_same_ip(&peer, &scene->client));
    return peer.port;
}

static void scene_close(const struct scene *scene, int client, int server)
{
    close(client);
    close(server);
    close(scene->asking);
    close(scene->listener);
}

TEST(the_application_sees_the_clients_own_port)
{
    static const uint16_t PORTS[] = {40000, 600, 1, 65535};
    for (int v4 = 0; v4 < 2; v4++) {
        for (size_t i = 0; i < sizeof(PORTS) / sizeof(PORTS[0]); i++) {
            struct scene scene = scene_of(v4, PORTS[i]);
            int client, server;
            CHECK_EQUAL(dial(&scene, &client, &server), PORTS[i]);
            scene_close(&scene, client, server);
        }
    }
}

TEST(a_client_whose_port_is_not_known_has_one_of_ours)
{
    struct scene scene = scene_of(1, 0);
    int client, server;
    CHECK(dial(&scene, &client, &server) >= OWN_FIRST);
    scene_close(&scene, client, server);
}

TEST(without_anybody_to_ask_the_clients_port_is_left_alone)
{
    struct scene scene = scene_of(1, 40000);
    int client, server;
    close(scene.asking);
    scene.asking = -1;
    CHECK(dial(&scene, &client, &server) >= OWN_FIRST);
    close(client);
    close(server);
    close(scene.listener);
}

/* A connection of the application's own, from the port where it listens, to the client. */
TEST(a_connection_the_other_way_round_keeps_its_pair)
{
    for (int v4 = 0; v4 < 2; v4++) {
        struct scene scene = scene_of(v4, 40000);
        struct ns_address where, peer;
        int its = listen_at(v4 ? AF_INET : AF_INET6, v4 ? "127.0.0.9" : "::1", 40000, &where);
        close(scene.listener);
        int application = connect_as(&scene.application, &where);
        scene.listener =
            listen_at(v4 ? AF_INET : AF_INET6, v4 ? "127.0.0.1" : "::1", APPLICATION, &scene.application);
        int end = accept_in_time(its, &peer), client, server;
        CHECK(dial(&scene, &client, &server) >= OWN_FIRST);
        char byte = 'a';
        CHECK_EQUAL(send(application, &byte, 1, 0), 1);
        CHECK_EQUAL(recv(end, &byte, 1, 0), 1);
        scene_close(&scene, client, server);
        close(application);
        close(end);
        close(its);
    }
}

TEST(of_two_clients_with_one_port_the_second_has_one_of_ours)
{
    struct scene scene = scene_of(1, 40000);
    int client, server, second, its;
    CHECK_EQUAL(dial(&scene, &client, &server), 40000);
    CHECK(dial(&scene, &second, &its) >= OWN_FIRST);
    close(second);
    close(its);
    scene_close(&scene, client, server);
}

/* Natively the client's port is none of this namespace's at all. */
TEST(who_listens_on_the_clients_port_does_not_take_it)
{
    for (int v4 = 0; v4 < 2; v4++) {
        struct scene scene = scene_of(v4, 40000);
        struct ns_address where;
        int other = listen_at(v4 ? AF_INET : AF_INET6, v4 ? "0.0.0.0" : "::", 40000, &where), client, server;
        CHECK_EQUAL(dial(&scene, &client, &server), 40000);
        CHECK(option_of(client, SOL_SOCKET, SO_REUSEADDR) != 0);
        scene_close(&scene, client, server);
        close(other);
    }
}

TEST(an_application_that_asks_for_it_can_listen_on_a_clients_port)
{
    struct scene scene = scene_of(1, 40000);
    struct ns_address everywhere = address_of("127.0.0.1:40000");
    struct sockaddr_storage storage;
    socklen_t length = address_to_sockaddr(&everywhere, &storage);
    int client, server, on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&((struct sockaddr_in *)&storage)->sin_addr, 0, 4);
    CHECK_EQUAL(dial(&scene, &client, &server), 40000);
    CHECK_EQUAL(__real_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    CHECK_CASE(bind(fd, (struct sockaddr *)&storage, length) == 0, "%s", strerror(errno));
    CHECK_CASE(listen(fd, 1) == 0, "%s", strerror(errno));
    scene_close(&scene, client, server);
    close(fd);
}

/* Whoever ends first: what is left of a connection in TIME_WAIT takes its port from nobody. */
TEST(a_client_connects_again_and_again_from_one_port)
{
    enum { TIMES = 200 };
    for (int server_first = 0; server_first < 2; server_first++) {
        struct scene scene = scene_of(1, 40000);
        for (int i = 0; i < TIMES; i++) {
            int client, server;
            char byte;
            CHECK_EQUAL(dial(&scene, &client, &server), 40000);
            close(server_first ? server : client);
            struct pollfd ended = {.fd = server_first ? client : server, .events = POLLIN};
            CHECK_EQUAL(poll(&ended, 1, 20000), 1);
            CHECK_EQUAL(recv(ended.fd, &byte, 1, 0), 0);
            close(ended.fd);
        }
        close(scene.asking);
        close(scene.listener);
    }
}

TEST(a_client_at_the_applications_own_end_is_not_connected_with_itself)
{
    struct scene scene = scene_of(1, APPLICATION);
    int client, server;
    scene.client = scene.application;
    CHECK(dial(&scene, &client, &server) >= OWN_FIRST);
    scene_close(&scene, client, server);
}

/* ---- ports that we choose ---- */

static int binds_refused; /* from now on */

int __wrap_bind(int fd, const struct sockaddr *address, socklen_t length);
int __real_bind(int fd, const struct sockaddr *address, socklen_t length);

int __wrap_bind(int fd, const struct sockaddr *address, socklen_t length)
{
    if (binds_refused > 0) {
        errno = EADDRINUSE;
        return -1;
    }
    return __real_bind(fd, address, length);
}

TEST(many_connections_to_one_place_have_ports_of_ours)
{
    enum { MANY = 300 };
    struct scene scene = scene_of(1, 0);
    int ends[MANY][2];
    for (int i = 0; i < MANY; i++) {
        struct ns_address peer;
        ends[i][0] = socket_connect(&HERE, NULL, &scene.application, NS_MARK_CORE);
        ends[i][1] = accept_in_time(scene.listener, &peer);
        CHECK_CASE(peer.port >= OWN_FIRST, "%u", peer.port);
    }
    for (int i = 0; i < MANY; i++) {
        close(ends[i][0]);
        close(ends[i][1]);
    }
    close(scene.asking);
    close(scene.listener);
}

TEST(no_connection_is_lost_where_all_our_ports_are_taken)
{
    struct scene scene = scene_of(1, 0);
    struct ns_address peer;
    binds_refused = 1;
    int client = socket_connect(&HERE, NULL, &scene.application, NS_MARK_CORE);
    binds_refused = 0;
    CHECK_CASE(client >= 0, "%s", strerror(errno));
    int server = accept_in_time(scene.listener, &peer);
    CHECK(peer.port > 0 && peer.port < OWN_FIRST);
    scene_close(&scene, client, server);
}

CHECK_MAIN
