// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * return_host.c: turns round what the node would send to a far client although it is the core that waits for
 * it.
 *
 * Attached by TCX links at the egress of every device of the node's namespace but lo. The core's socket to
 * the application is bound to the client's address, so the application's answers are routed to the real
 * client. In a pod tcp_fwmark_accept and fwmark_reflect keep them on lo; in the node's namespace these
 * settings would make the connections of all its processes follow the marks of whoever else marks packets
 * there. Here a packet from a place where a workload listens, and any RST, is looked up as if it came in: if
 * a connected socket of this namespace owns the destination, the packet is put onto lo, marked, and the rule
 * for the mark makes it local. Nothing is kept of it.
 *
 * Where a device has no Ethernet headers (tun, WireGuard), one is put before the packet, as lo expects it.
 *
 * Before that it drops what belongs to a captured connection, as hold_egress.c does in a pod. The
 * application's answers have no mark by which to know them: where they come from and go to is asked of their
 * socket, and one whose packet says something else (a rule of the node translated it) is dropped.
 *
 * The SYN that the core sends out for a connection that is to be native passes like any other; a notice of
 * one (lib/let_out.h) that a rule has led here is dropped.
 *
 * Fails closed: an answer that cannot be turned round is dropped.
 */
#include "lib/captured.h"
#include "lib/host.h"
#include "lib/let_out.h"
#include "lib/packet.h"

#define ETH_HLEN 14
#define ETH_TYPE 12 /* offset */

/* Whether the packet has an Ethernet header: devices such as tun and WireGuard have none. */
static __always_inline int framed(struct __sk_buff *skb)
{
    u32 begin[5] = {}, network[5] = {};

    if (bpf_skb_load_bytes(skb, 0, begin, sizeof(begin)) ||
        bpf_skb_load_bytes_relative(skb, 0, network, sizeof(network), BPF_HDR_START_NET))
        return 1;
    return begin[0] != network[0] || begin[1] != network[1] || begin[2] != network[2] ||
           begin[3] != network[3] || begin[4] != network[4];
}

/* Takes the socket's two ends for the packet's; 0: it is not TCP's, or is not connected. */
static __always_inline int ends_of(struct bpf_sock *sk, struct packet *packet)
{
    if (sk->protocol != NS_IPPROTO_TCP || sk->state == STATE_LISTEN || sk->state == STATE_CLOSE)
        return 0;
    if (sk->family == NS_AF_INET) {
        packet->flow.source = ns_mapped(sk->src_ip4);
        packet->flow.destination = ns_mapped(sk->dst_ip4);
    } else {
        packet->flow.source.word[0] = sk->src_ip6[0];
        packet->flow.source.word[1] = sk->src_ip6[1];
        packet->flow.source.word[2] = sk->src_ip6[2];
        packet->flow.source.word[3] = sk->src_ip6[3];
        packet->flow.destination.word[0] = sk->dst_ip6[0];
        packet->flow.destination.word[1] = sk->dst_ip6[1];
        packet->flow.destination.word[2] = sk->dst_ip6[2];
        packet->flow.destination.word[3] = sk->dst_ip6[3];
    }
    packet->flow.source_port = NS_NET16(sk->src_port);
    packet->flow.destination_port = sk->dst_port;
    packet->ipv6 = !ns_is_mapped(&packet->flow.source);
    return 1;
}

int return_host(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);
    struct packet packet = {};
    struct ns_place place = {};
    struct ns_flow written = {};
    char loopback[6] = {}; /* lo takes a frame for its own by its address, which is zero */
    u16 protocol = (u16)skb->protocol;
    int read;

    if (captured_packet(skb, sk))
        return dropped(NS_COUNT_EGRESS_HELD);
    if (let_out_notice(skb, sk, &packet))
        return dropped(NS_COUNT_EGRESS_HELD);
    read = packet_read(skb, &packet);
    written = packet.flow;
    if (!(sk && ends_of(sk, &packet)) && !read)
        return TC_ACT_UNSPEC;
    place.address = packet.flow.source;
    place.port = packet.flow.source_port;
    if (!(packet.flags & TCP_RST) && !places.lookup(&place)) {
        place.address = ns_any_like(&packet.flow.source);
        if (!places.lookup(&place))
            return TC_ACT_UNSPEC;
    }
    if (!receiver_state(skb, &packet.flow, packet.ipv6))
        return TC_ACT_UNSPEC;
    if (!read || !ns_same_flow(&written, &packet.flow))
        return dropped(NS_COUNT_EGRESS_HELD);
    /* Turned round before, and routed out again: a rule at lo has taken the mark off. */
    if (skb->ingress_ifindex == NS_LOOPBACK_IFINDEX)
        return dropped(NS_COUNT_RETURN_FAILED);
    if (framed(skb) ? bpf_skb_store_bytes(skb, 0, loopback, sizeof(loopback), 0)
                    : bpf_skb_change_head(skb, ETH_HLEN, 0) ||
                          bpf_skb_store_bytes(skb, ETH_TYPE, &protocol, sizeof(protocol), 0))
        return dropped(NS_COUNT_RETURN_FAILED);
    skb->mark = NS_MARK_TO_APP;
    return bpf_redirect(NS_LOOPBACK_IFINDEX, BPF_F_INGRESS);
}
