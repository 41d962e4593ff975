/*
 * endpoint.h: what a worker remembers of the endpoints that its workloads' connections went to.
 *
 * A decision names endpoints, and lasts until the mesh state moves on. What became of the attempts to reach
 * one lasts longer: it is kept here, by workload (each has a network of its own), address, port and identity.
 *
 * Only what went wrong, or slowly, is remembered, so that most endpoints cost nothing. There are
 * ENDPOINTS_MOST at most: a new one takes the place of that which was noted longest ago.
 *
 * One of several that does not answer, or refuses, is left for the others for a while, twice as long each
 * time. Then a single connection tries it, and the others follow if it has answered.
 */
#ifndef NS_ENDPOINT_H
#define NS_ENDPOINT_H

#include <stdint.h>

#include "base/link.h"
#include "nodeseal_core.h"

enum {
    ENDPOINTS_MOST = 1024,
    ENDPOINT_BUCKETS = 256,
};

/* Times in ms of CLOCK_MONOTONIC. */
struct endpoint {
    /* In its bucket. */
    struct link found_link;
    /* In endpoints->noted. */
    struct link noted_link;
    /* Key of the workload whose connections go there. */
    uint64_t workload;
    struct ns_address address;
    /* Not to be chosen before, while there are others; 0: at any time. */
    uint64_t away_ms;
    /* Attempts to reach it that failed, in a row. */
    uint32_t misses;
    /* A single connection tries whether it is back. */
    int probing;
    /* How long it takes to answer, once that was long; 0: it never was. */
    uint32_t usual_ms;
    /* A tunnel's end: not to be dialled ahead of need before; 0: at any time. */
    uint64_t retry_ms;
    /* A tunnel's end: how many tunnels that were dialled ahead of need did not last, in a row. */
    uint32_t failures;
    /* Expected of the peer; "": plaintext. */
    char identity[];
};

struct endpoints {
    struct link buckets[ENDPOINT_BUCKETS];
    /* All, the one noted longest ago first. */
    struct link noted;
    uint32_t count;
};

void endpoints_init(struct endpoints *endpoints);
void endpoints_dispose(struct endpoints *endpoints);
/* Forgets all of a workload. */
void endpoints_forget(struct endpoints *endpoints, uint64_t workload);

/* What is remembered; NULL: nothing. Lasts until another one is noted. */
struct endpoint *endpoint_find(struct endpoints *endpoints, uint64_t workload,
                               const struct ns_address *address, const char *identity);
/* The same, to be written to: begun if there was nothing. */
struct endpoint *endpoint_note(struct endpoints *endpoints, uint64_t workload,
                               const struct ns_address *address, const char *identity);

/* An attempt to reach it failed. */
void endpoint_missed(struct endpoint *endpoint, uint64_t now_ms);
/* It was reached, which took `took_ms`. */
void endpoint_answered(struct endpoint *endpoint, uint64_t took_ms);
/* One connection tries whether it is back; meanwhile no other does. */
void endpoint_probed(struct endpoint *endpoint, uint64_t now_ms);
/* Whether `took_ms` is so long that it is to be remembered. */
int endpoint_is_slow(uint64_t took_ms);
/* For how long to wait for it, if there are others; NULL: nothing is remembered. */
uint64_t endpoint_patience_ms(const struct endpoint *endpoint);

#endif
