/*
 * spin.h: waiting for events, at the price of CPU time if that is wanted (core_options.spin_us).
 *
 * To sleep and to be woken costs more than the work for a small request. A worker that spins looks for events
 * again and again for up to spin_us before it sleeps. That pays only while events come at short intervals and
 * the CPU has nothing else to do: after some spins in vain, or when another thread took the CPU in the middle
 * of one, it goes back to sleeping at once for a while.
 */
#ifndef NS_SPIN_H
#define NS_SPIN_H

#include <stdint.h>
#include <sys/epoll.h>

struct spin {
    /* CPU time spent on it; whoever reads it sets it back. */
    uint64_t spent_us;
    /* No spinning before. */
    uint64_t after_us;
    /* Spins in a row that found nothing. */
    uint32_t vain;
};

/* Looks for events for up to `most_us`. How many; 0: none came, or somebody else needs the CPU. */
int spin_look(struct spin *spin, uint32_t most_us, int epoll_fd, struct epoll_event *events, int capacity);

/* As epoll_wait, with `most_us` of looking before it sleeps; 0: none. */
static inline int spin_wait(struct spin *spin, uint32_t most_us, int epoll_fd, struct epoll_event *events,
                            int capacity, int timeout_ms)
{
    int count = 0;
    if (most_us > 0 && timeout_ms != 0)
        count = spin_look(spin, most_us, epoll_fd, events, capacity);
    return count != 0 ? count : epoll_wait(epoll_fd, events, capacity, timeout_ms);
}

#endif
