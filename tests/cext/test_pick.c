/* pick.c: which endpoint is next. */
#include "balance/pick.h"

#include "check.h"

enum { COUNT = 3, ACCEPTED_MS = 1000 };

static const struct endpoint REFUSED_BEFORE = {.refused_ms = ACCEPTED_MS - 1};
static const struct endpoint REFUSED_SINCE = {.refused_ms = ACCEPTED_MS};
static const struct endpoint DELAYED = {.retry_ms = ACCEPTED_MS + 500, .failures = 1};

TEST(without_memory_endpoints_take_turns)
{
    const struct endpoint *known[COUNT] = {NULL, NULL, NULL};
    for (uint32_t first = 0; first < 2 * COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, first, ACCEPTED_MS), first % COUNT);
}

TEST(one_that_has_refused_meanwhile_is_passed_over)
{
    const struct endpoint *known[COUNT] = {&REFUSED_SINCE, NULL, &REFUSED_SINCE};
    for (uint32_t first = 0; first < COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, first, ACCEPTED_MS), 1);
}

TEST(what_was_before_the_connection_came_does_not_count)
{
    const struct endpoint *known[COUNT] = {&REFUSED_BEFORE, &DELAYED, NULL};
    for (uint32_t first = 0; first < COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, first, ACCEPTED_MS), first);
}

TEST(when_all_have_refused_they_take_turns)
{
    const struct endpoint *known[COUNT] = {&REFUSED_SINCE, &REFUSED_SINCE, &REFUSED_SINCE};
    for (uint32_t first = 0; first < 2 * COUNT; first++)
        CHECK_EQUAL(pick(known, COUNT, first, ACCEPTED_MS), first % COUNT);
}

CHECK_MAIN
