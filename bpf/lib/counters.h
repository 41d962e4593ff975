/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * counters.h: what the programs of a run directory count, NS_COUNT_...: all of them in one map.
 */
#include "nodeseal.h"

BPF_TABLE("percpu_array", u32, u64, counters, NS_COUNT_COUNT);

static __always_inline void count(u32 key)
{
    u64 *value = counters.lookup(&key);

    if (value)
        *value += 1;
}
