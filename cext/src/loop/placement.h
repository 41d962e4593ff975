/*
 * placement.h: which worker gets a new connection.
 *
 * A workload's home worker, which accepts for it, keeps what it accepts: one tunnel serves a peer and one
 * turn many connections. It hands over only what it cannot serve well itself: when it uses up nearly a whole
 * CPU and another worker does not, or when it holds many more connections than another. A connection that
 * lives stays where it is.
 */
#ifndef NS_PLACEMENT_H
#define NS_PLACEMENT_H

#include <stdint.h>

/* What a worker tells the others of itself. Each has a cache line of its own, because it is written often. */
struct placement {
    /* Atomic: CPU time used, in thousandths, and when that was measured. */
    uint64_t load;
    /* Atomic: live flows and tunnels. */
    uint64_t held;
    /* The worker's own: when it last measured, and the CPU time of its thread then. */
    uint64_t measured_ms;
    uint64_t measured_cpu_us;
} __attribute__((aligned(64)));

/* Tells the other workers how busy this one is, and that it holds so many flows and tunnels; at the end of
 * each turn. `*idle_us` is CPU time that it has spent on waiting since the last measurement; 0 after one. */
void placement_show(struct placement *place, uint64_t held, uint64_t now_ms, uint64_t *idle_us);
/* Who is to have a connection that `home`, which holds `held`, has accepted; often `home` itself. Both are
 * numbers of places, of which there are `count`. */
uint32_t placement_choose(const struct placement *places, uint32_t count, uint32_t home, uint64_t held,
                          uint64_t now_ms);

#endif
