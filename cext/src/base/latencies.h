/*
 * latencies.h: how often something took how long, in a fixed space: eight buckets for each power of two, so
 * that a value is known to 12 %. Shorter than a microsecond counts as one, longer than 8 s as that.
 */
#ifndef NS_LATENCIES_H
#define NS_LATENCIES_H

#include <stdint.h>

enum {
    LATENCIES_LOW_BITS = 10,  /* the first bucket holds all below 2^10 ns */
    LATENCIES_HIGH_BITS = 33, /* the last one all from 2^33 ns */
    LATENCIES_SUB_BITS = 3,
    LATENCIES_BUCKETS = ((LATENCIES_HIGH_BITS - LATENCIES_LOW_BITS) << LATENCIES_SUB_BITS) + 2,
};

struct latencies {
    uint32_t counts[LATENCIES_BUCKETS];
};

void latencies_add(struct latencies *latencies, uint64_t ns);
/* Adds the counts of another. */
void latencies_merge(struct latencies *into, const struct latencies *from);
/* The value in nanoseconds that `percent` of all do not exceed: the end of its bucket. 0 if there are none.
 */
uint64_t latencies_percentile(const struct latencies *latencies, uint32_t percent);

#endif
