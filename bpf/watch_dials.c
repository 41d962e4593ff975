// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * watch_dials.c: what becomes of the sockets whose SYNs are parked (park_loopback.c), and of those whose
 * connections are native (lib/account.h).
 *
 * Attached as a sockops program to the root of the cgroup v2 tree, next to other programs. Of sockets that
 * are captured, it concerns those of workloads that have a ring.
 *
 * - An application that gives up a connection before it is established: the core is told, in the same ring
 *   and so behind the SYN, and ends what it has begun.
 * - Established: what the application sends first may be lost (a reset that lies, see park_loopback.c). It is
 *   sent again after NS_FIRST_RTO_US instead of 200 ms, on a way that leads through memory. With the first
 *   answer that time is what it was: the core's kernel may take longer than that to acknowledge what asks
 *   for no answer, and nothing is to be sent twice for it.
 *
 * - Established, on either end: the core is told what the application bears of its peer's silence, if it has
 *   said so. What it says later is told by keep_mark.c.
 *
 * Callbacks are asked for by bits that all programs share. Where somebody else has asked for those at the
 * socket's round trips, the time is left alone, and so is one that is not the kernel's own.
 */
#include "lib/account.h"
#include "lib/dial.h"
#include "lib/tolerance.h"

#define NS_FIRST_RTO_US 5000
#define NS_RTO_MIN_US 200000 /* the kernel's own */
#define NS_RTO_UNKNOWN 0

/* The least time after which the socket sends again what is not acknowledged, in microseconds. */
static __always_inline int least_rto(struct bpf_sock_ops *ops)
{
    int now;

    /* Before Linux 6.15 nobody tells. */
    return bpf_getsockopt(ops, NS_SOL_TCP, TCP_BPF_RTO_MIN, &now, sizeof(now)) ? NS_RTO_UNKNOWN : now;
}

static __always_inline int set_least_rto(struct bpf_sock_ops *ops, int time)
{
    if (!bpf_setsockopt(ops, NS_SOL_TCP, TCP_BPF_RTO_MIN, &time, sizeof(time)))
        return 1;
    count(NS_COUNT_DIAL_SLOW);
    return 0;
}

static __always_inline void established(struct bpf_sock_ops *ops)
{
    int now = least_rto(ops);

    if (ops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTT_CB_FLAG ||
        (now != NS_RTO_MIN_US && now != NS_RTO_UNKNOWN))
        return;
    if (set_least_rto(ops, NS_FIRST_RTO_US))
        dial_ask(ops, BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void answered(struct bpf_sock_ops *ops)
{
    int now = least_rto(ops);

    /* The kernel counts in its ticks, which may be longer. */
    if (now <= 4 * NS_FIRST_RTO_US && set_least_rto(ops, NS_RTO_MIN_US))
        dial_ask_no_more(ops, BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void tell_tolerance(struct bpf_sock_ops *ops, void *ring)
{
    struct tolerance tolerance;
    struct ns_flow flow;

    if (!tolerance_read(ops, &tolerance) || !(tolerance.keepalive || tolerance.unacknowledged) ||
        (tolerance.keepalive && !tolerance_read_times(ops, &tolerance)))
        return;
    dial_flow(ops, &flow);
    tolerance_tell(ring, &flow, &tolerance);
}

int watch_dials(struct bpf_sock_ops *ops)
{
    u32 mark = dial_mark(ops);
    void *ring;

    if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        ring = mark == NS_MARK_TO_APP ? dial_ring(ops, mark) : 0;
        if (ring)
            tell_tolerance(ops, ring);
        else
            account_accepted(ops, mark);
        return 1;
    }
    if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && account_dialled(ops, mark))
        return 1;
    if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[1] == STATE_CLOSE)
        account_closed(ops, ops->args[0]);
    if (mark != NS_MARK_CAPTURED && !host_mark(mark))
        return 1;
    if (ops->op == BPF_SOCK_OPS_RTT_CB) {
        answered(ops);
        return 1;
    }
    ring = dial_ring(ops, mark);
    if (!ring)
        return 1;
    if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
        dial_ask(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
    else if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
        established(ops);
        tell_tolerance(ops, ring);
    } else if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[0] == STATE_SYN_SENT &&
               ops->args[1] == STATE_CLOSE)
        dial_tell(ops, ring, NS_PARKED_GONE, 0);
    return 1;
}
