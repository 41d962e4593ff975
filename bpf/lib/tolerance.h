/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * tolerance.h: what an application bears of its peer's silence, as its socket has it (NS_PARKED_TOLERANCE).
 *
 * `socket` is what the helpers take for one: the context of a sockops program, or a socket.
 */
#include "lib/ring.h"

#define NS_SO_KEEPALIVE 9
#define NS_TCP_KEEPIDLE 4
#define NS_TCP_KEEPINTVL 5
#define NS_TCP_KEEPCNT 6
#define NS_TCP_USER_TIMEOUT 18

struct tolerance {
    /* SO_KEEPALIVE, and its times in seconds. */
    int keepalive;
    int idle;
    int interval;
    int count;
    /* TCP_USER_TIMEOUT, in milliseconds. */
    int unacknowledged;
};

/* What the socket was asked for. 1, or 0 if the kernel does not tell. */
static __always_inline int tolerance_read(void *socket, struct tolerance *tolerance)
{
    if (!bpf_getsockopt(socket, NS_SOL_SOCKET, NS_SO_KEEPALIVE, &tolerance->keepalive, sizeof(int)) &&
        !bpf_getsockopt(socket, NS_IPPROTO_TCP, NS_TCP_USER_TIMEOUT, &tolerance->unacknowledged, sizeof(int)))
        return 1;
    count(NS_COUNT_DIAL_UNTOLD);
    return 0;
}

/* The times of keepalive, which few have on. */
static __always_inline int tolerance_read_times(void *socket, struct tolerance *tolerance)
{
    if (!bpf_getsockopt(socket, NS_IPPROTO_TCP, NS_TCP_KEEPIDLE, &tolerance->idle, sizeof(int)) &&
        !bpf_getsockopt(socket, NS_IPPROTO_TCP, NS_TCP_KEEPINTVL, &tolerance->interval, sizeof(int)) &&
        !bpf_getsockopt(socket, NS_IPPROTO_TCP, NS_TCP_KEEPCNT, &tolerance->count, sizeof(int)))
        return 1;
    count(NS_COUNT_DIAL_UNTOLD);
    return 0;
}

/* The silence after which keepalive ends the connection, in milliseconds; 0: it is off. The kernel allows
 * none of its times more than 32767. */
static __always_inline u32 tolerance_keepalive(const struct tolerance *tolerance)
{
    if (!tolerance->keepalive)
        return 0;
    return ((u32)tolerance->idle + (u32)tolerance->interval * (u32)tolerance->count) * 1000;
}

/* `flow`: its source is the application's end. */
static __always_inline void tolerance_tell(void *ring, const struct ns_flow *flow,
                                           const struct tolerance *tolerance)
{
    struct ns_parked told = {NS_PARKED_TOLERANCE, 0, tolerance_keepalive(tolerance),
                             (u32)tolerance->unacknowledged};

    told.flow = *flow;
    if (bpf_ringbuf_output(ring, &told, NS_PARKED_HEAD + sizeof(told.flow), 0))
        count(NS_COUNT_DIAL_UNTOLD);
}
