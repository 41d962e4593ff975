/* names.c: SPIFFE ids, authorities, and hostile input to both. */
#include "wire/names.h"

#include <arpa/inet.h>

#include "check.h"
#include "noise.h"

static int valid_copy(const char *text, size_t length)
{
    uint8_t *exact = noise_exact_copy(text, length);
    int valid = spiffe_id_valid((const char *)exact, length);
    free(exact);
    return valid;
}

static int workload_copy(const char *text, size_t length)
{
    uint8_t *exact = noise_exact_copy(text, length);
    int valid = spiffe_id_names_workload((const char *)exact, length);
    free(exact);
    return valid;
}

static int domain_copy(const char *text, size_t length)
{
    uint8_t *exact = noise_exact_copy(text, length);
    int valid = spiffe_domain_id_valid((const char *)exact, length);
    free(exact);
    return valid;
}

static int parse_copy(const char *text, size_t length, struct ns_address *out)
{
    uint8_t *exact = noise_exact_copy(text, length);
    int result = authority_parse((const char *)exact, length, out);
    free(exact);
    return result;
}

/* ---- SPIFFE ids ---- */

TEST(well_formed_spiffe_ids_are_valid)
{
    static const char *const IDS[] = {
        "spiffe://example.org/ns/default/sa/shipper",           "spiffe://a/ns/b/sa/c",
        "spiffe://cluster.local/ns/kube-system/sa/core_dns.v2", "spiffe://1.2.3.4/ns/0/sa/9",
        "spiffe://under_score-dash/ns/UPPER/sa/MixedCase",      "spiffe://example.org/ns/.../sa/..a",
    };
    for (size_t i = 0; i < sizeof(IDS) / sizeof(IDS[0]); i++) {
        CHECK_CASE(valid_copy(IDS[i], strlen(IDS[i])), "%s", IDS[i]);
        CHECK_CASE(workload_copy(IDS[i], strlen(IDS[i])), "%s", IDS[i]);
        CHECK_CASE(!domain_copy(IDS[i], strlen(IDS[i])), "%s", IDS[i]);
    }
}

TEST(any_path_makes_a_spiffe_id_but_not_that_of_a_workload_here)
{
    static const char *const IDS[] = {
        "spiffe://example.org/ns",        "spiffe://example.org/ns/a",
        "spiffe://example.org/ns/a/sa",   "spiffe://example.org/ns/a/sa/b/c",
        "spiffe://example.org/sa/a/ns/b", "spiffe://example.org/9eebccd2-12bf-40a6-b262-65fe0487d453",
    };
    for (size_t i = 0; i < sizeof(IDS) / sizeof(IDS[0]); i++) {
        CHECK_CASE(valid_copy(IDS[i], strlen(IDS[i])), "%s", IDS[i]);
        CHECK_CASE(!workload_copy(IDS[i], strlen(IDS[i])), "%s", IDS[i]);
    }
}

TEST(a_trust_domains_id_has_no_path)
{
    CHECK(domain_copy("spiffe://example.org", 20));
    CHECK(!valid_copy("spiffe://example.org", 20));
    CHECK(!domain_copy("spiffe://example.org/", 21));
    CHECK(!domain_copy("spiffe://", 9));
    CHECK(!domain_copy("spiffe://Example.org", 20));
    CHECK(!domain_copy("spiffe://example.org\0", 21));
    CHECK(!domain_copy("https://example.org", 19));
}

TEST(malformed_spiffe_ids_are_refused)
{
    static const char *const IDS[] = {
        "",
        "spiffe://",
        "spiffe:///ns/a/sa/b",
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/ns/a/sa/",
        "spiffe://example.org/ns//sa/b",
        "spiffe://example.org/ns/a/sa/b/",
        "spiffe://example.org//ns/a/sa/b",
        "spiffe://example.org/ns/./sa/b",
        "spiffe://example.org/ns/../sa/b",
        "spiffe://example.org/ns/a/sa/.",
        "spiffe://example.org/ns/a/sa/..",
        "spiffe://Example.org/ns/a/sa/b",
        "spiffe://example.org:8443/ns/a/sa/b",
        "spiffe://user@example.org/ns/a/sa/b",
        "spiffe://exämple.org/ns/a/sa/b",
        "spiffe://example.org/ns/a/sa/b?x=1",
        "spiffe://example.org/ns/a/sa/b#x",
        "spiffe://example.org/ns/a/sa/b%41",
        "spiffe://example.org/ns/a/sa/b c",
        "spiffe://example.org/ns/a/sa/b\n",
        "SPIFFE://example.org/ns/a/sa/b",
        "https://example.org/ns/a/sa/b",
        " spiffe://example.org/ns/a/sa/b",
        "spiffe:/example.org/ns/a/sa/b",
    };
    for (size_t i = 0; i < sizeof(IDS) / sizeof(IDS[0]); i++)
        CHECK_CASE(!valid_copy(IDS[i], strlen(IDS[i])) && !workload_copy(IDS[i], strlen(IDS[i])), "%s",
                   IDS[i]);
}

TEST(spiffe_id_with_a_zero_byte_is_refused)
{
    static const char ID[] = "spiffe://example.org/ns/a/sa/b\0.example.com";
    CHECK(!valid_copy(ID, sizeof(ID) - 1));
    CHECK(!valid_copy(ID, strlen(ID) + 1));
}

TEST(spiffe_id_length_is_bounded)
{
    char id[SPIFFE_ID_MAX + 8] = "spiffe://example.org/ns/a/sa/";
    size_t start = strlen(id);
    memset(id + start, 'x', sizeof(id) - start);
    CHECK(valid_copy(id, SPIFFE_ID_MAX) && workload_copy(id, SPIFFE_ID_MAX));
    CHECK(!valid_copy(id, SPIFFE_ID_MAX + 1) && !workload_copy(id, SPIFFE_ID_MAX + 1));
}

TEST(trust_domain_length_is_bounded)
{
    char id[NS_IDENTITY_MAX] = "spiffe://";
    for (size_t domain = 254; domain <= 256; domain++) {
        memset(id + 9, 'd', domain);
        memcpy(id + 9 + domain, "/ns/a/sa/b", 11);
        CHECK_EQUAL(valid_copy(id, strlen(id)), domain <= 255);
    }
}

TEST(trust_domain_is_not_confused_with_a_longer_or_shorter_one)
{
    static const struct {
        const char *id;
        const char *domain;
        int inside;
    } CASES[] = {
        {"spiffe://example.org/ns/a/sa/b", "example.org", 1},
        {"spiffe://example.org.evil/ns/a/sa/b", "example.org", 0},
        {"spiffe://example.orgx/ns/a/sa/b", "example.org", 0},
        {"spiffe://example.or/ns/a/sa/b", "example.org", 0},
        {"spiffe://evil.example.org/ns/a/sa/b", "example.org", 0},
        {"spiffe://evil/ns/example.org/sa/b", "example.org", 0},
        {"spiffe://a/ns/b/sa/c", "a", 1},
        {"spiffe://a/ns/b/sa/c", "", 0},
        {"spiffe://a/ns/b/sa/c", "a.much.longer.trust.domain.than.the.whole.identity.has.characters", 0},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        char *exact = (char *)noise_exact_copy(CASES[i].id, strlen(CASES[i].id) + 1);
        CHECK_CASE(spiffe_id_in_domain(exact, strlen(exact), CASES[i].domain) == CASES[i].inside, "%s in %s",
                   CASES[i].id, CASES[i].domain);
        free(exact);
    }
}

/* ---- authorities ---- */

TEST(authority_of_ipv4_is_mapped)
{
    struct ns_address address;
    static const uint8_t MAPPED[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 2, 255};
    CHECK_EQUAL(parse_copy("10.77.2.255:65535", 17, &address), 0);
    CHECK(memcmp(address.ip, MAPPED, 16) == 0);
    CHECK_EQUAL(address.port, 65535);
    CHECK(address_is_v4(&address));
}

TEST(authority_of_ipv6_is_read)
{
    struct ns_address address;
    uint8_t expected[16];
    inet_pton(AF_INET6, "2001:db8::1", expected);
    CHECK_EQUAL(parse_copy("[2001:db8::1]:80", 16, &address), 0);
    CHECK(memcmp(address.ip, expected, 16) == 0);
    CHECK_EQUAL(address.port, 80);
    CHECK(!address_is_v4(&address));
}

TEST(malformed_authorities_are_refused)
{
    static const char *const TEXTS[] = {
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:00000",
        "10.0.0.1:65536",
        "10.0.0.1:99999",
        "10.0.0.1:100000",
        "10.0.0.1:4294967376",
        "10.0.0.1:-80",
        "10.0.0.1:+80",
        "10.0.0.1: 80",
        "10.0.0.1:80 ",
        "10.0.0.1:8o",
        "10.0.0.1:80:80",
        " 10.0.0.1:80",
        "10.0.0.256:80",
        "10.0.0:80",
        "10.0.0.0.1:80",
        "010.0.0.1:80",
        "0x0a.0.0.1:80",
        "167772161:80",
        "example.org:80",
        "localhost:80",
        "user@10.0.0.1:80",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "[2001:db8::1]80",
        "[2001:db8::1]:",
        "[2001:db8::1]:0",
        "[2001:db8::1",
        "[]:80",
        "[:80",
        "]:80",
        "[2001:db8::g]:80",
        "[10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "[1:2:3:4:5:6:7:8:9]:80",
        "[1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa]:80",
        "http://10.0.0.1:80",
    };
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        struct ns_address address = {.port = 4711};
        CHECK_CASE(parse_copy(TEXTS[i], strlen(TEXTS[i]), &address) == -1, "%s", TEXTS[i]);
        CHECK_CASE(address.port == 4711, "%s", TEXTS[i]);
    }
}

TEST(authority_has_one_spelling)
{
    /* Each would be read as an address that has another, shorter or canonical, spelling (RFC 5952). */
    static const char *const TEXTS[] = {
        "10.0.0.1:08080",
        "10.0.0.1:00080",
        "10.0.0.1:080",
        "10.0.0.01:80",
        "10.0.0.00:80",
        "10.0.00.1:80",
        "[::ffff:10.77.2.10]:8080",
        "[::ffff:a4d:20a]:8080",
        "[::FFFF:10.77.2.10]:8080",
        "[0:0:0:0:0:ffff:10.77.2.10]:8080",
        "[2001:DB8::1]:80",
        "[2001:db8::00a]:80",
        "[2001:0db8::1]:80",
        "[2001:db8:0:0:0:0:0:1]:80",
        "[2001:db8::0:1]:80",
        "[2001:db8:0:0:1::1]:80",
        "[2001:db8::1:1:1:1:1]:80",
        "[2001:db8::10.77.2.10]:80",
        "[2001:db8::1]:080",
    };
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        struct ns_address address;
        CHECK_CASE(parse_copy(TEXTS[i], strlen(TEXTS[i]), &address) == -1, "%s", TEXTS[i]);
    }
}

TEST(authority_as_other_meshes_spell_it_is_read)
{
    /* Rust's SocketAddr (ztunnel) and Envoy's address formatter. */
    static const char *const TEXTS[] = {
        "10.77.2.10:8080",
        "0.0.0.0:1",
        "10.0.0.1:80",
        "255.255.255.255:65535",
        "[::1]:80",
        "[2001:db8::1]:80",
        "[fd77:2::a]:9",
        "[::]:1",
        "[2001:db8::1:0:0:1]:80",
        "[2001:db8:0:1:1:1:1:1]:80",
        "[fe80::1ff:fe23:4567:890a]:443",
    };
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        struct ns_address address;
        char text[AUTHORITY_MAX];
        CHECK_CASE(parse_copy(TEXTS[i], strlen(TEXTS[i]), &address) == 0, "%s", TEXTS[i]);
        authority_format(&address, text);
        CHECK_TEXT(text, TEXTS[i]);
    }
}

TEST(authority_with_a_zero_byte_is_refused)
{
    struct ns_address address;
    CHECK_EQUAL(parse_copy("10.0.0.1\0:80", 12, &address), -1);
    CHECK_EQUAL(parse_copy("10.0.0.1:80\0", 12, &address), -1);
    CHECK_EQUAL(parse_copy("[::1\0]:80", 9, &address), -1);
}

TEST(authority_needs_no_terminator)
{
    struct ns_address address;
    CHECK_EQUAL(authority_parse("10.0.0.1:8080", 11, &address), 0);
    CHECK_EQUAL(address.port, 80);
    CHECK_EQUAL(authority_parse("[::1]:8080", 8, &address), 0);
    CHECK_EQUAL(address.port, 80);
}

TEST(formatted_authority_parses_back)
{
    struct noise noise = noise_new(1);
    for (int i = 0; i < 2000; i++) {
        struct ns_address address, again;
        for (int b = 0; b < 16; b++)
            address.ip[b] = noise_below(&noise, 3) ? (uint8_t)noise_next(&noise) : 0;
        if (i % 2) {
            memset(address.ip, 0, 10);
            memset(address.ip + 10, 0xff, 2);
        }
        address.port = (uint16_t)(1 + noise_below(&noise, 65535));
        char text[AUTHORITY_MAX];
        size_t length = authority_format(&address, text);
        CHECK_EQUAL(length, strlen(text));
        CHECK(length < AUTHORITY_MAX);
        CHECK_CASE(parse_copy(text, length, &again) == 0, "%s", text);
        CHECK_CASE(address_same_ip(&address, &again) && again.port == address.port, "%s", text);
    }
}

TEST(longest_authority_fits)
{
    struct ns_address address;
    memset(&address, 0xff, sizeof(address));
    char text[AUTHORITY_MAX];
    authority_format(&address, text);
    CHECK_TEXT(text, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535");
}

TEST(port_is_no_part_of_the_ip)
{
    struct ns_address a, b;
    CHECK_EQUAL(parse_copy("10.0.0.1:80", 11, &a), 0);
    CHECK_EQUAL(parse_copy("10.0.0.1:81", 11, &b), 0);
    CHECK(address_same_ip(&a, &b));
    CHECK_EQUAL(parse_copy("10.0.0.2:80", 11, &b), 0);
    CHECK(!address_same_ip(&a, &b));
}

/* ---- damaged input ---- */

TEST(damaged_ids_and_authorities_are_read_within_their_bounds)
{
    static const char *const SEEDS[] = {
        "spiffe://example.org/ns/default/sa/shipper",
        "10.77.2.10:8080",
        "[2001:db8:0:1::ff]:443",
        "[::]:1",
    };
    struct noise noise = noise_new(2);
    for (int i = 0; i < 20000; i++) {
        const char *seed = SEEDS[i % 4];
        size_t length;
        uint8_t *bytes = noise_mutate(&noise, (const uint8_t *)seed, strlen(seed), &length);
        struct ns_address address;
        if (spiffe_id_valid((const char *)bytes, length))
            CHECK_CASE(length <= SPIFFE_ID_MAX && memchr(bytes, 0, length) == NULL, "round %d", i);
        if (authority_parse((const char *)bytes, length, &address) == 0) {
            char text[AUTHORITY_MAX];
            CHECK_CASE(authority_format(&address, text) == length, "round %d", i);
            CHECK_CASE(memcmp(text, bytes, length) == 0, "round %d", i);
        }
        free(bytes);
    }
}

CHECK_MAIN
