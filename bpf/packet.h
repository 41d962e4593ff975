/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * packet.h: the headers of packets that this machine made itself, for the programs of the node's namespace.
 *
 * steer_ingress.c reads what comes from outside, where nothing may hide behind fragments and extension
 * headers; here a packet that does not begin with an IP header and TCP's is simply not known.
 */
#ifndef NODESEAL_BPF_PACKET_H
#define NODESEAL_BPF_PACKET_H

#include "headers.h"

struct packet {
    struct ns_flow flow;
    u32 ipv6;
    u32 flags; /* TCP's */
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
        if (ip.protocol != NS_IPPROTO_TCP || ip.fragment & NS_NET16(0x3fff) || length < sizeof(ip))
            return 0;
        packet->flow.source = ns_mapped(ip.source);
        packet->flow.destination = ns_mapped(ip.destination);
    } else if (skb->protocol == NS_NET16(ETH_P_IPV6)) {
        struct ipv6_header ip;

        if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) ||
            ip.next != NS_IPPROTO_TCP)
            return 0;
        packet->ipv6 = 1;
        packet->flow.source = ip.source;
        packet->flow.destination = ip.destination;
        length = sizeof(ip);
    } else {
        return 0;
    }
    if (bpf_skb_load_bytes_relative(skb, length, &tcp, sizeof(tcp), BPF_HDR_START_NET))
        return 0;
    packet->flow.source_port = tcp.source;
    packet->flow.destination_port = tcp.destination;
    packet->flags = tcp.flags;
    return 1;
}

/* The state of the socket, not a listener, that a packet with these numbers would find here; 0: there is
 * none. */
static __always_inline u32 packet_socket(struct __sk_buff *skb, struct packet *packet)
{
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *found;
    u32 state;

    if (packet->ipv6) {
        __builtin_memcpy(tuple.ipv6.saddr, &packet->flow.source, sizeof(tuple.ipv6.saddr));
        __builtin_memcpy(tuple.ipv6.daddr, &packet->flow.destination, sizeof(tuple.ipv6.daddr));
        tuple.ipv6.sport = packet->flow.source_port;
        tuple.ipv6.dport = packet->flow.destination_port;
        found = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
    } else {
        tuple.ipv4.saddr = packet->flow.source.word[3];
        tuple.ipv4.daddr = packet->flow.destination.word[3];
        tuple.ipv4.sport = packet->flow.source_port;
        tuple.ipv4.dport = packet->flow.destination_port;
        found = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
    }
    if (!found)
        return 0;
    state = found->state;
    bpf_sk_release(found);
    return state == STATE_LISTEN ? 0 : state;
}

#endif
