/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * host.h: the maps of the workloads in the node's own network namespace.
 */
#include "nodeseal.h"

BPF_TABLE("hash", struct ns_place, struct ns_claim, places, 16384);
BPF_TABLE("sockmap", u32, u64, host_listeners, NS_HOST_NUMBERS *NS_LISTENER_COUNT);
BPF_TABLE("lru_hash", struct ns_flow, struct ns_looped, looped, 1024);

/* The listener of the workload with this number, with a reference; NULL: nobody holds it. */
static __always_inline struct bpf_sock *host_listener(u32 number, u32 role)
{
    u32 key = NS_HOST_LISTENER(number) + role;

    return (struct bpf_sock *)host_listeners.lookup(&key);
}
