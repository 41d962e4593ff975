/* balance.c: see balance.h. */
#define _GNU_SOURCE
#include "loop/balance.h"

#include "base/clock.h"

enum {
    LOAD_EVERY_MS = 20,
    LOAD_VALID_MS = 200, /* a worker that has not told for so long sleeps */
    LOAD_FULL = 700,     /* of 1000: from here on new connections are worth handing over, */
    LOAD_LESS = 200,     /* to one that has so much less, */
    HELD_MORE = 64,      /* or in any case to one that has so many fewer */
};

/* Tells the others how busy this worker is. Time that it was ready to run but had no CPU does not count: if
 * the CPUs are the shortage, another worker has no more of them. */
void balance_show(struct worker *worker)
{
    if (worker->all_count == 1)
        return; /* nobody looks */
    __atomic_store_n(&worker->shown_held, worker->live_flows + worker->live_tunnels, __ATOMIC_RELAXED);
    uint64_t elapsed_ms = worker->now_ms - worker->load_ms;
    if (elapsed_ms < LOAD_EVERY_MS)
        return;
    uint64_t cpu_us = clock_us(CLOCK_THREAD_CPUTIME_ID);
    uint64_t used_us = cpu_us - worker->load_cpu_us;
    uint64_t load = (used_us > worker->spun_us ? used_us - worker->spun_us : 0) / elapsed_ms;
    worker->load_ms = worker->now_ms;
    worker->load_cpu_us = cpu_us;
    worker->spun_us = 0;
    __atomic_store_n(&worker->shown_load, worker->now_ms << 10 | (load < 1000 ? load : 1000),
                     __ATOMIC_RELAXED);
}

static uint64_t load_of(const struct worker *worker, uint64_t now_ms)
{
    uint64_t shown = __atomic_load_n(&worker->shown_load, __ATOMIC_RELAXED);
    return (shown >> 10) + LOAD_VALID_MS < now_ms ? 0 : shown & 1023;
}

static uint64_t held_by(const struct worker *worker)
{
    return __atomic_load_n(&worker->shown_held, __ATOMIC_RELAXED);
}

struct worker *balance_choose(struct worker *home)
{
    struct worker *least = home, *fewest = home;
    uint64_t load = load_of(home, home->now_ms);
    uint64_t least_load = load;
    uint64_t held = home->live_flows + home->live_tunnels;
    uint64_t fewest_held = held;
    for (uint32_t i = 0; i < home->all_count; i++) {
        struct worker *other = &home->all[i];
        uint64_t other_load = load_of(other, home->now_ms);
        uint64_t other_held = held_by(other);
        if (other == home)
            continue;
        if (other_load < least_load || (other_load == least_load && other_held < held_by(least))) {
            least = other;
            least_load = other_load;
        }
        if (other_held < fewest_held) {
            fewest = other;
            fewest_held = other_held;
        }
    }
    if (load >= LOAD_FULL && load >= least_load + LOAD_LESS)
        return least;
    return held >= fewest_held + HELD_MORE ? fewest : home;
}
