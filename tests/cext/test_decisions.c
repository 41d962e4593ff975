/* decisions.c: who is asked what, how often, and which answer a waiter gets. */
#include "decision_desk.h"

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
    decisions_epoch(desk->decisions, 2, NULL);
    CHECK(desk_wait(desk, 1, &guest));
    CHECK_EQUAL(desk->asked_count, 2);
    CHECK_TEXT(guest.decision->reason, "old"); /* held: it outlives its place in the cache */
    desk_answer(desk, desk->asked[1], 2, "new");
    CHECK_EQUAL(guest.served, 2);
    CHECK_TEXT(guest.decision->reason, "new");
    guests_dispose(&guest, 1);
    desk_free(desk);
}

/* Of what question_number asks about. */
static struct concern *concern_of(uint32_t number)
{
    uint8_t address[16] = {0};
    memcpy(address + 12, &number, sizeof(number));
    return concern_new(&(struct ns_concern){.addresses = address, .address_count = 1});
}

TEST(an_epoch_voids_the_answers_that_it_concerns)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(desk_wait(desk, i + 1, &guests[i]));
        desk_answer(desk, desk->asked[i], 1, "old");
    }
    struct concern *concern = concern_of(1);
    decisions_epoch(desk->decisions, 2, concern);
    CHECK(desk_cached(desk, 2) == guests[1].decision);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK_EQUAL(desk->asked_count, 3);
    desk_answer(desk, desk->asked[2], 2, "new");
    CHECK(desk_cached(desk, 1) == guests[0].decision);
    CHECK_TEXT(guests[0].decision->reason, "new");
    concern_release(concern);
    guests_dispose(guests, 2);
    desk_free(desk);
}

TEST(an_answer_on_its_way_is_asked_again_if_an_epoch_since_concerns_it)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    CHECK(desk_wait(desk, 2, &guests[1]));
    struct concern *concern = concern_of(1);
    decisions_epoch(desk->decisions, 2, concern);
    concern_release(concern);
    concern = concern_of(3);
    decisions_epoch(desk->decisions, 3, concern);
    concern_release(concern);
    desk_answer(desk, desk->asked[0], 1, "stale");
    desk_answer(desk, desk->asked[1], 1, "as good as ever");
    CHECK_EQUAL(guests[0].served, 0);
    CHECK_EQUAL(guests[1].served, 1);
    CHECK_EQUAL(desk->asked_count, 3);
    desk_answer(desk, desk->asked[2], 2, "of the epoch that concerns it");
    CHECK_EQUAL(guests[0].served, 1);
    CHECK(desk_cached(desk, 2) == guests[1].decision);
    guests_dispose(guests, 2);
    desk_free(desk);
}

TEST(an_epoch_voids_what_is_neither_yes_nor_no)
{
    struct desk *desk = desk_new();
    struct concern *nobody = concern_of(4711);
    const uint32_t verdicts[] = {NS_ALLOW, NS_REFUSE, NS_UNAVAILABLE, NS_NOT_YET};
    for (uint32_t i = 0; i < 4; i++) {
        struct guest guest;
        guests_init(&guest, 1);
        CHECK(desk_wait(desk, i, &guest));
        desk_answer_with(desk, desk->asked[i], 1, verdicts[i], "one");
        guests_dispose(&guest, 1);
    }
    decisions_epoch(desk->decisions, 2, nobody);
    CHECK(desk_cached(desk, 0) != NULL);
    CHECK(desk_cached(desk, 1) != NULL);
    CHECK_EQUAL(desk->asked_count, 4);
    CHECK(desk_cached(desk, 2) == NULL);
    CHECK(desk_cached(desk, 3) == NULL);
    CHECK_EQUAL(desk->asked_count, 6);
    concern_release(nobody);
    desk_free(desk);
}

TEST(an_answer_made_before_the_present_epoch_is_asked_again)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    decisions_epoch(desk->decisions, 2, NULL);
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
    decisions_epoch(desk->decisions, 2, NULL);
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
    decisions_epoch(desk->decisions, 2, NULL);
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

/* ---- answers that last for a while ---- */

static time_t seconds_later; /* than the clock says */

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = __real_clock_gettime(clock, now);
    now->tv_sec += seconds_later;
    return result;
}

TEST(an_answer_that_lasts_for_a_while_is_asked_for_again_after_it)
{
    struct desk *desk = desk_new();
    struct guest guests[2];
    guests_init(guests, 2);
    CHECK(desk_wait(desk, 1, &guests[0]));
    desk_answer_for(desk, desk->asked[0], 1, NS_ALLOW, "for an hour", 3600 * 1000);
    CHECK(desk_cached(desk, 1) == guests[0].decision);
    seconds_later = 3599;
    CHECK(desk_cached(desk, 1) == guests[0].decision);
    seconds_later = 3601;
    CHECK(desk_wait(desk, 1, &guests[1]));
    CHECK_EQUAL(desk->asked_count, 2);
    desk_answer(desk, desk->asked[1], 1, "for ever");
    CHECK_TEXT(desk_cached(desk, 1)->reason, "for ever");
    CHECK_TEXT(guests[0].decision->reason, "for an hour");
    seconds_later = 0;
    guests_dispose(guests, 2);
    desk_free(desk);
}

TEST(any_other_answer_lasts_as_long_as_the_epoch)
{
    struct desk *desk = desk_new();
    struct guest guest;
    guests_init(&guest, 1);
    CHECK(desk_wait(desk, 1, &guest));
    desk_answer(desk, desk->asked[0], 1, "for ever");
    seconds_later = 365 * 86400;
    CHECK(desk_cached(desk, 1) == guest.decision);
    seconds_later = 0;
    guests_dispose(&guest, 1);
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
    desk->full = 0;
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
    decisions_epoch(desk->decisions, 2, NULL);
    desk->full = 1;
    desk_answer(desk, desk->asked[0], 1, "first"); /* too old to be reused */
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

CHECK_MAIN
