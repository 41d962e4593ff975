/*
 * test_record_peer.c: a session whose peer is OpenSSL throughout, its records included.
 *
 * The peer trusts everybody and talks through memory BIOs; what it makes is fed to the session in heap pieces
 * of their exact size.
 */
#include "wire/tls.h"

#include <openssl/err.h>

#include "certificates.h"
#include "credentials.h"
#include "check.h"
#include "noise.h"

#define DOMAIN "example.org"
#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

enum { SINK = 1 << 22, BUFFER = 65536 };

struct scene {
    SSL_CTX *ctx;
    SSL *peer;
    BIO *to_peer, *from_peer; /* the peer's */
    struct tls_credentials credentials;
    struct tls tls;
    struct tls_sink sink;
    int open;
    enum tls_result result;
    size_t piece;
    uint64_t seed; /* of what the session receives */
    uint64_t received;
    uint64_t peer_received;
};

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *length, const unsigned char *in,
                     unsigned int in_length, void *unused)
{
    (void)ssl;
    (void)in;
    (void)in_length;
    (void)unused;
    *out = (const unsigned char *)"h2";
    *length = 2;
    return SSL_TLSEXT_ERR_OK;
}

/* The session is of this role; the peer offers or accepts this suite only. */
static void scene_init(struct scene *scene, enum tls_role role, const char *suite)
{
    memset(scene, 0, sizeof(*scene));
    struct authority authority = authority_new();
    struct certificate_wish ours = {.uris = {role == TLS_CLIENT ? SHIPPER : PIPELINE}};
    struct certificate_wish theirs = {.uris = {role == TLS_CLIENT ? PIPELINE : SHIPPER}};
    struct certificate leaf = certificate_new(&authority.intermediate, &ours);
    struct certificate peer = certificate_new(&authority.intermediate, &theirs);
    char *chain = certificate_chain_pem(&leaf, &authority.intermediate);
    char *key = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(credentials_init(&scene->credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
    free(chain);
    free(key);
    free(bundle);

    scene->ctx = SSL_CTX_new(role == TLS_CLIENT ? TLS_server_method() : TLS_client_method());
    CHECK_EQUAL(SSL_CTX_set_ciphersuites(scene->ctx, suite), 1);
    CHECK_EQUAL(SSL_CTX_use_certificate(scene->ctx, peer.x509), 1);
    CHECK_EQUAL(SSL_CTX_add1_chain_cert(scene->ctx, authority.intermediate.x509), 1);
    CHECK_EQUAL(SSL_CTX_use_PrivateKey(scene->ctx, peer.key), 1);
    SSL_CTX_set_alpn_select_cb(scene->ctx, choose_h2, NULL);
    SSL_CTX_set_alpn_protos(scene->ctx, (const unsigned char *)"\2h2", 3);
    if (role == TLS_CLIENT) { /* a server asks for the client's certificate, whatever it is */
        X509_STORE_add_cert(SSL_CTX_get_cert_store(scene->ctx), authority.root.x509);
        SSL_CTX_set_verify(scene->ctx, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_session_id_context(scene->ctx, (const unsigned char *)"test", 4);
    }
    certificate_dispose(&leaf);
    certificate_dispose(&peer);
    authority_dispose(&authority);

    scene->sink.bytes = malloc(SINK);
    scene->sink.capacity = SINK;
    scene->piece = SINK;
    scene->result = TLS_WANT;
    CHECK_EQUAL(
        tls_init(&scene->tls, role, &scene->credentials, DOMAIN, role == TLS_CLIENT ? PIPELINE : NULL), 0);
}

static void scene_dispose(struct scene *scene)
{
    tls_dispose(&scene->tls);
    credentials_dispose(&scene->credentials);
    SSL_free(scene->peer);
    SSL_CTX_free(scene->ctx);
    free(scene->sink.bytes);
}

static void session_digest(struct scene *scene, const uint8_t *bytes, size_t length)
{
    uint8_t *exact = noise_exact_copy(bytes, length);
    uint8_t *out = malloc(BUFFER);
    tls_feed(&scene->tls, exact, length);
    scene->result = scene->open ? TLS_OK : tls_handshake(&scene->tls, &scene->sink);
    if (scene->result == TLS_OK)
        scene->open = 1;
    while (scene->result == TLS_OK) {
        size_t got;
        scene->result = tls_read(&scene->tls, &scene->sink, out, BUFFER, &got);
        CHECK(noise_matches(scene->seed, scene->received, out, got));
        scene->received += got;
    }
    free(out);
    free(exact);
}

/* What the peer wrote goes to the session. Returns how much it was. */
static size_t peer_to_session(struct scene *scene)
{
    char *wire;
    size_t length = (size_t)BIO_get_mem_data(scene->from_peer, &wire);
    uint8_t *bytes = noise_exact_copy(wire, length);
    (void)BIO_reset(scene->from_peer);
    for (size_t at = 0; at < length; at += scene->piece)
        session_digest(scene, bytes + at, length - at < scene->piece ? length - at : scene->piece);
    free(bytes);
    return length;
}

/* What the session wrote goes to the peer, which reads it; data must be the stream `seed`. Returns how much
 * it was. */
static size_t session_to_peer(struct scene *scene, uint64_t seed)
{
    uint8_t out[BUFFER];
    size_t length = scene->sink.length, got;
    if (length > 0)
        CHECK_EQUAL(BIO_write(scene->to_peer, scene->sink.bytes, (int)length), length);
    scene->sink.length = 0;
    while (SSL_read_ex(scene->peer, out, sizeof(out), &got) == 1) {
        CHECK(noise_matches(seed, scene->peer_received, out, got));
        scene->peer_received += got;
    }
    return length;
}

static void scene_connect(struct scene *scene)
{
    int is_client = scene->tls.ssl != NULL && !SSL_is_server(scene->tls.ssl);
    scene->peer = SSL_new(scene->ctx);
    scene->to_peer = BIO_new(BIO_s_mem());
    scene->from_peer = BIO_new(BIO_s_mem());
    BIO_set_mem_eof_return(scene->to_peer, -1);
    SSL_set_bio(scene->peer, scene->to_peer, scene->from_peer);
    if (is_client)
        SSL_set_accept_state(scene->peer);
    else
        SSL_set_connect_state(scene->peer);
    session_digest(scene, NULL, 0);
    size_t moved;
    do {
        moved = session_to_peer(scene, 0);
        moved += peer_to_session(scene);
    } while (moved > 0);
    CHECK_TEXT(scene->tls.error, "");
    CHECK(scene->open);
    CHECK(SSL_is_init_finished(scene->peer));
    CHECK_EQUAL(scene->result, TLS_WANT);
}

/* The peer sends `length` bytes in writes of `part`. */
static void from_peer(struct scene *scene, uint64_t seed, size_t length, size_t part)
{
    uint8_t *bytes = malloc(length);
    noise_fill(seed, 0, bytes, length);
    scene->seed = seed;
    scene->received = 0;
    for (size_t at = 0; at < length; at += part) {
        size_t written;
        CHECK_EQUAL(SSL_write_ex(scene->peer, bytes + at, length - at < part ? length - at : part, &written),
                    1);
    }
    (void)peer_to_session(scene);
    CHECK_TEXT(scene->tls.error, "");
    CHECK_EQUAL(scene->result, TLS_WANT);
    CHECK_EQUAL(scene->received, length);
    free(bytes);
}

/* The session sends `length` bytes in writes of `part`. */
static void from_session(struct scene *scene, uint64_t seed, size_t length, size_t part)
{
    uint8_t *bytes = malloc(length);
    noise_fill(seed, 0, bytes, length);
    scene->peer_received = 0;
    for (size_t at = 0; at < length; at += part)
        CHECK_EQUAL(tls_write(&scene->tls, &scene->sink, bytes + at, length - at < part ? length - at : part),
                    TLS_OK);
    (void)session_to_peer(scene, seed);
    CHECK_EQUAL(scene->peer_received, length);
    free(bytes);
}

/* ---- both roles, both suites ---- */

static void check_transfers(enum tls_role role, const char *suite)
{
    static const size_t PIECES[] = {1, 1000, 16406, 70001, SINK};
    struct scene scene;
    scene_init(&scene, role, suite);
    scene.piece = 77;
    scene_connect(&scene);
    char expected[64];
    snprintf(expected, sizeof(expected), "TLSv1.3 %s", suite);
    CHECK_TEXT(scene.tls.facts.suite, expected);
    for (size_t i = 0; i < sizeof(PIECES) / sizeof(PIECES[0]); i++) {
        scene.piece = PIECES[i];
        from_peer(&scene, i, 50000, 50000);
        from_peer(&scene, 10 + i, 50000, 777);
        from_session(&scene, 20 + i, 50000, 50000);
        from_session(&scene, 30 + i, 50000, 777);
    }
    from_peer(&scene, 40, 2000000, 262144);
    from_session(&scene, 41, 2000000, 262144);
    scene_dispose(&scene);
}

TEST(data_goes_both_ways_with_openssl_servers_in_any_pieces)
{
    check_transfers(TLS_CLIENT, "TLS_AES_128_GCM_SHA256");
}

TEST(data_goes_both_ways_with_openssl_clients_in_any_pieces)
{
    check_transfers(TLS_SERVER, "TLS_AES_128_GCM_SHA256");
}

TEST(data_goes_both_ways_with_aes_256)
{
    check_transfers(TLS_CLIENT, "TLS_AES_256_GCM_SHA384");
    check_transfers(TLS_SERVER, "TLS_AES_256_GCM_SHA384");
}

TEST(tickets_of_openssl_servers_are_ignored)
{
    struct scene scene;
    scene_init(&scene, TLS_CLIENT, "TLS_AES_128_GCM_SHA256");
    CHECK_EQUAL(SSL_CTX_set_num_tickets(scene.ctx, 5), 1);
    scene_connect(&scene);
    CHECK_EQUAL(scene.tls.record.opening.sequence, 5);
    from_peer(&scene, 1, 1000, 1000);
    CHECK_EQUAL(SSL_new_session_ticket(scene.peer), 1); /* one more, in front of the next data */
    from_peer(&scene, 2, 1000, 1000);
    CHECK_EQUAL(scene.tls.record.opening.sequence, 5 + 1 + 1 + 1);
    scene_dispose(&scene);
}

TEST(padding_of_openssl_is_taken_off)
{
    struct scene scene;
    scene_init(&scene, TLS_SERVER, "TLS_AES_128_GCM_SHA256");
    CHECK_EQUAL(SSL_CTX_set_block_padding(scene.ctx, 4096), 1);
    scene.piece = 1000;
    scene_connect(&scene);
    from_peer(&scene, 1, 30000, 11);
    from_peer(&scene, 2, 100000, 100000);
    from_session(&scene, 3, 1000, 1000);
    scene_dispose(&scene);
}

/* ---- KeyUpdate ---- */

static void check_key_updates(enum tls_role role, int request, const char *suite)
{
    struct scene scene;
    scene_init(&scene, role, suite);
    scene.piece = 10;
    scene_connect(&scene);
    for (uint64_t i = 0; i < 5; i++) {
        struct record *record = &scene.tls.record;
        CHECK_EQUAL(SSL_key_update(scene.peer, request), 1);
        from_peer(&scene, i, 1000, 500);
        CHECK_EQUAL(record->opening.sequence, 2); /* under new keys */
        CHECK_EQUAL(record->answer_due, request == SSL_KEY_UPDATE_REQUESTED);
        from_session(&scene, i + 10, 1000, 500);
        CHECK_EQUAL(record->answer_due, 0);
        CHECK_EQUAL(record->sealing.sequence, request == SSL_KEY_UPDATE_REQUESTED ? 2 : 2 * (i + 1));
    }
    scene_dispose(&scene);
}

TEST(key_updates_of_openssl_are_followed)
{
    check_key_updates(TLS_CLIENT, SSL_KEY_UPDATE_NOT_REQUESTED, "TLS_AES_128_GCM_SHA256");
    check_key_updates(TLS_SERVER, SSL_KEY_UPDATE_NOT_REQUESTED, "TLS_AES_256_GCM_SHA384");
}

TEST(key_updates_that_openssl_requests_are_sent)
{
    check_key_updates(TLS_CLIENT, SSL_KEY_UPDATE_REQUESTED, "TLS_AES_256_GCM_SHA384");
    check_key_updates(TLS_SERVER, SSL_KEY_UPDATE_REQUESTED, "TLS_AES_128_GCM_SHA256");
}

TEST(openssl_follows_keys_that_are_renewed_by_themselves)
{
    for (int role = TLS_CLIENT; role <= TLS_SERVER; role++) {
        struct scene scene;
        scene_init(&scene, role, "TLS_AES_128_GCM_SHA256");
        scene_connect(&scene);
        scene.tls.record.renew_after = 3;
        from_session(&scene, 1, 500000, 100000);
        from_session(&scene, 2, 5000, 700);
        from_peer(&scene, 3, 5000, 700);
        scene_dispose(&scene);
    }
}

/* ---- ends ---- */

TEST(close_notify_is_understood_by_openssl)
{
    struct scene scene;
    scene_init(&scene, TLS_CLIENT, "TLS_AES_128_GCM_SHA256");
    scene_connect(&scene);
    tls_close(&scene.tls, &scene.sink);
    (void)session_to_peer(&scene, 0);
    CHECK_EQUAL(SSL_get_shutdown(scene.peer), SSL_RECEIVED_SHUTDOWN);
    from_peer(&scene, 1, 1000, 1000); /* half closed */
    scene_dispose(&scene);
}

TEST(close_notify_of_openssl_is_understood)
{
    struct scene scene;
    scene_init(&scene, TLS_SERVER, "TLS_AES_128_GCM_SHA256");
    scene_connect(&scene);
    CHECK_EQUAL(SSL_shutdown(scene.peer), 0);
    (void)peer_to_session(&scene);
    CHECK_EQUAL(scene.result, TLS_CLOSED);
    CHECK_TEXT(scene.tls.error, "");
    from_session(&scene, 1, 1000, 1000);
    scene_dispose(&scene);
}

TEST(a_fatal_alert_is_understood_by_openssl)
{
    struct scene scene;
    scene_init(&scene, TLS_CLIENT, "TLS_AES_128_GCM_SHA256");
    scene_connect(&scene);
    uint8_t damaged[RECORD_HEADER + 40] = {RECORD_APPLICATION, 3, 3, 0, 40};
    session_digest(&scene, damaged, sizeof(damaged));
    CHECK_EQUAL(scene.result, TLS_FAILED);
    CHECK_TEXT(scene.tls.error, "TLS: bad record mac");
    CHECK(scene.sink.length > 0);
    ERR_clear_error();
    (void)session_to_peer(&scene, 0);
    CHECK_EQUAL(ERR_GET_REASON(ERR_peek_error()), SSL_R_SSLV3_ALERT_BAD_RECORD_MAC);
    ERR_clear_error();
    scene_dispose(&scene);
}

TEST(a_fatal_alert_of_openssl_is_understood)
{
    struct scene scene;
    scene_init(&scene, TLS_SERVER, "TLS_AES_128_GCM_SHA256");
    scene_connect(&scene);
    static const char DAMAGED[] = "\x17\3\3\0\x18........................";
    CHECK(BIO_write(scene.to_peer, DAMAGED, sizeof(DAMAGED) - 1) > 0);
    (void)session_to_peer(&scene, 0);
    ERR_clear_error();
    (void)peer_to_session(&scene);
    CHECK_EQUAL(scene.result, TLS_FAILED);
    CHECK_CASE(strstr(scene.tls.error, "bad_record_mac") != NULL, "%s", scene.tls.error);
    scene_dispose(&scene);
}

CHECK_MAIN
