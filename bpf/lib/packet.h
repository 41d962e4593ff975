/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * packet.h: the headers of packets that this machine made itself.
 *
 * steer_ingress.c reads what comes from outside, where nothing may hide behind fragments and extension
 * headers; here a packet that does not begin with an IP header and TCP's is simply not known.
 */
#include "lib/headers.h"

struct packet {
    struct ns_flow flow;
    u32 ipv6;
    /* TCP's. */
    u32 flags;
    u32 sequence;
    /* Of the headers, IP's and TCP's. */
    u32 length;
    /* It was not read because it is not TCP, or begins with an extension header of IPv6. */
    u32 other;
};

/* 1, or 0 when it is not TCP, or not at once. */
static __always_inline int packet_read(struct __sk_buff *skb, struct packet *packet)
{
    struct tcp_header tcp;
    u32 length;

    if (skb->protocol == NS_NET16(ETH_P_IP)) {
        struct ipv4_header ip;

        if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
            return 0;
        length = (ip.version_length & 0x0f) * 4;
        packet->other = ip.protocol != NS_IPPROTO_TCP;
        if (packet->other || ip.fragment & NS_NET16(0x3fff) || length < sizeof(ip))
            return 0;
        packet->flow.source = ns_mapped(ip.source);
        packet->flow.destination = ns_mapped(ip.destination);
    } else if (skb->protocol == NS_NET16(ETH_P_IPV6)) {
        struct ipv6_header ip;

        if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
            return 0;
        packet->other = ip.next != NS_IPPROTO_TCP;
        if (packet->other)
            return 0;
        packet->ipv6 = 1;
        packet->flow.source = ip.source;
        packet->flow.destination = ip.destination;
        length = sizeof(ip);
    } else {
        packet->other = 1;
        return 0;
    }
    if (bpf_skb_load_bytes_relative(skb, length, &tcp, sizeof(tcp), BPF_HDR_START_NET))
        return 0;
    packet->flow.source_port = tcp.source;
    packet->flow.destination_port = tcp.destination;
    packet->flags = tcp.flags;
    packet->sequence = NS_NET32(tcp.sequence);
    packet->length = length + (tcp.offset >> 4) * 4;
    return 1;
}
