/* strangers.c: see strangers.h. */
#include "loop/strangers.h"

#include <string.h>

#include "base/hash.h"
#include "wire/names.h"

enum { PREFIX_BYTES = 8, THOUSAND = 1000 };

/* ---- what is owed ---- */

static uint64_t debt_now(const struct debt *debt, uint64_t pays, uint64_t now_us)
{
    uint64_t paid = now_us > debt->at_us ? (now_us - debt->at_us) * pays / THOUSAND : 0;
    return debt->owed_us > paid ? debt->owed_us - paid : 0;
}

static void debt_change(struct debt *debt, uint64_t pays, uint64_t more_us, uint64_t less_us, uint64_t now_us)
{
    uint64_t owed = debt_now(debt, pays, now_us) + more_us;
    debt->owed_us = owed > less_us ? owed - less_us : 0;
    debt->at_us = now_us;
}

/* How long until less than `most_us` is owed; 0: it is. */
static uint64_t debt_wait(const struct debt *debt, uint64_t pays, uint64_t most_us, uint64_t now_us)
{
    uint64_t owed = debt_now(debt, pays, now_us);
    return owed < most_us ? 0 : (owed - most_us + 1) * THOUSAND / pays + 1;
}

static uint64_t source_wait(const struct source *source, uint64_t now_us)
{
    return debt_wait(&source->debt, SOURCE_PAYS, SOURCE_OWES_US, now_us);
}

/* ---- sources ---- */

void strangers_init(struct strangers *strangers, uint64_t seed)
{
    memset(strangers, 0, sizeof(*strangers));
    strangers->seed = seed;
    link_init(&strangers->ring);
    for (int i = 0; i < SOURCE_BUCKETS; i++)
        link_init(&strangers->buckets[i]);
    for (int kind = 0; kind < STRANGER_KINDS; kind++) {
        link_init(&strangers->active[kind]);
        strangers->most[kind] = STRANGERS_OF_WORKER[kind];
    }
}

static void source_free(struct source *source)
{
    link_remove(&source->bucket_link);
    link_remove(&source->ring_link);
    free(source);
}

void strangers_dispose(struct strangers *strangers)
{
    for (int i = 0; i < SOURCE_BUCKETS; i++)
        while (!link_empty(&strangers->buckets[i]))
            source_free(container_of(strangers->buckets[i].next, struct source, bucket_link));
}

static size_t bucket_of(const struct strangers *strangers, const uint8_t ip[16])
{
    return hash_place(hash_bytes(strangers->seed, ip, 16), SOURCE_BUCKETS);
}

static struct source *source_find(struct link *bucket, const uint8_t ip[16], enum stranger_kind kind)
{
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct source *source = container_of(at, struct source, bucket_link);
        if (source->kind == kind && memcmp(source->ip, ip, sizeof(source->ip)) == 0)
            return source;
    }
    return NULL;
}

/* Makes room for another one in the bucket: who owes nothing is forgotten, and else, of too many, who owes
 * least. */
static void sources_forget(struct strangers *strangers, size_t bucket, uint64_t now_us)
{
    struct source *least = NULL;
    struct link *at, *next;
    uint64_t least_owed = 0;
    link_each(at, next, &strangers->buckets[bucket])
    {
        struct source *source = container_of(at, struct source, bucket_link);
        uint64_t owed = debt_now(&source->debt, SOURCE_PAYS, now_us);
        if (source->holds > 0)
            continue;
        if (owed == 0) {
            source_free(source);
            strangers->idle[bucket]--;
        } else if (least == NULL || owed < least_owed) {
            least = source;
            least_owed = owed;
        }
    }
    if (strangers->idle[bucket] >= IDLE_SOURCES && least != NULL) {
        source_free(least);
        strangers->idle[bucket]--;
    }
}

static struct source *source_of(struct strangers *strangers, const struct ns_address *from,
                                enum stranger_kind kind, uint64_t now_us)
{
    uint8_t ip[16];
    memcpy(ip, from->ip, sizeof(ip));
    if (kind == STRANGER_OTHER && !address_is_v4(from))
        memset(ip + PREFIX_BYTES, 0, sizeof(ip) - PREFIX_BYTES);
    size_t bucket = bucket_of(strangers, ip);
    struct source *source = source_find(&strangers->buckets[bucket], ip, kind);
    if (source != NULL)
        return source;
    sources_forget(strangers, bucket, now_us);
    source = ns_alloc(sizeof(*source));
    link_append(&strangers->buckets[bucket], &source->bucket_link);
    strangers->idle[bucket]++;
    link_init(&source->active_link);
    link_init(&source->ring_link);
    link_init(&source->strangers);
    link_init(&source->steps);
    source->kind = kind;
    source->debt.at_us = now_us;
    memcpy(source->ip, ip, sizeof(ip));
    return source;
}

static void source_hold(struct strangers *strangers, struct source *source)
{
    if (source->holds++ == 0)
        strangers->idle[bucket_of(strangers, source->ip)]--;
}

static void source_release(struct strangers *strangers, struct source *source)
{
    if (--source->holds == 0)
        strangers->idle[bucket_of(strangers, source->ip)]++;
}

/* ---- who is here ---- */

void party_init(struct party *party)
{
    for (int kind = 0; kind < STRANGER_KINDS; kind++) {
        link_init(&party->list[kind]);
        party->counts[kind] = 0;
    }
}

void strangers_room(struct strangers *strangers, uint64_t descriptors)
{
    for (int kind = 0; kind < STRANGER_KINDS; kind++) {
        uint64_t part = descriptors * STRANGERS_OF_WORKER[kind] / STRANGERS_OF_WORKER_IN_ALL;
        strangers->most[kind] = part < STRANGERS_OF_WORKER[kind] ? (uint32_t)part : STRANGERS_OF_WORKER[kind];
        if (strangers->most[kind] == 0)
            strangers->most[kind] = 1;
    }
}

void strangers_begin(struct strangers *strangers, struct stranger *stranger, struct party *party,
                     const struct ns_address *from, enum stranger_kind kind, uint64_t now_us)
{
    struct source *source = source_of(strangers, from, kind, now_us);
    source_hold(strangers, source);
    if (source->count++ == 0)
        link_append(&strangers->active[kind], &source->active_link);
    memset(stranger, 0, sizeof(*stranger));
    stranger->source = source;
    stranger->party = party;
    link_append(&source->strangers, &stranger->source_link);
    link_append(&party->list[kind], &stranger->party_link);
    link_init(&stranger->step_link);
    party->counts[kind]++;
    strangers->counts[kind]++;
}

static struct stranger *oldest_of(const struct source *source)
{
    return container_of(source->strangers.next, struct stranger, source_link);
}

/* Of the source that has most strangers anywhere, among those in the party. */
static struct stranger *excess_of_party(const struct party *party, enum stranger_kind kind)
{
    struct stranger *found = NULL;
    struct link *at, *next;
    link_each(at, next, (struct link *)&party->list[kind])
    {
        struct stranger *stranger = container_of(at, struct stranger, party_link);
        if (found == NULL || stranger->source->count > found->source->count)
            found = stranger;
    }
    return found;
}

static struct stranger *excess_of_all(struct strangers *strangers, enum stranger_kind kind)
{
    struct source *most = NULL;
    struct link *at, *next;
    link_each(at, next, &strangers->active[kind])
    {
        struct source *source = container_of(at, struct source, active_link);
        if (most == NULL || source->count > most->count)
            most = source;
    }
    return oldest_of(most);
}

struct stranger *strangers_excess(struct strangers *strangers, const struct stranger *stranger)
{
    const struct source *source = stranger->source;
    struct stranger *found = NULL;
    if (source->count > STRANGERS_OF_SOURCE)
        found = oldest_of(source);
    else if (stranger->party->counts[source->kind] > STRANGERS_OF_WORKLOAD[source->kind])
        found = excess_of_party(stranger->party, source->kind);
    else if (strangers->counts[source->kind] > strangers->most[source->kind])
        found = excess_of_all(strangers, source->kind);
    strangers->evicted += found != NULL;
    return found;
}

void strangers_move(struct stranger *stranger, struct party *party)
{
    enum stranger_kind kind = stranger->source->kind;
    link_remove(&stranger->party_link);
    stranger->party->counts[kind]--;
    stranger->party = party;
    link_append(&party->list[kind], &stranger->party_link);
    party->counts[kind]++;
}

void strangers_end(struct strangers *strangers, struct stranger *stranger, int proven, uint64_t now_us)
{
    struct source *source = stranger->source;
    if (source == NULL)
        return;
    if (proven) {
        debt_change(&source->debt, SOURCE_PAYS, 0, stranger->cost_us, now_us);
        debt_change(&strangers->debt, ALL_PAY, 0, stranger->shared_us, now_us);
        strangers->not_before_us = 0;
    }
    link_remove(&stranger->source_link);
    link_remove(&stranger->party_link);
    link_remove(&stranger->step_link);
    stranger->party->counts[source->kind]--;
    strangers->counts[source->kind]--;
    if (--source->count == 0)
        link_remove(&source->active_link);
    source_release(strangers, source);
    stranger->source = NULL;
}

/* ---- whose step is next ---- */

int strangers_trusts(const struct stranger *stranger, uint64_t now_us)
{
    return stranger->source->kind == STRANGER_PUBLISHED && source_wait(stranger->source, now_us) == 0;
}

void strangers_wait(struct strangers *strangers, struct stranger *stranger, uint64_t now_us)
{
    struct source *source = stranger->source;
    if (!link_empty(&stranger->step_link))
        return;
    link_append(source->steps.next, &stranger->step_link); /* before the first */
    if (link_empty(&source->ring_link))
        link_append(&strangers->ring, &source->ring_link);
    if (source_wait(source, now_us) == 0)
        strangers->not_before_us = 0;
    else
        strangers->slowed++;
}

static struct stranger *step_of(struct strangers *strangers, struct source *source)
{
    struct stranger *stranger = container_of(source->steps.next, struct stranger, step_link);
    link_remove(&stranger->step_link);
    link_remove(&source->ring_link);
    if (!link_empty(&source->steps))
        link_append(&strangers->ring, &source->ring_link);
    stranger->waited = 1;
    return stranger;
}

struct stranger *strangers_next(struct strangers *strangers, uint64_t now_us)
{
    if (link_empty(&strangers->ring) || now_us < strangers->not_before_us)
        return NULL;
    uint64_t least = debt_wait(&strangers->debt, ALL_PAY, ALL_OWE_US, now_us);
    if (least > 0) {
        strangers->not_before_us = now_us + least;
        return NULL;
    }
    struct link *at, *next;
    link_each(at, next, &strangers->ring)
    {
        struct source *source = container_of(at, struct source, ring_link);
        if (link_empty(&source->steps)) {
            link_remove(&source->ring_link); /* those that waited have ended */
            continue;
        }
        uint64_t wait = source_wait(source, now_us);
        if (wait == 0)
            return step_of(strangers, source);
        if (least == 0 || wait < least)
            least = wait;
    }
    strangers->not_before_us = now_us + least;
    return NULL;
}

void strangers_give(struct strangers *strangers, struct stranger *stranger)
{
    if (stranger->source == NULL)
        return;
    stranger->debtor = stranger->source;
    source_hold(strangers, stranger->debtor);
}

void strangers_pay(struct strangers *strangers, struct stranger *stranger, uint64_t cost_us, uint64_t now_us)
{
    struct source *debtor = stranger->debtor;
    if (debtor == NULL)
        return;
    debt_change(&debtor->debt, SOURCE_PAYS, cost_us, 0, now_us);
    stranger->cost_us += cost_us;
    if (stranger->waited) {
        debt_change(&strangers->debt, ALL_PAY, cost_us, 0, now_us);
        stranger->shared_us += cost_us;
        stranger->waited = 0;
    }
    source_release(strangers, debtor);
    stranger->debtor = NULL;
}
