/* endpoint.c: what is remembered of endpoints, and for how long. */
#include "balance/endpoint.h"

#include <string.h>

#include "check.h"

enum { WORKLOAD = 7 };

#define PEER "spiffe://example.org/ns/default/sa/pipeline"

static struct ns_address host(uint32_t number, uint16_t port)
{
    struct ns_address address = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 10}, .port = port};
    address.ip[14] = (uint8_t)(number >> 8);
    address.ip[15] = (uint8_t)number;
    return address;
}

static struct endpoints *endpoints_new(void)
{
    struct endpoints *endpoints = calloc(1, sizeof(*endpoints));
    CHECK(endpoints != NULL);
    endpoints_init(endpoints);
    return endpoints;
}

static void endpoints_free(struct endpoints *endpoints)
{
    endpoints_dispose(endpoints);
    CHECK_EQUAL(endpoints->count, 0);
    free(endpoints);
}

TEST(nothing_is_remembered_of_an_endpoint_that_was_not_noted)
{
    struct endpoints *endpoints = endpoints_new();
    struct ns_address address = host(1, 80), other = host(2, 80);
    CHECK(endpoint_find(endpoints, WORKLOAD, &address, PEER) == NULL);
    endpoint_note(endpoints, WORKLOAD, &other, PEER);
    CHECK(endpoint_find(endpoints, WORKLOAD, &address, PEER) == NULL);
    endpoints_free(endpoints);
}

TEST(workload_address_port_and_identity_tell_endpoints_apart)
{
    struct endpoints *endpoints = endpoints_new();
    struct ns_address address = host(1, 80), other_port = host(1, 81);
    endpoint_note(endpoints, WORKLOAD, &address, PEER)->away_ms = 1;
    endpoint_note(endpoints, WORKLOAD, &other_port, PEER)->away_ms = 2;
    endpoint_note(endpoints, WORKLOAD, &address, "")->away_ms = 3;
    endpoint_note(endpoints, WORKLOAD + 1, &address, PEER)->away_ms = 4;
    CHECK_EQUAL(endpoint_find(endpoints, WORKLOAD, &address, PEER)->away_ms, 1);
    CHECK_EQUAL(endpoint_find(endpoints, WORKLOAD, &other_port, PEER)->away_ms, 2);
    CHECK_EQUAL(endpoint_find(endpoints, WORKLOAD, &address, "")->away_ms, 3);
    CHECK_EQUAL(endpoint_find(endpoints, WORKLOAD + 1, &address, PEER)->away_ms, 4);
    endpoints_free(endpoints);
}

TEST(an_endpoint_that_is_noted_again_is_the_same)
{
    struct endpoints *endpoints = endpoints_new();
    struct ns_address address = host(1, 80);
    endpoint_note(endpoints, WORKLOAD, &address, PEER)->failures = 3;
    CHECK_EQUAL(endpoint_note(endpoints, WORKLOAD, &address, PEER)->failures, 3);
    CHECK_EQUAL(endpoints->count, 1);
    endpoints_free(endpoints);
}

TEST(beyond_the_most_the_one_noted_longest_ago_is_forgotten)
{
    struct endpoints *endpoints = endpoints_new();
    struct ns_address first = host(0, 80), second = host(1, 80);
    for (uint32_t i = 0; i < ENDPOINTS_MOST; i++) {
        struct ns_address address = host(i, 80);
        endpoint_note(endpoints, WORKLOAD, &address, PEER);
    }
    endpoint_note(endpoints, WORKLOAD, &first, PEER);
    struct ns_address more = host(ENDPOINTS_MOST, 80);
    endpoint_note(endpoints, WORKLOAD, &more, PEER);
    CHECK_EQUAL(endpoints->count, ENDPOINTS_MOST);
    CHECK(endpoint_find(endpoints, WORKLOAD, &first, PEER) != NULL);
    CHECK(endpoint_find(endpoints, WORKLOAD, &second, PEER) == NULL);
    CHECK(endpoint_find(endpoints, WORKLOAD, &more, PEER) != NULL);
    endpoints_free(endpoints);
}

TEST(a_workload_that_leaves_is_forgotten_and_no_other)
{
    struct endpoints *endpoints = endpoints_new();
    struct ns_address address = host(1, 80), other = host(2, 80);
    endpoint_note(endpoints, WORKLOAD, &address, PEER);
    endpoint_note(endpoints, WORKLOAD, &other, "");
    endpoint_note(endpoints, WORKLOAD + 1, &address, PEER);
    endpoints_forget(endpoints, WORKLOAD);
    CHECK_EQUAL(endpoints->count, 1);
    CHECK(endpoint_find(endpoints, WORKLOAD, &address, PEER) == NULL);
    CHECK(endpoint_find(endpoints, WORKLOAD + 1, &address, PEER) != NULL);
    endpoints_free(endpoints);
}

/* ---- what became of attempts ---- */

TEST(one_that_fails_is_away_twice_as_long_each_time)
{
    struct endpoint endpoint = {0};
    static const uint64_t AWAY[] = {1000, 2000, 4000, 8000, 8000};
    uint64_t now_ms = 5000;
    for (size_t i = 0; i < sizeof(AWAY) / sizeof(AWAY[0]); i++) {
        endpoint_missed(&endpoint, now_ms);
        CHECK_EQUAL(endpoint.away_ms, now_ms + AWAY[i]);
        now_ms = endpoint.away_ms;
        endpoint_probed(&endpoint, now_ms);
        CHECK(endpoint.away_ms > now_ms + endpoint_patience_ms(&endpoint)); /* nobody else tries it */
    }
}

TEST(many_that_fail_together_are_one_failure)
{
    struct endpoint endpoint = {0};
    for (int i = 0; i < 100; i++)
        endpoint_missed(&endpoint, 5000 + (uint64_t)i);
    CHECK_EQUAL(endpoint.misses, 1);
    CHECK_EQUAL(endpoint.away_ms, 5099 + 1000);
}

TEST(one_that_answers_is_there)
{
    struct endpoint endpoint = {0};
    endpoint_missed(&endpoint, 5000);
    endpoint_probed(&endpoint, 6000);
    endpoint_answered(&endpoint, 2);
    CHECK_EQUAL(endpoint.misses, 0);
    CHECK_EQUAL(endpoint.away_ms, 0);
    CHECK_EQUAL(endpoint.probing, 0);
    CHECK_EQUAL(endpoint.usual_ms, 0);
}

TEST(an_attempt_lasts_three_seconds_or_a_multiple_of_what_is_usual)
{
    struct endpoint endpoint = {0};
    CHECK_EQUAL(endpoint_patience_ms(NULL), 3000);
    CHECK_EQUAL(endpoint_patience_ms(&endpoint), 3000);
    endpoint_missed(&endpoint, 5000);
    CHECK_EQUAL(endpoint_patience_ms(&endpoint), 1000); /* seldom in vain, and then not for long */
    endpoint_answered(&endpoint, 2000);
    CHECK_EQUAL(endpoint_patience_ms(&endpoint), 16000);
    endpoint_missed(&endpoint, 5000);
    CHECK_EQUAL(endpoint_patience_ms(&endpoint), 16000);
    for (int i = 0; i < 30; i++)
        endpoint_answered(&endpoint, 1);
    CHECK_EQUAL(endpoint_patience_ms(&endpoint), 3000);
}

CHECK_MAIN
