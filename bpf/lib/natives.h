/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * natives.h: connections of enrolled workloads that nothing of ours is on the way of, and what is counted of
 * them.
 *
 * Who lets a connection go notes it, and why: the connect programs by its socket (let_go), the programs at
 * the devices' egress and at lo by its ends (let_out, let_in). A note of a connection that never comes to be
 * is pushed out by newer ones. watch_dials.c finds the note once the connection is established. From then on
 * the connection is in `natives`, until it is closed and its bytes are added to `native_totals`.
 *
 * A SYN that the core has sent out is known again by its sequence number: a note of an older connection with
 * the same ends is not taken for its own.
 */
#include "lib/address.h"
#include "lib/counters.h"

#define NS_NOTES 16384
#define NS_NATIVES 262144
#define NS_NATIVE_TOTALS 65536

BPF_TABLE("lru_hash", u64, struct ns_let_go, let_go, NS_NOTES);
BPF_TABLE("lru_hash", struct ns_flow, struct ns_let, let_out, NS_NOTES);
BPF_TABLE("lru_hash", struct ns_flow, struct ns_let, let_in, NS_NOTES);
/* How many are open, by workload. */
BPF_TABLE("hash", struct ns_ring, u64, native_open, 4096);

/* How many native connections the workload has. */
static __always_inline u32 natives_open(const struct ns_ring *workload)
{
    struct ns_ring key = *workload;
    s64 *open = (s64 *)native_open.lookup(&key);

    return open && *open > 0 ? (u32)*open & ~NS_PARKED_NATIVE : 0;
}

/* By whom and why the socket that dials is let go. */
static __always_inline void note_socket(u64 cookie, u32 number, u32 reason)
{
    struct ns_let_go note = {number, reason};

    if (let_go.update(&cookie, &note))
        count(NS_COUNT_NATIVE_UNNOTED);
}

/* The SYN that the core sends out in the application's stead. */
static __always_inline void note_outbound(const struct ns_flow *flow, u32 sequence)
{
    struct ns_let note = {bpf_ktime_get_ns(), sequence, NS_NATIVE_DECIDED};
    struct ns_flow key = *flow;

    if (let_out.update(&key, &note))
        count(NS_COUNT_NATIVE_UNNOTED);
}

/* A SYN that goes to the application itself. */
static __always_inline void note_inbound(const struct ns_flow *flow, u32 reason)
{
    struct ns_let note = {bpf_ktime_get_ns(), 0, reason};
    struct ns_flow key = *flow;

    if (let_in.update(&key, &note))
        count(NS_COUNT_NATIVE_UNNOTED);
}

/* Whether the core has admitted a SYN of these ends just now: what follows it is for the application. */
static __always_inline int admitted(const struct ns_flow *flow)
{
    struct ns_flow key = *flow;
    struct ns_let *note = let_in.lookup(&key);

    return note && note->reason == NS_NATIVE_DECIDED && bpf_ktime_get_ns() - note->when < NS_LET_IN_NS;
}
