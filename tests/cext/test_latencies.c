/* latencies.c: a percentile is never below the value that was added, and at most an eighth above it. */
#include "base/latencies.h"

#include "check.h"

TEST(no_latency_has_no_percentile)
{
    struct latencies none = {{0}};
    CHECK_EQUAL(latencies_percentile(&none, 50), 0);
    CHECK_EQUAL(latencies_percentile(&none, 100), 0);
}

TEST(every_value_is_known_to_an_eighth)
{
    for (uint64_t ns = 1 << LATENCIES_LOW_BITS; ns < 1ull << LATENCIES_HIGH_BITS; ns += ns / 61 + 1) {
        struct latencies one = {{0}};
        latencies_add(&one, ns);
        uint64_t told = latencies_percentile(&one, 50);
        CHECK_CASE(told > ns && told <= ns + ns / 8 + 1, "%llu told as %llu", (unsigned long long)ns,
                   (unsigned long long)told);
    }
}

TEST(what_is_out_of_bounds_counts_as_the_nearest_bound)
{
    struct latencies both = {{0}};
    latencies_add(&both, 0);
    latencies_add(&both, UINT64_MAX);
    CHECK_EQUAL(latencies_percentile(&both, 50), 1 << LATENCIES_LOW_BITS);
    CHECK(latencies_percentile(&both, 51) >= 1ull << LATENCIES_HIGH_BITS);
}

TEST(percentiles_count_from_the_lowest)
{
    struct latencies hundred = {{0}}, more = {{0}};
    for (int i = 0; i < 98; i++)
        latencies_add(&hundred, 2000);
    latencies_add(&more, 50000);
    latencies_add(&more, 9000000);
    latencies_merge(&hundred, &more);
    CHECK(latencies_percentile(&hundred, 50) < 2300);
    CHECK(latencies_percentile(&hundred, 98) < 2300);
    uint64_t p99 = latencies_percentile(&hundred, 99);
    CHECK(p99 > 50000 && p99 < 60000);
    CHECK(latencies_percentile(&hundred, 100) > 9000000);
}

CHECK_MAIN
