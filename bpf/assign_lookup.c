// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * assign_lookup.c: gives captured connections to the core's outbound listener, the SYNs that steer_ingress.c
 * could not assign (see there: revisited) to the inbound one, and peers' tunnels to any of the workload's
 * addresses to that for tunnels, which is bound to one of each family.
 *
 * Attached at sk_lookup to the workload's network namespace. It runs when a packet finds no connected socket.
 * Packets to an address that is not local reach this point only through the route `local default dev lo`,
 * which only marked packets follow; so "arrived by lo, for an address that is not ours" means captured, and
 * the listener's accepted socket has the original destination as its own address.
 *
 * ingress_ifindex is lo for those alone: for traffic to an own address the kernel gives the device that owns
 * the address. Addresses on lo itself are the exception, hence the `own` map; and a packet from an address to
 * itself is never captured, which keeps the core from being fed its own connections should such an address
 * appear later.
 *
 * Tunnels arrive at port 15008 of an address that the mesh state gives to the workload, and of no other. They
 * go to the core's listener whatever the application listens on: a socket of its own there gets nothing as
 * long as somebody holds the core's.
 *
 * Fails closed: with no listener the packet is dropped, never handed to a wildcard listener of the
 * application. For the kernel there is no socket then, and it answers with RST. In IPv6 the client gets that
 * and is refused at once; in IPv4 there is no route for what comes from a foreign address, and it tries on.
 * (A workload that is to be open on failure is not marked then, see mark_connect.c; what comes in goes to the
 * application.)
 */
#include "lib/lookup.h"
#include "lib/pod.h"

BPF_TABLE("hash", struct ns_address, u8, own, 256);

/* Whether any of these bits is set of the workload. */
static __always_inline int has_setting(u32 wanted)
{
    u32 *bits = pod_settings();

    return bits && *bits & wanted;
}

/* NS_OWN_... of an address. */
static __always_inline u32 own_bits(struct ns_address *address)
{
    u8 *bits = own.lookup(address);

    return bits ? *bits : 0;
}

static __always_inline int captured(struct bpf_sk_lookup *ctx, struct ns_flow *flow)
{
    if (ctx->family == NS_AF_INET ? NS_LOOPBACK_NET(flow->destination.word[3]) : ns_near(&flow->destination))
        return 0;
    return !ns_same(&flow->source, &flow->destination) && !(own_bits(&flow->destination) & NS_OWN_PRESENT);
}

/* Whether it is a peer's tunnel. */
static __always_inline int tunnelled(struct ns_flow *flow)
{
    return flow->destination_port == NS_NET16(NS_HBONE_PORT) &&
           own_bits(&flow->destination) & NS_OWN_ATTRIBUTED;
}

/* Whether steer_ingress.c has let this very SYN pass just now; once. */
static __always_inline int revisit(struct ns_flow *flow)
{
    u64 *noted = revisited.lookup(flow);
    int fresh;

    if (!noted)
        return 0;
    fresh = bpf_ktime_get_ns() - *noted < NS_REVISIT_NS;
    revisited.delete(flow);
    return fresh;
}

int assign_lookup(struct bpf_sk_lookup *ctx)
{
    struct bpf_sock *listener;
    struct ns_flow flow = {};
    u32 role;

    if (ctx->protocol != NS_IPPROTO_TCP || !has_setting(read_flow(ctx, &flow)))
        return SK_PASS;
    if (ctx->ingress_ifindex == NS_LOOPBACK_IFINDEX && captured(ctx, &flow))
        role = NS_LISTENER_OUTBOUND;
    else if (tunnelled(&flow))
        role = ctx->family == NS_AF_INET ? NS_LISTENER_HBONE : NS_LISTENER_HBONE6;
    else if (ctx->ingress_ifindex != NS_LOOPBACK_IFINDEX && revisit(&flow))
        role = NS_LISTENER_INBOUND;
    else
        return SK_PASS;

    listener = pod_listener(role);
    if (!listener &&
        (role == NS_LISTENER_INBOUND ? has_setting(NS_SETTING_OPEN) : role != NS_LISTENER_OUTBOUND))
        return SK_PASS;
    return assign(ctx, listener);
}
