/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * ring.h: the ring of a workload, in which its SYNs are parked (struct ns_parked).
 */
#include "lib/headers.h"

#define PAGE_SIZE 4096

BPF_RINGBUF_OUTPUT(parked, NS_RING_BYTES / PAGE_SIZE);
/* The rings of all workloads whose SYNs are parked. */
BPF_HASH_OF_MAPS(rings, struct ns_ring, "parked", 4096);

/* Whether more than half of the ring is unread: what comes from outside is not to take the rest. */
static __always_inline int ring_crowded(const struct ns_ring *workload)
{
    struct ns_ring key = *workload;
    void *ring = rings.lookup(&key); /* bcc has no such method of `parked` itself */

    return ring && bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) > NS_RING_BYTES / 2;
}

/*
 * Parks a SYN, and has the packet dropped: nobody answers it before the core does. `record`: reserved for it,
 * with the size of one; `length`: of its headers; `value`, `mark`: see struct ns_parked. What does not fit is
 * dropped all the same, and the sender's kernel sends it again.
 */
static __always_inline int park_as(struct __sk_buff *skb, struct ns_parked *record, u32 kind, u32 length,
                                   u32 value, u32 mark)
{
    u64 bytes = length;

    if (!record)
        return dropped(NS_COUNT_PARK_FULL);
    /* A whole register, and no comparison that the compiler has made of two: the verifier is to follow. */
    asm volatile("" : "+r"(bytes));
    if (bytes < sizeof(struct ipv4_header))
        goto unreadable;
    asm volatile("" : "+r"(bytes));
    if (bytes > sizeof(record->packet))
        goto unreadable;
    record->kind = kind;
    record->length = bytes;
    record->value = value;
    record->mark = mark;
    if (bpf_skb_load_bytes_relative(skb, 0, record->packet, bytes, BPF_HDR_START_NET))
        goto unreadable;
    bpf_ringbuf_submit(record, 0);
    return TC_ACT_SHOT;
unreadable:
    bpf_ringbuf_discard(record, 0);
    return dropped(NS_COUNT_PARK_UNREADABLE);
}

/* The same in the ring of the workload whose namespace it is. */
static __always_inline int park(struct __sk_buff *skb, u32 kind, u32 length, u32 value, u32 mark)
{
    return park_as(skb, parked.ringbuf_reserve(sizeof(struct ns_parked)), kind, length, value, mark);
}
