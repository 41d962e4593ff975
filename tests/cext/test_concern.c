/* What a change of the mesh state concerns. */
#include "check.h"
#include "decisions/concern.h"

static struct ns_question question(uint64_t workload, uint8_t source, uint8_t destination, uint16_t port)
{
    struct ns_question question = {.workload = workload, .destination.port = port};
    question.source.ip[15] = source;
    question.destination.ip[15] = destination;
    return question;
}

static int has(const struct ns_concern *content, struct ns_question asked)
{
    struct concern *concern = concern_new(content);
    CHECK(concern != NULL);
    int result = concern_has(concern, &asked);
    concern_release(concern);
    return result;
}

TEST(nothing_concerns_nobody)
{
    CHECK(!has(&(struct ns_concern){0}, question(1, 0, 0, 0)));
    CHECK(!has(&(struct ns_concern){0}, question(0, 1, 2, 3)));
}

TEST(addresses_concern_who_comes_from_there_or_goes_there)
{
    uint8_t addresses[3 * 16] = {[15] = 7, [31] = 9, [47] = 7};
    struct ns_concern content = {.addresses = addresses, .address_count = 3};
    CHECK(has(&content, question(1, 7, 1, 80)));
    CHECK(has(&content, question(1, 1, 9, 80)));
    CHECK(!has(&content, question(1, 8, 10, 80)));
}

TEST(many_addresses_are_told_apart)
{
    enum { COUNT = CONCERN_MAX };
    uint8_t (*addresses)[16] = calloc(COUNT, sizeof(*addresses));
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t number = 2 * i;
        memcpy(addresses[i] + 12, &number, sizeof(number));
    }
    struct ns_concern content = {.addresses = addresses[0], .address_count = COUNT};
    struct concern *concern = concern_new(&content);
    for (uint32_t number = 0; number < 2 * COUNT; number++) {
        struct ns_question asked = question(1, 0, 0, 80);
        memset(asked.source.ip, 0xff, sizeof(asked.source.ip));
        memcpy(asked.destination.ip + 12, &number, sizeof(number));
        CHECK_EQUAL(concern_has(concern, &asked), number % 2 == 0);
    }
    concern_release(concern);
    free(addresses);
}

TEST(ports_concern_who_dials_them)
{
    uint16_t ports[] = {0, 63, 64, 65535};
    struct ns_concern content = {.ports = ports, .port_count = 4};
    for (size_t i = 0; i < 4; i++)
        CHECK(has(&content, question(1, 1, 2, ports[i])));
    CHECK(!has(&content, question(1, 1, 2, 62)));
    CHECK(!has(&content, question(1, 1, 2, 65534)));
}

TEST(workloads_concern_all_of_theirs)
{
    uint64_t workloads[] = {3, UINT64_MAX};
    struct ns_concern content = {.workloads = workloads, .workload_count = 2};
    CHECK(has(&content, question(3, 1, 2, 80)));
    CHECK(has(&content, question(UINT64_MAX, 1, 2, 80)));
    CHECK(!has(&content, question(4, 1, 2, 80)));
}

TEST(too_much_is_everything)
{
    struct ns_question any = question(1, 2, 3, 4);
    CHECK(concern_new(&(struct ns_concern){.all = 1}) == NULL);
    CHECK(concern_new(&(struct ns_concern){.address_count = CONCERN_MAX + 1}) == NULL);
    CHECK(concern_new(&(struct ns_concern){.port_count = CONCERN_MAX + 1}) == NULL);
    CHECK(concern_new(&(struct ns_concern){.workload_count = CONCERN_MAX + 1}) == NULL);
    CHECK(concern_has(NULL, &any));
}

TEST(it_lasts_until_the_last_reference_goes)
{
    struct concern *concern = concern_new(&(struct ns_concern){0});
    CHECK(concern_hold(concern) == concern);
    concern_release(concern);
    struct ns_question any = question(1, 2, 3, 4);
    CHECK(!concern_has(concern, &any));
    concern_release(concern);
    concern_release(concern_hold(NULL));
}

CHECK_MAIN
