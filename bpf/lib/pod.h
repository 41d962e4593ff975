/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * pod.h: the maps of a workload with a network namespace of its own, for the programs in that namespace.
 */
#include "nodeseal.h"

BPF_TABLE("array", u32, u32, settings, 1);
BPF_TABLE("sockmap", u32, u64, listeners, NS_POD_LISTENERS);
BPF_TABLE("lru_hash", struct ns_flow, u64, revisited, 1024);

/* NS_FAMILY_... and NS_SETTING_... of the workload; NULL: there are none. */
static __always_inline u32 *pod_settings(void)
{
    u32 key = 0;

    return settings.lookup(&key);
}

/* With a reference; NULL: nobody holds it. */
static __always_inline struct bpf_sock *pod_listener(u32 role)
{
    return (struct bpf_sock *)listeners.lookup(&role);
}
