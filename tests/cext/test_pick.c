/* pick.c: which endpoint is next. */
#include "balance/pick.h"

#include "check.h"

enum { COUNT = 3, NOW_MS = 1000 };

static const struct endpoint AWAY = {.away_ms = NOW_MS + 1, .misses = 1};
static const struct endpoint AWAY_LONGER = {.away_ms = NOW_MS + 2, .misses = 1};
static const struct endpoint DUE = {.away_ms = NOW_MS, .misses = 1};
static const struct endpoint DELAYED = {.retry_ms = NOW_MS + 500, .failures = 1};

TEST(without_memory_endpoints_take_turns)
{
    const struct endpoint *known[COUNT] = {NULL, NULL, NULL};
    for (uint32_t first = 0; first < 2 * COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, 0, first, NOW_MS), first % COUNT);
}

TEST(one_that_is_away_is_passed_over)
{
    const struct endpoint *known[COUNT] = {&AWAY, NULL, &AWAY};
    for (uint32_t first = 0; first < COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, 0, first, NOW_MS), 1);
}

TEST(one_that_was_away_has_its_turn)
{
    const struct endpoint *known[COUNT] = {&DUE, &DELAYED, NULL};
    for (uint32_t first = 0; first < COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, 0, first, NOW_MS), first);
}

TEST(one_that_was_tried_is_passed_over)
{
    const struct endpoint *known[COUNT] = {NULL, NULL, &AWAY};
    CHECK_EQUAL(pick(known, COUNT, 1, 0, NOW_MS), 1);
    CHECK_EQUAL(pick(known, COUNT, 2, 1, NOW_MS), 0);
    CHECK_EQUAL(pick(known, COUNT, 3, 0, NOW_MS), 2); /* better than none */
}

TEST(when_all_are_away_it_is_the_one_that_is_back_soonest)
{
    const struct endpoint *known[COUNT] = {&AWAY_LONGER, &AWAY, &AWAY_LONGER};
    for (uint32_t first = 0; first < 2 * COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, 0, first, NOW_MS), 1);
    CHECK_EQUAL(pick(known, COUNT, 2, 2, NOW_MS), 2);
}

TEST(the_last_of_the_most_is_found)
{
    const struct endpoint *known[NS_ENDPOINTS_MAX] = {NULL};
    CHECK_EQUAL(pick(known, NS_ENDPOINTS_MAX, 0x7fffffff, 5, NOW_MS), 31);
}

CHECK_MAIN
