// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * keep_mark.c: an application cannot take a captured connection off its way to the core.
 *
 * Attached at cgroup/setsockopt to the root of the cgroup v2 tree, next to other programs. The mark is what
 * keeps the application's end of a captured connection, dialled (CAPTURED, or a mark of mark_host.c) or
 * accepted (TO_APP), on the routes to the core. An application that may set marks (CAP_NET_RAW is enough,
 * which containers have by default) and set another one on such a socket would have its next segments leave
 * for the far address in plaintext. It gets EPERM, as without the capability. Before connect() a socket has
 * no mark of ours, and it may set what it likes, but for the marks of mark_host.c: whoever has one of those
 * is taken for the process that it stands for. Nobody sets them but that program.
 *
 * optlen 0 tells the kernel to go by the application's own buffer, which matters for those beyond a page.
 */
#include "lib/captured.h"
#include "lib/counters.h"

#define NS_FORBID 0
#define NS_ALLOW 1

static __always_inline int asks_for_host(struct bpf_sockopt *ctx)
{
    u32 *value = ctx->optval;

    return (void *)(value + 1) <= ctx->optval_end && host_mark(*value);
}

int keep_mark(struct bpf_sockopt *ctx)
{
    struct bpf_sock *sk = ctx->sk;

    if (ctx->level == NS_SOL_SOCKET && ctx->optname == NS_SO_MARK && sk &&
        (sk->mark == NS_MARK_CAPTURED || sk->mark == NS_MARK_TO_APP || host_mark(sk->mark) ||
         asks_for_host(ctx))) {
        count(NS_COUNT_MARK_KEPT);
        return NS_FORBID;
    }
    ctx->optlen = 0;
    return NS_ALLOW;
}
