/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * let_out.h: SYNs that the core sends out in the stead of an application, whose connection is to be native.
 *
 * In a namespace of its own such a SYN carries NS_MARK_NATIVE, and is noted where it leaves.
 *
 * In the node's namespace it is to be to the node's rules what the application's own would have been, so it
 * carries no mark; and they may have translated either of its ends by then, which the application's socket
 * knows nothing of. So the core gives notice first: a packet with the ends and the sequence number of the
 * SYN, marked NS_MARK_NATIVE, and a RST, so that it is not taken for the SYN. A rule for the mark leads it to
 * lo, and our own keep it from NAT. It goes no further than the egress of lo, where it is noted in the very
 * call that sends it: before the SYN is sent. Rules may take its mark; that of the raw socket by which both
 * are sent is out of their reach.
 */
#include "lib/natives.h"
#include "lib/packet.h"
#include "lib/socket.h"

/* Notes the packet if it is one, and takes its mark off; 0: it is none. */
static __always_inline int let_out_syn(struct __sk_buff *skb)
{
    struct packet packet = {};

    if (skb->mark != NS_MARK_NATIVE || !packet_read(skb, &packet) ||
        (packet.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
        return 0;
    note_outbound(&packet.flow, packet.sequence);
    skb->mark = 0;
    return 1;
}

/* Whether the packet gives such a notice, which is `packet` then. `sk`: its sender, or 0. */
static __always_inline int let_out_notice(struct __sk_buff *skb, struct bpf_sock *sk, struct packet *packet)
{
    return sk && sk->mark == NS_MARK_NATIVE && sk->type == NS_SOCK_RAW && packet_read(skb, packet) &&
           packet->flags & TCP_RST;
}
