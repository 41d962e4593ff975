/* published.c: see published.h. */
#include "loop/published.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/link.h"

enum { CAPACITY_LEAST = 64 };

static size_t home_of(const uint8_t ip[16], size_t capacity)
{
    return hash_place(hash_bytes(HASH_SEED, ip, 16), capacity);
}

/* The address's slot, or the free one where it belongs. */
static size_t slot_of(const struct published_slot *slots, size_t capacity, const uint8_t ip[16])
{
    size_t at = home_of(ip, capacity);
    while (slots[at].count > 0 && memcmp(slots[at].ip, ip, sizeof(slots[at].ip)) != 0)
        at = (at + 1) & (capacity - 1);
    return at;
}

void published_init(struct published *published)
{
    pthread_mutex_init(&published->mutex, NULL);
    published->capacity = CAPACITY_LEAST;
    published->used = 0;
    published->slots = ns_alloc(CAPACITY_LEAST * sizeof(published->slots[0]));
}

void published_dispose(struct published *published)
{
    pthread_mutex_destroy(&published->mutex);
    free(published->slots);
}

/* Nobody else changes the set: it is copied without the lock. */
static void resize(struct published *published, size_t capacity)
{
    struct published_slot *old = published->slots;
    struct published_slot *slots = ns_alloc(capacity * sizeof(slots[0]));
    for (size_t i = 0; i < published->capacity; i++)
        if (old[i].count > 0)
            slots[slot_of(slots, capacity, old[i].ip)] = old[i];
    pthread_mutex_lock(&published->mutex);
    published->slots = slots;
    published->capacity = capacity;
    pthread_mutex_unlock(&published->mutex);
    free(old);
}

static void add_one(struct published *published, const uint8_t ip[16])
{
    if (2 * (published->used + 1) > published->capacity)
        resize(published, 2 * published->capacity);
    pthread_mutex_lock(&published->mutex);
    struct published_slot *slot = &published->slots[slot_of(published->slots, published->capacity, ip)];
    if (slot->count++ == 0) {
        memcpy(slot->ip, ip, sizeof(slot->ip));
        published->used++;
    }
    pthread_mutex_unlock(&published->mutex);
}

/* Moves those behind a slot that became free up to where they are looked for (Knuth, 6.4, algorithm R). */
static void close_gap(struct published *published, size_t gap)
{
    size_t mask = published->capacity - 1;
    for (size_t at = (gap + 1) & mask; published->slots[at].count > 0; at = (at + 1) & mask) {
        size_t home = home_of(published->slots[at].ip, published->capacity);
        if (((at - home) & mask) < ((at - gap) & mask))
            continue; /* its home is behind the gap */
        published->slots[gap] = published->slots[at];
        published->slots[at].count = 0;
        gap = at;
    }
}

static void remove_one(struct published *published, const uint8_t ip[16])
{
    pthread_mutex_lock(&published->mutex);
    size_t at = slot_of(published->slots, published->capacity, ip);
    if (published->slots[at].count > 0 && --published->slots[at].count == 0) {
        published->used--;
        close_gap(published, at);
    }
    pthread_mutex_unlock(&published->mutex);
    if (published->capacity > CAPACITY_LEAST && 8 * published->used < published->capacity)
        resize(published, published->capacity / 2);
}

void published_add(struct published *published, const uint8_t *addresses, size_t count)
{
    for (size_t i = 0; i < count; i++)
        add_one(published, addresses + 16 * i);
}

void published_remove(struct published *published, const uint8_t *addresses, size_t count)
{
    for (size_t i = 0; i < count; i++)
        remove_one(published, addresses + 16 * i);
}

int published_has(struct published *published, const uint8_t ip[16])
{
    pthread_mutex_lock(&published->mutex);
    int has = published->slots[slot_of(published->slots, published->capacity, ip)].count > 0;
    pthread_mutex_unlock(&published->mutex);
    return has;
}
