/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * ring.h: the ring of a workload, in which its SYNs are parked (struct ns_parked).
 */
#include "lib/headers.h"

#define PAGE_SIZE 4096

BPF_RINGBUF_OUTPUT(parked, NS_RING_BYTES / PAGE_SIZE);
/* The rings of all workloads whose SYNs are parked. */
BPF_HASH_OF_MAPS(rings, struct ns_ring, "parked", 4096);

/*
 * Parks a SYN, and has the packet dropped: nobody answers it before the core does. `length`: of its headers.
 * What does not fit is dropped all the same, and the sender's kernel sends it again.
 */
static __always_inline int park(struct __sk_buff *skb, u32 kind, u32 length, u32 mark)
{
    struct ns_parked *record;

    if (length < sizeof(struct ipv4_header) || length > sizeof(record->packet))
        return dropped(NS_COUNT_PARK_UNREADABLE);
    record = parked.ringbuf_reserve(sizeof(*record));
    if (!record)
        return dropped(NS_COUNT_PARK_FULL);
    record->kind = kind;
    record->length = length;
    record->value = 0;
    record->mark = mark;
    if (bpf_skb_load_bytes_relative(skb, 0, record->packet, length, BPF_HDR_START_NET)) {
        parked.ringbuf_discard(record, 0);
        return dropped(NS_COUNT_PARK_UNREADABLE);
    }
    parked.ringbuf_submit(record, 0);
    return TC_ACT_SHOT;
}
