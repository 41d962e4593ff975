// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * mark_connect.c: marks the connections of enrolled workloads when the application dials.
 *
 * Attached at cgroup/connect4 and cgroup/connect6 to the root of the cgroup v2 tree, next to other programs.
 * One program in two forms: the kernel calls connect6 alone for an AF_INET6 socket, also when it dials a
 * v4-mapped address (::ffff:10.0.0.1, as Java does by default), which makes an IPv4 connection.
 *
 * The mark makes the namespace's policy routing send the connection to lo, where assign_lookup.c finds the
 * core's listener. It stays on the socket for life: a connection that was captured never turns into a direct
 * one, and one that was opened before enrolment is never touched. What the program cannot mark it refuses
 * (EPERM at connect()).
 *
 * What the workload excludes is let go, and so is a socket with a mark of the application's own, which routes
 * it by that. But nothing goes to an enrolled workload in plaintext that would not be taken there: see
 * bypass.h; the application's mark gives way then.
 *
 * A workload that is to be open on failure is not marked while nobody holds its outbound listener, that is,
 * while neither an agent nor a core runs: the kernel takes a socket out of `guards` when the last one closes
 * it.
 *
 * A socket bound to a device (SO_BINDTODEVICE, curl --interface eth0) would skip the route to lo and leave in
 * plaintext, so the binding is taken off: the core, which dials in its stead, chooses the device by route.
 */
#include "mark.h"

BPF_TABLE("hash", u64, struct ns_enrolment, enrolled, 4096);
BPF_TABLE("sockhash", u64, u64, guards, 4096); /* outbound listeners, by the same key as `enrolled` */
BPF_TABLE("percpu_array", u32, u64, counters, NS_COUNT_COUNT);
BPF_F_TABLE("lpm_trie", struct ns_bypass_key, u32, bypass, NS_BYPASS_ENTRIES, BPF_F_NO_PREALLOC);

static __always_inline void count(u32 key)
{
    u64 *value = counters.lookup(&key);

    if (value)
        *value += 1;
}

static __always_inline u32 *bypass_lookup(struct ns_bypass_key *key)
{
    return bypass.lookup(key);
}

static __always_inline struct ns_enrolment *enrolment_of(struct bpf_sock_addr *ctx)
{
    u64 cookie = bpf_get_netns_cookie(ctx);

    return enrolled.lookup(&cookie);
}

static __always_inline int unguarded(struct bpf_sock_addr *ctx)
{
    u64 cookie = bpf_get_netns_cookie(ctx);
    struct bpf_sock *listener = (struct bpf_sock *)guards.lookup(&cookie);

    if (!listener)
        return 1;
    bpf_sk_release(listener);
    return 0;
}

static __always_inline int mark_for(struct bpf_sock_addr *ctx, struct ns_enrolment *enrolment,
                                    const struct ns_address *own, const struct ns_address *destination,
                                    int far)
{
    int direct = enrolment->state == NS_STATE_LEAVE || (enrolment->open && unguarded(ctx));

    return mark(ctx, NS_MARK_CAPTURED, direct, own, destination, far);
}

static __always_inline int mark_ipv4(struct bpf_sock_addr *ctx, u32 destination)
{
    struct ns_enrolment *enrolment = enrolment_of(ctx);
    struct ns_address own, far;

    if (!enrolment || !enrolment->ipv4)
        return NS_PROCEED;
    own = ns_mapped(enrolment->ipv4);
    far = ns_mapped(destination);
    /* Connecting to 0.0.0.0 means the machine itself. */
    return mark_for(ctx, enrolment, &own, &far,
                    !NS_LOOPBACK_NET(destination) && destination && destination != enrolment->ipv4);
}

int mark_connect4(struct bpf_sock_addr *ctx)
{
    if (ctx->type != NS_SOCK_STREAM || ctx->protocol != NS_IPPROTO_TCP)
        return NS_PROCEED;
    return mark_ipv4(ctx, ctx->user_ip4);
}

int mark_connect6(struct bpf_sock_addr *ctx)
{
    struct ns_enrolment *enrolment;
    struct ns_address destination, own;

    if (ctx->type != NS_SOCK_STREAM || ctx->protocol != NS_IPPROTO_TCP)
        return NS_PROCEED;
    destination.word[0] = ctx->user_ip6[0];
    destination.word[1] = ctx->user_ip6[1];
    destination.word[2] = ctx->user_ip6[2];
    destination.word[3] = ctx->user_ip6[3];
    if (!destination.word[0] && !destination.word[1] && destination.word[2] == NS_NET32(0xffff))
        return mark_ipv4(ctx, destination.word[3]);
    enrolment = enrolment_of(ctx);
    if (!enrolment || ns_none(&enrolment->ipv6))
        return NS_PROCEED;
    own = enrolment->ipv6;
    return mark_for(ctx, enrolment, &own, &destination,
                    !ns_near(&destination) && !ns_same(&destination, &own));
}
