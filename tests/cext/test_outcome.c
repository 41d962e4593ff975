/* outcome.c: what refusals say on the wire, and what is read of it. */
#include "wire/outcome.h"

#include <errno.h>

#include "check.h"
#include "noise.h"

/* In a heap buffer of its size: reading past its end is seen. */
static enum outcome read_of(const char *text, size_t length)
{
    uint8_t *copy = malloc(length + (length == 0));
    memcpy(copy, text, length);
    enum outcome outcome = outcome_read(copy, length);
    free(copy);
    return outcome;
}

struct reading {
    const char *value;
    enum outcome outcome;
};

static void check_all(const struct reading *cases, size_t count)
{
    for (size_t i = 0; i < count; i++)
        CHECK_CASE(read_of(cases[i].value, strlen(cases[i].value)) == cases[i].outcome, "\"%s\" is %d",
                   cases[i].value, (int)read_of(cases[i].value, strlen(cases[i].value)));
}

#define CHECK_ALL(cases) check_all(cases, sizeof(cases) / sizeof((cases)[0]))

TEST(what_is_said_is_read)
{
    for (int i = OUTCOME_REFUSED; i < OUTCOME_TOO_LARGE; i++) {
        const char *value = outcome_proxy_status((enum outcome)i);
        CHECK_CASE((int)read_of(value, strlen(value)) == i, "%s", value);
    }
    CHECK(outcome_proxy_status(OUTCOME_OPEN) == NULL);
}

/* RFC 9209 section 2.3 recommends them; HBONE has 401. */
TEST(refusals_have_the_recommended_status)
{
    CHECK_EQUAL(outcome_status(OUTCOME_OPEN), 200);
    CHECK_EQUAL(outcome_status(OUTCOME_REFUSED), 502);
    CHECK_EQUAL(outcome_status(OUTCOME_UNROUTABLE), 502);
    CHECK_EQUAL(outcome_status(OUTCOME_TIMEOUT), 504);
    CHECK_EQUAL(outcome_status(OUTCOME_UNAVAILABLE), 503);
    CHECK_EQUAL(outcome_status(OUTCOME_LIMIT), 503);
    CHECK_EQUAL(outcome_status(OUTCOME_DENIED), 401);
}

TEST(error_is_found_among_other_parameters)
{
    static const struct reading CASES[] = {
        {"envoy; error=connection_timeout", OUTCOME_TIMEOUT},
        {"envoy;error=connection_timeout", OUTCOME_TIMEOUT},
        {"  envoy;   error=connection_timeout  ", OUTCOME_TIMEOUT},
        {"\"a proxy, or; error=x\"; error=connection_timeout", OUTCOME_TIMEOUT},
        {"\"quoted \\\" and \\\\ back\"; error=connection_timeout", OUTCOME_TIMEOUT},
        {"envoy; received-status=503; error=destination_ip_unroutable; details=\"no route\"",
         OUTCOME_UNROUTABLE},
        {"envoy; next-hop=\"10.0.0.1\"; secret=:aGVsbG8=:; on=?1; off=?0; flag; part=-1.5; error="
         "connection_refused",
         OUTCOME_REFUSED},
        {"*a/b:c; error=connection_refused", OUTCOME_REFUSED},
        {"envoy; error=connection_refused; error=connection_timeout", OUTCOME_TIMEOUT},
    };
    CHECK_ALL(CASES);
}

TEST(intermediary_nearest_to_the_application_is_believed)
{
    static const struct reading CASES[] = {
        {"inner; error=connection_timeout, outer; error=connection_refused", OUTCOME_TIMEOUT},
        {"inner,outer; error=destination_unavailable", OUTCOME_UNAVAILABLE},
        {"inner; received-status=503\t,\touter; error=destination_unavailable", OUTCOME_UNAVAILABLE},
        {"inner; error=dns_error, outer; error=connection_timeout", OUTCOME_OPEN},
    };
    CHECK_ALL(CASES);
}

TEST(what_is_no_list_says_nothing)
{
    static const struct reading CASES[] = {
        {"", OUTCOME_OPEN},
        {" ", OUTCOME_OPEN},
        {"envoy", OUTCOME_OPEN},
        {"envoy; error", OUTCOME_OPEN},
        {"envoy; error=", OUTCOME_OPEN},
        {"envoy; error=\"connection_timeout\"", OUTCOME_OPEN},
        {"envoy; error=connection_timeouts", OUTCOME_OPEN},
        {"envoy; error=connection_timeou", OUTCOME_OPEN},
        {"envoy; Error=connection_timeout", OUTCOME_OPEN},
        {"envoy; errors=connection_timeout", OUTCOME_OPEN},
        {"envoy; error=connection_timeout,", OUTCOME_OPEN},
        {"envoy; error=connection_timeout;", OUTCOME_OPEN},
        {"envoy; error=connection_timeout\n", OUTCOME_OPEN},
        {", envoy; error=connection_timeout", OUTCOME_OPEN},
        {"; error=connection_timeout", OUTCOME_OPEN},
        {"error=connection_timeout", OUTCOME_OPEN},
        {"envoy error=connection_timeout", OUTCOME_OPEN},
        {"\"envoy; error=connection_timeout", OUTCOME_OPEN},
        {"\"envoy\\; error=connection_timeout", OUTCOME_OPEN},
        {"\"en\x7fvoy\"; error=connection_timeout", OUTCOME_OPEN},
        {":envoy; error=connection_timeout", OUTCOME_OPEN},
        {"envoy; on=?2; error=connection_timeout", OUTCOME_OPEN},
        {"envoy; on=?; error=connection_timeout", OUTCOME_OPEN},
        {"envoy; part=-; error=connection_timeout", OUTCOME_OPEN},
        {"envoy; =a; error=connection_timeout", OUTCOME_OPEN},
    };
    CHECK_ALL(CASES);
    CHECK_EQUAL(read_of("envoy\0; error=connection_timeout", 32), OUTCOME_OPEN);
}

TEST(noise_is_read_to_its_end_and_no_further)
{
    static const char ALPHABET[] = "ae*;=,\"\\:?01-. \terror=connection_timeout";
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        char text[64];
        struct noise noise = noise_new(seed);
        size_t length = noise_below(&noise, sizeof(text));
        for (size_t i = 0; i < length; i++)
            text[i] = ALPHABET[noise_below(&noise, sizeof(ALPHABET))];
        (void)read_of(text, length);
    }
}

TEST(peer_that_says_nothing_is_judged_by_its_status)
{
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_OPEN, 503)), CAUSE_REFUSED);
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_OPEN, 502)), CAUSE_REFUSED);
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_OPEN, 504)), CAUSE_SILENT);
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_OPEN, 401)), CAUSE_REFUSED);
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_OPEN, 404)), CAUSE_REFUSED);
    CHECK_EQUAL(outcome_cause(outcome_of(OUTCOME_TIMEOUT, 503)), CAUSE_SILENT);
}

TEST(a_cause_comes_back_as_what_an_application_can_tell)
{
    CHECK_EQUAL(outcome_cause(outcome_for(CAUSE_REFUSED)), CAUSE_REFUSED);
    CHECK_EQUAL(outcome_cause(outcome_for(CAUSE_NO_HOST)), CAUSE_NO_HOST);
    CHECK_EQUAL(outcome_cause(outcome_for(CAUSE_NO_NETWORK)), CAUSE_NO_HOST); /* one word for both */
    CHECK_EQUAL(outcome_cause(outcome_for(CAUSE_SILENT)), CAUSE_SILENT);
    CHECK_EQUAL(outcome_cause(outcome_for(CAUSE_PASSING)), CAUSE_PASSING);
}

TEST(errors_of_sockets_are_causes)
{
    CHECK_EQUAL(cause_of_errno(ECONNREFUSED), CAUSE_REFUSED);
    CHECK_EQUAL(cause_of_errno(EHOSTUNREACH), CAUSE_NO_HOST);
    CHECK_EQUAL(cause_of_errno(ENETUNREACH), CAUSE_NO_NETWORK);
    CHECK_EQUAL(cause_of_errno(ETIMEDOUT), CAUSE_SILENT);
    CHECK_EQUAL(cause_of_errno(EMFILE), CAUSE_PASSING);
    CHECK_EQUAL(cause_of_errno(EACCES), CAUSE_REFUSED);
}

CHECK_MAIN
