/* decisions.c: see decisions.h. */
#include "decisions/decisions.h"

#include <string.h>

#include "base/clock.h"
#include "base/hash.h"

enum { IDS_BUCKETS = 1024 };

struct entry {
    struct entry *next;       /* in its bucket */
    struct entry *next_by_id; /* in that of its id, while pending */
    struct decision_share *share;
    struct link order;           /* in its share's `answered` or `pending` */
    struct ns_question question; /* the key; id is the last one asked under, 0 once answered */
    struct decision *decision;   /* NULL while pending */
    struct link waiters;         /* empty unless pending */
    uint64_t asked_us;           /* when the question was first sent */
    uint64_t concerned;          /* while pending: the last epoch that concerns it; no older answer will do */
};

struct decisions {
    struct entry *buckets[DECISIONS_BUCKETS];
    struct entry *ids[IDS_BUCKETS]; /* pending ones: answers come in another order than questions are asked */
    size_t count;                   /* entries of all shares */
    size_t pending_count;
    uint64_t epoch;   /* the last one that concerned everything */
    uint64_t next_id; /* the worker's index in the top byte, so that an answer finds its worker */
    uint64_t hits;
    struct latencies latencies;
    decision_ask *ask;
    decision_ready *ready;
    void *owner;
};

struct decision *decision_new(const struct ns_answer *answer)
{
    uint32_t count = answer->endpoint_count < NS_ENDPOINTS_MAX ? answer->endpoint_count : NS_ENDPOINTS_MAX;
    struct decision *decision = ns_alloc(sizeof(*decision) + count * sizeof(decision->endpoints[0]));
    decision->references = 1;
    decision->id = answer->id;
    decision->epoch = answer->epoch;
    if (answer->valid_ms != 0)
        decision->until_us = clock_us(CLOCK_MONOTONIC) + (uint64_t)answer->valid_ms * 1000;
    decision->verdict = answer->verdict;
    decision->endpoint_count = count;
    memcpy(decision->reason, answer->reason, sizeof(decision->reason) - 1);
    memcpy(decision->endpoints, answer->endpoints, count * sizeof(decision->endpoints[0]));
    for (uint32_t i = 0; i < count; i++) {
        decision->endpoints[i].identity[NS_IDENTITY_MAX - 1] = 0;
        decision->endpoints[i].reason[NS_REASON_MAX - 1] = 0;
    }
    return decision;
}

struct decision *decision_hold(struct decision *decision)
{
    decision->references++;
    return decision;
}

void decision_release(struct decision *decision)
{
    if (decision != NULL && --decision->references == 0)
        free(decision);
}

/* ---- keys ---- */

static size_t bucket_of(const struct ns_question *q)
{
    uint64_t hash = HASH_SEED;
    hash = hash_bytes(hash, &q->workload, sizeof(q->workload));
    hash = hash_bytes(hash, &q->kind, sizeof(q->kind));
    hash = hash_bytes(hash, q->source.ip, sizeof(q->source.ip));
    hash = hash_bytes(hash, q->destination.ip, sizeof(q->destination.ip));
    hash = hash_bytes(hash, &q->destination.port, sizeof(q->destination.port));
    hash = hash_bytes(hash, q->peer, strlen(q->peer));
    return hash_place(hash, DECISIONS_BUCKETS);
}

/* The source's port is no part of the key: no decision depends on it. */
static int same_question(const struct ns_question *a, const struct ns_question *b)
{
    return a->workload == b->workload && a->kind == b->kind && a->established == b->established &&
           memcmp(a->source.ip, b->source.ip, sizeof(a->source.ip)) == 0 &&
           memcmp(a->destination.ip, b->destination.ip, sizeof(a->destination.ip)) == 0 &&
           a->destination.port == b->destination.port && strcmp(a->peer, b->peer) == 0;
}

/* ---- entries ---- */

static struct entry *entry_find(struct decisions *decisions, const struct ns_question *question)
{
    for (struct entry *entry = decisions->buckets[bucket_of(question)]; entry != NULL; entry = entry->next)
        if (same_question(&entry->question, question))
            return entry;
    return NULL;
}

static void entry_free(struct decisions *decisions, struct entry *entry)
{
    struct entry **at = &decisions->buckets[bucket_of(&entry->question)];
    while (*at != entry)
        at = &(*at)->next;
    *at = entry->next;
    link_remove(&entry->order);
    decision_release(entry->decision);
    entry->share->count--;
    decisions->count--;
    free(entry);
}

/* Whether an answer was made after all that concerns it. */
static int entry_holds(const struct decisions *decisions, const struct entry *entry,
                       const struct decision *decision)
{
    return decision->epoch >= decisions->epoch && decision->epoch >= entry->concerned;
}

static int may_have_more(size_t held, size_t used, size_t room)
{
    return used < room && held < room - used;
}

static struct entry *entry_new(struct decisions *decisions, struct decision_share *share,
                               const struct ns_question *question)
{
    if (!may_have_more(share->count, decisions->count, DECISIONS_MAX) && !link_empty(&share->answered))
        entry_free(decisions, container_of(share->answered.next, struct entry, order));
    struct entry *entry = ns_alloc(sizeof(*entry));
    size_t bucket = bucket_of(question);
    entry->question = *question;
    entry->share = share;
    entry->next = decisions->buckets[bucket];
    decisions->buckets[bucket] = entry;
    link_init(&entry->order);
    link_init(&entry->waiters);
    share->count++;
    decisions->count++;
    return entry;
}

/* Sends the entry's question under a new id. 0, or -1. */
static int entry_ask(struct decisions *decisions, struct entry *entry)
{
    entry->question.id = decisions->next_id++;
    return decisions->ask(decisions->owner, &entry->question);
}

static void pending_add(struct decisions *decisions, struct entry *entry)
{
    struct entry **bucket = &decisions->ids[entry->question.id % IDS_BUCKETS];
    entry->next_by_id = *bucket;
    *bucket = entry;
    link_append(&entry->share->pending, &entry->order);
    entry->share->pending_count++;
    decisions->pending_count++;
}

/* Takes the pending entry that waits for the answer to a question; NULL if there is none. */
static struct entry *pending_take(struct decisions *decisions, uint64_t id)
{
    struct entry **at = &decisions->ids[id % IDS_BUCKETS];
    while (*at != NULL && (*at)->question.id != id)
        at = &(*at)->next_by_id;
    struct entry *entry = *at;
    if (entry == NULL)
        return NULL;
    *at = entry->next_by_id;
    link_remove(&entry->order);
    entry->share->pending_count--;
    decisions->pending_count--;
    return entry;
}

/* ---- the interface ---- */

struct decisions *decisions_new(uint32_t worker_index, decision_ask *ask, decision_ready *ready, void *owner)
{
    struct decisions *decisions = ns_alloc(sizeof(*decisions));
    decisions->next_id = ((uint64_t)worker_index << 56) + 1;
    decisions->ask = ask;
    decisions->ready = ready;
    decisions->owner = owner;
    return decisions;
}

void decisions_free(struct decisions *decisions)
{
    free(decisions);
}

void decision_share_init(struct decision_share *share)
{
    memset(share, 0, sizeof(*share));
    link_init(&share->answered);
    link_init(&share->pending);
}

void decisions_forget(struct decisions *decisions, struct decision_share *share)
{
    while (!link_empty(&share->answered))
        entry_free(decisions, container_of(share->answered.next, struct entry, order));
    while (!link_empty(&share->pending)) {
        struct entry *entry = container_of(share->pending.next, struct entry, order);
        (void)pending_take(decisions, entry->question.id);
        while (!link_empty(&entry->waiters))
            link_remove(entry->waiters.next);
        entry_free(decisions, entry);
    }
}

static int has_lapsed(const struct decision *decision)
{
    return decision->until_us != 0 && clock_us(CLOCK_MONOTONIC) >= decision->until_us;
}

struct decision *decisions_get(struct decisions *decisions, struct decision_share *share,
                               const struct ns_question *question, struct decision_waiter *waiter,
                               int *waiting)
{
    *waiting = 0;
    struct entry *entry = entry_find(decisions, question);
    if (entry != NULL && entry->decision != NULL) {
        if (entry_holds(decisions, entry, entry->decision) && !has_lapsed(entry->decision)) {
            decisions->hits++;
            return entry->decision;
        }
        entry_free(decisions, entry);
        entry = NULL;
    }
    if (entry == NULL) {
        if (!may_have_more(share->pending_count, decisions->pending_count, DECISIONS_PENDING_MAX))
            return NULL;
        entry = entry_new(decisions, share, question);
        entry->asked_us = clock_us(CLOCK_MONOTONIC);
        if (entry_ask(decisions, entry) != 0) {
            entry_free(decisions, entry);
            return NULL;
        }
        pending_add(decisions, entry);
    }
    link_append(&entry->waiters, &waiter->link);
    *waiting = 1;
    return NULL;
}

void decision_waiter_cancel(struct decision_waiter *waiter)
{
    link_remove(&waiter->link);
}

void decisions_answer(struct decisions *decisions, struct decision *answer)
{
    struct entry *entry = pending_take(decisions, answer->id);
    if (entry != NULL && !entry_holds(decisions, entry, answer) && entry_ask(decisions, entry) == 0) {
        pending_add(decisions, entry);
        entry = NULL;
    }
    if (entry == NULL) {
        decision_release(answer);
        return;
    }
    latencies_add(&decisions->latencies, (clock_us(CLOCK_MONOTONIC) - entry->asked_us) * 1000);
    entry->question.id = 0;
    entry->decision = answer;
    link_append(&entry->share->answered, &entry->order);

    /* The callbacks may ask again and so change the tables: take what they need out first. */
    struct decision *decision = decision_hold(answer);
    struct link waiters;
    link_init(&waiters);
    link_splice(&waiters, &entry->waiters);
    while (!link_empty(&waiters)) {
        struct decision_waiter *waiter = container_of(waiters.next, struct decision_waiter, link);
        link_remove(&waiter->link);
        decisions->ready(decisions->owner, waiter, decision);
    }
    decision_release(decision);
}

/* Yes or no. Anything else passes: what is missing may be there now. */
static int is_final(const struct decision *decision)
{
    return decision->verdict == NS_ALLOW || decision->verdict == NS_REFUSE;
}

void decisions_epoch(struct decisions *decisions, uint64_t epoch, const struct concern *concern)
{
    if (concern == NULL) {
        decisions->epoch = epoch;
        return;
    }
    for (size_t bucket = 0; bucket < DECISIONS_BUCKETS; bucket++)
        for (struct entry *entry = decisions->buckets[bucket]; entry != NULL; entry = entry->next)
            if (concern_has(concern, &entry->question) ||
                (entry->decision != NULL && !is_final(entry->decision)))
                entry->concerned = epoch;
}

const struct latencies *decisions_latencies(const struct decisions *decisions)
{
    return &decisions->latencies;
}

uint64_t decisions_hits(const struct decisions *decisions)
{
    return decisions->hits;
}
