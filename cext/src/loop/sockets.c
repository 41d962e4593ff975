/* sockets.c: see sockets.h. */
#define _GNU_SOURCE
#include "loop/sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/tcp.h> /* glibc's has no tcpi_min_rtt */
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "loop/occupant.h"
#include "wire/names.h"

enum {
    /* Ports that we choose: Linux gives clients 32768 to 60999 by default (ip-sysctl, ip_local_port_range),
     * and applications listen below. */
    OWN_PORT_FIRST = 61000,
    OWN_PORT_LAST = 65535,
    OWN_PORT_TRIES = 64,
    /* Where the kernel can choose instead: of ports that are half taken, one connection of 60,000 has its. */
    OWN_PORT_TRIES_FEW = 16,
    KEEPALIVE_SECONDS = 180,
    KEEPALIVE_COUNT = 9,
    KEEPALIVE_THIRD_MOST = 32767,
    /* With what the kernel adds to each it is one page, and a fresh connection's send buffer 87 to 130 KB, as
     * over Ethernet. It grows (tcp_should_expand_sndbuf) once the ten that may be on their way at first (RFC
     * 6928) are on their way: no more than ten are received, so that the other end keeps the one it has. */
    SEGMENT_BOUND = 1400,
    RECEIVE_BOUND = 16384,
};

static _Thread_local uint64_t
    thread_netns; /* serial of the namespace that the thread is in; 0: the process's */

static int close_keeping_errno(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static int netns_enter(const struct netns *netns)
{
    if (thread_netns != netns->serial) {
        if (setns(netns->fd, CLONE_NEWNET) != 0)
            return -1;
        thread_netns = netns->serial;
    }
    return 0;
}

static int socket_of_type_in(const struct netns *netns, int family, int type, int protocol)
{
    if (netns_enter(netns) != 0)
        return -1;
    return socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
}

int socket_in(const struct netns *netns, int family)
{
    return socket_of_type_in(netns, family, SOCK_STREAM, 0);
}

int socket_asking_in(const struct netns *netns)
{
    int fd = socket_of_type_in(netns, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    return fd < 0 || occupant_prepare(fd) == 0 ? fd : close_keeping_errno(fd);
}

socklen_t address_to_sockaddr(const struct ns_address *address, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (address_is_v4(address)) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        v4->sin_port = htons(address->port);
        memcpy(&v4->sin_addr, address->ip + 12, 4);
        return sizeof(*v4);
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address->port);
    memcpy(&v6->sin6_addr, address->ip, 16);
    return sizeof(*v6);
}

int address_from_sockaddr(const struct sockaddr_storage *from, struct ns_address *out)
{
    memset(out, 0, sizeof(*out));
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
        out->ip[10] = out->ip[11] = 0xff;
        memcpy(out->ip + 12, &v4->sin_addr, 4);
        out->port = ntohs(v4->sin_port);
        return 0;
    }
    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;
        memcpy(out->ip, &v6->sin6_addr, 16);
        out->port = ntohs(v6->sin6_port);
        return 0;
    }
    return -1;
}

int socket_local_address(int fd, struct ns_address *out)
{
    struct sockaddr_storage storage;
    socklen_t length = sizeof(storage);
    return getsockname(fd, (struct sockaddr *)&storage, &length) == 0 ? address_from_sockaddr(&storage, out)
                                                                      : -1;
}

static int set_option(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value));
}

/* None of these can fail on a TCP socket; a connection without them still works. */
static void keep_alive(int fd, int idle_seconds, int interval_seconds, int count)
{
    (void)set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    (void)set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle_seconds);
    (void)set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval_seconds);
    (void)set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, count);
}

void socket_tolerate(int fd, const struct tolerance *tolerance)
{
    uint32_t most = KEEPALIVE_THIRD_MOST * 3000u; /* tcp(7): 32767 s */
    uint32_t silence = tolerance->keepalive_ms < most ? tolerance->keepalive_ms : most;
    int third = silence < 3000 ? 1 : (int)(silence / 3000);
    if (silence == 0)
        keep_alive(fd, KEEPALIVE_SECONDS, KEEPALIVE_SECONDS / 3, KEEPALIVE_COUNT);
    else
        keep_alive(fd, third, third, 2);
    uint32_t unacknowledged =
        tolerance->unacknowledged_ms < INT32_MAX ? tolerance->unacknowledged_ms : INT32_MAX;
    (void)set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)unacknowledged);
}

static int connect_to(int fd, const struct ns_address *destination)
{
    struct sockaddr_storage storage;
    socklen_t length = address_to_sockaddr(destination, &storage);
    if (connect(fd, (struct sockaddr *)&storage, length) == 0 || errno == EINPROGRESS)
        return 0;
    return -1;
}

/* The kernel is asked once per thread: these numbers are to collide seldom, not to be secret (xorshift64*).
 */
static uint16_t own_port(void)
{
    static _Thread_local uint64_t state;
    if (state == 0 && (getrandom(&state, sizeof(state), GRND_NONBLOCK) != sizeof(state) || state == 0))
        state = 1 + (uint64_t)(uintptr_t)&state;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    uint32_t random = (uint32_t)((state * 2685821657736338717u) >> 32);
    return (uint16_t)(OWN_PORT_FIRST + random % (OWN_PORT_LAST - OWN_PORT_FIRST + 1));
}

static int bind_to(int fd, const struct ns_address *source)
{
    struct sockaddr_storage storage;
    socklen_t length = address_to_sockaddr(source, &storage);
    return bind(fd, (struct sockaddr *)&storage, length);
}

/* The same also where an application listens on that port of whatever address, which is no obstacle to its
 * client: with TCP_REPAIR, bind() looks at no other socket (net/ipv4/inet_connection_sock.c, SK_FORCE_REUSE).
 */
static int bind_beside(int fd, const struct ns_address *source)
{
    if (bind_to(fd, source) == 0)
        return 0;
    if (errno != EADDRINUSE || set_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON) != 0)
        return -1;
    int result = bind_to(fd, source);
    int error = errno;
    /* Takes SO_REUSEADDR off. Neither can fail now. */
    (void)set_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF);
    (void)set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    errno = error;
    return result;
}

void socket_bound(int fd, uint32_t buffers)
{
    if (buffers == 0)
        return;
    /* Neither can fail on a TCP socket. */
    (void)set_option(fd, SOL_SOCKET, SO_SNDBUF, (int)buffers);
    (void)set_option(fd, SOL_SOCKET, SO_RCVBUF, (int)(buffers < RECEIVE_BOUND ? buffers : RECEIVE_BOUND));
}

/* A socket for a connection of ours, without an end of its own yet; -1 with errno. */
static int socket_prepared(const struct netns *netns, int family, uint32_t mark, uint32_t buffers)
{
    int fd = socket_in(netns, family);
    if (fd < 0)
        return -1;
    /* SO_REUSEADDR lets one port serve many destinations, and applications listen on it that ask for the
     * same; connect() still refuses a whole pair of ends that is in use. */
    if (set_option(fd, SOL_SOCKET, SO_MARK, (int)mark) != 0 ||
        set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1) != 0)
        return close_keeping_errno(fd);
    (void)set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    (void)set_option(fd, SOL_SOCKET, SO_OOBINLINE, 1); /* no byte is left out of the stream */
    socket_bound(fd, buffers);
    if (buffers > 0) /* told to the other end by the SYN; larger ones by it are not used either */
        (void)set_option(fd, IPPROTO_TCP, TCP_MAXSEG, SEGMENT_BOUND);
    return fd;
}

/* Whether an attempt has failed because of its port only. */
static int port_failed(void)
{
    return errno == EADDRINUSE || errno == EADDRNOTAVAIL;
}

/* The unspecified address of that family, without a port. */
static struct ns_address any_like(const struct ns_address *address)
{
    struct ns_address any = *address;
    int is_v4 = address_is_v4(address);
    memset(is_v4 ? any.ip + 12 : any.ip, 0, is_v4 ? 4 : 16);
    any.port = 0;
    return any;
}

int socket_connect(const struct netns *netns, const struct ns_address *from,
                   const struct ns_address *destination, uint32_t mark)
{
    int is_v4 = address_is_v4(destination);
    int chosen = from != NULL && address_is_v4(from) == is_v4;
    struct ns_address own = chosen ? *from : any_like(destination);
    for (int tries = 0;; tries++) {
        int last = tries == OWN_PORT_TRIES_FEW;
        int fd = socket_prepared(netns, is_v4 ? AF_INET : AF_INET6, mark, 0);
        if (fd < 0)
            return -1;
        keep_alive(fd, KEEPALIVE_SECONDS, KEEPALIVE_SECONDS / 3, KEEPALIVE_COUNT);
        own.port = last ? 0 : own_port();
        if (last) /* the port is found by connect(), which knows the other end */
            (void)set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        int bound = last && !chosen ? 0 : bind_to(fd, &own);
        if (bound == 0 && connect_to(fd, destination) == 0)
            return fd;
        if (bound != 0 && errno == EADDRNOTAVAIL) { /* not one of the namespace's */
            own = any_like(destination);
            chosen = 0;
        }
        if (last || !port_failed())
            return close_keeping_errno(fd);
        close(fd);
    }
}

/* Whether a connection from `source` can be told from all others in the namespace. If that is not known, the
 * client's own port is not taken, and of the others it is very likely. */
static int is_distinct(int asking, const struct ns_address *source, const struct ns_address *destination,
                       int clients)
{
    /* A socket that connects to its own end is connected with itself. */
    if (address_same_ip(source, destination) && source->port == destination->port)
        return 0;
    enum occupancy occupancy = occupant_find(asking, destination, source);
    return occupancy == OCCUPANT_NONE || (occupancy == OCCUPANT_UNKNOWN && !clients);
}

/* 0, or -1 with errno. `clients`: the port is the client's own. */
static int connect_from(int fd, int asking, const struct ns_address *source,
                        const struct ns_address *destination, int clients)
{
    if ((clients ? bind_beside(fd, source) : bind_to(fd, source)) != 0) {
        if (errno == EACCES) /* a privileged port, and we are not */
            errno = EADDRINUSE;
        return -1;
    }
    if (connect_to(fd, destination) == 0)
        return 0;
    if (errno != EADDRNOTAVAIL)
        return -1;
    /* What has this pair may be one of ours that has ended. */
    if (occupant_find(asking, source, destination) == OCCUPANT_NONE)
        return connect_to(fd, destination);
    errno = EADDRNOTAVAIL;
    return -1;
}

int socket_connect_for(const struct netns *netns, int asking, const struct ns_address *source,
                       const struct ns_address *destination, uint32_t mark, uint32_t buffers)
{
    int is_v4 = address_is_v4(destination);
    struct ns_address own = *source;
    if (address_is_v4(source) != is_v4) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    for (int tries = own.port > 0 ? 0 : 1; tries <= OWN_PORT_TRIES; tries++) {
        int clients = tries == 0;
        if (!clients)
            own.port = own_port();
        if (!is_distinct(asking, &own, destination, clients))
            continue;
        int fd = socket_prepared(netns, is_v4 ? AF_INET : AF_INET6, mark, buffers);
        if (fd < 0)
            return -1;
        if ((is_v4 ? set_option(fd, IPPROTO_IP, IP_TRANSPARENT, 1)
                   : set_option(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1)) != 0)
            return close_keeping_errno(fd);
        if (connect_from(fd, asking, &own, destination, clients) == 0)
            return fd;
        if (!port_failed())
            return close_keeping_errno(fd);
        close(fd);
    }
    errno = EADDRNOTAVAIL;
    return -1;
}

/* IPPROTO_RAW: the header is the caller's, in both families (raw(7); rawv6_init_sk). */
int socket_raw_in(const struct netns *netns, int family, uint32_t mark)
{
    int fd = socket_of_type_in(netns, family, SOCK_RAW, IPPROTO_RAW);
    if (fd >= 0 && mark != 0 && set_option(fd, SOL_SOCKET, SO_MARK, (int)mark) != 0)
        return close_keeping_errno(fd);
    return fd;
}

int socket_path_in(const struct netns *netns, int family, uint32_t mark)
{
    int fd = socket_of_type_in(netns, family, SOCK_DGRAM, 0);
    if (fd >= 0 && set_option(fd, SOL_SOCKET, SO_MARK, (int)mark) != 0)
        return close_keeping_errno(fd);
    return fd;
}

/* IP_MTU (ip(7), ipv6(7)) is known of connected sockets. */
uint32_t socket_path_mtu(int fd, const struct ns_address *to)
{
    int is_v4 = address_is_v4(to), mtu = 0;
    socklen_t length = sizeof(mtu);
    if (connect_to(fd, to) != 0 ||
        getsockopt(fd, is_v4 ? IPPROTO_IP : IPPROTO_IPV6, is_v4 ? IP_MTU : IPV6_MTU, &mtu, &length) != 0)
        return 0;
    errno = 0;
    return mtu < 576 ? 0 : mtu > 65535 ? 65535 : (uint32_t)mtu;
}

int socket_accept(int listener, struct ns_address *peer)
{
    struct sockaddr_storage storage;
    socklen_t length = sizeof(storage);
    int fd = accept4(listener, (struct sockaddr *)&storage, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0 && address_from_sockaddr(&storage, peer) != 0) {
        errno = EAFNOSUPPORT;
        return close_keeping_errno(fd);
    }
    return fd;
}

void socket_limit_unsent(int fd, int bytes)
{
    (void)set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, bytes); /* cannot fail on a TCP socket */
}

int socket_congestion(int fd, const char *name)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
}

int socket_try_congestion(const char *name)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = fd < 0 ? -1 : socket_congestion(fd, name);
    int number = errno;
    if (fd >= 0)
        close(fd);
    errno = number;
    return result;
}

int socket_set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ? -1 : 0;
}

uint32_t socket_round_trip_us(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof(info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 ||
        length < offsetof(struct tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) ||
        info.tcpi_min_rtt == UINT32_MAX)
        return 0;
    return info.tcpi_min_rtt;
}

uint64_t socket_unacknowledged_ms(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_retransmits > 0
               ? info.tcpi_last_ack_recv
               : 0;
}

uint32_t socket_waiting(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);
    /* Of a listener this field has it (net/ipv4/tcp.c, tcp_get_info); the call cannot fail there. */
    (void)getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info.tcpi_unacked;
}

int socket_error(int fd)
{
    int error = 0;
    socklen_t length = sizeof(error);
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

/* With `on`, close() resets; the kernel's own close() of what an ended process has left does so too
 * (socket(7), SO_LINGER; tcp_close). */
static void set_linger(int fd, int on)
{
    struct linger linger = {.l_onoff = on, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

void socket_reset_at_death(int fd)
{
    set_linger(fd, 1);
}

void socket_close(int fd)
{
    set_linger(fd, 0);
    close(fd);
}

void socket_abort(int fd)
{
    set_linger(fd, 1);
    close(fd);
}
