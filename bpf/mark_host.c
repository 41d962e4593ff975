// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * mark_host.c: marks the connections of a workload that lives in the node's own network namespace.
 *
 * What mark_connect.c is for a workload with a namespace of its own, for one that is a cgroup: attached at
 * cgroup/connect4 and cgroup/connect6 to the workload's own cgroup, so that it runs for the processes in it
 * and below it and for no others. The kernel goes by the cgroup in which a socket was made. Each workload has
 * an instance with a `host` map of its own.
 *
 * A workload that is to be open on failure is not marked while nobody holds its outbound listener, as in
 * mark_connect.c.
 *
 * The cgroup may hold containers with network namespaces of their own: their sockets are left alone.
 */
#include "mark.h"

BPF_TABLE("array", u32, struct ns_host, host, 1);
BPF_TABLE("sockmap", u32, u64, host_listeners, NS_HOST_NUMBERS *NS_LISTENER_COUNT);
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

static __always_inline int unguarded(struct ns_host *workload)
{
    u32 key = NS_HOST_LISTENER(workload->mark & ~NS_MARK_HOST_MASK) + NS_LISTENER_OUTBOUND;
    struct bpf_sock *listener = (struct bpf_sock *)host_listeners.lookup(&key);

    if (!listener)
        return 1;
    bpf_sk_release(listener);
    return 0;
}

static __always_inline int mark_for(struct bpf_sock_addr *ctx, struct ns_host *workload,
                                    const struct ns_address *own, const struct ns_address *destination,
                                    int far)
{
    int direct = workload->state == NS_STATE_LEAVE || (workload->open && unguarded(workload));

    return mark(ctx, workload->mark, direct, own, destination, far);
}

static __always_inline struct ns_host *workload_of(struct bpf_sock_addr *ctx)
{
    u32 key = 0;
    struct ns_host *workload = host.lookup(&key);

    return workload && workload->netns == bpf_get_netns_cookie(ctx) ? workload : 0;
}

static __always_inline int mark_ipv4(struct bpf_sock_addr *ctx, u32 destination)
{
    struct ns_host *workload = workload_of(ctx);
    struct ns_address own, far;

    if (!workload || !workload->ipv4)
        return NS_PROCEED;
    own = ns_mapped(workload->ipv4);
    far = ns_mapped(destination);
    /* Connecting to 0.0.0.0 means the machine itself. */
    return mark_for(ctx, workload, &own, &far,
                    !NS_LOOPBACK_NET(destination) && destination && destination != workload->ipv4);
}

int mark_host4(struct bpf_sock_addr *ctx)
{
    if (ctx->type != NS_SOCK_STREAM || ctx->protocol != NS_IPPROTO_TCP)
        return NS_PROCEED;
    return mark_ipv4(ctx, ctx->user_ip4);
}

int mark_host6(struct bpf_sock_addr *ctx)
{
    struct ns_address destination, own;
    struct ns_host *workload;

    if (ctx->type != NS_SOCK_STREAM || ctx->protocol != NS_IPPROTO_TCP)
        return NS_PROCEED;
    destination.word[0] = ctx->user_ip6[0];
    destination.word[1] = ctx->user_ip6[1];
    destination.word[2] = ctx->user_ip6[2];
    destination.word[3] = ctx->user_ip6[3];
    if (!destination.word[0] && !destination.word[1] && destination.word[2] == NS_NET32(0xffff))
        return mark_ipv4(ctx, destination.word[3]);
    workload = workload_of(ctx);
    if (!workload || ns_none(&workload->ipv6))
        return NS_PROCEED;
    own = workload->ipv6;
    return mark_for(ctx, workload, &own, &destination,
                    !ns_near(&destination) && !ns_same(&destination, &own));
}
