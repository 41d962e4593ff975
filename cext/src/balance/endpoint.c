/* endpoint.c: see endpoint.h. */
#include "balance/endpoint.h"

#include <string.h>

#include "base/hash.h"
#include "wire/names.h"

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
