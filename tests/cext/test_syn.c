/* syn.c: what a SYN says, and the packets that answer it, beside those that a kernel made. */
#include "wire/syn.h"

#include "check.h"
#include "noise.h"

/*
 * Linux 6.18, two namespaces with a veth, checksums computed by the kernel: the SYN of a connect(), the RST
 * of the closed port, and the ICMP error of a router with an unreachable route.
 */
static const char SYN4[] = "4500003cc5474000400660d80a4d00010a4d00029d0a1f90cb2e501600000000a002faf0d5110000"
                           "020405b40402080a6a192165000000000103030a";
static const char RST4[] = "4500002800004000400626340a4d00020a4d00011f909d0a00000000cb2e501750140000c3530000";
static const char SYN6[] = "6000000000280640fd770000000000000000000000000001fd770000000000000000000000000002"
                           "8cce1f902be627b200000000a002fd203e0d0000020405a00402080aee5f239a000000000103030a";
static const char RST6[] = "6000000000140640fd770000000000000000000000000002fd770000000000000000000000000001"
                           "1f908cce000000002be627b350140000b4e60000";
static const char SYN4_ROUTED[] =
    "4500003c72b940004006b3490a4d00010a630009a2d60051c91cfead00000000a002faf0f6b4"
    "0000020405b40402080ae0c5f5e5000000000103030a";
static const char ICMP4_HOST[] =
    "030111e7000000004500003c72b940004006b3490a4d00010a630009a2d60051c91cfead000000"
    "00a002faf0f6b40000020405b40402080ae0c5f5e5000000000103030a";
static const char SYN6_ROUTED[] =
    "6000000000280640fd770000000000000000000000000001fd99000000000000000000000000"
    "0009a05e0051b199a8ec00000000a002fd20a5160000020405a00402080a2c9282f600000000"
    "0103030a";
/* Its checksum holds for the addresses fd77::2 and fd77::1. */
static const char ICMP6_NETWORK[] =
    "01009d40000000006000000000280640fd770000000000000000000000000001fd9900000000"
    "00000000000000000009a05e0051b199a8ec00000000a002fd20a5160000020405a00402080a"
    "2c9282f6000000000103030a";

enum { ROOM = 256, IPV4 = 20, IPV6 = 40 };

static size_t from_hex(const char *text, uint8_t out[ROOM])
{
    size_t length = strlen(text) / 2;
    CHECK(length <= ROOM);
    for (size_t i = 0; i < length; i++) {
        unsigned byte;
        CHECK_EQUAL(sscanf(text + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
    return length;
}

static int parse_copy(const uint8_t *bytes, size_t length, struct syn *out)
{
    uint8_t *exact = noise_exact_copy(bytes, length);
    int result = syn_parse(exact, length, out);
    free(exact);
    return result;
}

static struct syn parsed(const char *text)
{
    uint8_t bytes[ROOM];
    size_t length = from_hex(text, bytes);
    struct syn syn;
    CHECK_EQUAL(parse_copy(bytes, length, &syn), 0);
    return syn;
}

static void check_packet(const uint8_t *packet, size_t length, const char *expected)
{
    uint8_t bytes[ROOM];
    CHECK_EQUAL(length, from_hex(expected, bytes));
    for (size_t i = 0; i < length; i++)
        CHECK_CASE(packet[i] == bytes[i], "byte %zu is %02x, expected %02x", i, packet[i], bytes[i]);
}

/* Independent of the code under test: one at a time, carried at once. */
static unsigned ones_sum(unsigned sum, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        sum += i % 2 == 0 ? bytes[i] * 256u : bytes[i];
        sum = sum > 0xffff ? sum - 0xffff : sum;
    }
    return sum;
}

/* All that it says of itself is true: its length and its checksums. */
static void check_whole(const uint8_t *packet, size_t length)
{
    int ipv4 = packet[0] >> 4 == 4;
    size_t at = ipv4 ? (packet[0] & 15u) * 4u : IPV6;
    unsigned protocol = packet[ipv4 ? 9 : 6];
    unsigned sum = 0;
    if (ipv4) {
        CHECK_EQUAL(packet[2] * 256 + packet[3], length);
        CHECK_EQUAL(ones_sum(0, packet, at), 0xffff);
    } else {
        CHECK_EQUAL(packet[4] * 256 + packet[5], length - IPV6);
    }
    if (protocol != 1) {
        uint8_t lengths[4] = {0, (uint8_t)protocol, (uint8_t)((length - at) >> 8), (uint8_t)(length - at)};
        sum = ones_sum(ones_sum(0, packet + (ipv4 ? 12 : 8), ipv4 ? 8 : 32), lengths, 4);
    }
    CHECK_EQUAL(ones_sum(sum, packet + at, length - at), 0xffff);
}

/* ---- what it says ---- */

TEST(a_syn_says_who_dials_whom)
{
    struct syn syn = parsed(SYN4);
    static const uint8_t FROM[16] = {[10] = 0xff, 0xff, 10, 77, 0, 1},
                         TO[16] = {[10] = 0xff, 0xff, 10, 77, 0, 2};
    CHECK(memcmp(syn.source.ip, FROM, 16) == 0 && memcmp(syn.destination.ip, TO, 16) == 0);
    CHECK_EQUAL(syn.source.port, 0x9d0a);
    CHECK_EQUAL(syn.destination.port, 8080);
    CHECK_EQUAL(syn.sequence, 0xcb2e5016);
    CHECK_EQUAL(syn.mss, 1460);
    CHECK_EQUAL(syn.length, 60);
    CHECK_EQUAL(syn.tcp_at, IPV4);
}

TEST(a_syn_over_ipv6_says_the_same)
{
    struct syn syn = parsed(SYN6);
    static const uint8_t FROM[16] = {0xfd, 0x77, [15] = 1}, TO[16] = {0xfd, 0x77, [15] = 2};
    CHECK(memcmp(syn.source.ip, FROM, 16) == 0 && memcmp(syn.destination.ip, TO, 16) == 0);
    CHECK_EQUAL(syn.source.port, 0x8cce);
    CHECK_EQUAL(syn.destination.port, 8080);
    CHECK_EQUAL(syn.sequence, 0x2be627b2);
    CHECK_EQUAL(syn.mss, 1440);
    CHECK_EQUAL(syn.tcp_at, IPV6);
}

/* One byte of a good SYN is another. */
static int parses_with(const char *text, size_t at, uint8_t value)
{
    uint8_t bytes[ROOM];
    size_t length = from_hex(text, bytes);
    CHECK(at < length);
    bytes[at] = value;
    struct syn syn;
    return parse_copy(bytes, length, &syn) == 0;
}

TEST(only_a_syn_is_a_syn)
{
    for (unsigned flags = 0; flags < 256; flags++) {
        int wanted = (flags & 2) != 0 && (flags & (1 | 4 | 16)) == 0;
        CHECK_CASE(parses_with(SYN4, IPV4 + 13, (uint8_t)flags) == wanted, "flags %02x", flags);
        CHECK_CASE(parses_with(SYN6, IPV6 + 13, (uint8_t)flags) == wanted, "flags %02x", flags);
    }
}

TEST(what_is_not_tcp_in_one_piece_is_refused)
{
    CHECK(!parses_with(SYN4, 9, 17));
    CHECK(!parses_with(SYN6, 6, 17));
    CHECK(!parses_with(SYN6, 6, 0)); /* hop-by-hop options */
    CHECK(!parses_with(SYN6, 6, 43));
    CHECK(!parses_with(SYN4, 6, 0x20)); /* more fragments */
    CHECK(!parses_with(SYN4, 7, 1));
    CHECK(parses_with(SYN4, 6, 0)); /* it may be fragmented */
    CHECK(!parses_with(SYN4, 0, 0x55));
    CHECK(!parses_with(SYN4, 0, 0x44));
    CHECK(!parses_with(SYN4, 0, 0x60));
    CHECK(!parses_with(SYN6, 0, 0x40));
    CHECK(!parses_with(SYN4, IPV4 + 12, 0x40)); /* TCP's header is shorter than one */
    CHECK(!parses_with(SYN4, IPV4 + 12, 0xb0)); /* or longer than what is there */
    CHECK(!parses_with(SYN4, 3, 59));
    CHECK(!parses_with(SYN6, 5, 39));
}

TEST(ports_of_zero_are_refused)
{
    for (size_t side = 0; side < 4; side += 2) {
        uint8_t bytes[ROOM];
        size_t length = from_hex(SYN4, bytes);
        bytes[IPV4 + side] = bytes[IPV4 + side + 1] = 0;
        struct syn syn;
        CHECK_EQUAL(parse_copy(bytes, length, &syn), -1);
    }
}

TEST(ipv6_with_addresses_that_stand_for_ipv4_is_refused)
{
    static const uint8_t MAPPED[12] = {[10] = 0xff, [11] = 0xff};
    for (size_t at = 8; at <= 24; at += 16) {
        uint8_t bytes[ROOM];
        size_t length = from_hex(SYN6, bytes);
        memcpy(bytes + at, MAPPED, sizeof(MAPPED));
        struct syn syn;
        CHECK_EQUAL(parse_copy(bytes, length, &syn), -1);
    }
}

TEST(a_cut_off_syn_is_refused)
{
    static const char *const ALL[] = {SYN4, SYN6};
    for (size_t which = 0; which < 2; which++) {
        uint8_t bytes[ROOM];
        size_t whole = from_hex(ALL[which], bytes);
        struct syn syn;
        for (size_t length = 0; length < whole; length++)
            CHECK_CASE(parse_copy(bytes, length, &syn) == -1, "%zu bytes", length);
    }
}

TEST(a_segment_size_is_found_behind_other_options_and_not_where_they_lie)
{
    struct syn syn = parsed(SYN4);
    uint8_t *options = syn.bytes + IPV4 + 20;
    struct syn again;
    static const uint8_t BEHIND[20] = {1, 1, 4, 2, 2, 4, 0x12, 0x34, 0};
    memcpy(options, BEHIND, 20);
    CHECK_EQUAL(parse_copy(syn.bytes, syn.length, &again), 0);
    CHECK_EQUAL(again.mss, 0x1234);
    static const uint8_t LIES[][20] = {
        {0, 2, 4, 1, 1},                    /* behind the end of the options */
        {3, 0, 2, 4, 1, 1},                 /* no length */
        {3, 1, 2, 4, 1, 1},                 /* less than itself */
        {3, 40, 2, 4, 1, 1},                /* more than there is */
        {2, 3, 9, 1},                       /* another length than one has */
        {1, 1, 1, 1, 1, 1, [18] = 2, 4},    /* the value is missing */
        {1, 1, 1, 1, 1, [6] = 1, [19] = 2}, /* the length as well */
    };
    for (size_t i = 0; i < sizeof(LIES) / sizeof(LIES[0]); i++) {
        memcpy(options, LIES[i], 20);
        CHECK_EQUAL(parse_copy(syn.bytes, syn.length, &again), 0);
        CHECK_CASE(again.mss == 0, "options %zu", i);
    }
}

/* ---- what answers it ---- */

TEST(the_same_syn_again_is_what_the_kernel_sent)
{
    static const char *const ALL[] = {SYN4, SYN6};
    for (size_t which = 0; which < 2; which++) {
        uint8_t bytes[ROOM], out[ROOM];
        size_t length = from_hex(ALL[which], bytes);
        size_t at = which == 0 ? IPV4 : IPV6;
        bytes[at + 16] ^= 0x5a; /* as it is while nobody has computed it */
        if (which == 0)
            bytes[10] ^= 0x77;
        struct syn syn;
        CHECK_EQUAL(parse_copy(bytes, length, &syn), 0);
        check_packet(out, syn_again(&syn, 0, out, sizeof(out)), ALL[which]);
        check_packet(out, syn_again(&syn, 1460, out, sizeof(out)), ALL[which]);
    }
}

TEST(a_payload_is_left_out)
{
    uint8_t bytes[ROOM], out[ROOM];
    size_t length = from_hex(SYN4, bytes);
    memset(bytes + length, 0xaa, 10);
    bytes[3] = (uint8_t)(length + 10);
    struct syn syn;
    CHECK_EQUAL(parse_copy(bytes, length + 10, &syn), 0);
    CHECK_EQUAL(syn.length, length);
    check_packet(out, syn_again(&syn, 0, out, sizeof(out)), SYN4);
    CHECK_EQUAL(parse_copy(bytes, length, &syn), 0);
    check_packet(out, syn_again(&syn, 0, out, sizeof(out)), SYN4);
}

TEST(a_segment_size_is_lowered_but_not_raised)
{
    static const char *const ALL[] = {SYN4, SYN6};
    for (size_t which = 0; which < 2; which++) {
        struct syn syn = parsed(ALL[which]), again;
        uint8_t out[ROOM];
        size_t length = syn_again(&syn, 1400, out, sizeof(out));
        check_whole(out, length);
        CHECK_EQUAL(parse_copy(out, length, &again), 0);
        CHECK_EQUAL(again.mss, 1400);
        CHECK_EQUAL(again.sequence, syn.sequence);
        syn.bytes[syn.tcp_at + 20] = 1; /* no longer a size */
        syn.bytes[syn.tcp_at + 21] = 1;
        CHECK_EQUAL(parse_copy(syn.bytes, syn.length, &syn), 0);
        length = syn_again(&syn, 100, out, sizeof(out));
        check_whole(out, length);
        CHECK_EQUAL(out[syn.tcp_at + 20 + 2] * 256 + out[syn.tcp_at + 20 + 3], which == 0 ? 1460 : 1440);
    }
}

TEST(options_of_ip_stay)
{
    uint8_t bytes[ROOM], out[ROOM];
    uint8_t *tail = bytes + IPV4;
    size_t length = from_hex(SYN4, bytes);
    memmove(tail + 40, tail, length - IPV4);
    memset(tail, 1, 40);
    bytes[0] = 0x4f;
    bytes[3] = (uint8_t)(length += 40);
    struct syn syn;
    CHECK_EQUAL(parse_copy(bytes, length, &syn), 0);
    CHECK_EQUAL(syn.tcp_at, 60);
    CHECK_EQUAL(syn.mss, 1460);
    CHECK_EQUAL(syn_again(&syn, 0, out, sizeof(out)), length);
    check_whole(out, length);
    check_packet(out, syn_refusal(&syn, out, sizeof(out)), RST4);
}

TEST(a_refusal_is_that_of_a_closed_port)
{
    uint8_t out[ROOM];
    struct syn four = parsed(SYN4), six = parsed(SYN6);
    check_packet(out, syn_refusal(&four, out, sizeof(out)), RST4);
    check_packet(out, syn_refusal(&six, out, sizeof(out)), RST6);
}

TEST(a_notice_is_a_reset_in_the_place_of_the_syn)
{
    static const char *const SYNS[] = {SYN4, SYN6};
    uint8_t out[ROOM];
    for (int i = 0; i < 2; i++) {
        struct syn syn = parsed(SYNS[i]);
        size_t length = syn_notice(&syn, out, sizeof(out));
        const uint8_t *ip = syn.tcp_at == IPV6 ? out + 8 : out + 12, *tcp = out + syn.tcp_at;
        check_whole(out, length);
        CHECK_EQUAL(memcmp(ip, syn.bytes + (ip - out), syn.tcp_at == IPV6 ? 32 : 8), 0); /* from and to */
        CHECK_EQUAL(memcmp(tcp, syn.bytes + syn.tcp_at, 8), 0); /* ports and number */
        CHECK_EQUAL(tcp[13], 0x04);
    }
}

TEST(an_unreachable_host_is_told_as_a_router_does)
{
    uint8_t out[ROOM];
    struct syn four = parsed(SYN4_ROUTED);
    size_t length = syn_unreachable(&four, CAUSE_NO_HOST, out, sizeof(out));
    check_whole(out, length);
    check_packet(out + IPV4, length - IPV4, ICMP4_HOST);
    CHECK_EQUAL(out[9], 1);
    CHECK(memcmp(out + 12, four.source.ip + 12, 4) == 0 && memcmp(out + 16, four.source.ip + 12, 4) == 0);
    length = syn_unreachable(&four, CAUSE_NO_NETWORK, out, sizeof(out));
    check_whole(out, length);
    CHECK_EQUAL(out[IPV4] * 256 + out[IPV4 + 1], 3 * 256 + 0);
}

TEST(an_unreachable_network_is_told_over_ipv6_as_a_router_does)
{
    uint8_t out[ROOM];
    struct syn six = parsed(SYN6_ROUTED);
    size_t length = syn_unreachable(&six, CAUSE_NO_NETWORK, out, sizeof(out));
    check_whole(out, length);
    CHECK_EQUAL(out[6], 58);
    CHECK(memcmp(out + 8, six.source.ip, 16) == 0 && memcmp(out + 24, six.source.ip, 16) == 0);
    out[23] = 2; /* from the router: then the checksum is its own */
    out[IPV6 + 2] = 0x9d;
    out[IPV6 + 3] = 0x40;
    check_whole(out, length);
    check_packet(out + IPV6, length - IPV6, ICMP6_NETWORK);
    length = syn_unreachable(&six, CAUSE_NO_HOST, out, sizeof(out));
    check_whole(out, length);
    CHECK_EQUAL(out[IPV6] * 256 + out[IPV6 + 1], 1 * 256 + 3);
}

TEST(other_causes_are_not_told_by_icmp)
{
    uint8_t out[ROOM];
    struct syn syn = parsed(SYN4);
    CHECK_EQUAL(syn_unreachable(&syn, CAUSE_REFUSED, out, sizeof(out)), 0);
    CHECK_EQUAL(syn_unreachable(&syn, CAUSE_SILENT, out, sizeof(out)), 0);
    CHECK_EQUAL(syn_unreachable(&syn, CAUSE_PASSING, out, sizeof(out)), 0);
}

/* Each answer in a buffer of exactly its length, and in all that are shorter. */
static void check_answers(const struct syn *syn)
{
    for (int which = 0; which < 6; which++) {
        size_t needed = 0;
        for (size_t capacity = 0; capacity <= SYN_ANSWER_MAX && needed == 0; capacity++) {
            uint8_t *out = malloc(capacity + (capacity == 0));
            needed = which == 0   ? syn_again(syn, 0, out, capacity)
                     : which == 1 ? syn_again(syn, 536, out, capacity)
                     : which == 2 ? syn_refusal(syn, out, capacity)
                     : which == 3 ? syn_notice(syn, out, capacity)
                     : which == 4 ? syn_unreachable(syn, CAUSE_NO_HOST, out, capacity)
                                  : syn_unreachable(syn, CAUSE_NO_NETWORK, out, capacity);
            CHECK(needed == 0 || needed == capacity);
            if (needed != 0)
                check_whole(out, needed);
            free(out);
        }
        CHECK(needed != 0);
    }
}

TEST(answers_fit_or_are_not_made)
{
    struct syn four = parsed(SYN4), six = parsed(SYN6);
    check_answers(&four);
    check_answers(&six);
}

TEST(hostile_bytes_are_refused_or_answered)
{
    static const char *const SEEDS[] = {SYN4, SYN6, SYN4_ROUTED, SYN6_ROUTED};
    struct noise noise = noise_new(41);
    int answered = 0;
    for (int i = 0; i < 40000; i++) {
        uint8_t seed[ROOM];
        size_t length = from_hex(SEEDS[i % 4], seed);
        uint8_t *bytes = noise_mutate(&noise, seed, length, &length);
        struct syn syn;
        if (syn_parse(bytes, length, &syn) == 0) {
            CHECK(syn.length <= length && syn.tcp_at + 20 <= syn.length);
            CHECK(syn.source.port != 0 && syn.destination.port != 0);
            if (i % 16 == 0)
                check_answers(&syn);
            answered++;
        }
        free(bytes);
    }
    CHECK(answered > 1000 && answered < 39000);
    for (int i = 0; i < 40000; i++) {
        uint8_t bytes[ROOM];
        size_t length = noise_below(&noise, ROOM);
        noise_fill((uint64_t)i, 0, bytes, length);
        if (length > 60) { /* or it would never come beyond the first bytes */
            bytes[0] = (uint8_t)(i % 2 ? 0x45 : 0x60);
            bytes[i % 2 ? 9 : 6] = 6;
            bytes[i % 2 ? 6 : 0] &= 0x60 & ~(i % 2 ? 0x20 : 0);
        }
        struct syn syn;
        if (parse_copy(bytes, length, &syn) == 0)
            check_answers(&syn);
    }
}

CHECK_MAIN
