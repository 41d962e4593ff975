/* pick.c: see pick.h. */
#include "balance/pick.h"

#include <stddef.h>

static uint64_t away_until(const struct endpoint *endpoint)
{
    return endpoint == NULL ? 0 : endpoint->away_ms;
}

uint32_t pick(const struct endpoint *const known[], uint32_t count, uint32_t tried, uint32_t first,
              uint64_t now_ms)
{
    uint32_t soonest = count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (first + i) % count;
        if (tried & (1u << at))
            continue;
        if (away_until(known[at]) <= now_ms)
            return at;
        if (soonest == count || away_until(known[at]) < away_until(known[soonest]))
            soonest = at;
    }
    return soonest;
}
