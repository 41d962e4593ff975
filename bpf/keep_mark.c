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
 * What the application says of the silence that it bears (SO_KEEPALIVE and its times, TCP_USER_TIMEOUT) is
 * told to the core, which has the other end of its connection. Before the connection is established nothing
 * is: watch_dials.c tells then what the socket has.
 *
 * optlen 0 tells the kernel to go by the application's own buffer, which matters for those beyond a page.
 */
#include "lib/captured.h"
#include "lib/counters.h"
#include "lib/tolerance.h"

#define NS_FORBID 0
#define NS_ALLOW 1

/* Raw sockets are the core's own, or of those who can send a packet with any mark. */
static __always_inline int asks_for_host(struct bpf_sockopt *ctx)
{
    u32 *value = ctx->optval;

    return ctx->sk->type != NS_SOCK_RAW && (void *)(value + 1) <= ctx->optval_end &&
           (host_mark(*value) || host_released(*value));
}

/* Takes the option over that is about to be set; 0: it is none of these, or the kernel will refuse it. */
static __always_inline int tolerance_set(struct tolerance *tolerance, int level, int name, int value)
{
    if (level == NS_SOL_SOCKET && name == NS_SO_KEEPALIVE)
        tolerance->keepalive = value != 0;
    else if (level == NS_IPPROTO_TCP && name == NS_TCP_KEEPIDLE && value > 0 && value < 32768)
        tolerance->idle = value;
    else if (level == NS_IPPROTO_TCP && name == NS_TCP_KEEPINTVL && value > 0 && value < 32768)
        tolerance->interval = value;
    else if (level == NS_IPPROTO_TCP && name == NS_TCP_KEEPCNT && value > 0 && value < 128)
        tolerance->count = value;
    else if (level == NS_IPPROTO_TCP && name == NS_TCP_USER_TIMEOUT && value >= 0)
        tolerance->unacknowledged = value;
    else
        return 0;
    return 1;
}

/*
 * Its own end first. Through volatile, as in dial.h, and all of it whatever the family: the verifier allows
 * no arithmetic with the socket's address, which the compiler would use for what two branches have in common.
 */
static __always_inline void flow_of(struct bpf_sock *sk, struct ns_flow *flow)
{
    volatile struct bpf_sock *read = sk;
    struct ns_address source = ns_mapped(read->src_ip4), destination = ns_mapped(read->dst_ip4);

    flow->source.word[0] = read->src_ip6[0];
    flow->source.word[1] = read->src_ip6[1];
    flow->source.word[2] = read->src_ip6[2];
    flow->source.word[3] = read->src_ip6[3];
    flow->destination.word[0] = read->dst_ip6[0];
    flow->destination.word[1] = read->dst_ip6[1];
    flow->destination.word[2] = read->dst_ip6[2];
    flow->destination.word[3] = read->dst_ip6[3];
    if (read->family == NS_AF_INET) {
        flow->source = source;
        flow->destination = destination;
    }
    flow->source_port = NS_NET16(read->src_port);
    flow->destination_port = read->dst_port;
}

static __always_inline void watch_tolerance(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
    struct ns_ring key = {};
    struct tolerance before, after;
    struct ns_flow flow;
    int *value = ctx->optval;
    void *ring;

    if ((ctx->level != NS_SOL_SOCKET || ctx->optname != NS_SO_KEEPALIVE) && ctx->level != NS_IPPROTO_TCP)
        return;
    if ((void *)(value + 1) > ctx->optval_end || sk->state == STATE_SYN_SENT || sk->state == STATE_CLOSE)
        return;
    if (sk->mark != NS_MARK_CAPTURED && sk->mark != NS_MARK_TO_APP && !host_mark(sk->mark))
        return;
    __builtin_memset(&after, 0, sizeof(after));
    if (!tolerance_set(&after, ctx->level, ctx->optname, *value))
        return;
    key.netns = bpf_get_netns_cookie(ctx);
    key.number = host_mark(sk->mark) ? sk->mark & ~NS_MARK_HOST_MASK : 0;
    ring = rings.lookup(&key);
    if (!ring || !tolerance_read(sk, &before) || !tolerance_read_times(sk, &before))
        return;
    after = before;
    tolerance_set(&after, ctx->level, ctx->optname, *value);
    if (tolerance_keepalive(&after) == tolerance_keepalive(&before) &&
        after.unacknowledged == before.unacknowledged)
        return;
    flow_of(sk, &flow);
    tolerance_tell(ring, &flow, &after);
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
    if (sk)
        watch_tolerance(ctx, sk);
    ctx->optlen = 0;
    return NS_ALLOW;
}
