/* decisions.c: who is asked what, how often, and which answer a waiter gets. */
#include "decisions/decisions.h"

#include "check.h"

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

static int desk_ask(void *owner, const struct ns_question *question)
{
    struct desk *desk = owner;
    if (desk->full)
        return -1;
    CHECK(desk->asked_count < ASKED_MAX);
    desk->last = *question;
    desk->asked[desk->asked_count++] = question->id;
    return 0;
}

static void desk_ready(void *owner, struct decision_waiter *waiter, struct decision *decision)
{
    struct guest *guest = container_of(waiter, struct guest, waiter);
    CHECK(link_empty(&waiter->link));
    guest->served++;
    decision_release(guest->decision);
    guest->decision = decision_hold(decision);
    if (guest->then != NULL)
        guest->then(owner, guest, decision);
}

static struct desk *desk_new(void)
{
    struct desk *desk = ns_alloc(sizeof(*desk));
    desk->decisions = decisions_new(WORKER, desk_ask, desk_ready, desk);
    decision_share_init(&desk->share);
    decisions_epoch(desk->decisions, 1);
    return desk;
}

static void desk_free(struct desk *desk)
{
    decisions_forget(desk->decisions, &desk->share);
    decisions_free(desk->decisions);
    free(desk);
}

static struct guest guest_new(void)
{
    struct guest guest = {0};
    return guest;
}

static void guests_init(struct guest *guests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        guests[i] = guest_new();
        link_init(&guests[i].waiter.link);
    }
}

static void guests_dispose(struct guest *guests, size_t count)
{
    for (size_t i = 0; i < count; i++)
        decision_release(guests[i].decision);
}

/* A question that differs from others by its number. */
static struct ns_question question_number(uint32_t number)
{
    struct ns_question question;
    memset(&question, 0, sizeof(question));
    question.workload = 1;
    question.kind = NS_ASK_OUTBOUND;
    question.destination.port = 80;
    memcpy(question.destination.ip + 12, &number, sizeof(number));
    return question;
}

static void desk_answer(struct desk *desk, uint64_t id, uint64_t epoch, const char *reason)
{
    struct ns_answer *answer = ns_alloc(sizeof(*answer));
    answer->id = id;
    answer->epoch = epoch;
    answer->verdict = NS_ALLOW;
    answer->endpoint_count = 1;
    snprintf(answer->reason, sizeof(answer->reason), "%s", reason);
    decisions_answer(desk->decisions, decision_new(answer));
    free(answer);
}

/* Asks on behalf of a guest; true if it now waits. */
static int desk_wait(struct desk *desk, uint32_t number, struct guest *guest)
{
    struct ns_question question = question_number(number);
    int waiting;
    struct decision *decision =
        decisions_get(desk->decisions, &desk->share, &question, &guest->waiter, &waiting);
    CHECK(decision == NULL);
    return waiting;
}

static struct decision *desk_cached(struct desk *desk, uint32_t number)
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

/* ---- asking ---- */

TEST(many_waiters_cause_one_question)
{
    enum { GUESTS = 50 };
    struct desk *desk = desk_new();
    struct guest guests[GUESTS];
    guests_init(guests, GUESTS);
    for (int i = 0; i < GUESTS; i++)
        CHECK(desk_wait(desk, 1, &guests[i]));
    CHECK_EQUAL(desk->asked_count, 1);
    desk_answer(desk, desk->asked[0], 1, "yes");
    for (int i = 0; i < GUESTS; i++) {
        CHECK_EQUAL(guests[i].served, 1);
        CHECK_TEXT(guests[i].decision->reason, "yes");
        CHECK(guests[i].decision == guests[0].decision);
    }
    guests_dispose(guests, GUESTS);
    desk_free(desk);
}

TEST(question_ids_are_unique_and_carry_the_worker)
{
    struct desk *desk = desk_new();
    struct guest guests[100];
    guests_init(guests, 100);
    for (uint32_t i = 0; i < 100; i++) {
        CHECK(desk_wait(desk, i, &guests[i]));
        CHECK_EQUAL(desk->last.id >> 56, WORKER);
        for (uint32_t j = 0; j < i; j++)
            CHECK(desk->asked[j] != desk->asked[i]);
    }
    desk_free(desk);
}

TEST(questions_that_differ_in_any_part_of_the_key_are_asked_apart)
{
    struct desk *desk = desk_new();
    struct guest guests[8];
    struct ns_question questions[8];
    guests_init(guests, 8);
    for (int i = 0; i < 8; i++)
        questions[i] = question_number(1);
    questions[1].workload = 2;
    questions[2].kind = NS_ASK_INBOUND_TUNNEL;
    questions[3].established = 1;
    questions[4].source.ip[15] = 1;
    questions[5].destination.ip[0] = 1;
    questions[6].destination.port = 81;
    memcpy(questions[7].peer, "spiffe://a/ns/b/sa/c", 21);
    for (int i = 0; i < 8; i++) {
        int waiting;
        CHECK(decisions_get(desk->decisions, &desk->share, &questions[i], &guests[i].waiter, &waiting) ==
              NULL);
        CHECK(waiting);
        CHECK_EQUAL(desk->asked_count, i + 1);
    }
    desk_answer(desk, desk->asked[3], 1, "only the fourth");
    for (int i = 0; i < 8; i++)
        CHECK_EQUAL(guests[i].served, i == 3);
    guests_dispose(guests, 8);
    desk_free(desk);
}

TEST(the_source_port_is_no_part_of_the_key)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    struct ns_question question = question_number(1);
    int waiting;
    question.source.port = 40000;
    (void)decisions_get(desk->decisions, &desk->share, &question, &guests[0].waiter, &waiting);
    question.source.port = 40001;
    question.id = 99;
    (void)decisions_get(desk->decisions, &desk->share, &question, &guests[1].waiter, &waiting);
    CHECK(waiting);
    CHECK_EQUAL(desk->asked_count, 1);
    desk_free(desk);
}

TEST(a_question_that_cannot_be_sent_leaves_nothing_behind)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    desk->full = 1;
    CHECK(!desk_wait(desk, 1, &guest));
    CHECK(link_empty(&guest.waiter.link));
    desk->full = 0;
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0], 1, "yes");
    CHECK_EQUAL(guest.served, 1);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

/* ---- answers ---- */

TEST(a_cached_answer_is_used_again_and_counted)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0], 1, "yes");
    CHECK_EQUAL(decisions_hits(desk->decisions), 0);
    for (int i = 0; i < 5; i++)
        CHECK(desk_cached(desk, 1) == guest.decision);
    CHECK_EQUAL(desk->asked_count, 1);
    CHECK_EQUAL(decisions_hits(desk->decisions), 5);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(a_new_epoch_voids_cached_answers)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0], 1, "old");
    decisions_epoch(desk->decisions, 2);
    CHECK(desk_wait(desk, 1, &guest));
    CHECK_EQUAL(desk->asked_count, 2);
    CHECK_TEXT(guest.decision->reason, "old"); /* held: it outlives its place in the cache */
    desk_answer(desk, desk->asked[1], 2, "new");
    CHECK_EQUAL(guest.served, 2);
    CHECK_TEXT(guest.decision->reason, "new");
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(an_answer_made_before_the_present_epoch_is_asked_again)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    decisions_epoch(desk->decisions, 2);
    desk_answer(desk, desk->asked[0], 1, "stale");
    CHECK_EQUAL(guest.served, 0);
    CHECK_EQUAL(desk->asked_count, 2);
    CHECK(desk->asked[1] != desk->asked[0]);
    desk_answer(desk, desk->asked[0], 2, "to the first question again");
    CHECK_EQUAL(guest.served, 0);
    desk_answer(desk, desk->asked[1], 2, "fresh");
    CHECK_EQUAL(guest.served, 1);
    CHECK_TEXT(guest.decision->reason, "fresh");
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(a_stale_answer_that_cannot_be_asked_again_serves_its_waiters_and_nobody_else)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    decisions_epoch(desk->decisions, 2);
    desk->full = 1;
    desk_answer(desk, desk->asked[0], 1, "stale");
    CHECK_EQUAL(guest.served, 1);
    desk->full = 0;
    CHECK(desk_cached(desk, 1) == NULL);
    CHECK_EQUAL(desk->asked_count, 2);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(an_answer_ahead_of_the_epoch_serves_its_waiters)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0], 2, "ahead");
    CHECK_EQUAL(guest.served, 1);
    decisions_epoch(desk->decisions, 2);
    CHECK(desk_cached(desk, 1) == guest.decision);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(an_unknown_or_repeated_answer_is_ignored)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    desk_answer(desk, 4711, 1, "nobody asked");
    desk_answer(desk, 0, 1, "nobody asked");
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0] + 1, 1, "another id");
    CHECK_EQUAL(guest.served, 0);
    desk_answer(desk, desk->asked[0], 1, "yes");
    desk_answer(desk, desk->asked[0], 1, "twice");
    desk_answer(desk, 0, 1, "the id of answered entries");
    CHECK_EQUAL(guest.served, 1);
    CHECK_TEXT(desk_cached(desk, 1)->reason, "yes");
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(answers_may_come_in_any_order)
{
    enum { GUESTS = 64 };
    struct desk *desk = desk_new();
    struct guest guests[GUESTS];
    guests_init(guests, GUESTS);
    for (uint32_t i = 0; i < GUESTS; i++)
        CHECK(desk_wait(desk, i, &guests[i]));
    for (uint32_t i = 0; i < GUESTS; i++) {
        uint32_t which = (i * 37 + 11) % GUESTS;
        char reason[16];
        snprintf(reason, sizeof(reason), "%u", which);
        desk_answer(desk, desk->asked[which], 1, reason);
        CHECK_EQUAL(guests[which].served, 1);
        CHECK_TEXT(guests[which].decision->reason, reason);
    }
    guests_dispose(guests, GUESTS);
    desk_free(desk);
}

/* ---- what a decision holds ---- */

TEST(a_decision_holds_no_more_endpoints_than_fit_and_terminates_its_texts)
{
    struct ns_answer *answer = ns_alloc(sizeof(*answer));
    memset(answer->reason, 'r', sizeof(answer->reason));
    memset(answer->endpoints, 'e', sizeof(answer->endpoints));
    answer->verdict = NS_ALLOW;
    answer->endpoint_count = NS_ENDPOINTS_MAX + 1;
    struct decision *decision = decision_new(answer);
    CHECK_EQUAL(decision->endpoint_count, NS_ENDPOINTS_MAX);
    CHECK_EQUAL(strlen(decision->reason), NS_REASON_MAX - 1);
    CHECK_EQUAL(strlen(decision->endpoints[NS_ENDPOINTS_MAX - 1].identity), NS_IDENTITY_MAX - 1);
    CHECK_EQUAL(strlen(decision->endpoints[NS_ENDPOINTS_MAX - 1].reason), NS_REASON_MAX - 1);
    decision_release(decision);
    decision_release(NULL);
    free(answer);
}

/* ---- waiters ---- */

TEST(a_cancelled_waiter_is_not_served)
{
    struct desk *desk = desk_new();
    struct guest guests[3];
    guests_init(guests, 3);
    for (int i = 0; i < 3; i++)
        CHECK(desk_wait(desk, 1, &guests[i]));
    decision_waiter_cancel(&guests[1].waiter);
    decision_waiter_cancel(&guests[1].waiter);
    desk_answer(desk, desk->asked[0], 1, "yes");
    CHECK_EQUAL(guests[0].served, 1);
    CHECK_EQUAL(guests[1].served, 0);
    CHECK_EQUAL(guests[2].served, 1);
    decision_waiter_cancel(&guests[0].waiter);
    guests_dispose(guests, 3);
    desk_free(desk);
}

TEST(an_answer_without_waiters_left_is_cached)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    decision_waiter_cancel(&guest.waiter);
    desk_answer(desk, desk->asked[0], 1, "yes");
    CHECK_EQUAL(guest.served, 0);
    CHECK_TEXT(desk_cached(desk, 1)->reason, "yes");
    desk_free(desk);
}

static void cancel_the_other(struct desk *desk, struct guest *guest, struct decision *decision)
{
    (void)desk;
    (void)decision;
    decision_waiter_cancel(&guest->other->waiter);
}

TEST(a_waiter_may_be_cancelled_from_inside_the_ready_callback)
{
    struct desk *desk = desk_new();
    struct guest guests[3];
    guests_init(guests, 3);
    for (int i = 0; i < 3; i++)
        CHECK(desk_wait(desk, 1, &guests[i]));
    guests[0].then = cancel_the_other;
    guests[0].other = &guests[1];
    desk_answer(desk, desk->asked[0], 1, "yes");
    CHECK_EQUAL(guests[1].served, 0);
    CHECK_EQUAL(guests[2].served, 1);
    guests_dispose(guests, 3);
    desk_free(desk);
}

static void ask_the_same_again(struct desk *desk, struct guest *guest, struct decision *decision)
{
    struct ns_question question = question_number(1);
    int waiting;
    guest->then = NULL;
    if (decisions_get(desk->decisions, &desk->share, &question, &guest->waiter, &waiting) == NULL)
        CHECK(waiting);
    CHECK_TEXT(decision->reason, "first"); /* still ours to look at, whatever became of the cache */
}

TEST(a_ready_callback_that_asks_again_gets_the_cached_answer)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK(desk_wait(desk, 1, &guests[1]));
    guests[0].then = ask_the_same_again;
    desk_answer(desk, desk->asked[0], 1, "first");
    CHECK_EQUAL(desk->asked_count, 1);
    CHECK_EQUAL(decisions_hits(desk->decisions), 1);
    CHECK_EQUAL(guests[0].served, 1);
    CHECK_EQUAL(guests[1].served, 1);
    guests_dispose(guests, 2);
    desk_free(desk);
}

TEST(a_ready_callback_may_throw_the_answer_out_of_the_cache_by_asking_again)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK(desk_wait(desk, 1, &guests[1]));
    guests[0].then = ask_the_same_again;
    desk_answer(desk, desk->asked[0], 2,
                "first"); /* ahead of the cache's epoch: not to be reused in this one */
    CHECK_EQUAL(desk->asked_count, 2);
    CHECK_EQUAL(guests[0].served, 1);
    CHECK_EQUAL(guests[1].served, 1);
    desk_answer(desk, desk->asked[1], 2, "second");
    CHECK_EQUAL(guests[0].served, 2);
    CHECK_EQUAL(guests[1].served, 1);
    guests_dispose(guests, 2);
    desk_free(desk);
}

static void ask_another(struct desk *desk, struct guest *guest, struct decision *decision)
{
    (void)decision;
    guest->then = NULL;
    CHECK(desk_wait(desk, 2, guest));
}

TEST(a_ready_callback_may_ask_something_else)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK(desk_wait(desk, 1, &guests[1]));
    guests[0].then = ask_another;
    desk_answer(desk, desk->asked[0], 1, "first");
    CHECK_EQUAL(desk->asked_count, 2);
    desk_answer(desk, desk->asked[1], 1, "second");
    CHECK_EQUAL(guests[0].served, 2);
    CHECK_TEXT(guests[0].decision->reason, "second");
    CHECK_TEXT(guests[1].decision->reason, "first");
    guests_dispose(guests, 2);
    desk_free(desk);
}

TEST(freeing_unlinks_those_who_wait)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK(desk_wait(desk, 1, &guests[1]));
    desk_free(desk);
    CHECK(link_empty(&guests[0].waiter.link));
    CHECK(link_empty(&guests[1].waiter.link));
}

/* ---- limits ---- */

TEST(one_workload_may_have_half_of_the_pending_questions)
{
    enum { HALF = DECISIONS_PENDING_MAX / 2 };
    struct desk *desk = desk_new();
    struct guest *guests = ns_alloc((HALF + 2) * sizeof(*guests));
    guests_init(guests, HALF + 2);
    for (uint32_t i = 0; i < HALF; i++)
        CHECK(desk_wait(desk, i, &guests[i]));
    CHECK(!desk_wait(desk, HALF, &guests[HALF]));
    CHECK(desk_wait(desk, 0, &guests[HALF + 1])); /* beside one that waits already */
    CHECK_EQUAL(desk->asked_count, HALF);
    desk_answer(desk, desk->asked[5], 1, "yes");
    CHECK(desk_wait(desk, HALF, &guests[HALF]));
    guests_dispose(guests, HALF + 2);
    desk_free(desk);
    free(guests);
}

/* Asks on behalf of another workload; true if the guest now waits. */
static int desk_wait_for(struct desk *desk, struct decision_share *share, uint64_t workload, uint32_t number,
                         struct guest *guest)
{
    struct ns_question question = question_number(number);
    int waiting;
    question.workload = workload;
    CHECK(decisions_get(desk->decisions, share, &question, &guest->waiter, &waiting) == NULL);
    return waiting;
}

TEST(a_workload_with_too_many_pending_questions_leaves_room_for_others)
{
    enum { HALF = DECISIONS_PENDING_MAX / 2, QUIET = 100 };
    struct desk *desk = desk_new();
    struct decision_share quiet;
    struct guest *guests = ns_alloc((HALF + QUIET) * sizeof(*guests));
    decision_share_init(&quiet);
    guests_init(guests, HALF + QUIET);
    uint32_t loud = 0;
    while (desk_wait(desk, loud, &guests[loud]))
        loud++;
    CHECK_EQUAL(loud, HALF);
    for (uint32_t i = 0; i < QUIET; i++)
        CHECK(desk_wait_for(desk, &quiet, 2, i, &guests[HALF + i]));
    decisions_forget(desk->decisions, &quiet);
    CHECK(link_empty(&guests[HALF].waiter.link));
    guests_dispose(guests, HALF + QUIET);
    desk_free(desk);
    free(guests);
}

TEST(a_workload_that_fills_the_cache_forgets_its_own_oldest_answers)
{
    enum { HALF = DECISIONS_MAX / 2, QUIET = 10 };
    struct desk *desk = desk_new();
    struct decision_share quiet;
    struct guest guest;
    decision_share_init(&quiet);
    guests_init(&guest, 1);
    for (uint32_t i = 0; i < QUIET; i++) {
        CHECK(desk_wait_for(desk, &quiet, 2, i, &guest));
        desk_answer(desk, desk->last.id, 1, "quiet");
    }
    for (uint32_t i = 0; i < DECISIONS_MAX + QUIET; i++) {
        CHECK(desk_wait(desk, i, &guest));
        desk_answer(desk, desk->last.id, 1, "yes");
    }
    CHECK_EQUAL(desk->share.count, HALF - QUIET / 2);
    CHECK_EQUAL(quiet.count, QUIET);
    size_t asked = desk->asked_count;
    for (uint32_t i = 0; i < QUIET; i++) {
        struct ns_question question = question_number(i);
        int waiting;
        question.workload = 2;
        CHECK(decisions_get(desk->decisions, &quiet, &question, &guest.waiter, &waiting) != NULL);
    }
    CHECK(desk_cached(desk, DECISIONS_MAX + QUIET - 1) != NULL);
    CHECK_EQUAL(desk->asked_count, asked);
    CHECK(desk_cached(desk, HALF) == NULL);
    decisions_forget(desk->decisions, &quiet);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

TEST(a_full_cache_forgets_the_oldest_answer)
{
    enum { HALF = DECISIONS_MAX / 2 };
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    for (uint32_t i = 0; i <= HALF; i++) {
        CHECK(desk_wait(desk, i, &guest));
        desk_answer(desk, desk->last.id, 1, "yes");
    }
    CHECK(desk_cached(desk, 1) != NULL);
    CHECK(desk_cached(desk, HALF) != NULL);
    CHECK_EQUAL(desk->asked_count, HALF + 1);
    CHECK(desk_cached(desk, 0) == NULL);
    CHECK_EQUAL(desk->asked_count, HALF + 2);
    guests_dispose(&guest, 1);
    desk_free(desk);
}

CHECK_MAIN
