/*
 * notices.h: whether anything new is to be told for a log, kept so that to look costs nothing while nothing
 * is.
 *
 * Whoever has something to tell sets `due`, from any thread. Who tells looks no more often than every
 * NOTICES_APART_MS, and sets it back before; what is not told then is due again.
 */
#ifndef NS_NOTICES_H
#define NS_NOTICES_H

#include <stdint.h>

enum { NOTICES_APART_MS = 500 };

struct notices {
    /* Atomic; 1: there may be something. */
    uint32_t due;
    /* When it was last looked for; under the mutex of who tells. */
    uint64_t looked_ms;
};

static inline int notices_are_due(const struct notices *notices)
{
    return __atomic_load_n(&notices->due, __ATOMIC_ACQUIRE) != 0;
}

static inline void notices_set(struct notices *notices)
{
    __atomic_store_n(&notices->due, 1, __ATOMIC_RELEASE);
}

/* 1: it is time to look, and nothing is due from here on but what is new. */
static inline int notices_begin(struct notices *notices, uint64_t now_ms)
{
    if (now_ms - notices->looked_ms < NOTICES_APART_MS)
        return 0;
    notices->looked_ms = now_ms;
    __atomic_store_n(&notices->due, 0, __ATOMIC_RELEASE);
    return 1;
}

#endif
