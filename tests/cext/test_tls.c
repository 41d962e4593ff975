/*
 * tls.c: two sessions that talk through memory.
 *
 * A `struct end` drives its session as a tunnel does: feed what came, handshake, then read until no more can
 * be had. Every piece of ciphertext is handed over in a heap buffer of its exact size that is freed right
 * after.
 */
#include "wire/tls.h"

#include "certificates.h"
#include "credentials.h"
#include "check.h"
#include "noise.h"

#define DOMAIN "example.org"
#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

enum { SINK = 1 << 20, RECEIVED = 1 << 20 };

/* What a server has to choose from, and what it was asked. */
struct counter {
    const struct tls_credentials *offered[2];
    int asked;
    char name[TLS_NAME_SIZE];
};

struct end {
    struct tls tls;
    struct counter *counter; /* NULL: there is no choice */
    int handshaking;
    enum tls_result result; /* of the last call */
    struct tls_sink sink;   /* what is on its way to the other end */
    uint8_t *received;
    size_t received_length;
};

static void end_init(struct end *end, enum tls_role role, const struct tls_credentials *credentials,
                     const char *expected)
{
    memset(end, 0, sizeof(*end));
    end->handshaking = 1;
    end->result = TLS_WANT;
    end->sink.bytes = malloc(SINK);
    end->sink.capacity = SINK;
    end->received = malloc(RECEIVED);
    CHECK_EQUAL(tls_init(&end->tls, role, credentials, DOMAIN, expected), 0);
}

static void end_dispose(struct end *end)
{
    tls_dispose(&end->tls);
    free(end->sink.bytes);
    free(end->received);
}

static void counter_choose(struct counter *counter, struct tls *tls)
{
    const struct tls_credentials *chosen = NULL;
    const char *name = tls_wanted(tls);
    CHECK(counter != NULL);
    counter->asked++;
    snprintf(counter->name, sizeof(counter->name), "%s", name == NULL ? "" : name);
    for (int i = 0; i < 2 && name != NULL; i++)
        if (strcmp(counter->offered[i]->name, name) == 0)
            chosen = counter->offered[i];
    tls_present(tls, chosen);
}

/* After a failure further input is dropped, as a closed tunnel's is. */
static void end_digest(struct end *end, const uint8_t *bytes, size_t length)
{
    if (end->result == TLS_FAILED || end->result == TLS_CLOSED)
        return;
    uint8_t *exact = noise_exact_copy(bytes, length);
    tls_feed(&end->tls, exact, length);
    end->result = TLS_OK;
    if (end->handshaking) {
        end->result = tls_handshake(&end->tls, &end->sink);
        if (end->result == TLS_CHOOSE) {
            CHECK_EQUAL(end->sink.length, 0);
            counter_choose(end->counter, &end->tls);
            end->result = tls_handshake(&end->tls, &end->sink);
        }
        CHECK(end->result != TLS_CHOOSE);
        if (end->result == TLS_OK)
            end->handshaking = 0;
    }
    while (end->result == TLS_OK) {
        size_t got;
        CHECK(end->received_length < RECEIVED);
        end->result = tls_read(&end->tls, &end->sink, end->received + end->received_length,
                               RECEIVED - end->received_length, &got);
        CHECK((end->result == TLS_OK) == (got > 0));
        end->received_length += got;
    }
    if (end->result == TLS_WANT)
        CHECK_EQUAL(end->tls.feed.length, 0);
    if (end->result == TLS_FAILED)
        CHECK(end->tls.error[0] != 0);
    free(exact);
}

/* Hands over all that is in `from`'s sink, in pieces of at most `piece` bytes. */
static void deliver(struct end *from, struct end *to, size_t piece)
{
    size_t length = from->sink.length;
    uint8_t *bytes = noise_exact_copy(from->sink.bytes, length);
    from->sink.length = 0;
    for (size_t at = 0; at < length; at += piece)
        end_digest(to, bytes + at, length - at < piece ? length - at : piece);
    free(bytes);
}

struct pair {
    struct end client;
    struct end server;
};

static void exchange(struct pair *pair, size_t piece)
{
    while (pair->client.sink.length > 0 || pair->server.sink.length > 0) {
        deliver(&pair->client, &pair->server, piece);
        deliver(&pair->server, &pair->client, piece);
    }
}

static void pair_begin(struct pair *pair, const struct tls_credentials *client,
                       const struct tls_credentials *server, const char *expected)
{
    end_init(&pair->client, TLS_CLIENT, client, expected);
    end_init(&pair->server, TLS_SERVER, server, NULL);
    end_digest(&pair->client, NULL, 0); /* ClientHello */
}

static void pair_dispose(struct pair *pair)
{
    end_dispose(&pair->client);
    end_dispose(&pair->server);
}

/* ---- credentials ---- */

static int credentials_try(struct tls_credentials *credentials, const struct authority *authority,
                           const struct certificate *leaf, char error[NS_REASON_MAX])
{
    char *chain = certificate_chain_pem(leaf, &authority->intermediate);
    char *key = certificate_key_pem(leaf);
    char *bundle = certificate_chain_pem(&authority->root, NULL);
    int result = credentials_init(credentials, NULL, chain, key, bundle, error, NS_REASON_MAX);
    free(chain);
    free(key);
    free(bundle);
    return result;
}

static struct tls_credentials credentials_wished(const struct authority *authority,
                                                 const struct certificate_wish *wish)
{
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    struct certificate leaf = certificate_new(&authority->intermediate, wish);
    int result = credentials_try(&credentials, authority, &leaf, error);
    CHECK_TEXT(error, "");
    CHECK_EQUAL(result, 0);
    certificate_dispose(&leaf);
    return credentials;
}

static struct tls_credentials credentials_of(const struct authority *authority, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    return credentials_wished(authority, &wish);
}

/* A mesh of two, and a pair of sessions between them. */
struct mesh {
    struct authority authority;
    struct tls_credentials shipper;
    struct tls_credentials pipeline;
    struct pair pair;
};

static void mesh_init(struct mesh *mesh)
{
    mesh->authority = authority_new();
    mesh->shipper = credentials_of(&mesh->authority, SHIPPER);
    mesh->pipeline = credentials_of(&mesh->authority, PIPELINE);
}

static void mesh_dispose(struct mesh *mesh)
{
    credentials_dispose(&mesh->shipper);
    credentials_dispose(&mesh->pipeline);
    authority_dispose(&mesh->authority);
}

static void mesh_connect(struct mesh *mesh, size_t piece)
{
    pair_begin(&mesh->pair, &mesh->shipper, &mesh->pipeline, PIPELINE);
    exchange(&mesh->pair, piece);
    CHECK_TEXT(mesh->pair.client.tls.error, "");
    CHECK_TEXT(mesh->pair.server.tls.error, "");
    CHECK(!mesh->pair.client.handshaking);
    CHECK(!mesh->pair.server.handshaking);
}

/* Sends the stream `seed` from one end, written in `part`s and delivered in pieces; checks what arrives. */
static void transfer(struct end *from, struct end *to, uint64_t seed, size_t length, size_t part,
                     size_t piece)
{
    uint8_t *bytes = malloc(length);
    size_t before = to->received_length;
    noise_fill(seed, 0, bytes, length);
    for (size_t at = 0; at < length; at += part) {
        size_t size = length - at < part ? length - at : part;
        size_t sealed = from->sink.length;
        CHECK_EQUAL(tls_write(&from->tls, &from->sink, bytes + at, size), TLS_OK);
        CHECK(from->sink.length - sealed > size);
        CHECK(from->sink.length - sealed <= TLS_SEALED_SIZE(size));
    }
    deliver(from, to, piece);
    CHECK_EQUAL(to->received_length - before, length);
    CHECK(memcmp(to->received + before, bytes, length) == 0);
    free(bytes);
}

/* ---- a session that works ---- */

TEST(handshake_shows_each_side_the_others_identity)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    CHECK_TEXT(mesh.pair.client.tls.peer, PIPELINE);
    CHECK_TEXT(mesh.pair.server.tls.peer, SHIPPER);
    for (int i = 0; i < 2; i++) {
        const struct tls_facts *facts = &(i == 0 ? &mesh.pair.client : &mesh.pair.server)->tls.facts;
        CHECK_TEXT(facts->suite, "TLSv1.3 TLS_AES_128_GCM_SHA256");
        CHECK_CASE(strcmp(facts->group, "x25519") == 0 || strcmp(facts->group, "X25519MLKEM768") == 0, "%s",
                   facts->group);
        CHECK_TEXT(facts->signature, "ecdsa_secp256r1_sha256");
    }
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(handshake_works_one_byte_at_a_time)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, 1);
    transfer(&mesh.pair.client, &mesh.pair.server, 1, 5000, 1000, 1);
    transfer(&mesh.pair.server, &mesh.pair.client, 2, 5000, 1000, 1);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(handshake_works_in_a_library_context_of_its_own)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &authority.intermediate);
    char *key = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    OSSL_LIB_CTX *libctx = OSSL_LIB_CTX_new();
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(credentials_init(&credentials, libctx, chain, key, bundle, error, sizeof(error)), 0);
    struct pair pair;
    pair_begin(&pair, &credentials, &credentials, SHIPPER);
    exchange(&pair, SINK);
    CHECK(!pair.client.handshaking && !pair.server.handshaking);
    CHECK_TEXT(pair.server.tls.peer, SHIPPER);
    pair_dispose(&pair);
    credentials_dispose(&credentials);
    OSSL_LIB_CTX_free(libctx);
    free(chain);
    free(key);
    free(bundle);
    certificate_dispose(&leaf);
    authority_dispose(&authority);
}

TEST(data_goes_both_ways_in_any_pieces)
{
    static const size_t PIECES[] = {3, 7, 1000, 16384, 16406, 70001, SINK};
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, 100);
    for (size_t i = 0; i < sizeof(PIECES) / sizeof(PIECES[0]); i++) {
        transfer(&mesh.pair.client, &mesh.pair.server, i, 20000, 1 + PIECES[i] % 999, PIECES[i]);
        transfer(&mesh.pair.server, &mesh.pair.client, i + 100, 20000, 20000, PIECES[i]);
    }
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(more_than_a_record_is_sealed_in_one_call_within_the_promised_bound)
{
    static const size_t LENGTHS[] = {1, 16383, 16384, 16385, 32768, 262144};
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++)
        transfer(&mesh.pair.client, &mesh.pair.server, i, LENGTHS[i], LENGTHS[i], SINK);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_small_read_buffer_gets_the_bytes_in_turns)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    uint8_t bytes[40000], *out = malloc(100);
    noise_fill(5, 0, bytes, sizeof(bytes));
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, bytes, sizeof(bytes)), TLS_OK);
    tls_feed(&server->tls, client->sink.bytes, client->sink.length);
    size_t got, total = 0;
    enum tls_result result;
    while ((result = tls_read(&server->tls, &server->sink, out, 100, &got)) == TLS_OK) {
        CHECK(got <= 100);
        CHECK(noise_matches(5, total, out, got));
        total += got;
    }
    CHECK_EQUAL(result, TLS_WANT);
    CHECK_EQUAL(total, sizeof(bytes));
    free(out);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(close_notify_is_seen_after_the_last_byte)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, (const uint8_t *)"bye", 3), TLS_OK);
    tls_close(&client->tls, &client->sink);
    deliver(client, server, SINK);
    CHECK_EQUAL(server->received_length, 3);
    CHECK_EQUAL(server->result, TLS_CLOSED);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(no_session_tickets_are_sent)
{
    struct mesh mesh;
    mesh_init(&mesh);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    deliver(&mesh.pair.client, &mesh.pair.server, SINK);
    deliver(&mesh.pair.server, &mesh.pair.client, SINK);
    deliver(&mesh.pair.client, &mesh.pair.server, SINK);
    CHECK(!mesh.pair.server.handshaking);
    CHECK_EQUAL(mesh.pair.server.sink.length, 0);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(new_credentials_leave_running_sessions_alone)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    credentials_dispose(&mesh.shipper);
    credentials_dispose(&mesh.pipeline);
    transfer(&mesh.pair.client, &mesh.pair.server, 1, 100000, 100000, SINK);
    transfer(&mesh.pair.server, &mesh.pair.client, 2, 100000, 100000, SINK);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

/* ---- peers that are refused ---- */

/* Runs a handshake that the server must refuse with this error; the client's bytes never get anywhere. */
static void check_client_refused(struct mesh *mesh, const struct tls_credentials *client, const char *error)
{
    struct pair *pair = &mesh->pair;
    pair_begin(pair, client, &mesh->pipeline, PIPELINE);
    while (pair->client.sink.length > 0 || pair->server.sink.length > 0) {
        if (!pair->client.handshaking && pair->client.result == TLS_WANT)
            (void)tls_write(&pair->client.tls, &pair->client.sink, (const uint8_t *)"secret", 6);
        deliver(&pair->client, &pair->server, SINK);
        deliver(&pair->server, &pair->client, SINK);
    }
    CHECK_EQUAL(pair->server.result, TLS_FAILED);
    CHECK_CASE(strstr(pair->server.tls.error, error) != NULL, "%s", pair->server.tls.error);
    CHECK(pair->server.handshaking);
    CHECK_EQUAL(pair->server.received_length, 0);
    CHECK_EQUAL(pair->client.result, TLS_FAILED); /* it is told by an alert */
    pair_dispose(pair);
}

/* The mirror image: the client refuses and sends nothing but the alert. */
static void check_server_refused(struct mesh *mesh, const struct tls_credentials *server,
                                 const char *expected, const char *error)
{
    struct pair *pair = &mesh->pair;
    pair_begin(pair, &mesh->shipper, server, expected);
    exchange(pair, SINK);
    CHECK_EQUAL(pair->client.result, TLS_FAILED);
    CHECK_CASE(strstr(pair->client.tls.error, error) != NULL, "%s", pair->client.tls.error);
    CHECK(pair->client.handshaking);
    CHECK_EQUAL(pair->server.result, TLS_FAILED);
    CHECK(pair->server.handshaking);
    CHECK_TEXT(pair->server.tls.peer, "");
    pair_dispose(pair);
}

TEST(client_without_certificate_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct tls_credentials bare = {.context = SSL_CTX_new(TLS_method())};
    SSL_CTX_set_alpn_protos(bare.context, (const unsigned char *)"\2h2", 3);
    check_client_refused(&mesh, &bare, "peer shows no certificate");
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    credentials_dispose(&bare);
    mesh_dispose(&mesh);
}

TEST(client_of_another_authority_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct authority other = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&other.intermediate, &wish);
    struct tls_credentials client;
    char error[NS_REASON_MAX] = "";
    char *chain = certificate_chain_pem(&leaf, &other.intermediate);
    char *key = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&mesh.authority.root, NULL); /* it trusts ours */
    CHECK_EQUAL(credentials_init(&client, NULL, chain, key, bundle, error, sizeof(error)), 0);
    check_client_refused(&mesh, &client, "peer certificate is of a CA that is not trusted here");
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    free(chain);
    free(key);
    free(bundle);
    credentials_dispose(&client);
    certificate_dispose(&leaf);
    authority_dispose(&other);
    mesh_dispose(&mesh);
}

/* The last of a handshake's certificates is the client's: the server's anchors change before it comes. */
TEST(anchors_count_from_the_moment_that_they_come)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct authority other = authority_new();
    const struct authority *trusted[] = {&other, &mesh.authority, &other};
    for (int i = 0; i < 3; i++) {
        char *bundle = certificate_chain_pem(&trusted[i]->root, NULL);
        const struct ns_bundle own = {DOMAIN, bundle};
        char error[NS_REASON_MAX] = "";
        struct bundles *bundles = bundles_new(NULL, &own, 1, error, sizeof(error));
        CHECK_TEXT(error, "");
        pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
        deliver(&mesh.pair.client, &mesh.pair.server, SINK); /* the hello */
        trust_set(mesh.pipeline.trust, bundles);
        free(bundle);
        exchange(&mesh.pair, SINK);
        CHECK_TEXT(mesh.pair.server.tls.peer, i == 1 ? SHIPPER : "");
        CHECK_TEXT(mesh.pair.server.tls.error,
                   i == 1 ? "" : "peer certificate is of a CA that is not trusted here");
        pair_dispose(&mesh.pair);
    }
    authority_dispose(&other);
    mesh_dispose(&mesh);
}

TEST(credentials_without_anchors_trust_nobody)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct certificate_wish wish = {.uris = {PIPELINE}};
    struct certificate leaf = certificate_new(&mesh.authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &mesh.authority.intermediate);
    char *key = certificate_key_pem(&leaf);
    char error[NS_REASON_MAX] = "";
    struct tls_credentials alone;
    CHECK_EQUAL(
        tls_credentials_init(&alone, NULL, trust_new(NULL, NULL), chain, key_of(key), error, sizeof(error)),
        0);
    pair_begin(&mesh.pair, &mesh.shipper, &alone, PIPELINE);
    exchange(&mesh.pair, SINK);
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    CHECK_TEXT(mesh.pair.server.tls.error, "peer certificate is of a CA that is not trusted here");
    pair_dispose(&mesh.pair);
    credentials_dispose(&alone);
    free(chain);
    free(key);
    certificate_dispose(&leaf);
    mesh_dispose(&mesh);
}

TEST(certificate_signed_by_a_leaf_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&mesh.authority.intermediate, &wish);
    wish.uris[0] = PIPELINE;
    struct certificate forged = certificate_new(&leaf, &wish);
    struct tls_credentials client;
    char error[NS_REASON_MAX] = "";
    char *chain = certificate_chain_pem(&forged, &leaf);
    char *rest = certificate_chain_pem(&mesh.authority.intermediate, NULL);
    char *whole = malloc(strlen(chain) + strlen(rest) + 1);
    memcpy(whole, chain, strlen(chain));
    memcpy(whole + strlen(chain), rest, strlen(rest) + 1);
    char *key = certificate_key_pem(&forged);
    char *bundle = certificate_chain_pem(&mesh.authority.root, NULL);
    CHECK_EQUAL(credentials_init(&client, NULL, whole, key, bundle, error, sizeof(error)), 0);
    check_client_refused(&mesh, &client, "peer certificate is of a CA that is not trusted here");
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    free(chain);
    free(rest);
    free(whole);
    free(key);
    free(bundle);
    credentials_dispose(&client);
    certificate_dispose(&forged);
    certificate_dispose(&leaf);
    mesh_dispose(&mesh);
}

/* A client that shows another's certificate, properly signed, but signs the handshake with a key of its own.
 */
static struct tls_credentials credentials_stolen(const struct mesh *mesh)
{
    struct tls_credentials credentials = credentials_of(&mesh->authority, SHIPPER);
    X509 *shown = SSL_CTX_get0_certificate(credentials.context);
    EVP_PKEY *other = EVP_EC_gen("P-256");
    X509_set_pubkey(shown, other);
    CHECK(X509_sign(shown, mesh->authority.intermediate.key, EVP_sha256()) > 0);
    EVP_PKEY_free(other);
    return credentials;
}

TEST(client_that_does_not_hold_the_certificates_key_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct tls_credentials thief = credentials_stolen(&mesh);
    check_client_refused(&mesh, &thief, "signature"); /* "bad signature", or "provider signature failure" */
    credentials_dispose(&thief);
    mesh_dispose(&mesh);
}

TEST(no_peer_is_named_before_it_proved_that_it_holds_the_key)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct tls_credentials thief = credentials_stolen(&mesh);
    check_client_refused(&mesh, &thief, "signature");
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    credentials_dispose(&thief);
    mesh_dispose(&mesh);
}

TEST(server_with_an_unexpected_identity_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    check_server_refused(&mesh, &mesh.pipeline, "spiffe://example.org/ns/default/sa/siem",
                         "another identity than expected");
    check_server_refused(&mesh, &mesh.pipeline, PIPELINE "x", "another identity than expected");
    check_server_refused(&mesh, &mesh.shipper, PIPELINE, "another identity than expected");
    mesh_dispose(&mesh);
}

TEST(client_that_was_given_no_expected_identity_accepts_nobody)
{
    struct mesh mesh;
    mesh_init(&mesh);
    check_server_refused(&mesh, &mesh.pipeline, "", "another identity than expected");
    mesh_dispose(&mesh);
}

TEST(server_of_another_authority_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct authority other = authority_new();
    struct tls_credentials server = credentials_of(&other, PIPELINE);
    check_server_refused(&mesh, &server, PIPELINE, "peer certificate is of a CA that is not trusted here");
    credentials_dispose(&server);
    authority_dispose(&other);
    mesh_dispose(&mesh);
}

TEST(server_of_another_trust_domain_is_refused_even_if_expected)
{
    static const char *const FOREIGN = "spiffe://example.com/ns/default/sa/pipeline";
    struct mesh mesh;
    mesh_init(&mesh);
    struct tls_credentials server = credentials_of(&mesh.authority, FOREIGN);
    check_server_refused(&mesh, &server, FOREIGN, "another trust domain");
    credentials_dispose(&server);
    mesh_dispose(&mesh);
}

TEST(expired_server_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct certificate_wish wish = {.uris = {PIPELINE}, .begins = -7200, .ends = -60};
    struct tls_credentials server = credentials_wished(&mesh.authority, &wish);
    check_server_refused(&mesh, &server, PIPELINE, "has expired");
    credentials_dispose(&server);
    mesh_dispose(&mesh);
}

TEST(tls_1_2_client_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_min_proto_version(mesh.shipper.context, TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(mesh.shipper.context, TLS1_2_VERSION);
    check_client_refused(&mesh, &mesh.shipper, "peer does not speak TLS 1.3");
    mesh_dispose(&mesh);
}

TEST(tls_1_2_server_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_min_proto_version(mesh.pipeline.context, TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(mesh.pipeline.context, TLS1_2_VERSION);
    check_server_refused(&mesh, &mesh.pipeline, PIPELINE, "TLS");
    mesh_dispose(&mesh);
}

TEST(cipher_suite_without_aes_gcm_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    CHECK_EQUAL(SSL_CTX_set_ciphersuites(mesh.shipper.context, "TLS_CHACHA20_POLY1305_SHA256"), 1);
    check_client_refused(&mesh, &mesh.shipper, "peer offers none of the cipher suites (AES-GCM)");
    mesh_dispose(&mesh);
}

TEST(client_without_alpn_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_alpn_protos(mesh.shipper.context, NULL, 0);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    exchange(&mesh.pair, SINK);
    CHECK_EQUAL(mesh.pair.client.result, TLS_FAILED);
    CHECK_EQUAL(mesh.pair.server.result, TLS_FAILED);
    CHECK_TEXT(mesh.pair.server.tls.error, "peer does not speak HTTP/2 (ALPN h2)");
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(client_with_another_alpn_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_alpn_protos(mesh.shipper.context, (const unsigned char *)"\x08http/1.1\2h3\1h", 14);
    check_client_refused(&mesh, &mesh.shipper, "peer does not speak HTTP/2 (ALPN h2)");
    mesh_dispose(&mesh);
}

TEST(h2_is_chosen_among_several_alpn_protocols)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_alpn_protos(mesh.shipper.context, (const unsigned char *)"\x08http/1.1\2h3\2h2", 15);
    mesh_connect(&mesh, SINK);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

/* ---- the end of the handshake ---- */

TEST(openssls_session_is_freed_when_the_handshake_is_done)
{
    struct mesh mesh;
    mesh_init(&mesh);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    CHECK_TEXT(mesh.pair.client.tls.facts.suite, "");
    exchange(&mesh.pair, SINK);
    CHECK(mesh.pair.client.tls.ssl == NULL && mesh.pair.server.tls.ssl == NULL);
    CHECK(mesh.pair.client.tls.record.kept == NULL && mesh.pair.server.tls.record.kept == NULL);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(data_that_arrives_with_the_end_of_the_handshake_is_read)
{
    struct mesh mesh;
    mesh_init(&mesh);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    deliver(client, server, SINK);
    deliver(server, client, SINK);
    CHECK(!client->handshaking && server->handshaking);
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, (const uint8_t *)"early", 5), TLS_OK);
    deliver(client, server, SINK);
    CHECK_EQUAL(server->received_length, 5);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_handshake_that_goes_on_behind_its_end_fails)
{
    struct mesh mesh;
    mesh_init(&mesh);
    /* A ticket would use up the sequence number that the record layer begins with. */
    SSL_CTX_clear_options(mesh.pipeline.context, SSL_OP_NO_TICKET);
    CHECK_EQUAL(SSL_CTX_set_num_tickets(mesh.pipeline.context, 1), 1);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    exchange(&mesh.pair, SINK);
    CHECK_EQUAL(mesh.pair.server.result, TLS_FAILED);
    CHECK_TEXT(mesh.pair.server.tls.error, "TLS: the handshake has no clean end");
    CHECK_TEXT(mesh.pair.server.tls.peer, "");
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_handshake_without_its_secrets_fails)
{
    struct mesh mesh;
    mesh_init(&mesh);
    SSL_CTX_set_keylog_callback(mesh.shipper.context, NULL);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    exchange(&mesh.pair, SINK);
    CHECK_EQUAL(mesh.pair.client.result, TLS_FAILED);
    CHECK_TEXT(mesh.pair.client.tls.error, "TLS: the traffic secrets are missing or cannot be used");
    CHECK_TEXT(mesh.pair.client.tls.peer, "");
    CHECK_EQUAL(tls_write(&mesh.pair.client.tls, &mesh.pair.client.sink, (const uint8_t *)"x", 1),
                TLS_FAILED);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_peer_that_asks_for_short_records_is_refused)
{
    struct mesh mesh;
    mesh_init(&mesh);
    CHECK_EQUAL(SSL_CTX_set_tlsext_max_fragment_length(mesh.shipper.context, TLSEXT_max_fragment_length_512),
                1);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    exchange(&mesh.pair, SINK);
    CHECK_EQUAL(mesh.pair.server.result, TLS_FAILED);
    CHECK_TEXT(mesh.pair.server.tls.error, "TLS: the peer asks for short records (max_fragment_length)");
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(sessions_with_aes_256_work_both_ways)
{
    struct mesh mesh;
    mesh_init(&mesh);
    CHECK_EQUAL(SSL_CTX_set_ciphersuites(mesh.shipper.context, "TLS_AES_256_GCM_SHA384"), 1);
    mesh_connect(&mesh, SINK);
    CHECK_TEXT(mesh.pair.server.tls.facts.suite, "TLSv1.3 TLS_AES_256_GCM_SHA384");
    transfer(&mesh.pair.client, &mesh.pair.server, 1, 100000, 70000, 999);
    transfer(&mesh.pair.server, &mesh.pair.client, 2, 100000, 70000, 999);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(an_answered_key_update_fits_the_promised_bound)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    mesh.pair.client.tls.record.answer_due = 1; /* as after a KeyUpdate of the server */
    transfer(&mesh.pair.client, &mesh.pair.server, 1, 1, 1, SINK);
    mesh.pair.client.tls.record.answer_due = 1;
    transfer(&mesh.pair.client, &mesh.pair.server, 2, 262144, 262144, SINK);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

/* ---- failures of other kinds ---- */

TEST(a_sink_without_room_fails_without_writing_past_it)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    uint8_t plain[40000];
    noise_fill(1, 0, plain, sizeof(plain));
    struct tls_sink tight = {malloc(20000), 0, 20000}; /* room for the first record */
    CHECK_EQUAL(tls_write(&mesh.pair.client.tls, &tight, plain, sizeof(plain)), TLS_FAILED);
    CHECK(tight.length <= tight.capacity);
    CHECK(mesh.pair.client.tls.error[0] != 0);
    free(tight.bytes);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_handshake_into_a_sink_without_room_fails)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct end client;
    end_init(&client, TLS_CLIENT, &mesh.shipper, PIPELINE);
    struct tls_sink tight = {malloc(8), 0, 8};
    tls_feed(&client.tls, NULL, 0);
    CHECK_EQUAL(tls_handshake(&client.tls, &tight), TLS_FAILED);
    CHECK(tight.length <= 8);
    free(tight.bytes);
    end_dispose(&client);
    mesh_dispose(&mesh);
}

TEST(a_servers_answer_into_a_sink_without_room_fails)
{
    struct mesh mesh;
    mesh_init(&mesh);
    pair_begin(&mesh.pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    end_digest(server, client->sink.bytes, 3); /* so that the session has wanted to read before it writes */
    struct tls_sink tight = {malloc(200), 0, 200};
    tls_feed(&server->tls, client->sink.bytes + 3, client->sink.length - 3);
    CHECK_EQUAL(tls_handshake(&server->tls, &tight), TLS_FAILED);
    CHECK(tight.length <= 200);
    CHECK(server->tls.error[0] != 0);
    free(tight.bytes);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_damaged_record_fails_after_the_good_ones_before_it)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, (const uint8_t *)"good", 4), TLS_OK);
    size_t good = client->sink.length;
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, (const uint8_t *)"evil", 4), TLS_OK);
    client->sink.bytes[good + 7] ^= 1;
    deliver(client, server, SINK);
    CHECK_EQUAL(server->received_length, 4);
    CHECK(memcmp(server->received, "good", 4) == 0);
    CHECK_EQUAL(server->result, TLS_FAILED);
    CHECK(server->tls.error[0] != 0);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_replayed_record_fails)
{
    struct mesh mesh;
    mesh_init(&mesh);
    mesh_connect(&mesh, SINK);
    struct end *client = &mesh.pair.client, *server = &mesh.pair.server;
    CHECK_EQUAL(tls_write(&client->tls, &client->sink, (const uint8_t *)"once", 4), TLS_OK);
    memcpy(client->sink.bytes + client->sink.length, client->sink.bytes, client->sink.length);
    client->sink.length *= 2;
    deliver(client, server, SINK);
    CHECK_EQUAL(server->received_length, 4);
    CHECK_EQUAL(server->result, TLS_FAILED);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(bytes_that_are_not_tls_fail)
{
    static const char HTTP[] = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
    struct mesh mesh;
    mesh_init(&mesh);
    struct end server;
    end_init(&server, TLS_SERVER, &mesh.pipeline, NULL);
    end_digest(&server, (const uint8_t *)HTTP, sizeof(HTTP) - 1);
    CHECK_EQUAL(server.result, TLS_FAILED);
    CHECK_TEXT(server.tls.error, "peer speaks plain HTTP, not TLS");
    end_dispose(&server);
    mesh_dispose(&mesh);
}

TEST(damaged_handshakes_never_show_another_identity)
{
    struct mesh mesh;
    mesh_init(&mesh);
    struct noise noise = noise_new(4);
    for (int round = 0; round < 120; round++) {
        struct pair *pair = &mesh.pair;
        pair_begin(pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
        int flight = (int)noise_below(&noise, 3); /* which one is damaged */
        for (int i = 0; i < 6 && (pair->client.sink.length > 0 || pair->server.sink.length > 0); i++) {
            struct end *from = i % 2 == 0 ? &pair->client : &pair->server;
            struct end *to = i % 2 == 0 ? &pair->server : &pair->client;
            if (i == flight && from->sink.length > 0) {
                size_t at = noise_below(&noise, from->sink.length);
                from->sink.bytes[at] ^= (uint8_t)(1u << noise_below(&noise, 8));
            }
            deliver(from, to, 1 + noise_below(&noise, 2000));
        }
        /* A record header's version is no part of what is authenticated: damage there alone may go unnoticed.
         */
        if (!pair->server.handshaking)
            CHECK_CASE(strcmp(pair->server.tls.peer, SHIPPER) == 0, "round %d", round);
        if (!pair->client.handshaking)
            CHECK_CASE(strcmp(pair->client.tls.peer, PIPELINE) == 0, "round %d", round);
        pair_dispose(pair);
    }
    mesh_dispose(&mesh);
}

/* ---- credentials that are refused ---- */

static void check_credentials_refused(const char *chain, const char *key, const char *bundle,
                                      const char *error)
{
    struct tls_credentials credentials;
    char text[NS_REASON_MAX] = "";
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, text, sizeof(text)), -1);
    CHECK_CASE(strstr(text, error) == text, "%s", text);
    CHECK(strchr(text, '\n') == NULL);
    CHECK(credentials.context == NULL);
}

struct texts {
    char *chain, *key, *bundle, *other_key;
};

static struct texts texts_new(void)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    struct texts texts = {certificate_chain_pem(&leaf, &authority.intermediate), certificate_key_pem(&leaf),
                          certificate_chain_pem(&authority.root, &authority.intermediate),
                          certificate_key_pem(&authority.root)};
    certificate_dispose(&leaf);
    authority_dispose(&authority);
    return texts;
}

static void texts_dispose(struct texts *texts)
{
    free(texts->chain);
    free(texts->key);
    free(texts->bundle);
    free(texts->other_key);
}

TEST(credentials_without_certificate_key_or_bundle_are_refused)
{
    struct texts texts = texts_new();
    check_credentials_refused("", texts.key, texts.bundle, "the certificate chain cannot be read");
    check_credentials_refused("no PEM", texts.key, texts.bundle, "the certificate chain cannot be read");
    check_credentials_refused(texts.chain, "", texts.bundle, "the private key cannot be read");
    check_credentials_refused(texts.chain, texts.chain, texts.bundle, "the private key cannot be read");
    check_credentials_refused(texts.chain, texts.key, "", "the trust bundle");
    check_credentials_refused(texts.chain, texts.key, texts.key, "the trust bundle");
    texts_dispose(&texts);
}

TEST(credentials_whose_key_does_not_fit_are_refused)
{
    struct texts texts = texts_new();
    check_credentials_refused(texts.chain, texts.other_key, texts.bundle,
                              "the private key cannot be read or does not fit the certificate");
    texts_dispose(&texts);
}

/* ---- several identities at one address ---- */

/* The client expects `expected`; the server begins with the shipper's credentials. */
static void mesh_connect_by_name(struct mesh *mesh, struct counter *counter, const char *expected,
                                 int by_name)
{
    *counter = (struct counter){.offered = {&mesh->shipper, &mesh->pipeline}};
    end_init(&mesh->pair.client, TLS_CLIENT, &mesh->shipper, expected);
    end_init(&mesh->pair.server, TLS_SERVER, &mesh->shipper, NULL);
    mesh->pair.server.counter = counter;
    mesh->pair.server.tls.choosing = 1;
    if (by_name)
        CHECK_EQUAL(tls_ask_by_name(&mesh->pair.client.tls), 0);
    end_digest(&mesh->pair.client, NULL, 0);
    exchange(&mesh->pair, SIZE_MAX);
}

TEST(server_presents_the_identity_that_the_client_asks_for_by_name)
{
    struct mesh mesh;
    struct counter counter;
    mesh_init(&mesh);
    mesh_connect_by_name(&mesh, &counter, PIPELINE, 1);
    CHECK_TEXT(mesh.pair.client.tls.peer, PIPELINE);
    CHECK_TEXT(mesh.pair.server.tls.peer, SHIPPER);
    CHECK_EQUAL(counter.asked, 1);
    CHECK_TEXT(counter.name, mesh.pipeline.name);
    CHECK(strstr(counter.name, "pipeline") == NULL);
    transfer(&mesh.pair.client, &mesh.pair.server, 1, 100000, 16384, SIZE_MAX);
    transfer(&mesh.pair.server, &mesh.pair.client, 2, 100000, 16384, SIZE_MAX);
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(client_that_asks_for_nobody_gets_what_the_session_began_with)
{
    struct mesh mesh;
    struct counter counter;
    mesh_init(&mesh);
    mesh_connect_by_name(&mesh, &counter, SHIPPER, 0);
    CHECK_TEXT(mesh.pair.client.tls.peer, SHIPPER);
    CHECK_EQUAL(counter.asked, 1);
    CHECK_TEXT(counter.name, "");
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(client_that_asks_by_name_still_accepts_nobody_else)
{
    struct mesh mesh;
    struct counter counter;
    mesh_init(&mesh);
    mesh_connect_by_name(&mesh, &counter, "spiffe://example.org/ns/default/sa/siem", 1);
    CHECK_EQUAL(mesh.pair.client.result, TLS_FAILED);
    CHECK_TEXT(mesh.pair.client.tls.error, "peer has another identity than expected");
    CHECK_TEXT(mesh.pair.client.tls.peer, "");
    pair_dispose(&mesh.pair);
    mesh_dispose(&mesh);
}

TEST(a_name_is_that_of_one_identity)
{
    char one[TLS_NAME_SIZE], other[TLS_NAME_SIZE];
    tls_name_of(NULL, SHIPPER, one);
    tls_name_of(NULL, PIPELINE, other);
    CHECK(strcmp(one, other) != 0);
    CHECK_EQUAL(strlen(one), 32 + strlen(".nodeseal"));
}

/* Damages the second certificate of a PEM text. */
static void damage_second(char *pem)
{
    char *second = strstr(pem + 1, "-----BEGIN CERTIFICATE-----");
    CHECK(second != NULL);
    memcpy(strchr(second, '\n') + 20, "!!!!", 4);
}

TEST(chain_with_a_damaged_second_certificate_is_refused)
{
    struct texts texts = texts_new();
    damage_second(texts.chain);
    check_credentials_refused(texts.chain, texts.key, texts.bundle, "the certificate chain cannot be read");
    texts_dispose(&texts);
}

TEST(bundle_with_a_damaged_second_certificate_is_refused)
{
    struct texts texts = texts_new();
    damage_second(texts.bundle);
    check_credentials_refused(texts.chain, texts.key, texts.bundle, "the trust bundle");
    texts_dispose(&texts);
}

CHECK_MAIN
