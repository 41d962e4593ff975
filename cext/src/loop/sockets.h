/*
 * sockets.h: every socket option and namespace trick of the core, in one place.
 */
#ifndef NS_SOCKETS_H
#define NS_SOCKETS_H

#include <sys/socket.h>

#include "nodeseal_core.h"

/* A workload's network namespace. */
struct netns {
    int fd;
    /* Never used twice in a process, unlike fd: tells a thread whether it is already there. */
    uint64_t serial;
};

/*
 * A non-blocking TCP socket inside the network namespace, or -1 with errno. Moves the calling thread into
 * that namespace and leaves it there: a worker thread does nothing else that depends on its namespace. This
 * is the only function that needs the capability to enter a namespace.
 */
int socket_in(const struct netns *netns, int family);
/* A socket there by which occupants are asked for (occupant.h); -1 with errno. */
int socket_asking_in(const struct netns *netns);

/* A raw socket there, for packets with their own IP header; -1 with errno. It receives nothing. `mark`: its
 * own; 0: none. */
int socket_raw_in(const struct netns *netns, int family, uint32_t mark);
/* A socket there with the mark, to be given to socket_path_mtu; -1 with errno. It sends nothing. */
int socket_path_in(const struct netns *netns, int family, uint32_t mark);
/* The largest IP packet on the way to `to`, as far as the kernel knows, at most 65535; 0 with errno: not
 * known, or there is no way (ENETUNREACH, EHOSTUNREACH). */
uint32_t socket_path_mtu(int fd, const struct ns_address *to);

/* Socket addresses from and to the core's own form. */
socklen_t address_to_sockaddr(const struct ns_address *address, struct sockaddr_storage *out);
int address_from_sockaddr(const struct sockaddr_storage *from, struct ns_address *out);
int socket_local_address(int fd, struct ns_address *out);

/* The next connection of a listener, non-blocking, and who made it; or -1 with errno (EAFNOSUPPORT for one
 * that is neither IPv4 nor IPv6). It inherits the listener's options: TCP_NODELAY is not set again. */
int socket_accept(int listener, struct ns_address *peer);

/*
 * Connections that the core makes. All return the descriptor (connection in progress or done), or -1 with
 * errno. TCP_NODELAY is set. A port that we choose is one from 61000 up, where Linux gives none to clients by
 * itself and applications seldom listen: in the workload's namespace it is taken from them.
 */

/* Begins a connection to `destination` that is marked `mark`, from the address `from`; NULL, of another
 * family, or not the namespace's own: from the one that the routes say. Keepalive is set (after 180 s, as
 * ztunnel): another machine can vanish without a word. Only when many ports towards that destination are
 * taken, the kernel chooses one, as it does for any client. */
int socket_connect(const struct netns *netns, const struct ns_address *from,
                   const struct ns_address *destination, uint32_t mark);

/*
 * The same for a client, whom the application is to see: the socket is transparent and bound to `source`, the
 * client's own address and port. Another port takes its place if it is 0, if a socket in the namespace has
 * the same two ends (the kernel could not tell the two apart: occupant.h), or if that cannot be known.
 * `asking`: from socket_asking_in, or -1.
 *
 * `buffers` as for socket_bound; it holds for the application's end as well, whose send buffer Linux makes as
 * large as twenty segments, and a segment of the loopback device is 64 KiB.
 */
int socket_connect_for(const struct netns *netns, int asking, const struct ns_address *source,
                       const struct ns_address *destination, uint32_t mark, uint32_t buffers);
/* Keeps what the kernel holds of a connection small: `buffers` bytes in each direction, and as much again for
 * what it needs itself (socket(7), SO_RCVBUF). 0: as much as it likes. */
void socket_bound(int fd, uint32_t buffers);
/* What an application bears of its peer's silence, in milliseconds; 0: it has not said. */
struct tolerance {
    /* Without a word: SO_KEEPALIVE, and all of its times. */
    uint32_t keepalive_ms;
    /* With bytes on their way: TCP_USER_TIMEOUT. */
    uint32_t unacknowledged_ms;
};

/* From now on the kernel bears as much, of a socket that goes to another machine. */
void socket_tolerate(int fd, const struct tolerance *tolerance);
/* From now on the connection is reset if this process ends without closing it in order: its end must not look
 * as if all had arrived. */
void socket_reset_at_death(int fd);
/* Closes; what was written still arrives, and then the end. */
void socket_close(int fd);
/* Keeps what the kernel holds of a connection and has not sent small: beyond `bytes` the socket is not
 * writable (tcp(7), TCP_NOTSENT_LOWAT). */
void socket_limit_unsent(int fd, int bytes);
/* Sets a connection's congestion control (tcp(7), TCP_CONGESTION). 0, or -1 with errno: ENOENT if the kernel
 * has none of that name. */
int socket_congestion(int fd, const char *name);
/* Whether the kernel has a congestion control of that name: 0, or -1 with errno. */
int socket_try_congestion(const char *name);
/* 0, or -1 with errno. */
int socket_set_nonblocking(int fd);
/* The shortest round trip that the connection has seen, in microseconds; 0 if that is not known. Queues on
 * the way are not in it. */
uint32_t socket_round_trip_us(int fd);
/* For how long the connection's peer has acknowledged nothing, although it was sent again, in milliseconds;
 * 0: it has, or there is nothing to acknowledge, or that is not known. */
uint64_t socket_unacknowledged_ms(int fd);
/* How many connections wait in a listener's queue. */
uint32_t socket_waiting(int fd);
/* The socket's pending error, cleared by reading it. */
int socket_error(int fd);
/* Closes with a reset instead of a FIN. */
void socket_abort(int fd);

#endif
