/* spin.c: see spin.h. */
#define _GNU_SOURCE
#include "loop/spin.h"

#include "base/clock.h"

enum {
    VAIN_MAX = 4,     /* spins in a row that found nothing */
    PAUSE_US = 20000, /* then it sleeps at once, for so long */
    STOLEN_US = 100,  /* one look that takes longer was interrupted by another thread */
};

int spin_look(struct spin *spin, uint32_t most_us, int epoll_fd, struct epoll_event *events, int capacity)
{
    uint64_t begin = clock_us(CLOCK_MONOTONIC);
    uint64_t now = begin;
    int stolen = 0;
    int count;
    if (begin < spin->after_us)
        return 0;
    do {
        uint64_t last = now;
        count = epoll_wait(epoll_fd, events, capacity, 0);
        now = clock_us(CLOCK_MONOTONIC);
        stolen = now - last >= STOLEN_US;
    } while (count == 0 && !stolen && now - begin < most_us);
    spin->spent_us += now - begin;
    spin->vain = count != 0 ? 0 : spin->vain + 1;
    if (stolen || spin->vain >= VAIN_MAX) {
        spin->vain = 0;
        spin->after_us = now + PAUSE_US;
    }
    return count;
}
