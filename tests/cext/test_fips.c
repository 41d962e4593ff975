/* The profile `fips` with OpenSSL's FIPS module, where this machine has one: NODESEAL_TEST_FIPS names the
 * configuration that activates it. Without one the tests hold that nothing starts. */
#include "wire/profile.h"

#include <openssl/provider.h>

#include "certificates.h"
#include "credentials.h"
#include "check.h"
#include "tls_pair.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

/* A context of the profile; NULL where there is no module, after a look at what is said then. */
static OSSL_LIB_CTX *fips_context(void)
{
    char error[256] = "";
    const char *configuration = getenv("NODESEAL_TEST_FIPS");
    /* What the tests do themselves is done by OpenSSL as it is without that configuration. */
    CHECK_EQUAL(OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CONFIG, NULL), 1);
    if (configuration != NULL)
        setenv("OPENSSL_CONF", configuration, 1);
    OSSL_LIB_CTX *made = profile_context(1, error, sizeof(error));
    CHECK_CASE((made != NULL) == (configuration != NULL), "%s", error);
    if (made == NULL)
        CHECK_CASE(strncmp(error, "OpenSSL's FIPS module cannot be loaded: ", 40) == 0, "%s", error);
    return made;
}

/* What one end is asked to be. */
struct wish {
    int fips;
    /* Of its key, and those of its CA; NULL: P-256. */
    const char *key;
    /* Its only ones; NULL: what nodeseal has. */
    const char *groups, *suites;
};

static struct tls_credentials credentials_of(OSSL_LIB_CTX *fips, const struct wish *wish,
                                             const struct authority *authority, const char *bundle,
                                             const char *identity)
{
    char error[NS_REASON_MAX] = "";
    struct tls_credentials made;
    struct certificate_wish of_leaf = {.uris = {identity}, .key = wish->key};
    struct certificate leaf = certificate_new(&authority->intermediate, &of_leaf);
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *key = certificate_key_pem(&leaf);
    CHECK_CASE(credentials_init(&made, wish->fips ? fips : NULL, chain, key, bundle, error, sizeof(error)) ==
                   0,
               "%s", error);
    if (wish->groups != NULL)
        CHECK_EQUAL(SSL_CTX_set1_groups_list(made.context, wish->groups), 1);
    if (wish->suites != NULL)
        CHECK_EQUAL(SSL_CTX_set_ciphersuites(made.context, wish->suites), 1);
    certificate_dispose(&leaf);
    free(chain);
    free(key);
    return made;
}

/* What is sealed by one end is opened by the other, over changes of keys. */
static void check_transfer(struct end *from, struct end *to)
{
    enum { ROUNDS = 50, PIECE = 4000 };
    uint8_t sent[PIECE], got[PIECE + 1];
    size_t length;
    from->tls.record.renew_after = from->tls.library.renew_after = 7;
    for (int i = 0; i < ROUNDS; i++) {
        memset(sent, i, sizeof(sent));
        from->sink.length = to->sink.length = 0;
        CHECK_EQUAL(tls_write(&from->tls, &from->sink, sent, sizeof(sent)), TLS_OK);
        tls_feed(&to->tls, from->sink.bytes, from->sink.length);
        CHECK_CASE(tls_read(&to->tls, &to->sink, got, sizeof(got), &length) == TLS_OK, "%s", to->tls.error);
        CHECK_EQUAL(length, sizeof(sent));
        CHECK(memcmp(sent, got, length) == 0);
    }
}

/* With the profile OpenSSL goes on, and no secret of the session is known outside of it. */
static void check_records(const struct end *end, int fips)
{
    static const uint8_t NONE[RECORD_SECRET_MAX];
    CHECK_EQUAL(end->tls.library.ssl != NULL, fips);
    CHECK_EQUAL(end->tls.ssl != NULL, fips);
    CHECK_EQUAL(end->tls.record.suite == NULL, fips);
    CHECK_EQUAL(memcmp(end->tls.record.sealing.secret, NONE, sizeof(NONE)) == 0, fips);
    CHECK_EQUAL(memcmp(end->tls.record.opening.secret, NONE, sizeof(NONE)) == 0, fips);
}

/* How a session ends: `from` says so, and the other knows. */
static void check_end(struct end *from, struct end *to)
{
    uint8_t got[16];
    size_t length;
    from->sink.length = 0;
    tls_close(&from->tls, &from->sink);
    CHECK(from->sink.length > 0);
    tls_feed(&to->tls, from->sink.bytes, from->sink.length);
    CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_CLOSED);
    size_t said = from->sink.length;
    tls_close(&from->tls, &from->sink); /* once */
    CHECK_EQUAL(from->sink.length, said);
    CHECK_EQUAL(tls_write(&from->tls, &from->sink, got, 1), TLS_FAILED);
    CHECK_TEXT(from->tls.error, "TLS: written to after its end");
}

/* `group` NULL: they do not come together. */
static void check(OSSL_LIB_CTX *fips, const struct wish *client, const struct wish *server, const char *group)
{
    struct pair pair;
    struct authority authority = authority_new();
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    struct tls_credentials of_client = credentials_of(fips, client, &authority, bundle, SHIPPER);
    struct tls_credentials of_server = credentials_of(fips, server, &authority, bundle, PIPELINE);
    pair_run(&pair, &of_client, &of_server, PIPELINE);
    CHECK_CASE((pair.client.result == TLS_OK) == (group != NULL), "%s", pair.client.tls.error);
    CHECK_CASE((pair.server.result == TLS_OK) == (group != NULL), "%s", pair.server.tls.error);
    if (group != NULL) {
        CHECK_TEXT(pair.client.tls.facts.group, group);
        CHECK_TEXT(pair.server.tls.facts.group, group);
        check_records(&pair.client, client->fips);
        check_records(&pair.server, server->fips);
        check_transfer(&pair.client, &pair.server);
        check_transfer(&pair.server, &pair.client);
        check_end(&pair.client, &pair.server);
    }
    pair_dispose(&pair);
    credentials_dispose(&of_client);
    credentials_dispose(&of_server);
    authority_dispose(&authority);
    free(bundle);
}

/* Two ends that are done with their handshake. */
struct talk {
    struct authority authority;
    struct tls_credentials client, server;
    struct pair pair;
};

static void talk_begin(struct talk *talk, OSSL_LIB_CTX *fips, const struct wish *client,
                       const struct wish *server)
{
    talk->authority = authority_new();
    char *bundle = certificate_chain_pem(&talk->authority.root, NULL);
    talk->client = credentials_of(fips, client, &talk->authority, bundle, SHIPPER);
    talk->server = credentials_of(fips, server, &talk->authority, bundle, PIPELINE);
    pair_run(&talk->pair, &talk->client, &talk->server, PIPELINE);
    CHECK_EQUAL(talk->pair.client.result, TLS_OK);
    CHECK_EQUAL(talk->pair.server.result, TLS_OK);
    talk->pair.client.sink.length = talk->pair.server.sink.length = 0;
    free(bundle);
}

static void talk_end(struct talk *talk)
{
    pair_dispose(&talk->pair);
    credentials_dispose(&talk->client);
    credentials_dispose(&talk->server);
    authority_dispose(&talk->authority);
}

static const struct wish FIPS = {.fips = 1}, USUAL = {0};

TEST(the_module_is_loaded_alone_where_there_is_one)
{
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    CHECK(profile_is_fips(fips));
    CHECK_EQUAL(OSSL_PROVIDER_available(fips, "fips"), 1);
    EVP_CIPHER *approved = EVP_CIPHER_fetch(fips, "AES-128-GCM", NULL);
    CHECK(approved != NULL);
    CHECK_TEXT(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(approved)), "fips");
    CHECK(EVP_CIPHER_fetch(fips, "ChaCha20-Poly1305", NULL) == NULL);
    EVP_CIPHER_free(approved);
    profile_context_free(fips);
}

TEST(two_ends_of_the_profile_talk_by_the_module)
{
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    const struct wish p384 = {.fips = 1, .groups = "P-384", .key = "P-384"};
    check(fips, &FIPS, &FIPS, "secp256r1");
    check(fips, &p384, &FIPS, "secp384r1");
    profile_context_free(fips);
}

TEST(an_end_of_the_profile_talks_with_one_without_it)
{
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    check(fips, &FIPS, &USUAL, "secp256r1");
    check(fips, &USUAL, &FIPS, "secp256r1");
    profile_context_free(fips);
}

TEST(what_the_profile_has_not_is_refused)
{
    static const struct wish ODD[] = {
        {.groups = "X25519"}, {.suites = "TLS_CHACHA20_POLY1305_SHA256"}, {.key = "ED25519"}};
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    for (size_t i = 0; i < sizeof(ODD) / sizeof(ODD[0]); i++) {
        check(fips, &FIPS, &ODD[i], NULL);
        check(fips, &ODD[i], &FIPS, NULL);
    }
    profile_context_free(fips);
}

TEST(records_come_in_pieces_and_many_at_once)
{
    enum { LENGTH = 100000 };
    static uint8_t sent[LENGTH], got[LENGTH + 1];
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    struct talk talk;
    talk_begin(&talk, fips, &FIPS, &FIPS);
    struct end *from = &talk.pair.client, *to = &talk.pair.server;
    for (size_t i = 0; i < LENGTH; i++)
        sent[i] = (uint8_t)(i * 7 + i / 256);
    static const size_t PIECES[] = {1, 5, 4096, 1 << 20};
    for (size_t i = 0; i < sizeof(PIECES) / sizeof(PIECES[0]); i++) {
        size_t total = 0;
        from->sink.length = 0;
        CHECK_EQUAL(tls_write(&from->tls, &from->sink, sent, LENGTH), TLS_OK);
        CHECK(from->sink.length <= TLS_SEALED_SIZE(LENGTH));
        for (size_t at = 0; at < from->sink.length; at += PIECES[i]) {
            size_t left = from->sink.length - at, length;
            tls_feed(&to->tls, from->sink.bytes + at, left < PIECES[i] ? left : PIECES[i]);
            enum tls_result result;
            while ((result = tls_read(&to->tls, &to->sink, got + total, sizeof(got) - total, &length)) ==
                   TLS_OK)
                total += length;
            CHECK_EQUAL(result, TLS_WANT);
            CHECK_EQUAL(to->tls.feed.length, 0);
        }
        CHECK_EQUAL(total, LENGTH);
        CHECK(memcmp(sent, got, LENGTH) == 0);
    }
    CHECK(tls_has_heard(&to->tls));
    CHECK(!tls_has_heard(&from->tls));
    talk_end(&talk);
    profile_context_free(fips);
}

/* What came before it is handed on; then it is told, again and again. */
TEST(a_damaged_record_breaks_the_session_and_both_ends_know)
{
    uint8_t got[64];
    size_t length;
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    struct talk talk;
    talk_begin(&talk, fips, &FIPS, &FIPS);
    struct end *from = &talk.pair.client, *to = &talk.pair.server;
    CHECK_EQUAL(tls_write(&from->tls, &from->sink, (const uint8_t *)"good", 4), TLS_OK);
    CHECK_EQUAL(tls_write(&from->tls, &from->sink, (const uint8_t *)"evil", 4), TLS_OK);
    from->sink.bytes[from->sink.length - 1] ^= 1;
    tls_feed(&to->tls, from->sink.bytes, from->sink.length);
    CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_OK);
    CHECK_EQUAL(length, 4);
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_FAILED);
    CHECK_CASE(strstr(to->tls.error, "bad record mac") != NULL, "%s", to->tls.error);
    CHECK_EQUAL(tls_write(&to->tls, &to->sink, got, 1), TLS_FAILED);
    tls_feed(&from->tls, to->sink.bytes, to->sink.length);
    CHECK_EQUAL(tls_read(&from->tls, &from->sink, got, sizeof(got), &length), TLS_FAILED);
    CHECK(from->tls.error[0] != 0);
    talk_end(&talk);
    profile_context_free(fips);
}

TEST(who_is_refused_later_is_told_why_by_an_end_without_the_profile_only)
{
    uint8_t got[64];
    size_t length;
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    struct talk talk;
    talk_begin(&talk, fips, &FIPS, &USUAL);
    struct end *client = &talk.pair.client, *server = &talk.pair.server;
    tls_refuse(&client->tls, &client->sink, SSL_AD_ACCESS_DENIED);
    CHECK_EQUAL(client->sink.length, 0);
    tls_close(&client->tls, &client->sink); /* it is no clean end */
    CHECK_EQUAL(client->sink.length, 0);
    tls_refuse(&server->tls, &server->sink, SSL_AD_ACCESS_DENIED);
    tls_feed(&client->tls, server->sink.bytes, server->sink.length);
    CHECK_EQUAL(tls_read(&client->tls, &client->sink, got, sizeof(got), &length), TLS_FAILED);
    CHECK(tls_was_refused(&client->tls));
    talk_end(&talk);
    profile_context_free(fips);
}

/* Seals a message of a handshake, behind which an end without the profile goes on. */
static void say_handshake(struct end *end, const uint8_t *message, size_t length)
{
    struct record_keys *sealing = &end->tls.record.sealing;
    CHECK_EQUAL(record_seal(sealing, RECORD_HANDSHAKE, message, length, end->sink.bytes + end->sink.length),
                0);
    end->sink.length += length + RECORD_OVERHEAD;
}

static void say_key_updates(struct end *end, int count)
{
    static const uint8_t KEY_UPDATE[] = {24, 0, 0, 1, 0};
    for (int i = 0; i < count; i++) {
        say_handshake(end, KEY_UPDATE, sizeof(KEY_UPDATE));
        CHECK_EQUAL(record_keys_update(&end->tls.record.sealing, end->tls.record.suite, NULL), 0);
    }
}

static void say_tickets(struct end *end, int count)
{
    static const uint8_t TICKET[] = {4, 0, 0, 14, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0};
    for (int i = 0; i < count; i++)
        say_handshake(end, TICKET, sizeof(TICKET));
}

/* `from` says so many of them, with data behind: what `to` makes of that. */
static enum tls_result without_data(struct end *from, struct end *to, void (*say)(struct end *, int),
                                    int count)
{
    uint8_t got[64];
    size_t length;
    from->sink.length = to->sink.length = 0;
    say(from, count);
    CHECK_EQUAL(tls_write(&from->tls, &from->sink, (const uint8_t *)"data", 4), TLS_OK);
    tls_feed(&to->tls, from->sink.bytes, from->sink.length);
    enum tls_result result = tls_read(&to->tls, &to->sink, got, sizeof(got), &length);
    CHECK_EQUAL(length, result == TLS_OK ? 4 : 0);
    return result;
}

/* Each costs work, and pays for nothing. */
TEST(messages_without_data_in_a_row_are_bounded)
{
    enum { MOST = 32 };
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    for (int tickets = 0; tickets < 2; tickets++) {
        struct talk talk;
        talk_begin(&talk, fips, tickets ? &FIPS : &USUAL, tickets ? &USUAL : &FIPS);
        struct end *from = tickets ? &talk.pair.server : &talk.pair.client;
        struct end *to = tickets ? &talk.pair.client : &talk.pair.server;
        void (*say)(struct end *, int) = tickets ? say_tickets : say_key_updates;
        for (int i = 0; i < 3; i++)
            CHECK_EQUAL(without_data(from, to, say, MOST), TLS_OK);
        CHECK_EQUAL(without_data(from, to, say, 500), TLS_FAILED);
        CHECK(to->tls.feed.length > 400 * (1 + RECORD_OVERHEAD)); /* no more than that was looked at */
        CHECK_TEXT(to->tls.error, "TLS: too many records without data");
        talk_end(&talk);
    }
    profile_context_free(fips);
}

/* Without the profile it may be written meanwhile; OpenSSL cannot, once it has read a message's header. */
TEST(a_message_in_two_records_is_followed_if_nothing_is_written_before_its_end)
{
    enum { HEADER = 4 };
    static const uint8_t TICKET[] = {4, 0, 0, 14, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0};
    uint8_t got[64];
    size_t length;
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    struct talk talk;
    talk_begin(&talk, fips, &FIPS, &USUAL);
    struct end *from = &talk.pair.server, *to = &talk.pair.client;
    for (size_t cut = 1; cut < sizeof(TICKET); cut++) {
        from->sink.length = 0;
        say_handshake(from, TICKET, cut);
        tls_feed(&to->tls, from->sink.bytes, from->sink.length);
        CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_WANT);
        if (cut < HEADER)
            CHECK_EQUAL(tls_write(&to->tls, &to->sink, TICKET, 1), TLS_OK);
        from->sink.length = 0;
        say_handshake(from, TICKET + cut, sizeof(TICKET) - cut);
        CHECK_EQUAL(tls_write(&from->tls, &from->sink, (const uint8_t *)"data", 4), TLS_OK);
        tls_feed(&to->tls, from->sink.bytes, from->sink.length);
        CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_OK);
    }
    from->sink.length = to->sink.length = 0;
    say_handshake(from, TICKET, HEADER);
    tls_feed(&to->tls, from->sink.bytes, from->sink.length);
    CHECK_EQUAL(tls_read(&to->tls, &to->sink, got, sizeof(got), &length), TLS_WANT);
    CHECK_EQUAL(tls_write(&to->tls, &to->sink, TICKET, 1), TLS_FAILED);
    CHECK_TEXT(to->tls.error, "TLS: half a message came, and OpenSSL writes nothing before its end");
    CHECK_EQUAL(to->sink.length, 0);
    talk_end(&talk);
    profile_context_free(fips);
}

/* Records of 512 bytes, each with its 22 more, are not what TLS_SEALED_SIZE makes room for. */
TEST(short_records_are_refused_as_without_the_profile)
{
    OSSL_LIB_CTX *fips = fips_context();
    if (fips == NULL)
        return;
    struct pair pair;
    struct authority authority = authority_new();
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    struct tls_credentials client = credentials_of(fips, &USUAL, &authority, bundle, SHIPPER);
    struct tls_credentials server = credentials_of(fips, &FIPS, &authority, bundle, PIPELINE);
    CHECK_EQUAL(SSL_CTX_set_tlsext_max_fragment_length(client.context, TLSEXT_max_fragment_length_512), 1);
    pair_run(&pair, &client, &server, PIPELINE);
    CHECK_EQUAL(pair.server.result, TLS_FAILED);
    CHECK_TEXT(pair.server.tls.error, "TLS: the peer asks for short records (max_fragment_length)");
    pair_dispose(&pair);
    credentials_dispose(&client);
    credentials_dispose(&server);
    authority_dispose(&authority);
    free(bundle);
    profile_context_free(fips);
}

CHECK_MAIN
