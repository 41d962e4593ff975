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
 * It stays while a workload leaves, as the rules that lead to the core do.
 */
#include "lib/captured.h"
#include "lib/let_out.h"

int hold_egress(struct __sk_buff *skb)
{
    if (captured_packet(skb, sender(skb)))
        return dropped(NS_COUNT_EGRESS_HELD);
    let_out_syn(skb);
    return TC_ACT_UNSPEC;
}
