/*
 * noise.h: reproducible random numbers, streams of bytes that a receiver can check without keeping them, and
 * mutations for fuzz loops. Every user names its own seed: a failure is met again by running the same test.
 */
#ifndef NS_NOISE_H
#define NS_NOISE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct noise {
    uint64_t state; /* never 0 */
};

static inline struct noise noise_new(uint64_t seed)
{
    struct noise noise = {seed * 0x9e3779b97f4a7c15u + 1};
    if (noise.state == 0)
        noise.state = 1;
    return noise;
}

/* xorshift64* (Vigna 2016) */
static inline uint64_t noise_next(struct noise *noise)
{
    noise->state ^= noise->state >> 12;
    noise->state ^= noise->state << 25;
    noise->state ^= noise->state >> 27;
    return noise->state * 0x2545f4914f6cdd1du;
}

/* 0 <= result < bound */
static inline size_t noise_below(struct noise *noise, size_t bound)
{
    return (size_t)(noise_next(noise) >> 11) % bound;
}

/* The byte at `offset` of the stream `seed`: either end can compute it alone. */
static inline uint8_t noise_byte(uint64_t seed, uint64_t offset)
{
    uint64_t x = (seed << 40) + (offset >> 3) + 1;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return (uint8_t)(x >> (8 * (offset & 7)));
}

static inline void noise_fill(uint64_t seed, uint64_t offset, uint8_t *out, size_t length)
{
    for (size_t i = 0; i < length; i++)
        out[i] = noise_byte(seed, offset + i);
}

/* True if bytes are what the stream `seed` has at `offset`. */
static inline int noise_matches(uint64_t seed, uint64_t offset, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != noise_byte(seed, offset + i))
            return 0;
    return 1;
}

/* A heap copy of exactly this size, so that AddressSanitizer sees a read past its end. The caller frees it.
 */
static inline uint8_t *noise_exact_copy(const void *bytes, size_t length)
{
    uint8_t *copy = malloc(length);
    if (copy == NULL)
        abort();
    if (length > 0)
        memcpy(copy, bytes, length);
    return copy;
}

/* A damaged copy in a heap buffer of exactly its size; the caller frees it. */
static inline uint8_t *noise_mutate(struct noise *noise, const uint8_t *bytes, size_t length,
                                    size_t *out_length)
{
    enum { ROUNDS = 4, GROWTH = 16 };
    uint8_t *work = malloc(length + ROUNDS * GROWTH);
    if (work == NULL)
        abort();
    memcpy(work, bytes, length);
    for (size_t rounds = 1 + noise_below(noise, ROUNDS); rounds > 0 && length > 0; rounds--) {
        size_t at = noise_below(noise, length);
        size_t span = 1 + noise_below(noise, GROWTH);
        if (span > length - at)
            span = length - at;
        switch (noise_below(noise, 6)) {
        case 0: /* one bit */
            work[at] ^= (uint8_t)(1u << noise_below(noise, 8));
            break;
        case 1: /* one byte */
            work[at] = (uint8_t)noise_next(noise);
            break;
        case 2: /* cut out */
            memmove(work + at, work + at + span, length - at - span);
            length -= span;
            break;
        case 3: /* doubled */
            memmove(work + at + span, work + at, length - at);
            length += span;
            break;
        case 4: /* the end is missing */
            length = at;
            break;
        default: /* an extreme byte: lengths and types */
            work[at] = noise_below(noise, 2) ? 0xff : 0;
            break;
        }
    }
    uint8_t *exact = noise_exact_copy(work, length);
    free(work);
    *out_length = length;
    return exact;
}

#endif
