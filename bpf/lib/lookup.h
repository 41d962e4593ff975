/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * lookup.h: the packet that an sk_lookup program is asked about, and giving it to a listener.
 */
#include "lib/address.h"
#include "lib/counters.h"

/* Its ends; returns the bit of its family (NS_FAMILY_IPV4, NS_FAMILY_IPV6), 0 for one of another family. */
static __always_inline u32 read_flow(struct bpf_sk_lookup *ctx, struct ns_flow *flow)
{
    flow->source_port = ctx->remote_port;
    flow->destination_port = NS_NET16(ctx->local_port);
    if (ctx->family == NS_AF_INET) {
        flow->source = ns_mapped(ctx->remote_ip4);
        flow->destination = ns_mapped(ctx->local_ip4);
        return NS_FAMILY_IPV4;
    }
    if (ctx->family != NS_AF_INET6)
        return 0;
    flow->source.word[0] = ctx->remote_ip6[0];
    flow->source.word[1] = ctx->remote_ip6[1];
    flow->source.word[2] = ctx->remote_ip6[2];
    flow->source.word[3] = ctx->remote_ip6[3];
    flow->destination.word[0] = ctx->local_ip6[0];
    flow->destination.word[1] = ctx->local_ip6[1];
    flow->destination.word[2] = ctx->local_ip6[2];
    flow->destination.word[3] = ctx->local_ip6[3];
    return NS_FAMILY_IPV6;
}

/* The verdict of a packet that is the listener's, whose reference it takes; with none it is dropped. */
static __always_inline int assign(struct bpf_sk_lookup *ctx, struct bpf_sock *listener)
{
    long error;

    if (!listener) {
        count(NS_COUNT_LOOKUP_NO_LISTENER);
        return SK_DROP;
    }
    /* REPLACE: another program in this namespace may have chosen a socket; capture comes first. */
    error = bpf_sk_assign(ctx, listener, BPF_SK_LOOKUP_F_REPLACE);
    bpf_sk_release(listener);
    if (error) {
        count(NS_COUNT_LOOKUP_ASSIGN_FAILED);
        return SK_DROP;
    }
    return SK_PASS;
}
