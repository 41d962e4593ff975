// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * restore_mark.c: gives what goes to lo in the node's namespace the mark of its socket again.
 *
 * Attached by a TCX link at the egress of lo. note_loopback.c tells by the mark whose connection a packet
 * opens. A rule that changes marks without routing anew (mangle POSTROUTING, for traffic classes) would make
 * it nobody's: the kernel would give it to whatever listens at that port of the node, or the core's
 * connection to an application back to the core.
 */
#include "lib/captured.h"
#include "lib/headers.h"

int restore_mark(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);

    if (!sk || sk->mark == skb->mark || !captured_mark(sk->mark))
        return TC_ACT_UNSPEC;
    skb->mark = sk->mark;
    count(NS_COUNT_LOOP_MARK_RESTORED);
    return TC_ACT_UNSPEC;
}
