/* spin.c: see spin.h. */
#define _GNU_SOURCE
#include "loop/spin.h"

#include "base/clock.h"

enum {
    VAIN_MAX = 4,     /* spins in a row that found nothing */
    PAUSE_US = 20000, /* then it sleeps at once, for so long */
    STOLEN_US = 100,  /* one look that takes longer was interrupted by another thread */
};

/* 1 with *count events, or 0: none within spin_us, or somebody else needs the CPU. */
static int spin(struct worker *worker, struct epoll_event *events, int capacity, int *count)
{
    uint64_t begin = clock_us(CLOCK_MONOTONIC);
    uint64_t now = begin;
    int stolen = 0;
    if (begin < worker->spin_after_us)
        return 0;
    do {
        uint64_t last = now;
        *count = epoll_wait(worker->epoll_fd, events, capacity, 0);
        now = clock_us(CLOCK_MONOTONIC);
        stolen = now - last >= STOLEN_US;
    } while (*count == 0 && !stolen && now - begin < worker->options->spin_us);
    worker->spun_us += now - begin;
    worker->vain_spins = *count != 0 ? 0 : worker->vain_spins + 1;
    if (stolen || worker->vain_spins >= VAIN_MAX) {
        worker->vain_spins = 0;
        worker->spin_after_us = now + PAUSE_US;
    }
    return *count != 0;
}

int spin_wait(struct worker *worker, struct epoll_event *events, int capacity, int timeout_ms)
{
    int count;
    if (worker->options->spin_us > 0 && timeout_ms != 0 && spin(worker, events, capacity, &count))
        return count;
    return epoll_wait(worker->epoll_fd, events, capacity, timeout_ms);
}
