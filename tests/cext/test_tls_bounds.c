/* tls_bounds.c: which groups are offered and taken, and how much of a peer's certificates is looked at. */
#include "wire/tls_bounds.h"

#include <openssl/core_names.h>

#include "certificates.h"
#include "credentials.h"
#include "wire/chain.h"
#include "check.h"
#include "noise.h"
#include "wire/tls.h"

#define DOMAIN "example.org"
#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

enum { SINK = 1 << 18 };

/* A client and a server that talk through memory. The server is ours as it is; what is odd about a test's
 * client, or its server, is set on its context. */
struct talk {
    struct authority authority;
    struct tls_credentials credentials[2]; /* by role */
    struct tls ends[2];
    enum tls_result results[2];
    struct tls_sink sinks[2];
    uint8_t bytes[2][SINK];
};

static struct tls_credentials credentials_of(const struct authority *authority, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *key = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&authority->root, NULL);
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
    free(chain);
    free(key);
    free(bundle);
    certificate_dispose(&leaf);
    return credentials;
}

static struct talk *talk_new(void)
{
    struct talk *talk = calloc(1, sizeof(*talk));
    CHECK(talk != NULL);
    talk->authority = authority_new();
    talk->credentials[TLS_CLIENT] = credentials_of(&talk->authority, SHIPPER);
    talk->credentials[TLS_SERVER] = credentials_of(&talk->authority, PIPELINE);
    return talk;
}

static void talk_free(struct talk *talk)
{
    for (int i = 0; i < 2; i++) {
        tls_dispose(&talk->ends[i]);
        credentials_dispose(&talk->credentials[i]);
    }
    authority_dispose(&talk->authority);
    free(talk);
}

/* One step of `role`, with what the other end has said. */
static void talk_step(struct talk *talk, enum tls_role role)
{
    static uint8_t heard[SINK];
    struct tls_sink *from = &talk->sinks[!role];
    size_t length = from->length;
    memcpy(heard, from->bytes, length);
    from->length = 0;
    if (talk->results[role] != TLS_WANT)
        return;
    tls_feed(&talk->ends[role], heard, length);
    talk->results[role] = tls_handshake(&talk->ends[role], &talk->sinks[role]);
}

static void talk_begin(struct talk *talk)
{
    for (int i = 0; i < 2; i++) {
        const char *expected = i == TLS_CLIENT ? PIPELINE : NULL;
        CHECK_EQUAL(tls_init(&talk->ends[i], (enum tls_role)i, &talk->credentials[i], DOMAIN, expected), 0);
        talk->sinks[i] = (struct tls_sink){.bytes = talk->bytes[i], .capacity = SINK};
        talk->results[i] = TLS_WANT;
    }
    talk_step(talk, TLS_CLIENT);
}

/* Until none has anything to say. */
static void talk_go_on(struct talk *talk)
{
    while (talk->sinks[0].length > 0 || talk->sinks[1].length > 0) {
        talk_step(talk, TLS_SERVER);
        talk_step(talk, TLS_CLIENT);
    }
}

static void check_group(const char *group, enum tls_role odd, int taken)
{
    struct talk *talk = talk_new();
    if (!SSL_CTX_set1_groups_list(talk->credentials[odd].context, group)) {
        talk_free(talk); /* this library does not have it */
        return;
    }
    talk_begin(talk);
    talk_go_on(talk);
    enum tls_result expected = taken ? TLS_OK : TLS_FAILED;
    CHECK_CASE(talk->results[!odd] == expected, "%s: %s", group, talk->ends[!odd].error);
    CHECK_CASE(talk->results[odd] == expected, "%s: %s", group, talk->ends[odd].error);
    talk_free(talk);
}

static const struct {
    const char *name;
    int taken;
} GROUPS[] = {
    {"X25519MLKEM768", 1}, {"X25519", 1},          {"P-256", 1},     {"P-384", 1},     {"P-521", 0},
    {"X448", 0},           {"ffdhe2048", 0},       {"ffdhe3072", 0}, {"ffdhe4096", 0}, {"ffdhe6144", 0},
    {"ffdhe8192", 0},      {"brainpoolP512r1", 0}, {"MLKEM1024", 0}, {"MLKEM768", 0},  {"secp256k1", 0},
};

TEST(a_server_takes_four_groups_and_no_other)
{
    for (size_t i = 0; i < sizeof(GROUPS) / sizeof(GROUPS[0]); i++)
        check_group(GROUPS[i].name, TLS_CLIENT, GROUPS[i].taken);
}

TEST(a_client_offers_four_groups_and_no_other)
{
    for (size_t i = 0; i < sizeof(GROUPS) / sizeof(GROUPS[0]); i++)
        check_group(GROUPS[i].name, TLS_SERVER, GROUPS[i].taken);
}

/* With the profile `fips` on one end, and a wish of the other. */
static void check_fips(enum tls_role fips, const char *groups, const char *signatures, int taken)
{
    struct talk *talk = talk_new();
    CHECK(tls_bounds_set(talk->credentials[fips].context, 1) == NULL);
    if (groups != NULL)
        CHECK_EQUAL(SSL_CTX_set1_groups_list(talk->credentials[!fips].context, groups), 1);
    if (signatures != NULL)
        CHECK_EQUAL(SSL_CTX_set1_sigalgs_list(talk->credentials[!fips].context, signatures), 1);
    talk_begin(talk);
    talk_go_on(talk);
    CHECK_CASE(talk->results[fips] == (taken ? TLS_OK : TLS_FAILED), "%s", talk->ends[fips].error);
    if (taken) {
        const char *group = talk->ends[fips].facts.group;
        CHECK_CASE(strcmp(group, "secp256r1") == 0 || strcmp(group, "secp384r1") == 0, "%s", group);
    }
    talk_free(talk);
}

TEST(with_the_profile_fips_groups_and_signatures_are_those_of_the_module)
{
    for (int role = 0; role < 2; role++) {
        enum tls_role fips = (enum tls_role)role;
        check_fips(fips, NULL, NULL, 1); /* an end without the profile has a group in common */
        check_fips(fips, "P-384", NULL, 1);
        check_fips(fips, "X25519", NULL, 0);
        check_fips(fips, NULL, "ECDSA+SHA256", 1);
        check_fips(fips, NULL, "ed25519", 0);
    }
}

TEST(a_core_with_the_profile_fips_starts_with_the_module_or_says_why_not)
{
    struct core_options options = {.workers = 1, .fips = 1, .trust_domain = DOMAIN};
    char error[256] = "";
    setenv("OPENSSL_MODULES", "/nonexistent", 1); /* where it would be */
    CHECK(core_start(&options, error, sizeof(error)) == NULL);
    CHECK_CASE(strstr(error, "OpenSSL's FIPS module cannot be loaded: ") != NULL, "%s", error);
}

/* RFC 8446, 4.1.3: what tells a HelloRetryRequest from a ServerHello. */
static int asks_for_another_share(const struct tls_sink *sink)
{
    static const uint8_t RANDOM[] = {0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11};
    enum { RECORD_AND_MESSAGE_HEADERS_AND_VERSION = 5 + 4 + 2 };
    return sink->length > 64 &&
           memcmp(sink->bytes + RECORD_AND_MESSAGE_HEADERS_AND_VERSION, RANDOM, sizeof(RANDOM)) == 0;
}

TEST(a_share_of_a_dear_group_is_not_computed_with_and_another_is_asked_for)
{
    struct talk *talk = talk_new();
    CHECK_EQUAL(SSL_CTX_set1_groups_list(talk->credentials[TLS_CLIENT].context, "ffdhe8192:X25519"), 1);
    talk_begin(talk);
    talk_step(talk, TLS_SERVER);
    CHECK(asks_for_another_share(&talk->sinks[TLS_SERVER]));
    talk_step(talk, TLS_CLIENT);
    talk_go_on(talk);
    CHECK_EQUAL(talk->results[TLS_SERVER], TLS_OK);
    CHECK_EQUAL(talk->results[TLS_CLIENT], TLS_OK);
    talk_free(talk);
}

/* ---- certificates ---- */

static void check_refused_client(struct talk *talk, const char *error)
{
    talk_begin(talk);
    talk_go_on(talk);
    CHECK_EQUAL(talk->results[TLS_SERVER], TLS_FAILED);
    CHECK_CASE(strstr(talk->ends[TLS_SERVER].error, error) != NULL, "%s", talk->ends[TLS_SERVER].error);
}

static void add_60_kilobytes(X509 *x509)
{
    enum { SIZE = 60 << 10 };
    uint8_t *bytes = calloc(1, SIZE);
    ASN1_OBJECT *object = OBJ_txt2obj("1.3.6.1.4.1.99999.1", 1);
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    CHECK(ASN1_OCTET_STRING_set(value, bytes, SIZE) == 1);
    X509_EXTENSION *extension = X509_EXTENSION_create_by_OBJ(NULL, object, 0, value);
    CHECK(X509_add_ext(x509, extension, -1) == 1);
    X509_EXTENSION_free(extension);
    ASN1_OCTET_STRING_free(value);
    ASN1_OBJECT_free(object);
    free(bytes);
}

TEST(a_certificate_with_60_kilobytes_of_extensions_is_not_read)
{
    struct talk *talk = talk_new();
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = add_60_kilobytes};
    struct certificate leaf = certificate_new(&talk->authority.intermediate, &wish);
    SSL_CTX *context = talk->credentials[TLS_CLIENT].context;
    CHECK_EQUAL(SSL_CTX_use_certificate(context, leaf.x509), 1);
    CHECK_EQUAL(SSL_CTX_use_PrivateKey(context, leaf.key), 1);
    check_refused_client(talk, "peer sends certificates of more bytes than are looked at");
    certificate_dispose(&leaf);
    talk_free(talk);
}

TEST(more_certificates_than_any_chain_needs_are_not_read)
{
    enum { CERTIFICATES = 100 };
    struct talk *talk = talk_new();
    for (int i = 0; i < CERTIFICATES; i++)
        CHECK_EQUAL(
            SSL_CTX_add1_chain_cert(talk->credentials[TLS_CLIENT].context, talk->authority.intermediate.x509),
            1);
    check_refused_client(talk, "peer sends certificates of more bytes than are looked at");
    talk_free(talk);
}

static void chain_of(struct talk *talk, int intermediates)
{
    struct certificate_wish authority = {.authority = 1};
    struct certificate_wish leaf = {.uris = {SHIPPER}};
    SSL_CTX *context = talk->credentials[TLS_CLIENT].context;
    struct certificate signer = talk->authority.intermediate;
    CHECK_EQUAL(SSL_CTX_clear_chain_certs(context), 1);
    for (int i = 1; i <= intermediates; i++) {
        CHECK_EQUAL(SSL_CTX_add1_chain_cert(context, signer.x509), 1);
        struct certificate next = certificate_new(&signer, i < intermediates ? &authority : &leaf);
        if (i > 1)
            certificate_dispose(&signer);
        signer = next;
    }
    CHECK_EQUAL(SSL_CTX_use_certificate(context, signer.x509), 1);
    CHECK_EQUAL(SSL_CTX_use_PrivateKey(context, signer.key), 1);
    certificate_dispose(&signer);
}

/* A certificate that nobody has signed who is trusted, with a key of that kind. */
static void check_key(const char *curve, int explicit_curve, const char *error)
{
    struct talk *talk = talk_new();
    SSL_CTX *context = talk->credentials[TLS_CLIENT].context;
    EVP_PKEY *key = curve == NULL ? EVP_RSA_gen(2048) : EVP_EC_gen(curve);
    CHECK(key != NULL);
    if (explicit_curve)
        CHECK_EQUAL(EVP_PKEY_set_utf8_string_param(key, OSSL_PKEY_PARAM_EC_ENCODING, "explicit"), 1);
    X509 *odd = X509_dup(talk->authority.intermediate.x509);
    CHECK_EQUAL(X509_set_pubkey(odd, key), 1);
    CHECK(X509_sign(odd, talk->authority.intermediate.key, EVP_sha256()) > 0);
    CHECK_EQUAL(SSL_CTX_add1_chain_cert(context, odd), 1);
    talk_begin(talk);
    talk_go_on(talk);
    CHECK_CASE(talk->results[TLS_SERVER] == (error == NULL ? TLS_OK : TLS_FAILED), "%s", curve);
    if (error != NULL)
        CHECK_CASE(strstr(talk->ends[TLS_SERVER].error, error) != NULL, "%s", talk->ends[TLS_SERVER].error);
    X509_free(odd);
    EVP_PKEY_free(key);
    talk_free(talk);
}

/* Each takes OpenSSL as long to decode as whoever made it likes, or nearly. */
TEST(a_certificate_with_a_key_that_is_dear_to_decode_is_not_read)
{
    static const char KIND[] = "key of a kind that is not taken";
    check_key("P-224", 0, KIND);
    check_key("secp256k1", 0, KIND);
    check_key("brainpoolP512r1", 0, KIND);
    check_key("sect571r1", 0, KIND);
    check_key("P-256", 1, KIND);
}

TEST(certificates_with_usual_keys_are_read)
{
    check_key("P-256", 0, NULL);
    check_key("P-384", 0, NULL);
    check_key("P-521", 0, NULL);
    check_key(NULL, 0, NULL);
}

TEST(more_certificates_than_ten_are_not_read)
{
    struct talk *talk = talk_new();
    for (int i = 0; i < CHAIN_MOST; i++) /* a leaf and an intermediate are there */
        CHECK_EQUAL(
            SSL_CTX_add1_chain_cert(talk->credentials[TLS_CLIENT].context, talk->authority.intermediate.x509),
            1);
    check_refused_client(talk, "more certificates than are looked at");
    talk_free(talk);
}

/* Whatever is done to a message, looking at it stays within it, as AddressSanitizer sees. */
TEST(a_damaged_message_is_looked_at_within_its_bounds)
{
    struct authority authority = authority_new();
    unsigned char *der = NULL;
    int length = i2d_X509(authority.intermediate.x509, &der);
    CHECK(length > 0);
    size_t total = 4 + 1 + 3 + 3 + (size_t)length + 2;
    uint8_t *whole = calloc(1, total);
    size_t list = 3 + (size_t)length + 2;
    whole[6] = (uint8_t)(list >> 8);
    whole[7] = (uint8_t)list;
    whole[9] = (uint8_t)(length >> 8);
    whole[10] = (uint8_t)length;
    memcpy(whole + 11, der, (size_t)length);
    CHECK(chain_refused(whole, total) == NULL);
    for (size_t cut = 0; cut < total; cut++) {
        uint8_t *exact = noise_exact_copy(whole, cut);
        CHECK(chain_refused(exact, cut) != NULL);
        free(exact);
    }
    for (size_t at = 0; at < total; at++)
        for (int bit = 0; bit < 8; bit++) {
            uint8_t *exact = noise_exact_copy(whole, total);
            exact[at] ^= (uint8_t)(1 << bit);
            (void)chain_refused(exact, total);
            chain_spoil(exact, total);
            free(exact);
        }
    OPENSSL_free(der);
    free(whole);
    authority_dispose(&authority);
}

TEST(a_chain_is_followed_for_eight_intermediates)
{
    struct talk *talk = talk_new();
    chain_of(talk, TLS_INTERMEDIATES_MOST);
    talk_begin(talk);
    talk_go_on(talk);
    CHECK_EQUAL(talk->results[TLS_SERVER], TLS_OK);
    talk_free(talk);
}

TEST(a_longer_chain_is_refused)
{
    struct talk *talk = talk_new();
    chain_of(talk, TLS_INTERMEDIATES_MOST + 1);
    check_refused_client(talk, "the chain of the peer certificate is too long");
    talk_free(talk);
}

CHECK_MAIN
