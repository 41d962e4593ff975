/* strangers.c and published.c: who has to go, who goes on, and what is owed. */
#include "loop/strangers.h"

#include "check.h"
#include "loop/published.h"

enum { CROWD = 3000, MS = 1000, SECOND = 1000000 };

struct site {
    struct strangers strangers;
    struct party workloads[2];
    struct stranger crowd[CROWD];
    int begun;
    uint64_t now_us;
};

static struct site *site_new(void)
{
    struct site *site = ns_alloc(sizeof(*site));
    strangers_init(&site->strangers, 12345);
    party_init(&site->workloads[0]);
    party_init(&site->workloads[1]);
    site->now_us = 100 * SECOND;
    return site;
}

static void site_free(struct site *site)
{
    for (int i = 0; i < site->begun; i++)
        strangers_end(&site->strangers, &site->crowd[i], 0, site->now_us);
    CHECK_EQUAL(strangers_count(&site->strangers), 0);
    strangers_dispose(&site->strangers);
    free(site);
}

static struct ns_address v4(int number)
{
    struct ns_address address = {.port = 1};
    address.ip[10] = address.ip[11] = 0xff;
    address.ip[12] = 10;
    address.ip[13] = (uint8_t)(number >> 16);
    address.ip[14] = (uint8_t)(number >> 8);
    address.ip[15] = (uint8_t)number;
    return address;
}

/* 2001:db8:0:NETWORK::HOST */
static struct ns_address v6(int network, int host)
{
    struct ns_address address = {.ip = {0x20, 0x01, 0x0d, 0xb8}, .port = 1};
    address.ip[7] = (uint8_t)network;
    address.ip[14] = (uint8_t)(host >> 8);
    address.ip[15] = (uint8_t)host;
    return address;
}

static struct stranger *begin_at(struct site *site, int workload, struct ns_address from,
                                 enum stranger_kind kind)
{
    CHECK(site->begun < CROWD);
    struct stranger *stranger = &site->crowd[site->begun++];
    strangers_begin(&site->strangers, stranger, &site->workloads[workload], &from, kind, site->now_us);
    return stranger;
}

static struct stranger *begin(struct site *site, struct ns_address from)
{
    return begin_at(site, 0, from, STRANGER_OTHER);
}

/* Ends who has to go for the newest, in order. How many. */
static int make_room(struct site *site, struct stranger *gone[])
{
    struct stranger *excess;
    int count = 0;
    while ((excess = strangers_excess(&site->strangers, &site->crowd[site->begun - 1])) != NULL) {
        gone[count++] = excess;
        strangers_end(&site->strangers, excess, 0, site->now_us);
    }
    return count;
}

/* ---- room ---- */

TEST(a_source_has_room_for_some_and_its_oldest_goes_for_one_more)
{
    struct site *site = site_new();
    struct stranger *gone[4];
    for (int i = 0; i < STRANGERS_OF_SOURCE; i++) {
        begin(site, v4(1));
        CHECK_EQUAL(make_room(site, gone), 0);
    }
    for (int i = 0; i < 3; i++) {
        begin(site, v4(1));
        CHECK_EQUAL(make_room(site, gone), 1);
        CHECK(gone[0] == &site->crowd[i]);
    }
    CHECK_EQUAL(site->strangers.evicted, 3);
    CHECK_EQUAL(strangers_count(&site->strangers), STRANGERS_OF_SOURCE);
    site_free(site);
}

TEST(a_workload_has_room_for_some_and_the_source_that_holds_most_gives_way)
{
    struct site *site = site_new();
    struct stranger *gone[4];
    const int most = (int)STRANGERS_OF_WORKLOAD[STRANGER_OTHER];
    struct stranger *lone = begin(site, v4(1)); /* the oldest of all */
    for (int i = 0; i < STRANGERS_OF_SOURCE; i++)
        begin(site, v4(2));
    for (int i = STRANGERS_OF_SOURCE + 1; i < most; i++)
        begin(site, v4(100 + i));
    CHECK_EQUAL(make_room(site, gone), 0);
    begin(site, v4(3));
    CHECK_EQUAL(make_room(site, gone), 1);
    CHECK(gone[0] == &site->crowd[1]); /* the oldest of the second source */
    CHECK(stranger_is(lone));
    /* Another workload has its own room. */
    begin_at(site, 1, v4(3), STRANGER_OTHER);
    CHECK_EQUAL(make_room(site, gone), 0);
    site_free(site);
}

TEST(a_worker_has_room_for_some_in_all_and_less_where_descriptors_are_few)
{
    struct site *site = site_new();
    struct stranger *gone[4];
    strangers_room(&site->strangers, 50);
    const int most = 50 * (int)STRANGERS_OF_WORKER[STRANGER_OTHER] / STRANGERS_OF_WORKER_IN_ALL;
    for (int i = 0; i < most; i++)
        begin_at(site, i % 2, v4(i < 3 ? 1 : i), STRANGER_OTHER);
    CHECK_EQUAL(make_room(site, gone), 0);
    begin_at(site, 1, v4(most), STRANGER_OTHER);
    CHECK_EQUAL(make_room(site, gone), 1);
    CHECK(gone[0] == &site->crowd[0]);
    strangers_room(&site->strangers, 0); /* one is always taken: another gives way */
    begin_at(site, 1, v4(most + 1), STRANGER_OTHER);
    CHECK(stranger_is(&site->crowd[site->begun - 1]));
    site_free(site);
}

TEST(published_addresses_have_room_of_their_own)
{
    struct site *site = site_new();
    struct stranger *gone[4];
    struct stranger *published = begin_at(site, 0, v4(1), STRANGER_PUBLISHED);
    for (int i = 0; i < 2 * (int)STRANGERS_OF_WORKLOAD[STRANGER_OTHER]; i++) {
        begin(site, v4(i));
        (void)make_room(site, gone);
    }
    CHECK(stranger_is(published));
    CHECK_EQUAL(site->workloads[0].counts[STRANGER_OTHER], STRANGERS_OF_WORKLOAD[STRANGER_OTHER]);
    begin_at(site, 0, v4(2), STRANGER_PUBLISHED);
    CHECK_EQUAL(make_room(site, gone), 0);
    site_free(site);
}

TEST(a_network_of_ipv6_is_one_source_unless_its_addresses_were_published)
{
    struct site *site = site_new();
    struct stranger *gone[4];
    for (int i = 0; i < STRANGERS_OF_SOURCE; i++)
        begin(site, v6(1, i));
    CHECK_EQUAL(make_room(site, gone), 0);
    begin(site, v6(2, 0));
    CHECK_EQUAL(make_room(site, gone), 0);
    begin_at(site, 0, v6(1, 5000), STRANGER_PUBLISHED);
    CHECK_EQUAL(make_room(site, gone), 0);
    begin_at(site, 0, v6(1, 5001), STRANGER_PUBLISHED);
    CHECK(site->crowd[site->begun - 1].source != site->crowd[site->begun - 2].source);
    begin(site, v6(1, 6000));
    CHECK_EQUAL(make_room(site, gone), 1);
    CHECK(gone[0] == &site->crowd[0]);
    site_free(site);
}

TEST(one_that_goes_to_another_workload_takes_its_place_with_it)
{
    struct site *site = site_new();
    struct stranger *stranger = begin(site, v4(1));
    strangers_move(stranger, &site->workloads[1]);
    CHECK_EQUAL(site->workloads[0].counts[STRANGER_OTHER], 0);
    CHECK_EQUAL(site->workloads[1].counts[STRANGER_OTHER], 1);
    strangers_end(&site->strangers, stranger, 1, site->now_us);
    CHECK_EQUAL(site->workloads[1].counts[STRANGER_OTHER], 0);
    site_free(site);
}

/* ---- whose step is next ---- */

static struct stranger *next(struct site *site)
{
    return strangers_next(&site->strangers, site->now_us);
}

/* It makes its step, which costs so much. */
static void step(struct site *site, struct stranger *stranger, uint64_t cost_us)
{
    strangers_give(&site->strangers, stranger);
    strangers_pay(&site->strangers, stranger, cost_us, site->now_us);
}

static void wait_at(struct site *site, struct stranger *stranger)
{
    strangers_wait(&site->strangers, stranger, site->now_us);
}

TEST(sources_go_in_turn_and_of_each_the_newest_first)
{
    struct site *site = site_new();
    struct stranger *a[3], *b;
    for (int i = 0; i < 3; i++) {
        a[i] = begin(site, v4(1));
        wait_at(site, a[i]);
        wait_at(site, a[i]); /* harmless */
    }
    b = begin(site, v4(2));
    wait_at(site, b);
    CHECK(next(site) == a[2]);
    CHECK(next(site) == b);
    CHECK(next(site) == a[1]);
    CHECK(next(site) == a[0]);
    CHECK(next(site) == NULL);
    CHECK(strangers_due_us(&site->strangers) == UINT64_MAX);
    site_free(site);
}

TEST(one_that_ends_while_it_waits_is_not_next)
{
    struct site *site = site_new();
    struct stranger *a = begin(site, v4(1)), *b = begin(site, v4(2));
    wait_at(site, a);
    wait_at(site, b);
    strangers_end(&site->strangers, a, 0, site->now_us);
    CHECK(next(site) == b);
    CHECK(next(site) == NULL);
    site_free(site);
}

TEST(a_source_that_owes_too_much_waits_and_others_do_not)
{
    struct site *site = site_new();
    struct stranger *dear = begin(site, v4(1)), *other = begin(site, v4(2));
    wait_at(site, dear);
    CHECK(next(site) == dear);
    step(site, dear, SOURCE_OWES_US + 10 * MS);
    wait_at(site, dear);
    CHECK_EQUAL(site->strangers.slowed, 1);
    CHECK(next(site) == NULL);
    wait_at(site, other);
    CHECK(next(site) == other);
    CHECK(next(site) == NULL);
    /* A twentieth of the time pays: 10 ms and a little more take 200 ms. */
    uint64_t due_us = strangers_due_us(&site->strangers);
    CHECK_CASE(due_us - site->now_us >= 200 * MS && due_us - site->now_us < 201 * MS, "%llu",
               (unsigned long long)(due_us - site->now_us));
    site->now_us = due_us - 1;
    CHECK(next(site) == NULL);
    site->now_us = due_us;
    CHECK(next(site) == dear);
    site_free(site);
}

TEST(who_has_proven_himself_owes_nothing)
{
    struct site *site = site_new();
    for (int i = 0; i < 1000; i++) {
        struct stranger *good = begin(site, v4(1));
        wait_at(site, good);
        CHECK(next(site) == good);
        step(site, good, 5 * MS);
        strangers_end(&site->strangers, good, 1, site->now_us);
        CHECK(!stranger_is(good));
    }
    CHECK_EQUAL(site->strangers.slowed, 0);
    site_free(site);
}

TEST(a_step_is_owed_for_though_its_stranger_has_left_meanwhile)
{
    struct site *site = site_new();
    struct stranger *hasty = begin(site, v4(1));
    wait_at(site, hasty);
    CHECK(next(site) == hasty);
    strangers_give(&site->strangers, hasty);
    strangers_end(&site->strangers, hasty, 0, site->now_us);
    for (int i = 0; i < 100 * SOURCE_BUCKETS; i++) { /* its source is not forgotten for others */
        struct stranger one;
        struct ns_address from = v4(1000 + i);
        strangers_begin(&site->strangers, &one, &site->workloads[0], &from, STRANGER_OTHER, site->now_us);
        strangers_end(&site->strangers, &one, 0, site->now_us);
    }
    strangers_pay(&site->strangers, hasty, SOURCE_OWES_US + MS, site->now_us);
    strangers_pay(&site->strangers, hasty, SOURCE_OWES_US, site->now_us); /* harmless */
    struct stranger *again = begin(site, v4(1));
    wait_at(site, again);
    CHECK(next(site) == NULL);
    CHECK_EQUAL(again->source->debt.owed_us, SOURCE_OWES_US + MS);
    site_free(site);
}

TEST(many_sources_get_no_further_than_a_few)
{
    enum { COST = 2 * MS };
    struct site *site = site_new();
    uint64_t made_us = 0, begun_us = site->now_us;
    for (int source = 0; source < 1000; source++) {
        wait_at(site, begin(site, v4(source)));
        struct stranger *stranger;
        while ((stranger = next(site)) != NULL) {
            step(site, stranger, COST);
            made_us += COST;
            strangers_end(&site->strangers, stranger, 0, site->now_us);
        }
        site->now_us += MS;
    }
    CHECK(made_us <= ALL_OWE_US + (site->now_us - begun_us) * ALL_PAY / 1000 + COST);
    CHECK(made_us >= ALL_OWE_US);
    /* A published peer goes on all the same. */
    struct stranger *published = begin_at(site, 0, v4(5), STRANGER_PUBLISHED);
    CHECK(strangers_trusts(published, site->now_us));
    site_free(site);
}

TEST(a_published_source_that_owes_too_much_waits_with_the_others)
{
    struct site *site = site_new();
    struct stranger *dear = begin_at(site, 0, v4(1), STRANGER_PUBLISHED);
    CHECK(strangers_trusts(dear, site->now_us));
    step(site, dear, SOURCE_OWES_US + MS);
    CHECK(!strangers_trusts(dear, site->now_us));
    wait_at(site, dear);
    CHECK(next(site) == NULL);
    struct stranger *neighbour = begin_at(site, 0, v4(2), STRANGER_PUBLISHED);
    CHECK(strangers_trusts(neighbour, site->now_us));
    site->now_us += SECOND;
    CHECK(next(site) == dear);
    CHECK(strangers_trusts(dear, site->now_us));
    site_free(site);
}

/* Whoever has other addresses to show cannot have his debt forgotten by it. */
TEST(debts_are_not_forgotten_for_small_ones_and_the_table_is_bounded)
{
    struct site *site = site_new();
    struct stranger *dear = begin(site, v4(1));
    wait_at(site, dear);
    CHECK(next(site) == dear);
    step(site, dear, 2 * SOURCE_OWES_US);
    strangers_end(&site->strangers, dear, 0, site->now_us);
    struct stranger one;
    for (int i = 0; i < 100000; i++) {
        struct ns_address from = v4(2 + i);
        strangers_begin(&site->strangers, &one, &site->workloads[0], &from, STRANGER_OTHER, site->now_us);
        step(site, &one, MS);
        strangers_end(&site->strangers, &one, 0, site->now_us);
    }
    int sources = 0;
    struct link *at, *after;
    for (int i = 0; i < SOURCE_BUCKETS; i++)
        link_each(at, after, &site->strangers.buckets[i]) sources++;
    CHECK(sources <= SOURCE_BUCKETS * IDLE_SOURCES);
    struct stranger *again = begin(site, v4(1));
    CHECK(again->source->debt.owed_us >= SOURCE_OWES_US);
    /* Nobody who owes nothing is kept. */
    site->now_us += 100 * SECOND;
    for (int i = 0; i < 100000; i++) {
        struct ns_address from = v4(200000 + i);
        strangers_begin(&site->strangers, &one, &site->workloads[0], &from, STRANGER_OTHER, site->now_us);
        strangers_end(&site->strangers, &one, 0, site->now_us);
    }
    sources = 0;
    for (int i = 0; i < SOURCE_BUCKETS; i++)
        link_each(at, after, &site->strangers.buckets[i]) sources++;
    CHECK(sources <= SOURCE_BUCKETS + 1);
    site_free(site);
}

/* What is done for each that comes, and whose debts are forgotten, depends on how many share a bucket. */
TEST(neighbours_in_a_network_are_spread_over_all_buckets)
{
    enum { NEIGHBOURS = 2048, MEAN = NEIGHBOURS / SOURCE_BUCKETS, FEW = 4 };
    struct site *site = site_new();
    for (int i = 0; i < NEIGHBOURS; i++)
        (void)begin(site, v4(i));
    for (int i = 0; i < SOURCE_BUCKETS; i++) {
        struct link *at, *after;
        int count = 0;
        link_each(at, after, &site->strangers.buckets[i]) count++;
        CHECK_CASE(count <= FEW * MEAN, "%d of %d in one bucket", count, NEIGHBOURS);
    }
    site_free(site);
}

/* ---- published addresses ---- */

TEST(an_address_is_published_as_often_as_workloads_share_it)
{
    struct published published;
    struct ns_address one = v4(1), other = v4(2);
    published_init(&published);
    CHECK(!published_has(&published, one.ip));
    published_add(&published, one.ip, 1);
    published_add(&published, one.ip, 1);
    published_remove(&published, other.ip, 1); /* harmless */
    published_remove(&published, one.ip, 1);
    CHECK(published_has(&published, one.ip));
    CHECK(!published_has(&published, other.ip));
    published_remove(&published, one.ip, 1);
    CHECK(!published_has(&published, one.ip));
    CHECK_EQUAL(published.used, 0);
    published_dispose(&published);
}

TEST(fifty_thousand_addresses_come_and_go)
{
    enum { COUNT = 50000 };
    struct published published;
    published_init(&published);
    for (int i = 0; i < COUNT; i++)
        published_add(&published, v4(i).ip, 1);
    CHECK_EQUAL(published.used, COUNT);
    CHECK(published.capacity * sizeof(published.slots[0]) <= 4 << 20);
    for (int i = 0; i < COUNT; i += 3)
        published_remove(&published, v4(i).ip, 1);
    for (int i = 0; i < COUNT; i++)
        CHECK_EQUAL(published_has(&published, v4(i).ip), i % 3 != 0);
    for (int i = 0; i < COUNT; i++)
        published_remove(&published, v4(i).ip, 1);
    CHECK_EQUAL(published.used, 0);
    CHECK(published.capacity <= 128);
    published_dispose(&published);
}

CHECK_MAIN
