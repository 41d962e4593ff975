/*
 * published.h: the addresses of the workloads that nodes have published, of the whole mesh; one object for
 * each core.
 *
 * Who comes from one of them is not known by that, but has a better claim to a handshake than somebody of
 * whom nobody has ever heard (strangers.h). One thread changes the set at a time; workers look into it for
 * each tunnel that is opened to them, and share a lock with the change of one address.
 */
#ifndef NS_PUBLISHED_H
#define NS_PUBLISHED_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"

struct published_slot {
    uint8_t ip[16];
    /* Workloads at the address; 0: a free slot. */
    uint32_t count;
};

/* Open addressing, linear probing, at most half full. */
struct published {
    /* Held for a few instructions, by whoever looks, and for each change. */
    pthread_mutex_t mutex;
    struct published_slot *slots;
    /* A power of two. */
    size_t capacity;
    /* Slots. */
    size_t used;
};

void published_init(struct published *published);
void published_dispose(struct published *published);
/* Workloads were published, or withdrawn: addresses of 16 bytes each, as in struct ns_address. One that is
 * not there is not withdrawn. */
void published_add(struct published *published, const uint8_t *addresses, size_t count);
void published_remove(struct published *published, const uint8_t *addresses, size_t count);
int published_has(struct published *published, const uint8_t ip[16]);

#endif
