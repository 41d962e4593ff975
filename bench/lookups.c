/* lookups.c: what a cached decision costs. Prints nanoseconds a look-up, with as many keys as asked for. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "decisions/decisions.h"

enum { LOOKUPS = 1000000 };

static uint64_t asked;

static int ask(void *owner, const struct ns_question *question)
{
    (void)owner;
    asked = question->id;
    return 0;
}

static void ready(void *owner, struct decision_waiter *waiter, struct decision *decision)
{
    (void)owner;
    (void)waiter;
    (void)decision;
}

/* Flows of one workload to different services. */
static void key(uint32_t number, struct ns_question *question)
{
    static const uint8_t mapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1};
    memset(question, 0, sizeof(*question));
    question->workload = 1;
    question->kind = NS_ASK_OUTBOUND;
    memcpy(question->source.ip, mapped, sizeof(mapped));
    memcpy(question->destination.ip, mapped, sizeof(mapped));
    memcpy(question->destination.ip + 13, &number, 3);
    question->destination.port = 8080;
}

int main(int argc, char **argv)
{
    uint32_t keys = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    struct decisions *decisions = decisions_new(0, ask, ready, NULL);
    struct decision_waiter waiter;
    struct ns_question question;
    struct ns_answer answer = {.epoch = 1, .verdict = NS_ALLOW, .endpoint_count = 1};
    int waiting;
    link_init(&waiter.link);
    struct decision_share share;
    decision_share_init(&share);
    decisions_epoch(decisions, 1, NULL);
    for (uint32_t i = 0; i < keys; i++) {
        key(i, &question);
        (void)decisions_get(decisions, &share, &question, &waiter, &waiting);
        answer.id = asked;
        decisions_answer(decisions, decision_new(&answer));
    }
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint32_t i = 0; i < LOOKUPS; i++) {
        key(i % keys, &question); /* as a flow writes it for each look-up */
        if (decisions_get(decisions, &share, &question, &waiter, &waiting) == NULL)
            return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
    printf("%.1f\n", ns / LOOKUPS);
    decisions_forget(decisions, &share);
    decisions_free(decisions);
    return 0;
}
