/* endpoint.c: see endpoint.h. */
#include "balance/endpoint.h"

#include <string.h>

#include "base/hash.h"
#include "wire/names.h"

enum {
    ATTEMPT_MS = 3000, /* two retransmissions of a SYN (RFC 6298) that may have been lost */
    PROBE_MS = 1000,   /* for one that did not answer last time */
    USUALS = 8,        /* times what it usually takes, if that is more */
    SLOW_MS = ATTEMPT_MS / USUALS,
    AWAY_MS = 1000, /* after the first failure; doubled with each */
    AWAY_DOUBLINGS = 3,
};

void endpoints_init(struct endpoints *endpoints)
{
    for (int i = 0; i < ENDPOINT_BUCKETS; i++)
        link_init(&endpoints->buckets[i]);
    link_init(&endpoints->noted);
}

static void endpoint_free(struct endpoints *endpoints, struct endpoint *endpoint)
{
    link_remove(&endpoint->found_link);
    link_remove(&endpoint->noted_link);
    endpoints->count--;
    free(endpoint);
}

void endpoints_dispose(struct endpoints *endpoints)
{
    while (!link_empty(&endpoints->noted))
        endpoint_free(endpoints, container_of(endpoints->noted.next, struct endpoint, noted_link));
}

void endpoints_forget(struct endpoints *endpoints, uint64_t workload)
{
    struct link *at, *next;
    link_each(at, next, &endpoints->noted)
    {
        struct endpoint *endpoint = container_of(at, struct endpoint, noted_link);
        if (endpoint->workload == workload)
            endpoint_free(endpoints, endpoint);
    }
}

static struct link *bucket_of(struct endpoints *endpoints, uint64_t workload,
                              const struct ns_address *address)
{
    uint64_t hash = hash_bytes(workload + address->port, address->ip, sizeof(address->ip));
    return &endpoints->buckets[hash_place(hash, ENDPOINT_BUCKETS)];
}

struct endpoint *endpoint_find(struct endpoints *endpoints, uint64_t workload,
                               const struct ns_address *address, const char *identity)
{
    if (endpoints->count == 0)
        return NULL;
    struct link *bucket = bucket_of(endpoints, workload, address);
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct endpoint *endpoint = container_of(at, struct endpoint, found_link);
        if (endpoint->workload == workload && endpoint->address.port == address->port &&
            address_same_ip(&endpoint->address, address) && strcmp(endpoint->identity, identity) == 0)
            return endpoint;
    }
    return NULL;
}

struct endpoint *endpoint_note(struct endpoints *endpoints, uint64_t workload,
                               const struct ns_address *address, const char *identity)
{
    struct endpoint *endpoint = endpoint_find(endpoints, workload, address, identity);
    if (endpoint != NULL) {
        link_remove(&endpoint->noted_link);
    } else {
        if (endpoints->count == ENDPOINTS_MOST)
            endpoint_free(endpoints, container_of(endpoints->noted.next, struct endpoint, noted_link));
        endpoint = ns_alloc(sizeof(*endpoint) + strlen(identity) + 1);
        endpoint->workload = workload;
        endpoint->address = *address;
        memcpy(endpoint->identity, identity, strlen(identity));
        link_append(bucket_of(endpoints, workload, address), &endpoint->found_link);
        endpoints->count++;
    }
    link_append(&endpoints->noted, &endpoint->noted_link);
    return endpoint;
}

/* ---- what became of attempts ---- */

static uint64_t away_for(const struct endpoint *endpoint)
{
    uint32_t doublings = endpoint->misses > 0 ? endpoint->misses - 1 : 0;
    return (uint64_t)AWAY_MS << (doublings < AWAY_DOUBLINGS ? doublings : AWAY_DOUBLINGS);
}

void endpoint_missed(struct endpoint *endpoint, uint64_t now_ms)
{
    /* Many that were under way fail at once. */
    if (endpoint->misses == 0 || now_ms >= endpoint->away_ms || endpoint->probing)
        endpoint->misses++;
    endpoint->probing = 0;
    endpoint->away_ms = now_ms + away_for(endpoint);
}

void endpoint_answered(struct endpoint *endpoint, uint64_t took_ms)
{
    endpoint->misses = 0;
    endpoint->away_ms = 0;
    endpoint->probing = 0;
    if (endpoint->usual_ms != 0 || endpoint_is_slow(took_ms))
        endpoint->usual_ms = endpoint->usual_ms == 0
                                 ? (uint32_t)took_ms
                                 : (uint32_t)((3 * (uint64_t)endpoint->usual_ms + took_ms) / 4);
}

void endpoint_probed(struct endpoint *endpoint, uint64_t now_ms)
{
    endpoint->probing = 1;
    endpoint->away_ms = now_ms + 2 * endpoint_patience_ms(endpoint); /* should nothing be heard of it */
}

int endpoint_is_slow(uint64_t took_ms)
{
    return took_ms > SLOW_MS;
}

uint64_t endpoint_patience_ms(const struct endpoint *endpoint)
{
    uint64_t least = endpoint != NULL && endpoint->misses > 0 ? PROBE_MS : ATTEMPT_MS;
    uint64_t usual = endpoint != NULL ? (uint64_t)USUALS * endpoint->usual_ms : 0;
    return usual > least ? usual : least;
}
