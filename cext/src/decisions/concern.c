/* concern.c: see concern.h. */
#include "decisions/concern.h"

#include <string.h>

#include "base/hash.h"
#include "base/link.h"

enum { PORTS = 65536, BITS = 64 };

struct concern {
    uint32_t references; /* of several threads: atomic */
    size_t places;       /* of the table of addresses; a power of two, at most half of it full; 0: none */
    size_t workload_count;
    uint64_t *workloads;
    uint64_t *ports; /* a bit for each; NULL: none */
    uint8_t (*addresses)[16];
    uint8_t *used; /* which places of the table are */
};

static size_t place_of(const struct concern *concern, const uint8_t ip[16])
{
    size_t place = hash_place(hash_bytes(HASH_SEED, ip, 16), concern->places);
    while (concern->used[place] && memcmp(concern->addresses[place], ip, 16) != 0)
        place = (place + 1) % concern->places;
    return place;
}

static int has_address(const struct concern *concern, const uint8_t ip[16])
{
    return concern->places != 0 && concern->used[place_of(concern, ip)];
}

static int has_port(const struct concern *concern, uint16_t port)
{
    return concern->ports != NULL && (concern->ports[port / BITS] >> (port % BITS) & 1);
}

struct concern *concern_new(const struct ns_concern *content)
{
    if (content->all || content->address_count > CONCERN_MAX || content->port_count > CONCERN_MAX ||
        content->workload_count > CONCERN_MAX)
        return NULL;
    struct concern *concern = ns_alloc(sizeof(*concern));
    concern->references = 1;
    if (content->address_count > 0) {
        concern->places = 2;
        while (concern->places < 2 * content->address_count)
            concern->places *= 2;
        concern->addresses = ns_alloc(concern->places * sizeof(*concern->addresses));
        concern->used = ns_alloc(concern->places);
    }
    for (size_t i = 0; i < content->address_count; i++) {
        size_t place = place_of(concern, content->addresses + 16 * i);
        concern->used[place] = 1;
        memcpy(concern->addresses[place], content->addresses + 16 * i, 16);
    }
    if (content->port_count > 0)
        concern->ports = ns_alloc(PORTS / 8);
    for (size_t i = 0; i < content->port_count; i++)
        concern->ports[content->ports[i] / BITS] |= UINT64_C(1) << (content->ports[i] % BITS);
    concern->workload_count = content->workload_count;
    if (content->workload_count > 0) {
        concern->workloads = ns_alloc(content->workload_count * sizeof(*concern->workloads));
        memcpy(concern->workloads, content->workloads, content->workload_count * sizeof(*concern->workloads));
    }
    return concern;
}

struct concern *concern_hold(struct concern *concern)
{
    if (concern != NULL)
        __atomic_fetch_add(&concern->references, 1, __ATOMIC_RELAXED);
    return concern;
}

void concern_release(struct concern *concern)
{
    if (concern == NULL || __atomic_sub_fetch(&concern->references, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    free(concern->workloads);
    free(concern->ports);
    free(concern->addresses);
    free(concern->used);
    free(concern);
}

int concern_has(const struct concern *concern, const struct ns_question *question)
{
    if (concern == NULL || has_port(concern, question->destination.port) ||
        has_address(concern, question->destination.ip) || has_address(concern, question->source.ip))
        return 1;
    for (size_t i = 0; i < concern->workload_count; i++)
        if (concern->workloads[i] == question->workload)
            return 1;
    return 0;
}
