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
#include "lib/bypass.h"
#include "lib/captured.h"
#include "lib/host.h"
#include "lib/lookup.h"

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
static __always_inline struct ns_claim *claim_on(struct ns_flow *flow)
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
    struct ns_claim *claim = 0;
    struct bpf_sock *listener;
    struct ns_flow flow = {};
    u32 mark;

    if (ctx->protocol != NS_IPPROTO_TCP || !read_flow(ctx, &flow))
        return SK_PASS;
    mark = noted(&flow);
    if (host_mark(mark)) {
        listener = host_listener(mark & ~NS_MARK_HOST_MASK, NS_LISTENER_OUTBOUND);
    } else {
        claim = mark ? 0 : claim_on(&flow);
        if (!claim)
            return SK_PASS;
        listener = host_listener(claim->number, NS_LISTENER_INBOUND);
    }
    if (!listener && claim && claim->open)
        return SK_PASS;
    return assign(ctx, listener);
}
