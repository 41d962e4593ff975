/* refusals.c: what is kept of refused peers, and that nobody can make it grow. */
#include "limits/refusals.h"

#include "check.h"
#include "wire/names.h"

enum { MANY = 1000, MOST = 3 * REFUSAL_ROWS };

static struct ns_address address(uint32_t number)
{
    char text[64];
    struct ns_address parsed;
    int length =
        snprintf(text, sizeof(text), "10.%u.%u.%u:4711", number >> 16, number >> 8 & 255, number & 255);
    CHECK_EQUAL(authority_parse(text, (size_t)length, &parsed), 0);
    return parsed;
}

static struct refusal handshake(uint32_t source, const char *reason)
{
    return (struct refusal){.kind = NS_REFUSED_HANDSHAKE,
                            .direction = NS_INBOUND,
                            .source = address(source),
                            .destination = address(9),
                            .reason = reason};
}

static struct refusal stream(uint32_t source, const char *peer, const char *reason)
{
    struct refusal refusal = handshake(source, reason);
    refusal.kind = NS_REFUSED_STREAM;
    refusal.status = 401;
    refusal.peer = peer;
    return refusal;
}

static struct refusals *refusals_of(struct notices *notices)
{
    notices->due = 0;
    return refusals_new(7, notices);
}

static void note(struct refusals *refusals, struct refusal refusal, uint64_t now_ms)
{
    refusals_note(refusals, &refusal, now_ms);
}

/* The row with this reason; NULL: there is none. */
static const struct ns_refusal *row_of(const struct ns_refusal *rows, size_t count, const char *reason)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(rows[i].reason, reason) == 0)
            return &rows[i];
    return NULL;
}

TEST(refusals_of_one_source_and_reason_are_one_row)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal rows[MOST];
    struct refusal later = handshake(1, "bad");
    later.source.port = 99; /* of another connection */
    later.destination = address(8);
    note(refusals, handshake(1, "bad"), 1000);
    note(refusals, later, 1500);
    CHECK_EQUAL(notices.due, 1);
    CHECK_EQUAL(refusals_list(refusals, 4000, rows, MOST), 1);
    CHECK_EQUAL(rows[0].workload, 7);
    CHECK_EQUAL(rows[0].count, 2);
    CHECK_EQUAL(rows[0].first_ms, 3000);
    CHECK_EQUAL(rows[0].last_ms, 2500);
    CHECK_EQUAL(rows[0].kind, NS_REFUSED_HANDSHAKE);
    CHECK_EQUAL(rows[0].direction, NS_INBOUND);
    CHECK(address_same_ip(&rows[0].source, &later.source) && rows[0].source.port == 0);
    CHECK(address_same_ip(&rows[0].destination, &later.destination));
    CHECK_TEXT(rows[0].reason, "bad");
    CHECK_TEXT(rows[0].peer, "");
    refusals_free(refusals);
}

TEST(what_differs_in_anything_is_a_row_of_its_own)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal rows[MOST];
    struct refusal dialled = handshake(1, "bad"), elsewhere;
    dialled.direction = NS_OUTBOUND;
    elsewhere = dialled;
    elsewhere.destination = address(8);
    struct refusal unavailable = stream(1, "a", "bad");
    unavailable.status = 503;
    struct refusal plaintext = handshake(1, "bad");
    plaintext.kind = NS_REFUSED_PLAINTEXT;
    const struct refusal all[] = {
        handshake(1, "bad"),   handshake(2, "bad"),   handshake(1, "worse"), dialled,  elsewhere,
        stream(1, "a", "bad"), stream(1, "b", "bad"), unavailable,           plaintext};
    enum { ALL = sizeof(all) / sizeof(all[0]) };
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < ALL; i++)
            note(refusals, all[i], 1000);
    CHECK_EQUAL(refusals_list(refusals, 1000, rows, MOST), ALL);
    for (int i = 0; i < ALL; i++)
        CHECK_EQUAL(rows[i].count, 2);
    refusals_free(refusals);
}

TEST(a_list_that_is_too_short_says_how_many_there_are)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal row;
    for (uint32_t i = 0; i < 5; i++)
        note(refusals, handshake(i, "bad"), 1000);
    CHECK_EQUAL(refusals_list(refusals, 1000, &row, 1), 5);
    CHECK_EQUAL(refusals_list(refusals, 1000, NULL, 0), 5);
    refusals_free(refusals);
}

TEST(a_flood_of_addresses_is_bounded_and_does_not_push_out_who_comes_again)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal rows[MOST];
    note(refusals, handshake(1, "often"), 1000);
    note(refusals, handshake(1, "often"), 1001);
    for (uint32_t i = 0; i < MANY; i++)
        note(refusals, handshake(100 + i, "flood"), 2000 + i);
    size_t count = refusals_list(refusals, 4000, rows, MOST);
    CHECK_EQUAL(count, REFUSAL_ROWS);
    CHECK_EQUAL(row_of(rows, count, "often")->count, 2);
    refusals_free(refusals);
}

TEST(strangers_do_not_push_out_those_whose_identity_is_known_nor_those_who_were_dialled)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal rows[MOST];
    struct refusal dialled = handshake(1, "dialled");
    dialled.direction = NS_OUTBOUND;
    note(refusals, stream(1, "spiffe://a/b", "known"), 1000);
    note(refusals, dialled, 1000);
    for (int round = 0; round < 3; round++)
        for (uint32_t i = 0; i < MANY; i++)
            note(refusals, handshake(100 + i % 40, "flood"), 2000 + i);
    size_t count = refusals_list(refusals, 4000, rows, MOST);
    CHECK_EQUAL(count, REFUSAL_ROWS + 2);
    CHECK_TEXT(row_of(rows, count, "known")->peer, "spiffe://a/b");
    CHECK(row_of(rows, count, "dialled") != NULL);
    refusals_free(refusals);
}

TEST(old_rows_give_way_first_and_are_not_shown_for_ever)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal rows[MOST];
    for (int i = 0; i < 10; i++)
        note(refusals, handshake(1, "old"), 1000);
    uint64_t later = 1000 + REFUSAL_STALE_MS;
    for (uint32_t i = 0; i < REFUSAL_ROWS; i++)
        note(refusals, handshake(100 + i, "new"), later);
    size_t count = refusals_list(refusals, later, rows, MOST);
    CHECK_EQUAL(count, REFUSAL_ROWS);
    CHECK(row_of(rows, count, "old") == NULL);
    CHECK_EQUAL(refusals_list(refusals, later + REFUSAL_SHOWN_MS, rows, MOST), REFUSAL_ROWS);
    CHECK_EQUAL(refusals_list(refusals, later + REFUSAL_SHOWN_MS + 1, rows, MOST), 0);
    refusals_free(refusals);
}

TEST(a_notice_comes_at_once_and_then_once_in_a_period)
{
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal notice;
    CHECK_EQUAL(refusals_notice(refusals, 1000, &notice), 0);
    note(refusals, handshake(1, "bad"), 1000);
    notices.due = 0;
    CHECK_EQUAL(refusals_notice(refusals, 1000, &notice), 1);
    CHECK_EQUAL(notice.count, 1);
    CHECK_EQUAL(notice.untold, 0);
    CHECK_EQUAL(notices.due, 1);
    notices.due = 0;
    CHECK_EQUAL(refusals_notice(refusals, 1000, &notice), 0);
    CHECK_EQUAL(notices.due, 0);
    for (int i = 0; i < 5; i++)
        note(refusals, handshake(1, "bad"), 2000);
    notices.due = 0;
    CHECK_EQUAL(refusals_notice(refusals, 1000 + REFUSAL_PERIOD_MS - 1, &notice), 0);
    CHECK_EQUAL(notices.due, 1); /* later */
    CHECK_EQUAL(refusals_notice(refusals, 1000 + REFUSAL_PERIOD_MS, &notice), 1);
    CHECK_EQUAL(notice.count, 5);
    CHECK_EQUAL(refusals_notice(refusals, 1000 + 2 * REFUSAL_PERIOD_MS, &notice), 0);
    refusals_free(refusals);
}

TEST(notices_of_a_flood_are_few_and_count_what_they_leave_out)
{
    struct notices notices;
    uint64_t told = 0, untold = 0;
    int lines = 0;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal notice;
    for (uint32_t i = 0; i < MANY; i++)
        note(refusals, handshake(i, "flood"), 1000);
    while (refusals_notice(refusals, 1000, &notice)) {
        told += notice.count;
        untold += notice.untold;
        lines++;
    }
    CHECK_EQUAL(lines, REFUSAL_NOTICES);
    CHECK_EQUAL(told, REFUSAL_NOTICES);
    CHECK_EQUAL(untold, MANY - REFUSAL_ROWS);
    CHECK_EQUAL(refusals_notice(refusals, 1000 + REFUSAL_PERIOD_MS - 1, &notice), 0);
    CHECK_EQUAL(refusals_notice(refusals, 1000 + REFUSAL_PERIOD_MS, &notice), 1);
    refusals_free(refusals);
}

TEST(long_reasons_are_cut_and_still_one_row)
{
    char reason[2 * NS_REASON_MAX];
    struct notices notices;
    struct refusals *refusals = refusals_of(&notices);
    struct ns_refusal row;
    memset(reason, 'x', sizeof(reason));
    reason[sizeof(reason) - 1] = 0;
    note(refusals, handshake(1, reason), 1000);
    note(refusals, handshake(1, reason), 1000);
    CHECK_EQUAL(refusals_list(refusals, 1000, &row, 1), 1);
    CHECK_EQUAL(strlen(row.reason), NS_REASON_MAX - 1);
    refusals_free(refusals);
}

TEST(nothing_is_kept_where_nobody_wants_it)
{
    struct refusal refusal = handshake(1, "bad");
    refusals_note(NULL, &refusal, 1000);
    refusals_free(NULL);
}

CHECK_MAIN
