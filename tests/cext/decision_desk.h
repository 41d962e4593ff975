/*
 * decision_desk.h: a cache of decisions with the two ends that it talks to: those who ask, and a desk where
 * questions are answered.
 */
#ifndef NS_DECISION_DESK_H
#define NS_DECISION_DESK_H

#include "check.h"
#include "decisions/decisions.h"

enum { ASKED_MAX = 40000, WORKER = 3 };

/* The two ends that the cache talks to. */
struct desk {
    struct decisions *decisions;
    struct decision_share share; /* of workload 1 */
    struct ns_question last;     /* the question asked last */
    uint64_t asked[ASKED_MAX];
    size_t asked_count;
    int full; /* questions cannot be sent */
};

/* A flow in place of the core's. */
struct guest {
    struct decision_waiter waiter;
    int served;
    struct decision *decision; /* held */
    void (*then)(struct desk *desk, struct guest *guest, struct decision *decision);
    struct guest *other;
};

static inline int desk_ask(void *owner, const struct ns_question *question)
{
    struct desk *desk = owner;
    if (desk->full)
        return -1;
    CHECK(desk->asked_count < ASKED_MAX);
    desk->last = *question;
    desk->asked[desk->asked_count++] = question->id;
    return 0;
}

static inline void desk_ready(void *owner, struct decision_waiter *waiter, struct decision *decision)
{
    struct guest *guest = container_of(waiter, struct guest, waiter);
    CHECK(link_empty(&waiter->link));
    guest->served++;
    decision_release(guest->decision);
    guest->decision = decision_hold(decision);
    if (guest->then != NULL)
        guest->then(owner, guest, decision);
}

static inline struct desk *desk_new(void)
{
    struct desk *desk = ns_alloc(sizeof(*desk));
    desk->decisions = decisions_new(WORKER, desk_ask, desk_ready, desk);
    decision_share_init(&desk->share);
    decisions_epoch(desk->decisions, 1, NULL);
    return desk;
}

static inline void desk_free(struct desk *desk)
{
    decisions_forget(desk->decisions, &desk->share);
    decisions_free(desk->decisions);
    free(desk);
}

static inline struct guest guest_new(void)
{
    struct guest guest = {0};
    return guest;
}

static inline void guests_init(struct guest *guests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        guests[i] = guest_new();
        link_init(&guests[i].waiter.link);
    }
}

static inline void guests_dispose(struct guest *guests, size_t count)
{
    for (size_t i = 0; i < count; i++)
        decision_release(guests[i].decision);
}

/* A question that differs from others by its number. */
static inline struct ns_question question_number(uint32_t number)
{
    struct ns_question question;
    memset(&question, 0, sizeof(question));
    question.workload = 1;
    question.kind = NS_ASK_OUTBOUND;
    question.destination.port = 80;
    memcpy(question.destination.ip + 12, &number, sizeof(number));
    return question;
}

/* `valid_ms`: how long it lasts; 0: as long as the epoch. */
static inline void desk_answer_for(struct desk *desk, uint64_t id, uint64_t epoch, uint32_t verdict,
                                   const char *reason, uint32_t valid_ms)
{
    struct ns_answer *answer = ns_alloc(sizeof(*answer));
    answer->id = id;
    answer->epoch = epoch;
    answer->verdict = verdict;
    answer->endpoint_count = 1;
    answer->valid_ms = valid_ms;
    snprintf(answer->reason, sizeof(answer->reason), "%s", reason);
    decisions_answer(desk->decisions, decision_new(answer));
    free(answer);
}

static inline void desk_answer_with(struct desk *desk, uint64_t id, uint64_t epoch, uint32_t verdict,
                                    const char *reason)
{
    desk_answer_for(desk, id, epoch, verdict, reason, 0);
}

static inline void desk_answer(struct desk *desk, uint64_t id, uint64_t epoch, const char *reason)
{
    desk_answer_for(desk, id, epoch, NS_ALLOW, reason, 0);
}

/* Asks on behalf of a guest; true if it now waits. */
static inline int desk_wait(struct desk *desk, uint32_t number, struct guest *guest)
{
    struct ns_question question = question_number(number);
    int waiting;
    struct decision *decision =
        decisions_get(desk->decisions, &desk->share, &question, &guest->waiter, &waiting);
    CHECK(decision == NULL);
    return waiting;
}

static inline struct decision *desk_cached(struct desk *desk, uint32_t number)
{
    struct ns_question question = question_number(number);
    struct guest guest = guest_new();
    int waiting;
    link_init(&guest.waiter.link);
    struct decision *decision =
        decisions_get(desk->decisions, &desk->share, &question, &guest.waiter, &waiting);
    decision_waiter_cancel(&guest.waiter);
    return decision;
}

#endif
