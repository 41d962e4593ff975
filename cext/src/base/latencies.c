/* latencies.c: see latencies.h. */
#include "base/latencies.h"

static uint32_t bucket_of(uint64_t ns)
{
    if (ns >> LATENCIES_LOW_BITS == 0)
        return 0;
    if (ns >> LATENCIES_HIGH_BITS != 0)
        return LATENCIES_BUCKETS - 1;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(ns);
    uint32_t part = (uint32_t)(ns >> (octave - LATENCIES_SUB_BITS)) & ((1u << LATENCIES_SUB_BITS) - 1);
    return 1 + ((octave - LATENCIES_LOW_BITS) << LATENCIES_SUB_BITS) + part;
}

/* The first value that is too long for the bucket. */
static uint64_t bucket_end(uint32_t bucket)
{
    uint32_t octave = bucket >> LATENCIES_SUB_BITS;
    uint64_t part = bucket & ((1u << LATENCIES_SUB_BITS) - 1);
    return ((1u << LATENCIES_SUB_BITS) + part) << (LATENCIES_LOW_BITS + octave - LATENCIES_SUB_BITS);
}

void latencies_add(struct latencies *latencies, uint64_t ns)
{
    latencies->counts[bucket_of(ns)]++;
}

void latencies_merge(struct latencies *into, const struct latencies *from)
{
    for (uint32_t i = 0; i < LATENCIES_BUCKETS; i++)
        into->counts[i] += from->counts[i];
}

uint64_t latencies_percentile(const struct latencies *latencies, uint32_t percent)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < LATENCIES_BUCKETS; i++)
        total += latencies->counts[i];
    uint64_t wanted = (total * percent + 99) / 100;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < LATENCIES_BUCKETS && total > 0; i++) {
        seen += latencies->counts[i];
        if (seen >= wanted && seen > 0)
            return bucket_end(i);
    }
    return 0;
}
