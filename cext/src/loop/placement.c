/* placement.c: see placement.h. */
#define _GNU_SOURCE
#include "loop/placement.h"

#include "base/clock.h"

enum {
    LOAD_EVERY_MS = 20,
    LOAD_VALID_MS = 200, /* a worker that has not told for so long sleeps */
    LOAD_FULL = 700,     /* of 1000: from here on new connections are worth handing over, */
    LOAD_LESS = 200,     /* to one that has so much less, */
    HELD_MORE = 64,      /* or in any case to one that has so many fewer */
};

/* Time that the worker was ready to run but had no CPU does not count: if the CPUs are the shortage, another
 * worker has no more of them. */
void placement_show(struct placement *place, uint64_t held, uint64_t now_ms, uint64_t *idle_us)
{
    __atomic_store_n(&place->held, held, __ATOMIC_RELAXED);
    uint64_t elapsed_ms = now_ms - place->measured_ms;
    if (elapsed_ms < LOAD_EVERY_MS)
        return;
    uint64_t cpu_us = clock_us(CLOCK_THREAD_CPUTIME_ID);
    uint64_t used_us = cpu_us - place->measured_cpu_us;
    uint64_t load = (used_us > *idle_us ? used_us - *idle_us : 0) / elapsed_ms;
    place->measured_ms = now_ms;
    place->measured_cpu_us = cpu_us;
    *idle_us = 0;
    __atomic_store_n(&place->load, now_ms << 10 | (load < 1000 ? load : 1000), __ATOMIC_RELAXED);
}

static uint64_t load_of(const struct placement *place, uint64_t now_ms)
{
    uint64_t shown = __atomic_load_n(&place->load, __ATOMIC_RELAXED);
    return (shown >> 10) + LOAD_VALID_MS < now_ms ? 0 : shown & 1023;
}

static uint64_t held_at(const struct placement *place)
{
    return __atomic_load_n(&place->held, __ATOMIC_RELAXED);
}

uint32_t placement_choose(const struct placement *places, uint32_t count, uint32_t home, uint64_t held,
                          uint64_t now_ms)
{
    uint32_t least = home, fewest = home;
    uint64_t load = load_of(&places[home], now_ms);
    uint64_t least_load = load;
    uint64_t fewest_held = held;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t other_load = load_of(&places[i], now_ms);
        uint64_t other_held = held_at(&places[i]);
        if (i == home)
            continue;
        if (other_load < least_load || (other_load == least_load && other_held < held_at(&places[least]))) {
            least = i;
            least_load = other_load;
        }
        if (other_held < fewest_held) {
            fewest = i;
            fewest_held = other_held;
        }
    }
    if (load >= LOAD_FULL && load >= least_load + LOAD_LESS)
        return least;
    return held >= fewest_held + HELD_MORE ? fewest : home;
}
