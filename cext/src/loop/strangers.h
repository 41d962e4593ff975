/*
 * strangers.h: peers on port 15008 that have not proven an identity yet, and where they come from; one object
 * for each worker.
 *
 * Whoever reaches the port may connect, say nothing, or begin handshakes without end. None of it may be taken
 * from those who have proven who they are, nor from what workloads dial. So an accepted connection belongs to
 * no workload's quota before its handshake is done: it is a stranger, and strangers have little room:
 *
 *   in a source   STRANGERS_OF_SOURCE. A source is an address; of IPv6, where one machine may use up a
 *                 network's worth of addresses, its prefix of 64 bits.
 *   in a workload STRANGERS_OF_WORKLOAD
 *   in a worker   STRANGERS_OF_WORKER, and less where descriptors are few (strangers_room)
 *
 * What exceeds its room costs the oldest stranger of the source that holds most of it (strangers_excess).
 *
 * Addresses of workloads that their nodes have published (published.h) are of another kind than the rest:
 * they have room of their own, and one's neighbour in a network is not taken for itself (each address is a
 * source).
 *
 * Handshakes cost CPU time before anything is known of the peer. What a stranger's steps cost is owed by its
 * source until the stranger has proven itself; what is owed goes down by itself, SOURCE_PAYS parts of a
 * thousand of the time that passes. A source that owes SOURCE_OWES_US waits until it owes less. What others
 * than published ones owe is summed up as well, so that many sources get no further than a few: ALL_OWE_US,
 * ALL_PAY. A published source that owes too much waits among the others.
 *
 * In a source the newest waits in front: under a flood the oldest will not live to be served.
 *
 * Sources are forgotten when they owe nothing and have nobody here. Of those that owe and are gone
 * IDLE_SOURCES are kept in each bucket, and who owes least goes first, so that one cannot make its debt be
 * forgotten by showing other addresses.
 */
#ifndef NS_STRANGERS_H
#define NS_STRANGERS_H

#include <stdint.h>

#include "base/link.h"
#include "nodeseal_core.h"

enum stranger_kind { STRANGER_PUBLISHED, STRANGER_OTHER, STRANGER_KINDS };

enum {
    STRANGERS_OF_SOURCE = 256, /* many clients may be behind one address */
    SOURCE_OWES_US = 100000,   /* of CPU time: a hundred handshakes, or two */
    SOURCE_PAYS = 50,
    ALL_OWE_US = 200000,
    ALL_PAY = 250,
    SOURCE_BUCKETS = 256,
    IDLE_SOURCES = 8,
};

/* By kind. */
static const uint32_t STRANGERS_OF_WORKLOAD[STRANGER_KINDS] = {1024, 512};
static const uint32_t STRANGERS_OF_WORKER[STRANGER_KINDS] = {2048, 1024};
enum { STRANGERS_OF_WORKER_IN_ALL = 2048 + 1024 };

/* CPU time that is owed. */
struct debt {
    /* At at_us. */
    uint64_t owed_us;
    uint64_t at_us;
};

/* Where strangers come from. */
struct source {
    struct link bucket_link;
    /* In strangers->active while it has strangers. */
    struct link active_link;
    /* In strangers->ring while it may have steps. */
    struct link ring_link;
    /* Oldest first. */
    struct link strangers;
    /* Strangers with a step to make, newest first. */
    struct link steps;
    /* Of `strangers`. */
    uint32_t count;
    /* Of these, and steps that are being made; 0: idle. */
    uint32_t holds;
    enum stranger_kind kind;
    /* An address, or a prefix and zeroes. */
    uint8_t ip[16];
    struct debt debt;
};

/* Those of one workload; embedded in it. */
struct party {
    /* Oldest first. */
    struct link list[STRANGER_KINDS];
    uint32_t counts[STRANGER_KINDS];
};

/* Embedded in an accepted connection. */
struct stranger {
    /* NULL: it has proven itself, ended, or never was one. */
    struct source *source;
    /* Who owes for the step that is being made; NULL: none is. */
    struct source *debtor;
    struct party *party;
    struct link source_link;
    struct link party_link;
    /* In source->steps while it waits there. */
    struct link step_link;
    /* Of its steps. */
    uint64_t cost_us;
    /* Of it, what counts among what all others owe. */
    uint64_t shared_us;
    /* Its present step waited there. */
    int waited;
};

struct strangers {
    /* Of sources. */
    struct link buckets[SOURCE_BUCKETS];
    /* How many of the bucket are idle. */
    uint32_t idle[SOURCE_BUCKETS];
    struct link active[STRANGER_KINDS];
    /* Sources in turn. */
    struct link ring;
    /* Of the buckets: who is neighbour to whom is not for others to choose. */
    uint64_t seed;
    uint32_t counts[STRANGER_KINDS];
    uint32_t most[STRANGER_KINDS];
    /* Of all that wait in the ring. */
    struct debt debt;
    /* None in the ring may go on before. */
    uint64_t not_before_us;
    /* Counted, as the next. */
    uint64_t evicted;
    /* Steps that waited because of what their source owes. */
    uint64_t slowed;
};

void strangers_init(struct strangers *strangers, uint64_t seed);
/* None is left. */
void strangers_dispose(struct strangers *strangers);
void party_init(struct party *party);

/* `descriptors` is how many of them all strangers of this worker may have. */
void strangers_room(struct strangers *strangers, uint64_t descriptors);
/* A connection from `from` was accepted for the workload of that party. */
void strangers_begin(struct strangers *strangers, struct stranger *stranger, struct party *party,
                     const struct ns_address *from, enum stranger_kind kind, uint64_t now_us);
/* Who has to go because there is no room for `stranger`, which has just begun; NULL: nobody (any more). The
 * caller ends it. */
struct stranger *strangers_excess(struct strangers *strangers, const struct stranger *stranger);
/* It is to be another workload's. */
void strangers_move(struct stranger *stranger, struct party *party);
/* It is none any more; `proven`: it has shown who it is, so that nothing is owed for it. Harmless if it was
 * none. */
void strangers_end(struct strangers *strangers, struct stranger *stranger, int proven, uint64_t now_us);
static inline int stranger_is(const struct stranger *stranger)
{
    return stranger->source != NULL;
}

/* True if its next step goes with those of published peers; otherwise it waits here (strangers_wait). */
int strangers_trusts(const struct stranger *stranger, uint64_t now_us);
/* It has a step to make. Harmless if it waits already. */
void strangers_wait(struct strangers *strangers, struct stranger *stranger, uint64_t now_us);
/* Whose step is next of those who wait here, of each source in turn; NULL: none may be made now. */
struct stranger *strangers_next(struct strangers *strangers, uint64_t now_us);
/* A step of it is being made: whatever becomes of it meanwhile, its source is to owe for that. */
void strangers_give(struct strangers *strangers, struct stranger *stranger);
/* The step was made. Harmless if it was not a stranger's. */
void strangers_pay(struct strangers *strangers, struct stranger *stranger, uint64_t cost_us, uint64_t now_us);
/* When strangers_next is worth asking again, if nothing happens before; UINT64_MAX: never. */
static inline uint64_t strangers_due_us(const struct strangers *strangers)
{
    return link_empty(&strangers->ring) ? UINT64_MAX : strangers->not_before_us;
}
static inline uint32_t strangers_count(const struct strangers *strangers)
{
    return strangers->counts[STRANGER_PUBLISHED] + strangers->counts[STRANGER_OTHER];
}

#endif
