// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * hold_egress.c: nothing of a captured connection leaves the workload's namespace.
 *
 * Attached at the egress of every device of the namespace but lo, by a TCX link, or by a tc filter where the
 * kernel has no TCX. All of a captured connection belongs on lo (lib/captured.h); what comes by here was sent
 * on another way by a rule that rewrote its mark or its addresses, and it is plaintext. return_host.c does
 * the same for the node's own namespace.
 *
 * The SYN that the core sends out for a connection that is to be native (lib/natives.h) passes, and is noted.
 *
 * A reset that lies is dropped, as in park_loopback.c. The SYN of a native connection from a pod of the same
 * node is answered on the core's CPU, and with it the handshake ends there, while the client's first bytes
 * arrive on the client's. So a RST for a socket that is established, and has yet to receive its first bytes,
 * is none of its doing. The client's kernel sends them again.
 *
 * It stays while a workload leaves, as the rules that lead to the core do.
 */
#include "lib/captured.h"
#include "lib/let_out.h"

static __always_inline int is_lying_reset(struct __sk_buff *skb)
{
    struct packet packet = {};

    return packet_read(skb, &packet) && packet.flags & TCP_RST &&
           untouched_sender(skb, &packet.flow, packet.ipv6);
}

int hold_egress(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);

    if (captured_packet(skb, sk))
        return dropped(NS_COUNT_EGRESS_HELD);
    if (!let_out_syn(skb) && nobody_sends(sk) && is_lying_reset(skb))
        return dropped(NS_COUNT_PARK_RESET_HELD);
    return TC_ACT_UNSPEC;
}
