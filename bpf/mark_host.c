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
#include "lib/host.h"
#include "lib/mark.h"

BPF_TABLE("array", u32, struct ns_host, host, 1);

static __always_inline struct ns_owner owner_of(struct bpf_sock_addr *ctx)
{
    u32 key = 0;
    struct ns_host *workload = host.lookup(&key);
    struct ns_owner owner = {};

    if (workload && workload->netns == bpf_get_netns_cookie(ctx)) {
        owner.enrolment = &workload->enrolment;
        owner.mark = workload->mark;
    }
    return owner;
}

/* It has one of each family, which its enrolment tells. */
static __always_inline int is_own(struct bpf_sock_addr *ctx, const struct ns_address *address)
{
    return 0;
}

static __always_inline int unguarded(struct bpf_sock_addr *ctx, const struct ns_owner *owner)
{
    struct bpf_sock *listener = host_listener(owner->mark & ~NS_MARK_HOST_MASK, NS_LISTENER_OUTBOUND);

    if (!listener)
        return 1;
    bpf_sk_release(listener);
    return 0;
}

int mark_host4(struct bpf_sock_addr *ctx)
{
    return dials_tcp(ctx) ? mark_ipv4(ctx, ctx->user_ip4) : NS_PROCEED;
}

int mark_host6(struct bpf_sock_addr *ctx)
{
    return dials_tcp(ctx) ? mark_ipv6(ctx) : NS_PROCEED;
}
