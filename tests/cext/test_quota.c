/* quota.c: what is let in, what is counted, and what is said of it. */
#include "limits/quota.h"

#include <pthread.h>
#include <sys/resource.h>

#include "check.h"

enum { KEY = 7, SECOND_US = 1000000 };

struct site {
    struct descriptors process;
    struct notices notices;
    struct quota *quota;
};

static struct site *site_new(uint64_t connections, uint64_t memory, uint64_t new_connections)
{
    struct site *site = ns_alloc(sizeof(*site));
    struct ns_limits limits = {connections, memory, new_connections};
    site->quota = quota_new(KEY, &site->process, &site->notices);
    quota_set_limits(site->quota, &limits);
    return site;
}

static void site_free(struct site *site)
{
    quota_release(site->quota);
    free(site);
}

static struct ns_workload_stats stats_at(struct site *site, uint64_t now_ms)
{
    struct ns_workload_stats stats;
    memset(&stats, 0, sizeof(stats));
    quota_stats(site->quota, now_ms, &stats);
    return stats;
}

TEST(without_limits_everything_is_let_in)
{
    struct site *site = site_new(0, 0, 0);
    quota_memory(site->quota, 1l << 40);
    for (int i = 0; i < 100000; i++)
        CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    CHECK(!quota_tight(site->quota));
    CHECK_EQUAL(quota_left(site->quota), INT64_MAX);
    CHECK_EQUAL(quota_buffers(site->quota), 0);
    CHECK_EQUAL(site->notices.due, 0);
    site_free(site);
}

TEST(one_connection_more_than_the_limit_is_refused_until_another_ends)
{
    struct site *site = site_new(3, 0, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMIT_CONNECTIONS);
    quota_leave(site->quota);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    CHECK_EQUAL(stats_at(site, 2000).limited[NS_LIMIT_CONNECTIONS].refused, 2);
    struct ns_limits less = {1, 0, 0};
    quota_set_limits(site->quota, &less);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(stats_at(site, 2000).limits.connections, 1);
    site_free(site);
}

enum { THREADS = 4, TRIES = 20000, LIMIT = 12345 };

static void *admit_main(void *argument)
{
    struct site *site = argument;
    uint64_t let_in = 0;
    for (int i = 0; i < TRIES; i++)
        let_in += quota_admit(site->quota, SECOND_US) == NS_LIMITS;
    return (void *)(uintptr_t)let_in;
}

TEST(the_limit_is_exact_for_all_workers_together)
{
    struct site *site = site_new(LIMIT, 0, 0);
    pthread_t threads[THREADS];
    uint64_t let_in = 0;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, admit_main, site), 0);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        CHECK_EQUAL(pthread_join(threads[i], &result), 0);
        let_in += (uint64_t)(uintptr_t)result;
    }
    /* While another is being refused it counts for a moment: never more than the limit, a few less at most.
     */
    CHECK(let_in <= LIMIT && let_in > LIMIT - THREADS);
    CHECK_EQUAL(site->quota->connections, let_in);
    site_free(site);
}

TEST(a_seconds_worth_of_connections_may_come_at_once_and_then_one_by_one)
{
    enum { RATE = 100 };
    struct site *site = site_new(0, 0, RATE);
    uint64_t now = 50 * SECOND_US;
    for (int i = 0; i < RATE; i++)
        CHECK_EQUAL(quota_admit(site->quota, now), NS_LIMITS);
    CHECK_EQUAL(quota_admit(site->quota, now), NS_LIMIT_RATE);
    CHECK_EQUAL(quota_admit(site->quota, now + SECOND_US / RATE - 1), NS_LIMIT_RATE);
    CHECK_EQUAL(quota_admit(site->quota, now + SECOND_US / RATE), NS_LIMITS);
    CHECK_EQUAL(quota_admit(site->quota, now + SECOND_US / RATE), NS_LIMIT_RATE);
    now += 10 * SECOND_US; /* full again, and no fuller */
    for (int i = 0; i < RATE; i++)
        CHECK_EQUAL(quota_admit(site->quota, now), NS_LIMITS);
    CHECK_EQUAL(quota_admit(site->quota, now), NS_LIMIT_RATE);
    CHECK_EQUAL(site->quota->connections, 2 * RATE + 1);
    site_free(site);
}

TEST(what_is_promised_is_not_left_and_refuses_nobody)
{
    struct site *site = site_new(0, 1000, 0);
    site->quota->promised = 1200; /* under a limit that was higher */
    CHECK_EQUAL(quota_left(site->quota), -200);
    CHECK(!quota_tight(site->quota));
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    CHECK_EQUAL(stats_at(site, 2000).promised, 1200);
    site_free(site);
}

TEST(the_kernel_may_hold_less_of_each_the_more_connections_there_are)
{
    struct site *site = site_new(0, 256 << 20, 0);
    site->quota->connections = BUFFERS_FREE;
    CHECK_EQUAL(quota_buffers(site->quota), 0);
    site->quota->connections = BUFFERS_FREE + 1;
    CHECK_EQUAL(quota_buffers(site->quota), BUFFERS_MOST);
    site->quota->connections = 2048;
    CHECK_EQUAL(quota_buffers(site->quota), 32768);
    site->quota->connections = 20000;
    CHECK_EQUAL(quota_buffers(site->quota), BUFFERS_LEAST);
    site->quota->connections = 0;
    site_free(site);
}

TEST(memory_makes_tight_at_half_and_refuses_at_the_limit)
{
    struct site *site = site_new(0, 1000, 0);
    quota_memory(site->quota, 499);
    CHECK(!quota_tight(site->quota));
    CHECK_EQUAL(quota_left(site->quota), 501);
    quota_memory(site->quota, 1);
    CHECK(quota_tight(site->quota));
    quota_memory(site->quota, 499);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    quota_memory(site->quota, 1);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMIT_MEMORY);
    quota_memory(site->quota, -1000);
    CHECK_EQUAL(quota_admit(site->quota, SECOND_US), NS_LIMITS);
    CHECK_EQUAL(stats_at(site, 2000).memory, 0);
    site_free(site);
}

/* ---- descriptors ---- */

static void descriptors_may_be(uint64_t count)
{
    struct rlimit limit;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = count;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* Connections of two descriptors each until one is refused. */
static int connect_until_refused(struct quota *quota)
{
    int count = 0;
    for (; quota_admit(quota, SECOND_US) == NS_LIMITS; count++)
        quota_descriptors(quota, 2);
    return count;
}

TEST(no_workload_may_hold_all_descriptors)
{
    descriptors_may_be(DESCRIPTORS_RESERVED + 600);
    struct site *site = site_new(0, 0, 0);
    struct quota *second = quota_new(KEY + 1, &site->process, &site->notices);
    struct quota *third = quota_new(KEY + 2, &site->process, &site->notices);
    CHECK_EQUAL(connect_until_refused(site->quota), 240); /* four fifths */
    CHECK_EQUAL(connect_until_refused(second), 48);       /* of what is left */
    CHECK(connect_until_refused(third) > 5);              /* something is always left */
    CHECK_EQUAL(stats_at(site, 2000).limited[NS_LIMIT_DESCRIPTORS].refused, 1);
    CHECK_EQUAL(stats_at(site, 2000).descriptors, 480);
    quota_descriptors(site->quota, -400);
    CHECK_EQUAL(quota_admit(second, SECOND_US), NS_LIMITS);
    quota_release(second);
    quota_release(third);
    site_free(site);
}

TEST(a_changed_limit_of_descriptors_is_seen_within_a_second)
{
    struct site *site = site_new(0, 0, 0);
    descriptors_may_be(1000);
    CHECK_EQUAL(descriptors_left(&site->process, 5000), 1000 - DESCRIPTORS_RESERVED);
    descriptors_may_be(500);
    CHECK_EQUAL(descriptors_left(&site->process, 5999), 1000 - DESCRIPTORS_RESERVED);
    CHECK_EQUAL(descriptors_left(&site->process, 6000), 500 - DESCRIPTORS_RESERVED);
    descriptors_change(&site->process, 900);
    CHECK_EQUAL(descriptors_left(&site->process, 6000), 0);
    CHECK_EQUAL(quota_admit(site->quota, 6 * SECOND_US), NS_LIMIT_DESCRIPTORS);
    site_free(site);
}

/* ---- notices ---- */

TEST(a_notice_tells_how_many_were_refused_since_the_last_one_at_intervals)
{
    struct site *site = site_new(5, 0, 0);
    struct ns_limit_notice notice;
    CHECK(!quota_notice(site->quota, 1000, &notice));
    for (int i = 0; i < 3; i++)
        quota_refused(site->quota, NS_LIMIT_CONNECTIONS, 1000);
    CHECK_EQUAL(site->notices.due, 1);
    CHECK(quota_notice(site->quota, 1100, &notice));
    CHECK_EQUAL(notice.workload, KEY);
    CHECK_EQUAL(notice.limit, NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(notice.value, 5);
    CHECK_EQUAL(notice.refused, 3);
    CHECK(!quota_notice(site->quota, 1100, &notice));
    quota_refused(site->quota, NS_LIMIT_CONNECTIONS, 1200);
    site->notices.due = 0;
    CHECK(!quota_notice(site->quota, 1100 + QUOTA_NOTICE_MS - 1, &notice));
    CHECK_EQUAL(site->notices.due, 1);               /* it is not forgotten */
    quota_refused(site->quota, NS_LIMIT_RATE, 1200); /* another limit is another matter */
    CHECK(quota_notice(site->quota, 1200, &notice));
    CHECK_EQUAL(notice.limit, NS_LIMIT_RATE);
    CHECK(quota_notice(site->quota, 1100 + QUOTA_NOTICE_MS, &notice));
    CHECK_EQUAL(notice.limit, NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(notice.refused, 1);
    struct ns_workload_stats stats = stats_at(site, 21000);
    CHECK_EQUAL(stats.limited[NS_LIMIT_CONNECTIONS].refused, 4);
    CHECK_EQUAL(stats.limited[NS_LIMIT_CONNECTIONS].first_ms, 20000);
    CHECK_EQUAL(stats.limited[NS_LIMIT_CONNECTIONS].last_ms, 19800);
    CHECK_EQUAL(stats.limited[NS_LIMIT_MEMORY].first_ms, 0);
    site_free(site);
}

TEST(every_limit_has_its_word)
{
    for (int i = 0; i < NS_LIMITS; i++) {
        CHECK(strncmp(quota_reason((enum ns_limit)i), "limit-", 6) == 0);
        CHECK(strlen(quota_reason((enum ns_limit)i)) < NS_REASON_MAX);
    }
}

CHECK_MAIN
