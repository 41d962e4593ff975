/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * let_out.h: SYNs that the core sends out in the stead of an application, whose connection is to be native.
 */
#include "lib/natives.h"
#include "lib/packet.h"

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
