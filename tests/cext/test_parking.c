/* parking.c: SYNs that come again, or do not. */
#include "loop/parking.h"

#include "check.h"

static struct tuple tuple_of(uint64_t workload, uint16_t port)
{
    struct tuple tuple = {.workload = workload};
    tuple.source.port = port;
    return tuple;
}

struct worker {
    struct parking parking;
    int gave_up;
};

static void forget(struct worker *worker, struct parked *parked)
{
    worker->gave_up++;
    parked_forget(&worker->parking, parked);
}

static int silent(struct worker *worker, uint64_t now_ms)
{
    worker->gave_up = 0;
    parked_each_silent(&worker->parking, now_ms, worker, forget);
    return worker->gave_up;
}

static struct worker *worker_new(void)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    CHECK(worker != NULL);
    parking_init(&worker->parking);
    return worker;
}

static void worker_free(struct worker *worker)
{
    parking_dispose(&worker->parking);
    free(worker);
}

/* Pauses in seconds. `spare_ms`: each SYN is late by so much. */
static void check_patience(const int *pauses, int count, uint64_t spare_ms)
{
    struct worker *worker = worker_new();
    const struct tuple tuple = tuple_of(1, 9);
    uint64_t now_ms = 1000;
    struct parked *parked = parked_new(&worker->parking, &tuple, 5, now_ms);
    for (int i = 0; i < count; i++) {
        now_ms += (uint64_t)pauses[i] * 1000;
        CHECK_EQUAL(silent(worker, now_ms + spare_ms), 0);
        parked_seen(parked, now_ms);
    }
    worker_free(worker);
}

TEST(application_that_sends_its_syn_as_linux_does_is_waited_for)
{
    static const int DOUBLED[] = {1, 2, 4, 8, 16, 32, 64, 120, 120};
    static const int LINEAR[] = {1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 64, 120, 120};
    check_patience(DOUBLED, sizeof(DOUBLED) / sizeof(DOUBLED[0]), 2000);
    check_patience(LINEAR, sizeof(LINEAR) / sizeof(LINEAR[0]), 2000);
}

TEST(application_that_stops_is_taken_for_gone)
{
    struct worker *worker = worker_new();
    const struct tuple one = tuple_of(1, 9), other = tuple_of(1, 10);
    struct parked *first = parked_new(&worker->parking, &one, 5, 0);
    (void)parked_new(&worker->parking, &other, 5, 0);
    parked_seen(first, 1000);
    parked_seen(first, 3000);
    CHECK_EQUAL(silent(worker, 4001), 1);
    CHECK(parked_find(&worker->parking, &other) == NULL);
    CHECK_EQUAL(silent(worker, 10000), 0);
    CHECK_EQUAL(silent(worker, 10001), 1);
    CHECK_EQUAL(worker->parking.count, 0);
    worker_free(worker);
}

TEST(another_reader_leaves_little_time_to_those_of_its_workload)
{
    struct worker *worker = worker_new();
    const struct tuple one = tuple_of(1, 9), other = tuple_of(2, 9);
    parked_seen(parked_new(&worker->parking, &one, 5, 0), 63000);
    parked_seen(parked_new(&worker->parking, &other, 5, 0), 63000);
    parked_left(&worker->parking, 1, 64000);
    CHECK_EQUAL(silent(worker, 74000), 0);
    CHECK_EQUAL(silent(worker, 74001), 1);
    CHECK(parked_find(&worker->parking, &other) != NULL);
    worker_free(worker);
}

TEST(answer_of_an_earlier_syn_does_not_end_a_later_one)
{
    struct worker *worker = worker_new();
    const struct tuple tuple = tuple_of(1, 9);
    (void)parked_new(&worker->parking, &tuple, 6, 0);
    parked_answered(&worker->parking, &tuple, 5);
    CHECK(parked_find(&worker->parking, &tuple) != NULL);
    parked_answered(&worker->parking, &tuple, 6);
    CHECK(parked_find(&worker->parking, &tuple) == NULL);
    parked_answered(&worker->parking, &tuple, 6);
    worker_free(worker);
}

TEST(held_syn_is_found_by_its_two_ends_and_the_workload)
{
    struct worker *worker = worker_new();
    struct held held = {0};
    struct syn *syn = calloc(1, sizeof(*syn));
    CHECK(syn != NULL);
    syn->source.port = 9;
    held_init(&held);
    held_begin(&worker->parking, 1, &held, syn, 0);
    const struct tuple tuple = tuple_of(1, 9), of_other = tuple_of(2, 9), other = tuple_of(1, 10);
    CHECK(held_find(&worker->parking, &tuple) == &held);
    CHECK(held_find(&worker->parking, &of_other) == NULL);
    CHECK(held_find(&worker->parking, &other) == NULL);
    held_end(&held);
    CHECK(!held_is(&held));
    CHECK(held_find(&worker->parking, &tuple) == NULL);
    worker_free(worker);
}

CHECK_MAIN
