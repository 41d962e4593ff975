/* decisions.c: how workloads share the room for answers and for questions under way. */
#include "decision_desk.h"

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
