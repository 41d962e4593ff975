/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * pod.h: the maps of a workload with a network namespace of its own, for the programs in that namespace.
 * Processes of the node have some of them in common.
 */
#include "lib/natives.h"

BPF_TABLE("array", u32, u32, settings, 1);
BPF_TABLE("sockmap", u32, u64, listeners, NS_POD_LISTENERS);
BPF_TABLE("lru_hash", struct ns_flow, u64, revisited, 1024);
/* The workload itself, as a key; of processes of the node, without a number. */
BPF_TABLE("array", u32, struct ns_ring, self, 1);

/* NS_FAMILY_... and NS_SETTING_... of the workload; NULL: there are none. */
static __always_inline u32 *pod_settings(void)
{
    u32 key = 0;

    return settings.lookup(&key);
}

/* What a SYN of the workload, or to it, tells the core in `value` of struct ns_parked. `bits`: its settings;
 * `number`: see struct ns_ring. */
static __always_inline u32 pod_natives(u32 bits, u32 number)
{
    u32 key = 0, open = 0;
    struct ns_ring *own = self.lookup(&key), workload;

    if (own) {
        workload = *own;
        workload.number = number;
        open = natives_open(&workload);
    }
    return open | (bits & NS_SETTING_NATIVE ? NS_PARKED_NATIVE : 0);
}

/* With a reference; NULL: nobody holds it. */
static __always_inline struct bpf_sock *pod_listener(u32 role)
{
    return (struct bpf_sock *)listeners.lookup(&role);
}
