/*
 * hash.h: where in a table something is looked for.
 *
 * FNV-1a, whose last bytes reach only some of the bits: of two addresses of a network, or two identities,
 * that is often all that differs. So a place is taken from what hash_place has made of them.
 */
#ifndef NS_HASH_H
#define NS_HASH_H

#include <stddef.h>
#include <stdint.h>

static const uint64_t HASH_SEED = 14695981039346656037u;

static inline uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ at[i]) * 1099511628211u;
    return hash;
}

/* 0 <= result < places */
static inline size_t hash_place(uint64_t hash, size_t places)
{
    hash = (hash ^ hash >> 32) *
           0x9e3779b97f4a7c15u; /* Fibonacci hashing (Knuth, 6.4): the high bits are good */
    return (size_t)(hash >> 32) % places;
}

#endif
