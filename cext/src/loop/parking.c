/* parking.c: see parking.h. */
#include "loop/parking.h"

#include <string.h>

#include "base/hash.h"

static size_t bucket_of(const struct tuple *tuple)
{
    uint64_t hash = hash_bytes(tuple->workload, tuple->source.ip, sizeof(tuple->source.ip));
    hash = hash_bytes(hash, tuple->destination.ip, sizeof(tuple->destination.ip));
    const uint16_t ports[] = {tuple->source.port, tuple->destination.port};
    return hash_place(hash_bytes(hash, ports, sizeof(ports)), PARKING_BUCKETS);
}

static int same_address(const struct ns_address *a, const struct ns_address *b)
{
    return a->port == b->port && memcmp(a->ip, b->ip, sizeof(a->ip)) == 0;
}

static int same_tuple(const struct tuple *a, const struct tuple *b)
{
    return a->workload == b->workload && same_address(&a->source, &b->source) &&
           same_address(&a->destination, &b->destination);
}

void parking_init(struct parking *parking)
{
    for (size_t i = 0; i < PARKING_BUCKETS; i++) {
        link_init(&parking->parked[i]);
        link_init(&parking->held[i]);
    }
    link_init(&parking->all);
}

void parking_dispose(struct parking *parking)
{
    while (!link_empty(&parking->all))
        parked_forget(parking, container_of(parking->all.next, struct parked, all_link));
}

/* ---- the home worker's ---- */

struct parked *parked_find(struct parking *parking, const struct tuple *tuple)
{
    if (parking->count == 0)
        return NULL;
    struct link *at, *next, *bucket = &parking->parked[bucket_of(tuple)];
    link_each(at, next, bucket)
    {
        struct parked *parked = container_of(at, struct parked, found_link);
        if (same_tuple(&parked->tuple, tuple))
            return parked;
    }
    return NULL;
}

struct parked *parked_new(struct parking *parking, const struct tuple *tuple, uint32_t sequence,
                          uint64_t now_ms)
{
    struct parked *parked = ns_alloc(sizeof(*parked));
    parked->tuple = *tuple;
    parked->sequence = sequence;
    parked->first_ms = now_ms;
    parked->due_ms = now_ms + PARKED_FIRST_MS + PARKED_SPARE_MS;
    link_append(&parking->parked[bucket_of(tuple)], &parked->found_link);
    link_append(&parking->all, &parked->all_link);
    parking->count++;
    return parked;
}

void parked_seen(struct parked *parked, uint64_t now_ms)
{
    /* What it has taken so far and a second are the next pause at most. */
    uint64_t pause_ms = now_ms - parked->first_ms + PARKED_FIRST_MS;
    parked->due_ms = now_ms + (pause_ms < PARKED_MOST_MS ? pause_ms : PARKED_MOST_MS) + PARKED_SPARE_MS;
}

void parked_forget(struct parking *parking, struct parked *parked)
{
    link_remove(&parked->found_link);
    link_remove(&parked->all_link);
    parking->count--;
    free(parked);
}

void parked_answered(struct parking *parking, const struct tuple *tuple, uint32_t sequence)
{
    struct parked *parked = parked_find(parking, tuple);
    if (parked != NULL && parked->sequence == sequence)
        parked_forget(parking, parked);
}

void parked_each_silent(struct parking *parking, uint64_t now_ms, struct worker *worker,
                        parked_gave_up *gave_up)
{
    struct link *at, *next;
    link_each(at, next, &parking->all)
    {
        struct parked *parked = container_of(at, struct parked, all_link);
        if (now_ms > parked->due_ms)
            gave_up(worker, parked);
    }
}

void parked_left(struct parking *parking, uint64_t workload, uint64_t now_ms)
{
    struct link *at, *next;
    link_each(at, next, &parking->all)
    {
        struct parked *parked = container_of(at, struct parked, all_link);
        if (parked->tuple.workload == workload && parked->due_ms > now_ms + PARKED_LEFT_MS)
            parked->due_ms = now_ms + PARKED_LEFT_MS;
    }
}

/* ---- who holds it ---- */

void held_init(struct held *held)
{
    link_init(&held->found_link);
}

void held_begin(struct parking *parking, uint64_t workload, struct held *held, struct syn *syn, uint32_t mark)
{
    held->syn = syn;
    held->tuple.workload = workload;
    held->tuple.source = syn->source;
    held->tuple.destination = syn->destination;
    held->mark = mark;
    held->native = 0;
    link_append(&parking->held[bucket_of(&held->tuple)], &held->found_link);
}

struct held *held_find(struct parking *parking, const struct tuple *tuple)
{
    struct link *at, *next, *bucket = &parking->held[bucket_of(tuple)];
    link_each(at, next, bucket)
    {
        struct held *held = container_of(at, struct held, found_link);
        if (same_tuple(&held->tuple, tuple))
            return held;
    }
    return NULL;
}

void held_end(struct held *held)
{
    link_remove(&held->found_link);
    free(held->syn);
    held->syn = NULL;
}
