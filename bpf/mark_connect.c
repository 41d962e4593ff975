// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * mark_connect.c: marks the connections of enrolled workloads when the application dials.
 *
 * Attached at cgroup/connect4 and cgroup/connect6 to the root of the cgroup v2 tree, next to other programs.
 *
 * The mark makes the namespace's policy routing send the connection to lo, where assign_lookup.c finds the
 * core's listener. It stays on the socket for life: a connection that was captured never turns into a direct
 * one, and one that was opened before enrolment is never touched. What the program cannot mark it refuses
 * (EPERM at connect()).
 *
 * What the workload excludes is let go, and so is a socket with a mark of the application's own, which routes
 * it by that. But nothing goes to an enrolled workload in plaintext that would not be taken there: see
 * lib/bypass.h; the application's mark gives way then.
 *
 * A workload that is to be open on failure is not marked while nobody holds its outbound listener, that is,
 * while neither an agent nor a core runs: the kernel takes a socket out of `guards` when the last one closes
 * it.
 *
 * A socket bound to a device (SO_BINDTODEVICE, curl --interface eth0) would skip the route to lo and leave in
 * plaintext, so the binding is taken off: the core, which dials in its stead, chooses the device by route.
 */
#include "lib/mark.h"

BPF_TABLE("hash", u64, struct ns_enrolment, enrolled, 4096);
/* The namespaces' own addresses: what is dialled there stays there. */
BPF_F_TABLE("hash", struct ns_owned, u8, owned, NS_OWNED_ENTRIES, BPF_F_NO_PREALLOC);
/* Outbound listeners, by the same key as `enrolled`. */
BPF_TABLE("sockhash", u64, u64, guards, 4096);

static __always_inline struct ns_owner owner_of(struct bpf_sock_addr *ctx)
{
    u64 cookie = bpf_get_netns_cookie(ctx);
    struct ns_owner owner = {enrolled.lookup(&cookie), NS_MARK_CAPTURED};

    return owner;
}

static __always_inline int is_own(struct bpf_sock_addr *ctx, const struct ns_address *address)
{
    struct ns_owned key = {bpf_get_netns_cookie(ctx), *address};

    return owned.lookup(&key) != 0;
}

static __always_inline int unguarded(struct bpf_sock_addr *ctx, const struct ns_owner *owner)
{
    u64 cookie = bpf_get_netns_cookie(ctx);
    struct bpf_sock *listener = (struct bpf_sock *)guards.lookup(&cookie);

    if (!listener)
        return 1;
    bpf_sk_release(listener);
    return 0;
}

int mark_connect4(struct bpf_sock_addr *ctx)
{
    return dials_tcp(ctx) ? mark_ipv4(ctx, ctx->user_ip4) : NS_PROCEED;
}

int mark_connect6(struct bpf_sock_addr *ctx)
{
    return dials_tcp(ctx) ? mark_ipv6(ctx) : NS_PROCEED;
}
