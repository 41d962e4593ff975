/* pick.c: see pick.h. */
#include "balance/pick.h"

#include <stddef.h>

uint32_t pick(const struct endpoint *const known[], uint32_t count, uint32_t first, uint64_t since_ms)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (first + i) % count;
        if (known[at] == NULL || known[at]->refused_ms == 0 || known[at]->refused_ms < since_ms)
            return at;
    }
    return first % count;
}
