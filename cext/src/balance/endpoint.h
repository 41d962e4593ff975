/*
 * endpoint.h: what a worker remembers of the endpoints that its workloads' connections went to.
 *
 * A decision names endpoints, and lasts until the mesh state moves on. What became of the attempts to reach
 * one lasts longer: it is kept here, by workload (each has a network of its own), address, port and identity.
 *
 * Only what went wrong is remembered, so that most endpoints cost nothing. There are ENDPOINTS_MOST at most:
 * a new one takes the place of that which was noted longest ago.
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
    /* When an attempt to reach it last failed; 0: none has. */
    uint64_t refused_ms;
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

#endif
