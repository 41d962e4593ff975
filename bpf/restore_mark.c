// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * restore_mark.c: gives what goes to lo in the node's namespace the mark of its socket again.
 *
 * Attached by a TCX link at the egress of lo. note_loopback.c tells by the mark whose connection a packet
 * opens. A rule that changes marks without routing anew (mangle POSTROUTING, for traffic classes) would make
 * it nobody's: the kernel would give it to whatever listens at that port of the node, or the core's
 * connection to an application back to the core.
 *
 * Here as well end the notices of SYNs that the core sends out for connections that are to be native
 * (lib/let_out.h).
 */
#include "lib/captured.h"
#include "lib/let_out.h"

int restore_mark(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);
    struct packet packet = {};

    if (let_out_notice(skb, sk, &packet)) {
        note_outbound(&packet.flow, packet.sequence);
        return TC_ACT_SHOT;
    }
    if (!sk || sk->mark == skb->mark || !captured_mark(sk->mark))
        return TC_ACT_UNSPEC;
    skb->mark = sk->mark;
    count(NS_COUNT_LOOP_MARK_RESTORED);
    return TC_ACT_UNSPEC;
}
