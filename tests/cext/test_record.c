/*
 * test_record.c: the record layer by itself: the records of RFC 8448, section 3, and a peer that holds the
 * right keys and sends whatever it likes.
 */
#include "wire/record.h"

#include <openssl/crypto.h>
#include <openssl/ssl.h>

#include "check.h"
#include "noise.h"

enum { WIRE = 1 << 20, SUITE_128 = 0x1301, SUITE_256 = 0x1302, KEY_UPDATE = 24, TICKET = 4 };

/* RFC 8448, section 3: "derive secret tls13 c ap traffic", "... s ap traffic" */
static const char CLIENT_SECRET[] = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
static const char SERVER_SECRET[] = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
/* "derive write traffic keys for application data" */
static const char CLIENT_IV[] = "5b78923dee08579033e523d9";
static const char SERVER_IV[] = "cf782b88dd83549aadf1e984";
/* "{server} construct a NewSessionTicket handshake message" and the record with it */
static const char TICKET_MESSAGE[] =
    "040000c90000001efad6aac502000000b22c035d829359ee5ff7af4ec900000000262a6494dc486d2c8a34cb33fa90bf1b0070ad"
    "3c498883c9367c09a2be785abc55cd226097a3a982117283f82a03a143efd3ff5dd36d64e861be7fd61d2827db279cce145077d4"
    "54a3664d4e6da4d29ee03725a6a4dafcd0fc67d2aea70529513e3da2677fa5906c5b3f7d8f92f228bda40dda721470f9fbf297b5"
    "aea617646fac5c03272e970727c621a79141ef5f7de6505e5bfbc388e93343694093934ae4d3570008002a000400000400";
static const char TICKET_RECORD[] =
    "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a01594025"
    "2f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e09c30ba1e62972ac4"
    "6f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77f81b5ab05b94c01346755f69"
    "232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952ca49fe5137121c74bc2697687e248746d6df353005f3bce1"
    "8696129c8153556b3b6c6779b37bf15985684f";
/* The 50 bytes 00 to 31 from each side, then each side's close_notify */
static const char CLIENT_DATA_RECORD[] =
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5"
    "b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
static const char SERVER_DATA_RECORD[] =
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90"
    "e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d";
static const char CLIENT_END_RECORD[] = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
static const char SERVER_END_RECORD[] = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

struct wire {
    uint8_t *bytes; /* heap */
    size_t length;
};

static struct wire unhex(const char *text)
{
    struct wire wire;
    long length;
    wire.bytes = OPENSSL_hexstr2buf(text, &length);
    CHECK(wire.bytes != NULL);
    wire.length = (size_t)length;
    return wire;
}

static void check_hex(const uint8_t *bytes, size_t length, const char *expected)
{
    struct wire wire = unhex(expected);
    CHECK_EQUAL(length, wire.length);
    CHECK(memcmp(bytes, wire.bytes, length) == 0);
    OPENSSL_free(wire.bytes);
}

static void secret_from(struct record_keys *keys, const char *text)
{
    struct wire secret = unhex(text);
    memcpy(keys->secret, secret.bytes, secret.length);
    keys->secret_length = secret.length;
    OPENSSL_free(secret.bytes);
}

static struct record rfc_record(int is_client)
{
    struct record record;
    memset(&record, 0, sizeof(record));
    secret_from(&record.sealing, is_client ? CLIENT_SECRET : SERVER_SECRET);
    secret_from(&record.opening, is_client ? SERVER_SECRET : CLIENT_SECRET);
    CHECK_EQUAL(record_start(&record, SUITE_128, NULL, is_client), 0);
    return record;
}

/* ---- one side, and a peer that forges ---- */

struct scene {
    struct record record;        /* under test */
    struct record_keys forging;  /* of what it reads */
    struct record_keys watching; /* of what it writes */
    const struct record_suite *suite;
    struct tls_sink sink;
    uint8_t *wire; /* forged, not delivered yet */
    size_t wire_length;
    uint8_t *received;
    size_t received_length;
    size_t capacity; /* of each read */
    enum tls_result result;
};

static void scene_init(struct scene *scene, unsigned suite_id, int is_client)
{
    memset(scene, 0, sizeof(*scene));
    scene->suite = record_suite_find(suite_id);
    scene->sink.bytes = malloc(WIRE);
    scene->sink.capacity = WIRE;
    scene->wire = malloc(WIRE);
    scene->received = malloc(WIRE);
    scene->capacity = 65536;
    scene->result = TLS_WANT;
    struct record_keys keys = {.secret_length = scene->suite->secret_length};
    noise_fill(1, 0, keys.secret, keys.secret_length);
    scene->record.sealing = scene->watching = keys;
    noise_fill(2, 0, keys.secret, keys.secret_length);
    scene->record.opening = scene->forging = keys;
    CHECK_EQUAL(record_start(&scene->record, suite_id, NULL, is_client), 0);
    CHECK_EQUAL(record_keys_start(&scene->forging, scene->suite, NULL, 1), 0);
    CHECK_EQUAL(record_keys_start(&scene->watching, scene->suite, NULL, 0), 0);
}

static void scene_dispose(struct scene *scene)
{
    record_dispose(&scene->record);
    record_keys_dispose(&scene->forging);
    record_keys_dispose(&scene->watching);
    free(scene->sink.bytes);
    free(scene->wire);
    free(scene->received);
}

static void forge(struct scene *scene, int type, const void *content, size_t length)
{
    CHECK_EQUAL(record_seal(&scene->forging, type, content, length, scene->wire + scene->wire_length), 0);
    scene->wire_length += length + RECORD_OVERHEAD;
}

/* What follows the header may be anything. */
static void forge_raw(struct scene *scene, int outer, size_t announced, size_t length)
{
    uint8_t *out = scene->wire + scene->wire_length;
    const uint8_t header[] = {(uint8_t)outer, 3, 3, (uint8_t)(announced >> 8), (uint8_t)announced};
    memcpy(out, header, sizeof(header));
    memset(out + sizeof(header), 0x5a, length);
    scene->wire_length += sizeof(header) + length;
}

static void scene_read(struct scene *scene, const uint8_t *bytes, size_t length)
{
    uint8_t *exact = noise_exact_copy(bytes, length);
    struct record_feed feed = {exact, length};
    do {
        size_t got;
        uint8_t *out = malloc(scene->capacity);
        scene->result = record_read(&scene->record, &feed, &scene->sink, out, scene->capacity, &got);
        CHECK((scene->result == TLS_OK) == (got > 0));
        CHECK(scene->received_length + got <= WIRE);
        memcpy(scene->received + scene->received_length, out, got);
        scene->received_length += got;
        free(out);
    } while (scene->result == TLS_OK);
    if (scene->result == TLS_WANT)
        CHECK_EQUAL(feed.length, 0);
    free(exact);
}

static void deliver(struct scene *scene, size_t piece)
{
    for (size_t at = 0; at < scene->wire_length; at += piece)
        scene_read(scene, scene->wire + at,
                   scene->wire_length - at < piece ? scene->wire_length - at : piece);
    scene->wire_length = 0;
}

/* Opens the next record that the side under test wrote; returns its inner type, its content is in out. */
static int watch(struct scene *scene, uint8_t *out, size_t *length)
{
    const uint8_t *at = scene->sink.bytes;
    size_t body = (size_t)at[3] << 8 | at[4];
    CHECK(scene->sink.length >= RECORD_HEADER + body);
    CHECK_EQUAL(record_open(&scene->watching, at, at + RECORD_HEADER, body, out), 0);
    *length = body - RECORD_TAG - 1;
    scene->sink.length -= RECORD_HEADER + body;
    memmove(scene->sink.bytes, at + RECORD_HEADER + body, scene->sink.length);
    return out[*length];
}

static void check_failed_with(struct scene *scene, int alert, const char *failure)
{
    uint8_t content[RECORD_BODY_MAX];
    size_t length;
    CHECK_EQUAL(scene->result, TLS_FAILED);
    CHECK_TEXT(scene->record.failure, failure);
    CHECK_EQUAL(watch(scene, content, &length), RECORD_ALERT);
    CHECK_EQUAL(length, 2);
    CHECK_EQUAL(content[0], 2);
    CHECK_EQUAL(content[1], alert);
    CHECK_EQUAL(scene->sink.length, 0);
    /* For good, and without a second alert. */
    forge(scene, RECORD_APPLICATION, "late", 4);
    size_t before = scene->received_length;
    deliver(scene, WIRE);
    CHECK_EQUAL(scene->result, TLS_FAILED);
    CHECK_EQUAL(scene->received_length, before);
    CHECK_EQUAL(record_write(&scene->record, &scene->sink, content, 1), TLS_FAILED);
    record_end(&scene->record, &scene->sink);
    CHECK_EQUAL(scene->sink.length, 0);
    scene_dispose(scene);
}

/* A client gets one forged record and fails. */
static void check_refused(int type, const char *content, size_t length, int alert, const char *failure)
{
    for (size_t piece = 1; piece <= WIRE; piece *= WIRE) {
        struct scene scene;
        scene_init(&scene, SUITE_128, 1);
        forge(&scene, type, content, length);
        deliver(&scene, piece);
        CHECK_EQUAL(scene.received_length, 0);
        check_failed_with(&scene, alert, failure);
    }
}

/* ---- RFC 8448 ---- */

TEST(rfc_8448_secrets_give_the_ivs)
{
    struct record client = rfc_record(1);
    check_hex(client.sealing.iv, RECORD_IV, CLIENT_IV);
    check_hex(client.opening.iv, RECORD_IV, SERVER_IV);
    record_dispose(&client);
}

static void rfc_data(uint8_t data[50])
{
    for (int i = 0; i < 50; i++)
        data[i] = (uint8_t)i;
}

TEST(rfc_8448_client_records_are_sealed_byte_for_byte)
{
    uint8_t out[200], data[50];
    struct tls_sink sink = {out, 0, sizeof(out)};
    struct record client = rfc_record(1);
    rfc_data(data);
    CHECK_EQUAL(record_write(&client, &sink, data, sizeof(data)), TLS_OK);
    check_hex(out, sink.length, CLIENT_DATA_RECORD);
    sink.length = 0;
    record_end(&client, &sink);
    check_hex(out, sink.length, CLIENT_END_RECORD);
    record_dispose(&client);
}

TEST(rfc_8448_server_records_are_sealed_byte_for_byte)
{
    uint8_t out[400], data[50];
    struct tls_sink sink = {out, 0, sizeof(out)};
    struct record server = rfc_record(0);
    struct wire ticket = unhex(TICKET_MESSAGE);
    rfc_data(data);
    CHECK_EQUAL(record_seal(&server.sealing, RECORD_HANDSHAKE, ticket.bytes, ticket.length, out), 0);
    check_hex(out, ticket.length + RECORD_OVERHEAD, TICKET_RECORD);
    CHECK_EQUAL(record_write(&server, &sink, data, sizeof(data)), TLS_OK);
    check_hex(out, sink.length, SERVER_DATA_RECORD);
    sink.length = 0;
    record_end(&server, &sink);
    check_hex(out, sink.length, SERVER_END_RECORD);
    OPENSSL_free(ticket.bytes);
    record_dispose(&server);
}

static void check_rfc_read(int is_client, const char *stream, size_t piece)
{
    struct scene scene;
    uint8_t data[50];
    scene_init(&scene, SUITE_128, is_client);
    record_dispose(&scene.record);
    scene.record = rfc_record(is_client);
    struct wire wire = unhex(stream);
    memcpy(scene.wire, wire.bytes, wire.length);
    scene.wire_length = wire.length;
    deliver(&scene, piece);
    rfc_data(data);
    CHECK_EQUAL(scene.received_length, sizeof(data));
    CHECK(memcmp(scene.received, data, sizeof(data)) == 0);
    CHECK_EQUAL(scene.result, TLS_CLOSED);
    CHECK_EQUAL(scene.sink.length, 0);
    OPENSSL_free(wire.bytes);
    scene_dispose(&scene);
}

TEST(rfc_8448_records_are_opened_in_both_directions)
{
    char stream[2000];
    snprintf(stream, sizeof(stream), "%s%s%s", TICKET_RECORD, SERVER_DATA_RECORD, SERVER_END_RECORD);
    check_rfc_read(1, stream, WIRE);
    check_rfc_read(1, stream, 1);
    snprintf(stream, sizeof(stream), "%s%s", CLIENT_DATA_RECORD, CLIENT_END_RECORD);
    check_rfc_read(0, stream, WIRE);
    check_rfc_read(0, stream, 1);
}

/* ---- the beginning ---- */

TEST(a_suite_that_was_not_offered_is_refused)
{
    struct record record;
    memset(&record, 0, sizeof(record));
    CHECK_EQUAL(record_start(&record, 0x1303, NULL, 1), -1);
    CHECK(record.failure != NULL);
    record_dispose(&record);
}

TEST(a_missing_or_foreign_secret_is_refused)
{
    static const size_t LENGTHS[][2] = {{0, 0}, {32, 0}, {0, 32}, {48, 48}, {32, 48}};
    for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
        struct record record;
        memset(&record, 0, sizeof(record));
        record.sealing.secret_length = LENGTHS[i][0];
        record.opening.secret_length = LENGTHS[i][1];
        CHECK_EQUAL(record_start(&record, SUITE_128, NULL, 1), -1);
        CHECK(record.failure != NULL);
        record_dispose(&record);
    }
}

TEST(nothing_is_read_or_written_before_the_start)
{
    struct record record;
    struct record_feed feed = {NULL, 0};
    uint8_t byte;
    size_t got;
    memset(&record, 0, sizeof(record));
    record_end(&record, NULL);
    CHECK_EQUAL(record_write(&record, NULL, &byte, 1), TLS_FAILED);
    CHECK_EQUAL(record_read(&record, &feed, NULL, &byte, 1, &got), TLS_FAILED);
    record_dispose(&record);
}

TEST(what_is_disposed_of_is_wiped)
{
    struct scene scene;
    static const struct record_keys NONE;
    scene_init(&scene, SUITE_256, 1);
    record_dispose(&scene.record);
    CHECK(memcmp(&scene.record.sealing, &NONE, sizeof(NONE)) == 0);
    CHECK(memcmp(&scene.record.opening, &NONE, sizeof(NONE)) == 0);
    scene_dispose(&scene);
}

/* ---- data ---- */

TEST(data_of_both_suites_arrives_in_any_pieces_and_buffers)
{
    static const unsigned SUITES[] = {SUITE_128, SUITE_256};
    static const size_t PIECES[] = {1, 21, 16405, 16406, 16407, WIRE};
    static const size_t CAPACITIES[] = {1, 100, 16384, 16385, 20000, 65536};
    uint8_t *bytes = malloc(40000);
    noise_fill(3, 0, bytes, 40000);
    for (size_t i = 0; i < 2 * 36; i++) {
        struct scene scene;
        scene_init(&scene, SUITES[i % 2], 0);
        scene.capacity = CAPACITIES[i / 2 % 6];
        forge(&scene, RECORD_APPLICATION, bytes, 16384);
        forge(&scene, RECORD_APPLICATION, bytes + 16384, 1);
        forge(&scene, RECORD_APPLICATION, bytes + 16385, 16384);
        forge(&scene, RECORD_APPLICATION, bytes + 32769, 40000 - 32769);
        deliver(&scene, PIECES[i / 12]);
        CHECK_EQUAL(scene.result, TLS_WANT);
        CHECK_EQUAL(scene.received_length, 40000);
        CHECK(memcmp(scene.received, bytes, 40000) == 0);
        CHECK(scene.record.kept == NULL);
        scene_dispose(&scene);
    }
    free(bytes);
}

TEST(data_is_sealed_in_as_few_records_as_allowed)
{
    uint8_t bytes[40000], content[RECORD_BODY_MAX];
    size_t length;
    struct scene scene;
    noise_fill(4, 0, bytes, sizeof(bytes));
    scene_init(&scene, SUITE_256, 0);
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, bytes, sizeof(bytes)), TLS_OK);
    for (size_t at = 0; at < sizeof(bytes); at += length) {
        CHECK_EQUAL(watch(&scene, content, &length), RECORD_APPLICATION);
        CHECK(length == 16384 || at + length == sizeof(bytes));
        CHECK(memcmp(content, bytes + at, length) == 0);
    }
    CHECK_EQUAL(scene.sink.length, 0);
    scene_dispose(&scene);
}

TEST(padding_is_taken_off)
{
    struct scene scene;
    uint8_t content[RECORD_CONTENT_MAX];
    scene_init(&scene, SUITE_128, 0);
    memset(content, 0, sizeof(content));
    memcpy(content, "ab\0\0\x17", 5); /* data may end with zeros of its own */
    forge(&scene, 0, content, 5);
    forge(&scene, 0, content, sizeof(content));
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 8);
    CHECK(memcmp(scene.received, "ab\0\0ab\0\0", 8) == 0);
    scene_dispose(&scene);
}

TEST(an_incomplete_record_is_all_that_is_kept)
{
    struct scene scene;
    uint8_t bytes[1000] = {0};
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_APPLICATION, bytes, sizeof(bytes));
    forge(&scene, RECORD_APPLICATION, bytes, sizeof(bytes));
    scene_read(&scene, scene.wire, 1500);
    CHECK_EQUAL(scene.received_length, 1000);
    CHECK(scene.record.kept != NULL);
    scene_read(&scene, scene.wire + 1500, scene.wire_length - 1500);
    CHECK_EQUAL(scene.received_length, 2000);
    CHECK(scene.record.kept == NULL);
    scene_dispose(&scene);
}

TEST(a_session_that_ends_inside_a_record_leaks_nothing)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_APPLICATION, "incomplete", 10);
    scene_read(&scene, scene.wire, scene.wire_length - 1);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 0);
    scene_dispose(&scene);
}

TEST(a_tampered_record_shows_no_plaintext)
{
    enum { LENGTH = 600 };
    uint8_t bytes[LENGTH], wire[LENGTH + RECORD_OVERHEAD], out[2 * LENGTH];
    memset(bytes, 0xee, sizeof(bytes));
    for (size_t at = RECORD_HEADER; at < sizeof(wire); at += 7) {
        struct scene scene;
        size_t got;
        scene_init(&scene, SUITE_128, 0);
        forge(&scene, RECORD_APPLICATION, bytes, sizeof(bytes));
        memcpy(wire, scene.wire, sizeof(wire));
        wire[at] ^= 1;
        struct record_feed feed = {wire, sizeof(wire)};
        memset(out, 0, sizeof(out));
        scene.result = record_read(&scene.record, &feed, &scene.sink, out, sizeof(out), &got);
        for (size_t i = 0; i < sizeof(out); i++)
            CHECK(out[i] == 0);
        check_failed_with(&scene, SSL_AD_BAD_RECORD_MAC, "bad record mac");
    }
}

TEST(a_failure_after_data_is_told_by_the_next_read)
{
    struct scene scene;
    uint8_t out[100];
    size_t got;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_APPLICATION, "good", 4);
    forge(&scene, RECORD_APPLICATION, "evil", 4);
    scene.wire[scene.wire_length - 1] ^= 1;
    struct record_feed feed = {scene.wire, scene.wire_length};
    CHECK_EQUAL(record_read(&scene.record, &feed, &scene.sink, out, sizeof(out), &got), TLS_OK);
    CHECK_EQUAL(got, 4);
    CHECK(memcmp(out, "good", 4) == 0);
    scene.result = record_read(&scene.record, &feed, &scene.sink, out, sizeof(out), &got);
    scene.wire_length = 0;
    check_failed_with(&scene, SSL_AD_BAD_RECORD_MAC, "bad record mac");
}

TEST(a_sink_that_is_too_small_by_a_byte_fails)
{
    uint8_t bytes[100] = {0};
    for (int missing = 0; missing < 2; missing++) {
        struct scene scene;
        scene_init(&scene, SUITE_128, 0);
        size_t capacity = sizeof(bytes) + RECORD_OVERHEAD - (size_t)missing;
        struct tls_sink sink = {malloc(capacity), 0, capacity};
        CHECK_EQUAL(record_write(&scene.record, &sink, bytes, sizeof(bytes)), missing ? TLS_FAILED : TLS_OK);
        CHECK_EQUAL(sink.length, missing ? 0 : capacity);
        free(sink.bytes);
        scene_dispose(&scene);
    }
}

TEST(the_last_sequence_number_is_not_used)
{
    struct scene scene;
    uint8_t byte = 0;
    scene_init(&scene, SUITE_128, 0);
    scene.record.renew_after = UINT64_MAX;
    scene.record.sealing.sequence = UINT64_MAX - 1;
    scene.record.opening.sequence = scene.forging.sequence = UINT64_MAX - 1;
    forge(&scene, RECORD_APPLICATION, "1", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.received_length, 1);
    forge_raw(&scene, RECORD_APPLICATION, 30, 30);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_FAILED);
    scene_dispose(&scene);
    scene_init(&scene, SUITE_128, 0);
    scene.record.renew_after = UINT64_MAX;
    scene.record.sealing.sequence = UINT64_MAX - 1;
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, &byte, 1), TLS_OK);
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, &byte, 1), TLS_FAILED);
    scene_dispose(&scene);
}

/* ---- records that are refused ---- */

static void check_raw_refused(int outer, size_t announced, size_t length, int alert, const char *failure)
{
    for (size_t piece = 1; piece <= WIRE; piece *= WIRE) {
        struct scene scene;
        scene_init(&scene, SUITE_128, 0);
        forge_raw(&scene, outer, announced, length);
        deliver(&scene, piece);
        check_failed_with(&scene, alert, failure);
    }
}

TEST(a_record_beyond_the_limit_is_refused_at_its_header)
{
    check_raw_refused(RECORD_APPLICATION, 16384 + 257, 0, SSL_AD_RECORD_OVERFLOW,
                      "record longer than allowed");
    check_raw_refused(RECORD_APPLICATION, 65535, 100, SSL_AD_RECORD_OVERFLOW, "record longer than allowed");
    /* Content and type of one byte more than allowed. */
    check_raw_refused(RECORD_APPLICATION, 16384 + 2 + 16, 0, SSL_AD_RECORD_OVERFLOW,
                      "record longer than allowed");
}

TEST(a_record_without_room_for_its_tag_is_refused)
{
    check_raw_refused(RECORD_APPLICATION, 0, 0, SSL_AD_BAD_RECORD_MAC, "record too short to be authentic");
    check_raw_refused(RECORD_APPLICATION, 15, 15, SSL_AD_BAD_RECORD_MAC, "record too short to be authentic");
    check_raw_refused(RECORD_APPLICATION, 16, 16, SSL_AD_BAD_RECORD_MAC, "bad record mac");
}

TEST(unprotected_records_are_refused_after_the_handshake)
{
    static const char *const FAILURE = "unprotected record after the handshake";
    check_raw_refused(20, 1, 1, SSL_AD_UNEXPECTED_MESSAGE, FAILURE); /* change_cipher_spec */
    check_raw_refused(RECORD_ALERT, 2, 2, SSL_AD_UNEXPECTED_MESSAGE, FAILURE);
    check_raw_refused(RECORD_HANDSHAKE, 5, 5, SSL_AD_UNEXPECTED_MESSAGE, FAILURE);
    check_raw_refused('G', 5, 5, SSL_AD_UNEXPECTED_MESSAGE, FAILURE);
}

TEST(a_record_of_an_unknown_inner_type_is_refused)
{
    check_refused(20, "\1", 1, SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
    check_refused(99, "x", 1, SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
}

TEST(a_record_of_padding_alone_is_refused)
{
    char zeros[16384] = {0};
    check_refused(0, zeros, 0, SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
    check_refused(0, zeros, sizeof(zeros), SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
}

TEST(empty_records_of_data_are_allowed_but_not_many)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 32; i++)
            forge(&scene, RECORD_APPLICATION, NULL, 0);
        forge(&scene, RECORD_APPLICATION, "x", 1);
    }
    deliver(&scene, 1000);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 3);
    for (int i = 0; i < 33; i++)
        forge(&scene, RECORD_APPLICATION, NULL, 0);
    deliver(&scene, WIRE);
    check_failed_with(&scene, SSL_AD_UNEXPECTED_MESSAGE, "too many records without data");
}

/* ---- alerts ---- */

TEST(close_notify_ends_reading_and_what_follows_is_ignored)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_APPLICATION, "bye", 3);
    forge(&scene, RECORD_ALERT, "\1\0", 2);
    forge(&scene, RECORD_APPLICATION, "more", 4);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_CLOSED);
    CHECK_EQUAL(scene.received_length, 3);
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, (const uint8_t *)"x", 1), TLS_OK); /* half closed */
    scene_dispose(&scene);
}

TEST(close_notify_is_sent_once_and_ends_writing)
{
    struct scene scene;
    uint8_t content[RECORD_BODY_MAX];
    size_t length;
    scene_init(&scene, SUITE_128, 0);
    record_end(&scene.record, &scene.sink);
    record_end(&scene.record, &scene.sink);
    CHECK_EQUAL(watch(&scene, content, &length), RECORD_ALERT);
    CHECK_EQUAL(length, 2);
    CHECK(memcmp(content, "\1\0", 2) == 0);
    CHECK_EQUAL(scene.sink.length, 0);
    forge(&scene, RECORD_APPLICATION, "still read", 10);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.received_length, 10);
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, content, 1), TLS_FAILED);
    CHECK_EQUAL(scene.sink.length, 0);
    scene_dispose(&scene);
}

TEST(nothing_follows_our_close_notify_not_even_an_alert)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    record_end(&scene.record, &scene.sink);
    size_t length = scene.sink.length;
    forge(&scene, 99, "x", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_FAILED);
    CHECK_EQUAL(scene.sink.length, length);
    scene_dispose(&scene);
}

TEST(user_canceled_is_ignored)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_ALERT, "\1\x5a", 2);
    forge(&scene, RECORD_APPLICATION, "x", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 1);
    scene_dispose(&scene);
}

TEST(other_alerts_fail_in_plain_words_whatever_their_level)
{
    static const struct {
        const char *content, *name;
    } CASES[] = {
        {"\2\x74", "peer wants a certificate"},
        {"\1\x2a", "peer refused this workload's certificate: broken, or of another than it expected"},
        {"\0\x30", "peer refused this workload's certificate: it does not trust its CA"},
        {"\2\xff", "peer ended TLS with an alert"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct scene scene;
        scene_init(&scene, SUITE_128, 1);
        forge(&scene, RECORD_ALERT, CASES[i].content, 2);
        deliver(&scene, WIRE);
        CHECK_EQUAL(scene.result, TLS_FAILED);
        CHECK_TEXT(scene.record.failure, CASES[i].name);
        CHECK_EQUAL(scene.sink.length, 0); /* it is not answered */
        scene_dispose(&scene);
    }
}

TEST(alerts_that_are_cut_or_joined_are_refused)
{
    check_refused(RECORD_ALERT, "\2", 1, SSL_AD_DECODE_ERROR, "alert of a wrong length");
    check_refused(RECORD_ALERT, "\1\0\1\0", 4, SSL_AD_DECODE_ERROR, "alert of a wrong length");
    check_refused(RECORD_ALERT, "", 0, SSL_AD_DECODE_ERROR, "alert of a wrong length");
}

/* ---- handshake messages ---- */

/* A message of this type whose body is `length` bytes; the caller frees it. */
static uint8_t *message_new(int type, size_t length)
{
    uint8_t *message = calloc(1, 4 + length);
    message[0] = (uint8_t)type;
    message[1] = (uint8_t)(length >> 16);
    message[2] = (uint8_t)(length >> 8);
    message[3] = (uint8_t)length;
    return message;
}

TEST(tickets_are_ignored_however_they_are_cut)
{
    static const size_t LENGTHS[] = {14, 200, 131337};
    for (size_t i = 0; i < 3; i++) {
        struct scene scene;
        size_t length = 4 + LENGTHS[i];
        uint8_t *message = message_new(TICKET, LENGTHS[i]);
        scene_init(&scene, SUITE_128, 1);
        forge(&scene, RECORD_HANDSHAKE, message, 1);
        forge(&scene, RECORD_HANDSHAKE, message + 1, 6);
        for (size_t at = 7; at < length; at += 16384)
            forge(&scene, RECORD_HANDSHAKE, message + at, length - at < 16384 ? length - at : 16384);
        forge(&scene, RECORD_APPLICATION, "x", 1);
        deliver(&scene, 5000);
        CHECK_EQUAL(scene.result, TLS_WANT);
        CHECK_EQUAL(scene.received_length, 1);
        free(message);
        scene_dispose(&scene);
    }
}

TEST(messages_may_share_a_record)
{
    struct scene scene;
    uint8_t content[100];
    uint8_t *ticket = message_new(TICKET, 20);
    memcpy(content, ticket, 24);
    memcpy(content + 24, ticket, 24);
    memcpy(content + 48, "\x18\0\0\1\0", 5);
    scene_init(&scene, SUITE_128, 1);
    forge(&scene, RECORD_HANDSHAKE, content, 53);
    CHECK_EQUAL(record_keys_update(&scene.forging, scene.suite, NULL), 0);
    forge(&scene, RECORD_APPLICATION, "x", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 1);
    free(ticket);
    scene_dispose(&scene);
}

TEST(tickets_of_impossible_lengths_are_refused)
{
    check_refused(RECORD_HANDSHAKE, "\4\0\0\x0d", 4, SSL_AD_DECODE_ERROR,
                  "NewSessionTicket of a wrong length");
    check_refused(RECORD_HANDSHAKE, "\4\2\1\x0a", 4, SSL_AD_DECODE_ERROR,
                  "NewSessionTicket of a wrong length");
    check_refused(RECORD_HANDSHAKE, "\4\xff\xff\xff", 4, SSL_AD_DECODE_ERROR,
                  "NewSessionTicket of a wrong length");
}

TEST(other_handshake_messages_are_refused)
{
    static const char *const MESSAGES[] = {"\1\0\0\2..", "\2\0\0\2..", "\x0d\0\0\2..", "\x14\0\0\2.."};
    for (size_t i = 0; i < sizeof(MESSAGES) / sizeof(MESSAGES[0]); i++)
        check_refused(RECORD_HANDSHAKE, MESSAGES[i], 6, SSL_AD_UNEXPECTED_MESSAGE,
                      "unexpected handshake message");
    check_refused(RECORD_HANDSHAKE, "", 0, SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
}

TEST(a_client_that_sends_a_ticket_is_refused)
{
    struct scene scene;
    uint8_t *message = message_new(TICKET, 20);
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_HANDSHAKE, message, 24);
    deliver(&scene, WIRE);
    free(message);
    check_failed_with(&scene, SSL_AD_UNEXPECTED_MESSAGE, "unexpected handshake message");
}

TEST(no_other_record_may_come_inside_a_message)
{
    static const int TYPES[] = {RECORD_APPLICATION, RECORD_ALERT};
    for (size_t i = 0; i < 2; i++) {
        struct scene scene;
        uint8_t *message = message_new(TICKET, 20);
        scene_init(&scene, SUITE_128, 1);
        forge(&scene, RECORD_HANDSHAKE, message, 2);
        forge(&scene, TYPES[i], "\1\0", 2);
        deliver(&scene, WIRE);
        CHECK_EQUAL(scene.received_length, 0);
        free(message);
        check_failed_with(&scene, SSL_AD_UNEXPECTED_MESSAGE, "record inside a handshake message");
    }
}

/* ---- KeyUpdate ---- */

static void forge_key_update(struct scene *scene, int request)
{
    const uint8_t message[] = {KEY_UPDATE, 0, 0, 1, (uint8_t)request};
    forge(scene, RECORD_HANDSHAKE, message, sizeof(message));
    CHECK_EQUAL(record_keys_update(&scene->forging, scene->suite, NULL), 0);
}

TEST(key_updates_are_followed_and_answered_once_before_data)
{
    struct scene scene;
    uint8_t content[RECORD_BODY_MAX];
    size_t length;
    scene_init(&scene, SUITE_256, 0);
    forge_key_update(&scene, 0);
    forge(&scene, RECORD_APPLICATION, "a", 1);
    deliver(&scene, 1);
    CHECK_EQUAL(record_write(&scene.record, &scene.sink, (const uint8_t *)"1", 1), TLS_OK);
    CHECK_EQUAL(watch(&scene, content, &length), RECORD_APPLICATION);
    forge_key_update(&scene, 1);
    forge_key_update(&scene, 1);
    forge(&scene, RECORD_APPLICATION, "b", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.result, TLS_WANT);
    CHECK_EQUAL(scene.received_length, 2);
    CHECK_EQUAL(scene.sink.length, 0);
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(record_write(&scene.record, &scene.sink, (const uint8_t *)"2", 1), TLS_OK);
        if (i == 0) {
            CHECK_EQUAL(watch(&scene, content, &length), RECORD_HANDSHAKE);
            CHECK_EQUAL(length, 5);
            CHECK(memcmp(content, "\x18\0\0\1\0", 5) == 0);
            CHECK_EQUAL(record_keys_update(&scene.watching, scene.suite, NULL), 0);
        }
        CHECK_EQUAL(watch(&scene, content, &length), RECORD_APPLICATION);
        CHECK_EQUAL(scene.sink.length, 0);
    }
    scene_dispose(&scene);
}

TEST(keys_are_renewed_before_too_many_records)
{
    struct scene scene;
    uint8_t content[RECORD_BODY_MAX];
    size_t length;
    scene_init(&scene, SUITE_128, 0);
    CHECK(scene.record.renew_after <= 1u << 24);
    scene.record.renew_after = 3;
    for (int i = 0; i < 10; i++)
        CHECK_EQUAL(record_write(&scene.record, &scene.sink, (const uint8_t *)"x", 1), TLS_OK);
    for (int i = 0; i < 10; i++) {
        if (i > 0 && i % 3 == 0) {
            CHECK_EQUAL(watch(&scene, content, &length), RECORD_HANDSHAKE);
            CHECK_EQUAL(length, 5);
            CHECK_EQUAL(content[4], 0);
            CHECK_EQUAL(record_keys_update(&scene.watching, scene.suite, NULL), 0);
        }
        CHECK_EQUAL(watch(&scene, content, &length), RECORD_APPLICATION);
    }
    CHECK_EQUAL(scene.sink.length, 0);
    scene_dispose(&scene);
}

TEST(a_key_update_that_is_cut_in_two_is_followed)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_HANDSHAKE, "\x18\0\0\1", 4);
    forge(&scene, RECORD_HANDSHAKE, "\0", 1);
    CHECK_EQUAL(record_keys_update(&scene.forging, scene.suite, NULL), 0);
    forge(&scene, RECORD_APPLICATION, "x", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.received_length, 1);
    scene_dispose(&scene);
}

TEST(old_keys_are_refused_after_a_key_update)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    forge(&scene, RECORD_HANDSHAKE, "\x18\0\0\1\0", 5);
    forge(&scene, RECORD_APPLICATION, "x", 1);
    deliver(&scene, WIRE);
    CHECK_EQUAL(scene.received_length, 0);
    check_failed_with(&scene, SSL_AD_BAD_RECORD_MAC, "bad record mac");
}

TEST(key_updates_that_break_the_rules_are_refused)
{
    check_refused(RECORD_HANDSHAKE, "\x18\0\0\1\2", 5, SSL_AD_ILLEGAL_PARAMETER,
                  "KeyUpdate with an unknown request");
    check_refused(RECORD_HANDSHAKE, "\x18\0\0\0", 4, SSL_AD_DECODE_ERROR, "KeyUpdate of a wrong length");
    check_refused(RECORD_HANDSHAKE, "\x18\0\0\2\0\0", 6, SSL_AD_DECODE_ERROR, "KeyUpdate of a wrong length");
    check_refused(RECORD_HANDSHAKE, "\x18\0\0\1\0\x18\0\0\1\0", 10, SSL_AD_UNEXPECTED_MESSAGE,
                  "data behind a KeyUpdate in its record");
}

TEST(a_flood_of_key_updates_is_refused)
{
    struct scene scene;
    scene_init(&scene, SUITE_128, 0);
    for (int i = 0; i < 33; i++)
        forge_key_update(&scene, 1);
    deliver(&scene, WIRE);
    check_failed_with(&scene, SSL_AD_UNEXPECTED_MESSAGE, "too many records without data");
}

/* ---- fuzz ---- */

/* Damaged streams: whatever is handed on is a beginning of what was sent. */
TEST(damaged_streams_show_nothing_but_what_was_sent)
{
    struct noise noise = noise_new(8);
    for (int round = 0; round < 400; round++) {
        struct scene scene;
        size_t sent = 0;
        uint8_t bytes[3000];
        scene_init(&scene, SUITE_128, 1);
        scene.capacity = 1 + noise_below(&noise, 4000);
        for (int i = 0; i < 6; i++) {
            size_t length = 1 + noise_below(&noise, sizeof(bytes));
            noise_fill(9, sent, bytes, length);
            forge(&scene, RECORD_APPLICATION, bytes, length);
            sent += length;
            if (noise_below(&noise, 3) == 0)
                forge_key_update(&scene, 1);
        }
        size_t length;
        uint8_t *damaged = noise_mutate(&noise, scene.wire, scene.wire_length, &length);
        for (size_t at = 0, part; at < length; at += part) {
            part = 1 + noise_below(&noise, 6000);
            part = part < length - at ? part : length - at;
            scene_read(&scene, damaged + at, part);
        }
        CHECK_CASE(scene.received_length <= sent, "round %d", round);
        CHECK_CASE(noise_matches(9, 0, scene.received, scene.received_length), "round %d", round);
        free(damaged);
        scene_dispose(&scene);
    }
}

CHECK_MAIN
