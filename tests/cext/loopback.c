/* loopback.c: see loopback.h. */
#include "loopback.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "check.h"
#include "loop/sockets.h"
#include "wire/names.h"

enum { WAIT_MS = 20000 };

struct ns_address address_of(const char *text)
{
    struct ns_address address;
    CHECK_EQUAL(authority_parse(text, strlen(text), &address), 0);
    return address;
}

int listen_at(int family, const char *host, uint16_t port, struct ns_address *where)
{
    struct sockaddr_storage storage = {.ss_family = (sa_family_t)family};
    socklen_t length = sizeof(struct sockaddr_in6);
    int off = 0, on = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    if (family == AF_INET6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&storage;
        CHECK_EQUAL(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)), 0);
        CHECK_EQUAL(inet_pton(AF_INET6, host, &v6->sin6_addr), 1);
        v6->sin6_port = htons(port);
    } else {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&storage;
        length = sizeof(struct sockaddr_in);
        CHECK_EQUAL(inet_pton(AF_INET, host, &v4->sin_addr), 1);
        v4->sin_port = htons(port);
    }
    CHECK_CASE(bind(fd, (struct sockaddr *)&storage, length) == 0, "%s: %s", host, strerror(errno));
    CHECK_EQUAL(listen(fd, 16), 0);
    CHECK_EQUAL(socket_local_address(fd, where), 0);
    return fd;
}

int accept_in_time(int listener, struct ns_address *peer)
{
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    CHECK_EQUAL(poll(&waiting, 1, WAIT_MS), 1);
    int fd = socket_accept(listener, peer);
    CHECK_CASE(fd >= 0, "%s", strerror(errno));
    return fd;
}

int connect_as(struct ns_address *own, const struct ns_address *destination)
{
    struct sockaddr_storage storage;
    socklen_t length = address_to_sockaddr(own, &storage);
    int on = 1, fd = socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    CHECK_CASE(bind(fd, (struct sockaddr *)&storage, length) == 0, "%s", strerror(errno));
    length = address_to_sockaddr(destination, &storage);
    CHECK_CASE(connect(fd, (struct sockaddr *)&storage, length) == 0, "%s", strerror(errno));
    CHECK_EQUAL(socket_local_address(fd, own), 0);
    return fd;
}
