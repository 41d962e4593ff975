/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * mark.h: marking a socket whose application dials, for mark_connect.c and mark_host.c, which know whose it
 * is.
 *
 * The source that includes this defines count, and bypass_lookup (see bypass.h).
 */
#ifndef NODESEAL_MARK_H
#define NODESEAL_MARK_H

#include "bypass.h"

#define NS_REFUSE 0
#define NS_PROCEED 1

static __always_inline void count(u32 key);

/* A mark from an earlier try of the same socket is of no use to a connection that goes direct. */
static __always_inline int unmark(struct bpf_sock_addr *ctx, struct bpf_sock *sk, u32 ours)
{
    u32 none = 0;

    if (sk->mark == ours && bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_MARK, &none, sizeof(none))) {
        count(NS_COUNT_CONNECT_MARK_FAILED);
        return NS_REFUSE;
    }
    return NS_PROCEED;
}

/* `ours` is the mark, `direct` says that there is to be none, `own` is the workload's address, `far` says
 * that the destination is not left alone for what it is. */
static __always_inline int mark(struct bpf_sock_addr *ctx, u32 ours, int direct, const struct ns_address *own,
                                const struct ns_address *destination, int far)
{
    struct bpf_sock *sk = ctx->sk;
    u32 value = ours;
    char no_device = 0;

    if (!sk)
        return NS_PROCEED;

    if (direct)
        return unmark(ctx, sk, ours);

    if (!far || sk->mark == NS_MARK_CORE || sk->mark == NS_MARK_TO_APP)
        return NS_PROCEED;

    if (bypass_outbound(own, destination, (u16)ctx->user_port)) {
        count(NS_COUNT_CONNECT_EXCLUDED);
        return unmark(ctx, sk, ours);
    }
    /* The programs of the nearest cgroup run first: those of one above it find their mark. */
    if (sk->mark != ours && (sk->mark & NS_MARK_HOST_MASK) == NS_MARK_HOST)
        return NS_PROCEED;
    if (sk->mark && sk->mark != ours) {
        if (!bypass_peer(destination)) {
            count(NS_COUNT_CONNECT_FOREIGN_MARK);
            return NS_PROCEED;
        }
        count(NS_COUNT_CONNECT_MARK_REPLACED);
    }

    if (sk->bound_dev_if &&
        bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_BINDTODEVICE, &no_device, sizeof(no_device))) {
        count(NS_COUNT_CONNECT_UNBIND_FAILED);
        return NS_REFUSE;
    }

    if (bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_MARK, &value, sizeof(value))) {
        count(NS_COUNT_CONNECT_MARK_FAILED);
        return NS_REFUSE;
    }
    return NS_PROCEED;
}

#endif
