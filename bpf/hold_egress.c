// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * hold_egress.c: nothing of a captured connection leaves the workload's namespace.
 *
 * Attached at the egress of every device of the namespace but lo, by a TCX link, or by a tc filter where the
 * kernel has no TCX. All of a captured connection belongs on lo (captured.h); what comes by here was sent on
 * another way by a rule that rewrote its mark or its addresses, and it is plaintext. return_host.c does the
 * same for the node's own namespace.
 *
 * It stays while a workload leaves, as the rules that lead to the core do.
 */
#include "captured.h"
#include "headers.h"

BPF_TABLE("percpu_array", u32, u64, counters, NS_COUNT_COUNT);

int hold_egress(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);
    u32 key = NS_COUNT_EGRESS_HELD;
    u64 *held;

    if (!captured_mark(skb->mark) && !(sk && captured_mark(sk->mark)))
        return TC_ACT_UNSPEC;
    held = counters.lookup(&key);
    if (held)
        *held += 1;
    return TC_ACT_SHOT;
}
