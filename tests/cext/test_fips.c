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
    from->tls.record.renew_after = 7;
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

static void check_provider(const struct record_keys *keys, const char *name)
{
    CHECK_TEXT(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(EVP_CIPHER_CTX_get0_cipher(keys->aead))),
               name);
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
        check_provider(&pair.client.tls.record.sealing, client->fips ? "fips" : "default");
        check_provider(&pair.server.tls.record.opening, server->fips ? "fips" : "default");
        check_transfer(&pair.client, &pair.server);
        check_transfer(&pair.server, &pair.client);
    }
    pair_dispose(&pair);
    credentials_dispose(&of_client);
    credentials_dispose(&of_server);
    authority_dispose(&authority);
    free(bundle);
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

CHECK_MAIN
