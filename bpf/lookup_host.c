// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * lookup_host.c: gives the connections of host workloads to the core's listeners, in the node's namespace.
 *
 * Attached at sk_lookup, which runs when a packet finds no connected socket. Three things concern it, all
 * others pass:
 *
 * - what note_loopback.c has noted with a workload's mark goes to that workload's outbound listener;
 * - what it has noted with the core's goes on to the application's listener;
 * - what comes from elsewhere for a port of a workload goes to its inbound listener: at the workload's
 *   address, and at those of the node that are no workload's.
 *
 * Unlike steer_ingress.c this needs no program on the devices, of which a node gets new ones all the time,
 * and it is asked as well when a socket in TIME_WAIT makes room for a new connection.
 *
 * Fails closed: with no listener the packet is dropped, never handed to the application, unless the workload
 * is to be open while nobody holds the listener.
 */
#include "bypass.h"
#include "lookup.h"

BPF_TABLE("hash", struct ns_place, struct ns_claim, places, 16384);
BPF_TABLE("sockmap", u32, u64, host_listeners, NS_HOST_NUMBERS *NS_LISTENER_COUNT);
BPF_TABLE("lru_hash", struct ns_flow, struct ns_looped, looped, 1024);
BPF_TABLE("percpu_array", u32, u64, counters, NS_COUNT_COUNT);
BPF_F_TABLE("lpm_trie", struct ns_bypass_key, u32, bypass, NS_BYPASS_ENTRIES, BPF_F_NO_PREALLOC);

static __always_inline u32 *bypass_lookup(struct ns_bypass_key *key)
{
    return bypass.lookup(key);
}

static __always_inline void count(u32 key)
{
    u64 *value = counters.lookup(&key);

    if (value)
        *value += 1;
}

/* The mark with which note_loopback.c has noted this very packet, once; 0: it has not. */
static __always_inline u32 noted(struct ns_flow *flow)
{
    struct ns_looped *note = looped.lookup(flow);
    u32 mark;

    if (!note)
        return 0;
    mark = bpf_ktime_get_ns() - note->when < NS_REVISIT_NS ? note->mark : 0;
    looped.delete(flow);
    return mark;
}

/* Whose a packet from another machine or namespace is; NULL: nobody's. */
static __always_inline struct ns_claim *claimed(struct ns_flow *flow)
{
    struct ns_place place = {flow->destination, flow->destination_port, 0};
    struct ns_claim *claim = places.lookup(&place);

    u32 *node;

    if (ns_same(&flow->source, &flow->destination) || ns_loopback(&flow->destination))
        return 0;
    if (!claim) {
        place.address = ns_any_like(&flow->destination);
        claim = places.lookup(&place);
    }
    if (!claim || claim->state != NS_STATE_CAPTURE)
        return 0;
    /* Another address of its own is what the node dials from as well (nobody else can: the kernel takes no
     * such packet from a device, or answers itself). What the operator trusts is no less direct than in pods.
     */
    node = bypass_of(NS_SCOPE_NODE, &flow->source);
    return node && (*node == NS_NODE_LOCAL || !bypass_peer(&flow->source)) ? 0 : claim;
}

int lookup_host(struct bpf_sk_lookup *ctx)
{
    struct bpf_sock *listener;
    struct ns_claim *claim = 0;
    struct ns_flow flow = {};
    u32 mark;
    u32 key;
    long error;

    if (ctx->protocol != NS_IPPROTO_TCP || !read_flow(ctx, &flow))
        return SK_PASS;
    mark = noted(&flow);
    if ((mark & NS_MARK_HOST_MASK) == NS_MARK_HOST) {
        key = NS_HOST_LISTENER(mark & ~NS_MARK_HOST_MASK) + NS_LISTENER_OUTBOUND;
    } else {
        claim = mark ? 0 : claimed(&flow);
        if (!claim)
            return SK_PASS;
        key = NS_HOST_LISTENER(claim->number) + NS_LISTENER_INBOUND;
    }

    listener = (struct bpf_sock *)host_listeners.lookup(&key);
    if (!listener) {
        if (claim && claim->open)
            return SK_PASS;
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
