/* turns.c: who goes on in a turn, and who waits. */
#include "loop/turns.h"

#include "check.h"

enum { TASKS = 300, SMALL_SHARE = TURN_BUDGET * BESIDE_LIGHT / 8 };

/* Counts what one workload was given. */
struct party {
    struct budget budget;
    struct task tasks[TASKS];
    int ran;          /* tasks, since the turn began */
    int order[TASKS]; /* their numbers, in the order in which they ran */
    int ran_in_all;
    uint32_t units; /* that each costs */
    int endless;    /* each goes on again */
};

struct worker_at_work {
    struct turns turns;
    struct party loud, quiet;
    uint64_t now_ms;
};

static void party_init(struct party *party)
{
    memset(party, 0, sizeof(*party));
    budget_init(&party->budget);
    party->units = 1;
    for (int i = 0; i < TASKS; i++)
        link_init(&party->tasks[i].link);
}

static struct worker_at_work *work_new(void)
{
    struct worker_at_work *work = ns_alloc(sizeof(*work));
    turns_init(&work->turns);
    party_init(&work->loud);
    party_init(&work->quiet);
    work->now_ms = 1000;
    return work;
}

static void begin(struct worker_at_work *work)
{
    work->loud.ran = work->quiet.ran = 0;
    turns_begin(&work->turns, work->now_ms);
}

static void run(void *owner, struct link *link)
{
    struct worker_at_work *work = owner;
    struct task *task = container_of(link, struct task, link);
    struct party *party =
        task >= work->loud.tasks && task < work->loud.tasks + TASKS ? &work->loud : &work->quiet;
    CHECK(link_empty(link));
    party->order[party->ran_in_all % TASKS] = (int)(task - party->tasks);
    party->ran++;
    party->ran_in_all++;
    turns_spend(&party->budget, party->units);
    if (party->endless)
        task_again(&work->turns, &party->budget, task);
}

/* An event for each of the first `count` tasks, as a worker handles it. */
static void events(struct worker_at_work *work, struct party *party, int from, int count)
{
    for (int i = from; i < from + count; i++) {
        if (turns_event(&work->turns, &party->budget))
            run(work, &party->tasks[i].link);
        else
            task_wait(&work->turns, &party->budget, &party->tasks[i]);
    }
}

static void contend(struct worker_at_work *work)
{
    begin(work);
    events(work, &work->quiet, 0, 1);
    events(work, &work->loud, 0, 1);
    work->quiet.ran_in_all = work->loud.ran_in_all = 0;
}

TEST(a_workload_alone_is_not_limited)
{
    struct worker_at_work *work = work_new();
    begin(work);
    events(work, &work->loud, 0, TASKS);
    CHECK_EQUAL(work->loud.ran, TASKS);
    CHECK(!turns_busy(&work->turns));
    free(work);
}

TEST(a_workload_is_alone_again_after_a_while)
{
    struct worker_at_work *work = work_new();
    contend(work);
    work->now_ms += CONTENDED_MS;
    begin(work);
    events(work, &work->loud, 0, TASKS);
    CHECK_EQUAL(work->loud.ran, TASKS);
    free(work);
}

TEST(of_two_workloads_none_gets_more_than_its_budget_of_a_turn)
{
    struct worker_at_work *work = work_new();
    contend(work);
    begin(work);
    events(work, &work->loud, 0, TASKS);
    events(work, &work->quiet, 0, 1);
    turns_run_tasks(&work->turns, run, work);
    CHECK(work->loud.ran <= TURN_BUDGET + 1);
    CHECK_EQUAL(work->quiet.ran, 1);
    CHECK(turns_busy(&work->turns));
    int turns = 1;
    for (; turns_busy(&work->turns); turns++) {
        begin(work);
        events(work, &work->quiet, 0, 1);
        turns_run_tasks(&work->turns, run, work);
        CHECK_EQUAL(work->quiet.ran, 1);
        CHECK(work->loud.ran <= TURN_BUDGET);
    }
    CHECK_EQUAL(work->loud.ran_in_all, TASKS);
    CHECK(turns <= TASKS / SMALL_SHARE + 2);
    free(work);
}

TEST(beside_a_light_workload_others_have_smaller_budgets_and_move_less_at_once)
{
    struct worker_at_work *work = work_new();
    contend(work);
    begin(work);
    events(work, &work->loud, 0, TASKS);
    begin(work);
    events(work, &work->quiet, 0, 1);
    work->loud.ran = 0;
    turns_run_tasks(&work->turns, run, work);
    CHECK_EQUAL(work->loud.ran, SMALL_SHARE);
    CHECK_EQUAL(turns_piece(&work->turns, &work->loud.budget, 262144), PIECE_BESIDE_LIGHT);
    CHECK_EQUAL(turns_piece(&work->turns, &work->quiet.budget, 262144), 262144);
    work->now_ms += CONTENDED_MS; /* nothing was heard of it for long */
    begin(work);
    CHECK_EQUAL(turns_piece(&work->turns, &work->loud.budget, 262144), 262144);
    free(work);
}

TEST(two_who_move_much_have_large_budgets)
{
    struct worker_at_work *work = work_new();
    contend(work);
    for (int turn = 0; turn < 3; turn++) {
        begin(work);
        events(work, &work->loud, 0, 1);
        turns_moved(&work->loud.budget, 262144);
        events(work, &work->quiet, 0, 1);
        turns_moved(&work->quiet.budget, 262144);
    }
    CHECK_EQUAL(turns_piece(&work->turns, &work->loud.budget, 262144), 262144);
    CHECK_EQUAL(turns_piece(&work->turns, &work->quiet.budget, 262144), 262144);
    for (int turn = 0; turn < 2; turn++) { /* one of them moves little from now on */
        begin(work);
        events(work, &work->loud, 0, 1);
        turns_moved(&work->loud.budget, 262144);
        events(work, &work->quiet, 0, 1);
        work->now_ms += HEAVY_MS;
    }
    CHECK_EQUAL(turns_piece(&work->turns, &work->loud.budget, 262144), PIECE_BESIDE_LIGHT);
    free(work);
}

TEST(who_moves_all_that_he_may_beside_a_light_workload_stays_heavy)
{
    struct worker_at_work *work = work_new();
    contend(work);
    for (int turn = 0; turn < 5; turn++) {
        begin(work);
        events(work, &work->loud, 0, 1);
        size_t piece = turns_piece(&work->turns, &work->loud.budget, 262144);
        if (turn > 0)
            CHECK_EQUAL(piece, PIECE_BESIDE_LIGHT);
        turns_moved(&work->loud.budget, turn > 0 ? piece : 262144);
        events(work, &work->quiet, 0, 1);
        work->now_ms += HEAVY_MS;
    }
    free(work);
}

TEST(who_uses_up_budgets_is_not_light)
{
    struct worker_at_work *work = work_new();
    contend(work);
    for (int turn = 0; turn < 3; turn++) {
        begin(work);
        events(work, &work->quiet, 0, 1);
        turns_spend(&work->quiet.budget, TURN_BUDGET);
        events(work, &work->loud, 0, 1);
        turns_spend(&work->loud.budget, TURN_BUDGET);
    }
    CHECK_EQUAL(turns_piece(&work->turns, &work->loud.budget, 262144), 262144);
    CHECK_EQUAL(turns_piece(&work->turns, &work->quiet.budget, 262144), 262144);
    free(work);
}

TEST(events_keep_their_order)
{
    struct worker_at_work *work = work_new();
    contend(work);
    begin(work);
    events(work, &work->loud, 0, TASKS - 1);
    turns_run_tasks(&work->turns, run, work);
    begin(work);
    events(work, &work->loud, TASKS - 1, 1); /* there is room, but others wait for longer */
    while (turns_busy(&work->turns)) {
        turns_run_tasks(&work->turns, run, work);
        begin(work);
    }
    for (int i = 0; i < TASKS; i++)
        CHECK_EQUAL(work->loud.order[i], i);
    free(work);
}

TEST(large_reads_leave_no_more_than_one_task_beyond_the_budget)
{
    struct worker_at_work *work = work_new();
    work->loud.units = 1 + 262144 / TURN_UNIT_BYTES;
    work->loud.endless = 1;
    contend(work);
    for (int i = 0; i < 8; i++)
        task_again(&work->turns, &work->loud.budget, &work->loud.tasks[i]);
    for (int turn = 0; turn < 16; turn++) {
        begin(work);
        events(work, &work->quiet, 0, 1);
        turns_run_tasks(&work->turns, run, work);
        CHECK_EQUAL(work->quiet.ran, 1);
        CHECK_EQUAL(work->loud.ran, 1);
    }
    for (int turn = 0; turn < 16; turn++)
        CHECK_EQUAL(work->loud.order[turn], (turn + work->loud.order[0]) % 8); /* one after the other */
    free(work);
}

TEST(large_reads_do_not_keep_small_events_waiting_nor_the_other_way_round)
{
    struct worker_at_work *work = work_new();
    contend(work);
    work->loud.endless = 1;
    for (int i = 0; i < TURN_BUDGET; i++)
        task_again(&work->turns, &work->loud.budget, &work->loud.tasks[i]);
    work->loud.endless = 0;
    begin(work);
    events(work, &work->loud, TURN_BUDGET, 2 * TURN_BUDGET);
    turns_run_tasks(&work->turns, run, work);
    CHECK(work->loud.order[TURN_BUDGET - 1] >= TURN_BUDGET); /* events came first */
    int again = 0;
    for (int i = 0; i < work->loud.ran_in_all; i++)
        again += work->loud.order[i] < TURN_BUDGET;
    CHECK_EQUAL(again, 1);
    free(work);
}

TEST(a_task_that_ended_leaves_its_place)
{
    struct worker_at_work *work = work_new();
    contend(work);
    begin(work);
    events(work, &work->loud, 0, TURN_BUDGET + 2);
    link_remove(&work->loud.tasks[TURN_BUDGET + 1].link);
    link_remove(&work->loud.tasks[TURN_BUDGET].link);
    work->loud.ran = 0;
    begin(work);
    turns_run_tasks(&work->turns, run, work);
    CHECK_EQUAL(work->loud.ran, 0);
    CHECK(!turns_busy(&work->turns));
    budget_dispose(&work->turns, &work->loud.budget);
    free(work);
}

/* ---- writes and steps ---- */

static void write_one(void *owner, struct link *link)
{
    struct worker_at_work *work = owner;
    struct task *task = container_of(link, struct task, link);
    struct party *party =
        task >= work->loud.tasks && task < work->loud.tasks + TASKS ? &work->loud : &work->quiet;
    party->ran++;
    turns_spend(&party->budget, party->units);
}

TEST(writes_are_shared_as_well)
{
    struct worker_at_work *work = work_new();
    work->loud.units = 16;
    contend(work);
    begin(work);
    for (int i = 0; i < 10; i++) {
        turns_write(&work->turns, &work->loud.budget, &work->loud.tasks[i].link);
        turns_write(&work->turns, &work->loud.budget, &work->loud.tasks[i].link);
    }
    turns_write(&work->turns, &work->quiet.budget, &work->quiet.tasks[0].link);
    turns_run_writes(&work->turns, write_one, work);
    CHECK_EQUAL(work->loud.ran, TURN_BUDGET / 16);
    CHECK_EQUAL(work->quiet.ran, 1);
    int turns = 1;
    for (; turns_busy(&work->turns); turns++) {
        begin(work);
        turns_run_writes(&work->turns, write_one, work);
    }
    CHECK_EQUAL(turns, 10 / (TURN_BUDGET / 16));
    free(work);
}

TEST(steps_of_handshakes_are_made_for_each_workload_in_turn)
{
    struct worker_at_work *work = work_new();
    for (int i = 0; i < 100; i++)
        turns_step(&work->turns, &work->loud.budget, STEP_DIALLED, &work->loud.tasks[i].link);
    turns_step(&work->turns, &work->quiet.budget, STEP_DIALLED, &work->quiet.tasks[0].link);
    CHECK(turns_next_step(&work->turns, STEP_DIALLED) == &work->loud.tasks[0].link);
    CHECK(turns_next_step(&work->turns, STEP_DIALLED) == &work->quiet.tasks[0].link);
    CHECK(turns_next_step(&work->turns, STEP_DIALLED) == &work->loud.tasks[1].link);
    for (int i = 2; i < 100; i++)
        link_remove(&work->loud.tasks[i].link); /* they ended meanwhile */
    CHECK(turns_next_step(&work->turns, STEP_DIALLED) == NULL);
    CHECK(!turns_busy(&work->turns));
    free(work);
}

/* ---- kinds of steps ---- */

enum { STEP_COST = 1000 };

/* Which kinds get how many of `count` steps when all of them always have some. */
static void steps_of(struct turns *turns, const int has[STEP_KINDS], int count, int made[STEP_KINDS])
{
    memset(made, 0, STEP_KINDS * sizeof(made[0]));
    for (int i = 0; i < count; i++) {
        enum step_kind kind = turns_step_kind(turns, has);
        CHECK(kind != STEP_KINDS && has[kind]);
        turns_step_made(turns, kind, STEP_COST);
        made[kind]++;
    }
}

TEST(what_is_dialled_and_published_peers_share_and_strangers_get_an_eighth_of_a_part)
{
    struct turns turns = {0};
    int made[STEP_KINDS];
    turns_init(&turns);
    steps_of(&turns, (const int[STEP_KINDS]){1, 1, 1}, 17 * 100, made);
    CHECK(made[STEP_DIALLED] >= 790 && made[STEP_DIALLED] <= 810);
    CHECK(made[STEP_PUBLISHED] >= 790 && made[STEP_PUBLISHED] <= 810);
    CHECK(made[STEP_STRANGE] >= 90 && made[STEP_STRANGE] <= 110);
}

TEST(strangers_alone_get_all_and_nothing_of_it_is_held_against_others)
{
    struct turns turns = {0};
    int made[STEP_KINDS];
    turns_init(&turns);
    steps_of(&turns, (const int[STEP_KINDS]){0, 0, 1}, 1000, made);
    CHECK_EQUAL(made[STEP_STRANGE], 1000);
    steps_of(&turns, (const int[STEP_KINDS]){1, 0, 1}, 9, made);
    CHECK(made[STEP_DIALLED] >= 8);
}

TEST(strangers_who_had_nothing_to_do_are_owed_nothing)
{
    struct turns turns = {0};
    int made[STEP_KINDS];
    turns_init(&turns);
    steps_of(&turns, (const int[STEP_KINDS]){1, 1, 0}, 1000, made);
    steps_of(&turns, (const int[STEP_KINDS]){1, 1, 1}, 17, made);
    CHECK(made[STEP_STRANGE] <= 2);
    CHECK_EQUAL(turns_step_kind(&turns, (const int[STEP_KINDS]){0, 0, 0}), STEP_KINDS);
}

TEST(one_kind_that_had_nothing_to_do_catches_up_a_little_only)
{
    struct turns turns = {0};
    int made[STEP_KINDS];
    turns_init(&turns);
    steps_of(&turns, (const int[STEP_KINDS]){1, 0, 0}, 1000, made);
    steps_of(&turns, (const int[STEP_KINDS]){1, 1, 0}, 100, made);
    CHECK(made[STEP_PUBLISHED] >= 50 && made[STEP_PUBLISHED] <= 50 + STEPS_LATE_US / STEP_COST);
}

CHECK_MAIN
