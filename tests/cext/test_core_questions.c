/* The whole core: new flows that wait for decisions, beside others. */
#include "core_calls.h"
#include "core_ends.h"
#include "core/core.h"

/* A plaintext listener of pipeline: its flows are decided apart from those of the others. */
static int lab_listen_inbound(struct lab *lab)
{
    return lab_listen(lab, PIPELINE_KEY, NS_LISTEN_INBOUND, listen_at(host(2, 0)));
}

TEST(a_stuck_decider_stalls_only_those_who_wait_for_it)
{
    struct lab *lab = lab_new_of_one_worker();
    int inbound = lab_listen_inbound(lab);
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    struct ends open = lab_connect(lab);
    exchange(&open, 0);
    LAB_SET(lab, stuck, 1);
    int waiting = dial(inbound);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 2);
    for (int i = 1; i < 20; i++)
        exchange(&open, (uint64_t)i * 100);
    struct ends cached = lab_connect(lab); /* its decisions, of both ends, are known */
    exchange(&cached, 0);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).refused, 0);
    LAB_SET(lab, stuck, 0);
    expect_reset(waiting);
    close(waiting);
    ends_close(&open);
    ends_close(&cached);
    close(inbound);
    lab_free(lab);
}

TEST(hundreds_of_waiting_flows_with_one_key_are_one_question)
{
    enum { FLOWS = 300 };
    struct lab *lab = lab_new_of_one_worker();
    int inbound = lab_listen_inbound(lab);
    int waiting[FLOWS];
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    LAB_SET(lab, stuck, 1);
    for (int i = 0; i < FLOWS; i++)
        waiting[i] = dial(inbound);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == FLOWS);
    CHECK_EQUAL(lab_core_stats(lab).questions, 1);
    LAB_SET(lab, stuck, 0);
    for (int i = 0; i < FLOWS; i++) {
        expect_reset(waiting[i]);
        close(waiting[i]);
    }
    CHECK_EQUAL(lab_core_stats(lab).questions, 1);
    CHECK(lab_core_stats(lab).decision_p50_ns > 0);
    close(inbound);
    lab_free(lab);
}

TEST(answers_that_come_all_at_once_are_spread_over_turns)
{
    enum { FLOWS = 60, FIRST_KEY = 10 };
    struct lab *lab = lab_new_of_one_worker();
    int listeners[FLOWS], clients[FLOWS];
    struct sockaddr_in application = lab->endpoint;
    LAB_SET(lab, tunnel, 0);
    for (int i = 0; i < FLOWS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
    }
    LAB_SET(lab, stuck, 1);
    for (int i = 0; i < FLOWS; i++)
        clients[i] = dial(listeners[i]);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == FLOWS);
    gate_close(&application); /* the worker is held in the first one's connect() */
    LAB_SET(lab, stuck, 0);
    WAIT_UNTIL(COUNT(lab->answers) == FLOWS);
    gate_open();
    for (int i = 0; i < FLOWS; i++) {
        int server = take_connection(lab->application);
        close(server);
    }
    CHECK_CASE(COUNT(calls.answers_most) > 1 && COUNT(calls.answers_most) <= TURN_COMMANDS, "%d",
               COUNT(calls.answers_most));
    for (int i = 0; i < FLOWS; i++) {
        close(clients[i]);
        close(listeners[i]);
    }
    lab_free(lab);
}

static struct ns_question question_of(uint64_t workload, uint32_t number)
{
    struct ns_question question;
    memset(&question, 0, sizeof(question));
    question.id = workload * 1000 + number;
    question.workload = workload;
    return question;
}

TEST(questions_are_taken_from_each_workload_in_turn)
{
    enum { LOUD = 100, ROUND = 8 };
    struct core_options options = options_default();
    char error[NS_REASON_MAX] = "";
    struct descriptors process = {0};
    struct notices notices = {0};
    struct core *core = core_start(&options, error, sizeof(error));
    struct quota *loud = quota_new(1, &process, &notices), *quiet = quota_new(2, &process, &notices);
    struct ns_question taken[2 * ROUND];
    for (uint32_t i = 0; i < LOUD; i++) {
        struct ns_question question = question_of(1, i);
        CHECK_EQUAL(questions_put(&core->questions, loud, &question), 0);
    }
    struct ns_question question = question_of(2, 0);
    CHECK_EQUAL(questions_put(&core->questions, quiet, &question), 0);
    CHECK_EQUAL(core_next_questions(core, taken, 2 * ROUND, 0), 2 * ROUND);
    for (uint32_t i = 0; i < ROUND; i++)
        CHECK_EQUAL(taken[i].id, 1000 + i);
    CHECK_EQUAL(taken[ROUND].id, 2000);
    CHECK_EQUAL(taken[ROUND + 1].id, 1000 + ROUND);
    quota_release(quiet);
    quota_release(loud); /* its questions hold it */
    core_stop(core);
}

CHECK_MAIN
