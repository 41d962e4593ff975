/*
 * svid.c: every rule that a peer's certificates must keep, in both roles. docs/identity.md names these tests.
 *
 * A handshake in memory between a proper end and one that shows the certificate in question. Whoever refuses
 * must say why, and must not have named its peer.
 */
#include "wire/svid.h"

#include "certificates.h"
#include "credentials.h"
#include "check.h"
#include "wire/names.h"
#include "noise.h"
#include "tls_pair.h"
#include "wire/tls.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

/* ---- what is shown ---- */

/* `anchor`: of the other end. */
static struct tls_credentials credentials_of(const struct authority *authority,
                                             const struct certificate *leaf, const struct certificate *anchor)
{
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    char *chain = certificate_chain_pem(leaf, &authority->intermediate);
    char *key = certificate_key_pem(leaf);
    char *bundle = certificate_chain_pem(&authority->root, anchor);
    int result = credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error));
    CHECK_TEXT(error, "");
    CHECK_EQUAL(result, 0);
    free(chain);
    free(key);
    free(bundle);
    return credentials;
}

/* What the other end says when a leaf that was made as wished is shown in the role; "" if it is taken. */
static void outcome(const struct authority *authority, const struct certificate_wish *wish,
                    enum tls_role role, char said[NS_REASON_MAX])
{
    struct certificate_wish good = {.uris = {PIPELINE}};
    struct authority of_judge = authority_new();
    struct certificate proper = certificate_new(&of_judge.intermediate, &good);
    struct certificate shown = certificate_new(&authority->intermediate, wish);
    struct tls_credentials judge = credentials_of(&of_judge, &proper, &authority->root);
    struct tls_credentials peer = credentials_of(authority, &shown, &of_judge.root);
    struct pair pair;
    if (role == TLS_CLIENT)
        pair_run(&pair, &peer, &judge, PIPELINE);
    else
        pair_run(&pair, &judge, &peer, wish->uris[0] == NULL ? PIPELINE : wish->uris[0]);
    struct end *judging = role == TLS_CLIENT ? &pair.server : &pair.client;
    CHECK_EQUAL(judging->result == TLS_OK, judging->tls.error[0] == 0);
    CHECK_TEXT(judging->tls.peer, judging->result == TLS_OK ? wish->uris[0] : "");
    CHECK_EQUAL(judging->result, judging->result == TLS_OK ? TLS_OK : TLS_FAILED);
    snprintf(said, NS_REASON_MAX, "%s", judging->tls.error);
    pair_dispose(&pair);
    credentials_dispose(&judge);
    credentials_dispose(&peer);
    certificate_dispose(&proper);
    certificate_dispose(&shown);
    authority_dispose(&of_judge);
}

static void check_said(const struct authority *authority, const struct certificate_wish *wish,
                       const char *client, const char *server)
{
    char said[NS_REASON_MAX];
    outcome(authority, wish, TLS_CLIENT, said);
    CHECK_TEXT(said, client);
    outcome(authority, wish, TLS_SERVER, said);
    CHECK_TEXT(said, server);
}

static void check_leaf(const struct certificate_wish *wish, const char *client, const char *server)
{
    struct authority authority = authority_new();
    check_said(&authority, wish, client, server);
    authority_dispose(&authority);
}

static void check_leaf_refused(const struct certificate_wish *wish, const char *said)
{
    check_leaf(wish, said, said);
}

static void check_leaf_taken(const struct certificate_wish *wish)
{
    check_leaf(wish, "", "");
}

/* A proper leaf whose root and intermediate were made as wished. */
static void check_signers(const struct certificate_wish *root, const struct certificate_wish *intermediate,
                          const char *said)
{
    struct certificate_wish leaf = {.uris = {SHIPPER}};
    struct authority authority;
    authority.root = certificate_new(NULL, root);
    authority.intermediate = certificate_new(&authority.root, intermediate);
    check_said(&authority, &leaf, said, said);
    authority_dispose(&authority);
}

static const struct certificate_wish ROOT = {.authority = 1};

static void check_signer(const struct certificate_wish *intermediate, const char *said)
{
    check_signers(&ROOT, intermediate, said);
}

/* ---- tampering ---- */

/* Replaces the value of an extension by `length` bytes. */
static void set_value(X509 *x509, int nid, const uint8_t *bytes, size_t length)
{
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    X509_EXTENSION *extension = X509_get_ext(x509, X509_get_ext_by_NID(x509, nid, -1));
    CHECK(ASN1_OCTET_STRING_set(value, bytes, (int)length) == 1);
    CHECK(X509_EXTENSION_set_data(extension, value) == 1);
    ASN1_OCTET_STRING_free(value);
}

/* Appends bytes behind what the extension holds. */
static void append_to(X509 *x509, int nid, const char *more)
{
    uint8_t bytes[1024];
    X509_EXTENSION *extension = X509_get_ext(x509, X509_get_ext_by_NID(x509, nid, -1));
    const ASN1_OCTET_STRING *value = X509_EXTENSION_get_data(extension);
    size_t length = (size_t)ASN1_STRING_length(value);
    CHECK(length + strlen(more) <= sizeof(bytes));
    memcpy(bytes, ASN1_STRING_get0_data(value), length);
    memcpy(bytes + length, more, strlen(more));
    set_value(x509, nid, bytes, length + strlen(more));
}

static void append_to_names(X509 *x509)
{
    append_to(x509, NID_subject_alt_name, "\x30\x03\x86\x01x");
}

static void append_to_key_usage(X509 *x509)
{
    append_to(x509, NID_key_usage, "x");
}

static void append_to_extended_usage(X509 *x509)
{
    append_to(x509, NID_ext_key_usage, "x");
}

static void append_to_constraints(X509 *x509)
{
    append_to(x509, NID_basic_constraints, "x");
}

/* The same names, their sequence's length in a form that DER does not have: 30 81 nn. */
static void lengthen_names(X509 *x509)
{
    uint8_t bytes[256];
    X509_EXTENSION *extension = X509_get_ext(x509, X509_get_ext_by_NID(x509, NID_subject_alt_name, -1));
    const ASN1_OCTET_STRING *value = X509_EXTENSION_get_data(extension);
    const uint8_t *old = ASN1_STRING_get0_data(value);
    size_t length = (size_t)ASN1_STRING_length(value);
    CHECK(old[0] == 0x30 && old[1] == length - 2 && length < 128);
    bytes[0] = 0x30;
    bytes[1] = 0x81;
    memcpy(bytes + 2, old + 1, length - 1);
    set_value(x509, NID_subject_alt_name, bytes, length + 1);
}

static void names_not_critical(X509 *x509)
{
    X509_EXTENSION_set_critical(X509_get_ext(x509, X509_get_ext_by_NID(x509, NID_subject_alt_name, -1)), 0);
}

static void names_not_critical_with_subject(X509 *x509)
{
    names_not_critical(x509);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_ASC,
                               (const unsigned char *)"shipper", -1, -1, 0);
}

/* Once more what it has. */
static void repeat(X509 *x509, int nid)
{
    CHECK(X509_add_ext(x509, X509_get_ext(x509, X509_get_ext_by_NID(x509, nid, -1)), -1) == 1);
}

static void repeat_names(X509 *x509)
{
    repeat(x509, NID_subject_alt_name);
}

/* An extension of 1.3.6.1.4.1.99999.<last> with the value NULL. */
static void add_unknown(X509 *x509, int last, int critical)
{
    char name[64];
    snprintf(name, sizeof(name), "1.3.6.1.4.1.99999.%d", last);
    ASN1_OBJECT *object = OBJ_txt2obj(name, 1);
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    CHECK(ASN1_OCTET_STRING_set(value, (const unsigned char *)"\5\0", 2) == 1);
    X509_EXTENSION *extension = X509_EXTENSION_create_by_OBJ(NULL, object, critical, value);
    CHECK(extension != NULL && X509_add_ext(x509, extension, -1) == 1);
    X509_EXTENSION_free(extension);
    ASN1_OCTET_STRING_free(value);
    ASN1_OBJECT_free(object);
}

static void unknown_critical(X509 *x509)
{
    add_unknown(x509, 1, 1);
}

static void unknown_not_critical(X509 *x509)
{
    add_unknown(x509, 1, 0);
}

static void unknown_twice(X509 *x509)
{
    add_unknown(x509, 1, 0);
    add_unknown(x509, 1, 0);
}

static void many_extensions(X509 *x509)
{
    for (int i = 0; i < 64; i++)
        add_unknown(x509, i, 0);
}

static void first_version(X509 *x509)
{
    CHECK(X509_set_version(x509, X509_VERSION_1) == 1);
}

/* ---- leaves ---- */

TEST(a_proper_leaf_is_taken)
{
    struct certificate_wish wish = {.uris = {SHIPPER}};
    check_leaf_taken(&wish);
}

TEST(a_ca_certificate_is_no_leaf)
{
    struct certificate_wish wish = {.uris = {SHIPPER},
                                    .constraints = "critical,CA:TRUE",
                                    .key_usage = "critical,digitalSignature,keyCertSign"};
    check_leaf_refused(&wish, "peer certificate is a CA certificate");
    wish.key_usage = "critical,digitalSignature";
    check_leaf_refused(&wish, "peer certificate is a CA certificate");
}

TEST(a_leaf_without_basic_constraints_is_no_ca_and_taken)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .constraints = ""};
    check_leaf_taken(&wish);
}

TEST(a_leaf_must_have_a_key_usage)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .key_usage = ""};
    check_leaf_refused(&wish, "peer certificate has no key usage");
}

TEST(a_leafs_key_usage_must_be_critical)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .key_usage = "digitalSignature"};
    check_leaf_refused(&wish, "peer certificate has a key usage that is not critical");
}

TEST(a_leaf_must_be_for_signatures)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .key_usage = "critical,keyAgreement"};
    check_leaf_refused(&wish, "peer certificate is not for signatures (key usage digitalSignature)");
}

TEST(a_leaf_must_not_sign_certificates)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .key_usage = "critical,digitalSignature,keyCertSign"};
    check_leaf_refused(&wish, "peer certificate may sign certificates (key usage keyCertSign)");
}

TEST(a_leaf_must_not_sign_revocation_lists)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .key_usage = "critical,digitalSignature,cRLSign"};
    check_leaf_refused(&wish, "peer certificate may sign revocation lists (key usage cRLSign)");
}

TEST(a_leaf_may_be_for_key_agreement_and_encipherment_too)
{
    struct certificate_wish wish = {.uris = {SHIPPER},
                                    .key_usage = "critical,digitalSignature,keyEncipherment,keyAgreement"};
    check_leaf_taken(&wish);
}

TEST(a_leaf_without_extended_key_usage_is_taken)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .usage = ""};
    check_leaf_taken(&wish);
}

TEST(a_leafs_extended_key_usage_must_have_the_role_in_use)
{
    static const char CLIENTS[] = "peer certificate is not for clients (extended key usage)";
    static const char SERVERS[] = "peer certificate is not for servers (extended key usage)";
    struct certificate_wish wish = {.uris = {SHIPPER}, .usage = "serverAuth"};
    check_leaf(&wish, CLIENTS, "");
    wish.usage = "clientAuth";
    check_leaf(&wish, "", SERVERS);
    wish.usage = "codeSigning";
    check_leaf(&wish, CLIENTS, SERVERS);
    wish.usage = "anyExtendedKeyUsage";
    check_leaf(&wish, CLIENTS, SERVERS);
    wish.usage = "msSGC"; /* OpenSSL takes it for servers */
    check_leaf(&wish, CLIENTS, SERVERS);
}

TEST(a_leaf_must_have_exactly_one_uri)
{
    static const char SEVERAL[] = "peer certificate has more than one URI";
    struct certificate_wish wish = {.uris = {SHIPPER, PIPELINE}};
    check_leaf_refused(&wish, SEVERAL);
    wish.uris[1] = SHIPPER;
    check_leaf_refused(&wish, SEVERAL);
    wish.uris[1] = "https://example.org/";
    check_leaf_refused(&wish, SEVERAL);
    wish = (struct certificate_wish){.other = "DNS:shipper.example.org"};
    check_leaf_refused(&wish, "peer certificate has no SPIFFE id");
    wish.other = NULL;
    check_leaf_refused(&wish, "peer certificate has no SPIFFE id");
}

TEST(a_leaf_may_have_names_of_other_types)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .other = "DNS:shipper.example,IP:10.77.1.10"};
    check_leaf_taken(&wish);
}

TEST(a_leafs_uri_must_be_a_spiffe_id)
{
    static const char *const URIS[] = {
        "https://example.org/ns/default/sa/shipper",
        "SPIFFE://example.org/ns/default/sa/shipper",
        "spiffe://Example.org/ns/default/sa/a",
        "spiffe://example.org/ns/default/sa/a/",
        "spiffe://example.org/ns/../sa/a",
        "spiffe://example.org/ns/default/sa/a?b",
        "spiffe://example.org:8443/ns/default/sa/a",
        "spiffe://user@example.org/ns/default/sa/a",
        "spiffe://example.org/ns/default/sa/%41",
        "spiffe://",
        /* wildcards */
        "spiffe://*.example.org/ns/default/sa/a",
        "spiffe://example.org/ns/*/sa/a",
        "spiffe://example.org/ns/default/sa/*",
        "*",
        /* what decodes to the trust domain, or looks like it */
        "spiffe://example%2eorg/ns/default/sa/a",
        "spiffe://example.org%2fns/default/sa/a",
        "spiffe://ex\xc3\xa4mple.org/ns/default/sa/a",
        "spiffe://ex\xef\xbd\x81mple.org/ns/default/sa/a",
        "spiffe://example.org/ns/default/sa/\xc0\xae\xc0\xae",
        "spiffe://example.org/ns/default/sa/a\xff",
        /* characters that end a line, or a text, elsewhere */
        "spiffe://example.org/ns/default/sa/a\n",
        "spiffe://example.org/ns/default/sa/a ",
        " spiffe://example.org/ns/default/sa/a",
        "spiffe://example.org/ns/default/sa/a\t",
        "spiffe://example.org/ns/default/sa/a#b",
        "spiffe://example.org//ns/default/sa/a",
        "spiffe:/example.org/ns/default/sa/a",
        "spiffe://example.org\\ns/default/sa/a",
    };
    for (size_t i = 0; i < sizeof(URIS) / sizeof(URIS[0]); i++) {
        struct certificate_wish wish = {.uris = {URIS[i]}};
        check_leaf_refused(&wish, "peer certificate has a URI that is no SPIFFE id");
    }
}

TEST(a_zero_byte_in_a_uri_is_not_its_end)
{
    static const char URI[] = SHIPPER "\0.evil";
    struct certificate_wish wish = {.uris = {URI}, .uri_length = sizeof(URI) - 1};
    check_leaf_refused(&wish, "peer certificate has a URI that is no SPIFFE id");
    wish.uri_length = sizeof(SHIPPER);
    check_leaf_refused(&wish, "peer certificate has a URI that is no SPIFFE id");
}

TEST(a_leafs_spiffe_id_must_have_a_path)
{
    struct certificate_wish wish = {.uris = {"spiffe://example.org"}};
    check_leaf_refused(&wish, "peer certificate has a SPIFFE id without a path");
}

TEST(ids_of_the_own_trust_domain_have_five_parts)
{
    static const char *const URIS[] = {"spiffe://example.org/shipper",
                                       "spiffe://example.org/ns/default/sa/shipper/more",
                                       "spiffe://example.org/sa/default/ns/shipper"};
    for (size_t i = 0; i < sizeof(URIS) / sizeof(URIS[0]); i++) {
        struct certificate_wish wish = {.uris = {URIS[i]}};
        check_leaf_refused(&wish,
                           "peer's SPIFFE id is not of the form <trust domain>/ns/<namespace>/sa/<account>");
    }
}

TEST(ids_of_other_trust_domains_are_refused_as_such)
{
    static const char *const URIS[] = {"spiffe://example.com/ns/default/sa/shipper",
                                       "spiffe://example.org.evil/ns/default/sa/shipper",
                                       "spiffe://example.com/any/path", "spiffe://example.com/x"};
    for (size_t i = 0; i < sizeof(URIS) / sizeof(URIS[0]); i++) {
        struct certificate_wish wish = {.uris = {URIS[i]}};
        check_leaf_refused(&wish, "peer is of another trust domain");
    }
}

TEST(ids_are_bounded)
{
    char uri[3000];
    struct certificate_wish wish = {.uris = {uri}};
    memset(uri, 'x', sizeof(uri));
    memcpy(uri, SHIPPER, strlen(SHIPPER));
    uri[NS_IDENTITY_MAX] = 0;
    check_leaf_refused(&wish, "peer's SPIFFE id is longer than 511 bytes");
    memcpy(uri, "spiffe://example.com/", 21);
    uri[NS_IDENTITY_MAX] = 'x';
    uri[2048] = 0;
    check_leaf_refused(&wish, "peer is of another trust domain");
    uri[2048] = 'x';
    uri[2049] = 0;
    check_leaf_refused(&wish, "peer certificate has a URI that is no SPIFFE id");
}

TEST(names_must_be_critical_where_there_is_no_subject)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = names_not_critical};
    check_leaf_refused(&wish, "peer certificate has no subject, and its alternative names are not critical");
    wish.tamper = names_not_critical_with_subject;
    check_leaf_taken(&wish);
}

TEST(names_must_be_der_to_their_last_byte)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = append_to_names};
    check_leaf_refused(&wish, "peer certificate has malformed alternative names");
    wish.tamper = lengthen_names;
    check_leaf_refused(&wish, "peer certificate has malformed alternative names");
}

TEST(usages_and_constraints_must_be_der_to_their_last_byte)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = append_to_key_usage};
    check_leaf_refused(&wish, "peer certificate has a malformed key usage");
    wish.tamper = append_to_extended_usage;
    check_leaf_refused(&wish, "peer certificate has a malformed extended key usage");
    wish.tamper = append_to_constraints;
    check_leaf_refused(&wish, "peer certificate has malformed basic constraints");
}

TEST(no_extension_may_be_there_twice)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = repeat_names};
    check_leaf_refused(&wish, "peer certificate has an extension twice");
    wish.tamper = unknown_twice;
    check_leaf_refused(&wish, "peer certificate has an extension twice");
}

TEST(extensions_are_bounded)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = many_extensions};
    check_leaf_refused(&wish, "peer certificate has more than 64 extensions");
}

TEST(an_unknown_extension_is_refused_if_it_is_critical)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = unknown_critical};
    check_leaf_refused(&wish, "peer certificate has an unknown critical extension");
    wish.tamper = unknown_not_critical;
    check_leaf_taken(&wish);
}

TEST(a_leaf_must_be_of_version_3)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = first_version};
    check_leaf_refused(&wish, "peer certificate is not of X.509 version 3");
}

TEST(a_leaf_must_be_valid_now)
{
    struct certificate_wish wish = {.uris = {SHIPPER}, .begins = -7200, .ends = -60};
    check_leaf_refused(&wish, "peer certificate has expired");
    wish.begins = 3600;
    wish.ends = 7200;
    check_leaf_refused(&wish, "peer certificate is not yet valid");
}

/* ---- signing certificates ---- */

TEST(signing_certificates_need_no_spiffe_id)
{
    struct certificate_wish wish = {.authority = 1};
    check_signer(&wish, "");
    wish.other = "DNS:ca.example.org,URI:https://ca.example.org/";
    check_signer(&wish, "");
}

TEST(a_signing_certificate_must_be_a_ca)
{
    static const char REFUSED[] = "peer certificate is signed by a certificate that may not sign";
    struct certificate_wish wish = {.authority = 1, .constraints = "critical,CA:FALSE"};
    check_signer(&wish, REFUSED);
    wish.constraints = "";
    check_signer(&wish, REFUSED);
    struct certificate_wish good = {.authority =
                                        1}; /* of a root OpenSSL tolerates that: its key usage signs */
    check_signers(&wish, &good, "a signing certificate of the peer is no CA certificate");
}

TEST(a_signing_certificate_must_have_a_key_usage_that_signs)
{
    struct certificate_wish wish = {.authority = 1, .key_usage = "critical,cRLSign"};
    check_signer(&wish, "peer certificate is signed by a certificate that may not sign");
    wish.key_usage = "";
    check_signer(&wish, "a signing certificate of the peer has no key usage");
    struct certificate_wish good = {.authority = 1};
    check_signers(&wish, &good, "a signing certificate of the peer has no key usage");
}

TEST(a_signing_certificates_spiffe_id_has_no_path)
{
    struct certificate_wish wish = {.authority = 1, .uris = {"spiffe://example.org"}};
    struct certificate_wish good = {.authority = 1};
    check_signer(&wish, "");
    wish.uris[0] = "spiffe://example.org/ca";
    check_signer(&wish, "a signing certificate of the peer has a SPIFFE id with a path");
    check_signers(&wish, &good, "a signing certificate of the peer has a SPIFFE id with a path");
    wish.uris[0] = "spiffe://Example.org";
    check_signer(&wish, "a signing certificate of the peer has a malformed SPIFFE id");
    wish.uris[0] = "spiffe://example.org/";
    check_signer(&wish, "a signing certificate of the peer has a malformed SPIFFE id");
}

TEST(a_signing_certificate_that_is_an_svid_has_one_uri)
{
    struct certificate_wish wish = {.authority = 1, .uris = {"spiffe://example.org", "spiffe://example.org"}};
    check_signer(&wish, "a signing certificate of the peer has more than one URI");
    wish.uris[0] = "https://ca.example.org/";
    check_signer(&wish, "a signing certificate of the peer has more than one URI");
}

TEST(a_signing_certificate_that_is_an_svid_has_a_critical_key_usage)
{
    struct certificate_wish wish = {.authority = 1, .key_usage = "keyCertSign"};
    check_signer(&wish, "");
    wish.uris[0] = "spiffe://example.org";
    check_signer(&wish, "a signing certificate of the peer has a key usage that is not critical");
}

TEST(a_leaf_is_signed_in_its_own_trust_domain)
{
    struct certificate_wish other = {.authority = 1, .uris = {"spiffe://example.com"}};
    struct certificate_wish own = {.authority = 1, .uris = {"spiffe://example.org"}};
    check_signers(&own, &other, "peer certificate is signed by another trust domain");
    check_signers(&other, &own, "");
}

TEST(signing_certificates_must_be_well_formed)
{
    struct certificate_wish wish = {.authority = 1, .uris = {"spiffe://example.org"}};
    wish.tamper = append_to_names;
    check_signer(&wish, "a signing certificate of the peer has malformed alternative names");
    wish.tamper = append_to_constraints;
    check_signer(&wish, "a signing certificate of the peer has malformed basic constraints");
    wish.tamper = append_to_key_usage;
    check_signer(&wish, "a signing certificate of the peer has a malformed key usage");
    wish.tamper = unknown_twice;
    check_signer(&wish, "a signing certificate of the peer has an extension twice");
    wish.tamper = many_extensions;
    check_signer(&wish, "a signing certificate of the peer has more than 64 extensions");
    wish.tamper = unknown_critical;
    check_signer(&wish, "a signing certificate of the peer has an unknown critical extension");
    wish.tamper = first_version;
    check_signer(&wish, "a signing certificate of the peer is not of X.509 version 3");
}

TEST(signing_certificates_must_be_valid_now)
{
    struct certificate_wish wish = {.authority = 1, .begins = -7200, .ends = -60};
    check_signer(&wish, "a signing certificate of the peer has expired");
}

TEST(an_extended_key_usage_of_a_signing_certificate_binds_what_is_below)
{
    static const char REFUSED[] =
        "a signing certificate of the peer is not for this role (extended key usage)";
    struct authority authority = authority_new();
    struct certificate_wish leaf = {.uris = {SHIPPER}};
    struct certificate_wish wish = {.authority = 1, .usage = "serverAuth,clientAuth"};
    check_signer(&wish, "");
    wish.usage = "codeSigning";
    check_signer(&wish, REFUSED);
    wish.usage = "clientAuth";
    certificate_dispose(&authority.intermediate);
    authority.intermediate = certificate_new(&authority.root, &wish);
    check_said(&authority, &leaf, "", REFUSED);
    authority_dispose(&authority);
}

TEST(a_path_length_is_kept)
{
    struct certificate_wish root = {.authority = 1, .constraints = "critical,CA:TRUE,pathlen:0"};
    struct certificate_wish good = {.authority = 1};
    check_signers(&root, &good,
                  "the chain of the peer certificate is longer than a signing certificate allows");
}

static void constrain_to_another_domain(X509 *x509)
{
    certificate_extend(x509, x509, NID_name_constraints, "critical,permitted;URI:example.com");
}

static void constrain_to_our_domain(X509 *x509)
{
    certificate_extend(x509, x509, NID_name_constraints, "critical,permitted;URI:example.org");
}

TEST(name_constraints_are_kept)
{
    struct certificate_wish wish = {.authority = 1, .tamper = constrain_to_our_domain};
    check_signer(&wish, "");
    wish.tamper = constrain_to_another_domain;
    check_signer(&wish, "peer certificate has a name that its CA's name constraints do not allow");
}

/* ---- keys and signatures ---- */

TEST(every_kind_of_key_that_issuers_make_is_taken_on_all_levels)
{
    static const char *const KEYS[] = {NULL, "P-384", "ED25519", "RSA"};
    for (size_t i = 0; i < sizeof(KEYS) / sizeof(KEYS[0]); i++) {
        struct certificate_wish signer = {.authority = 1, .key = KEYS[i]};
        struct certificate_wish leaf = {.uris = {SHIPPER}, .key = KEYS[i]};
        struct authority authority;
        authority.root = certificate_new(NULL, &signer);
        authority.intermediate = certificate_new(&authority.root, &signer);
        check_said(&authority, &leaf, "", "");
        authority_dispose(&authority);
    }
}

/* What a server that keeps the rules says of a client that shows such a leaf and keeps none: our own ends
 * would not load it. */
static void check_weak(const struct authority *authority, const struct certificate_wish *wish,
                       const char *said)
{
    struct certificate_wish good = {.uris = {PIPELINE}};
    struct authority of_judge = authority_new();
    struct certificate proper = certificate_new(&of_judge.intermediate, &good);
    struct certificate weak = certificate_new(&authority->intermediate, wish);
    struct tls_credentials judge = credentials_of(&of_judge, &proper, &authority->root);
    struct tls_credentials peer = {.context = SSL_CTX_new(TLS_method())};
    SSL_CTX_set_security_level(peer.context, 0);
    SSL_CTX_set_alpn_protos(peer.context, (const unsigned char *)"\2h2", 3);
    CHECK_EQUAL(SSL_CTX_use_certificate(peer.context, weak.x509), 1);
    CHECK_EQUAL(SSL_CTX_add1_chain_cert(peer.context, authority->intermediate.x509), 1);
    CHECK_EQUAL(SSL_CTX_use_PrivateKey(peer.context, weak.key), 1);
    struct pair pair;
    pair_run(&pair, &peer, &judge, PIPELINE);
    CHECK_TEXT(pair.server.tls.error, said);
    CHECK_TEXT(pair.server.tls.peer, said[0] == 0 ? SHIPPER : "");
    pair_dispose(&pair);
    SSL_CTX_free(peer.context);
    credentials_dispose(&judge);
    certificate_dispose(&proper);
    certificate_dispose(&weak);
    authority_dispose(&of_judge);
}

TEST(weak_keys_and_signatures_are_refused)
{
    static const char WEAK[] = "peer certificate, or one that it is verified by, has a weak key or signature";
    static const struct {
        const char *root_key, *root_hash, *signer_key, *signer_hash, *leaf_key, *leaf_hash;
        const char *said;
    } CASES[] = {
        {NULL, NULL, NULL, NULL, NULL, NULL, ""},
        {"RSA-1024", NULL, NULL, NULL, NULL, NULL, WEAK},
        {NULL, NULL, "RSA-1024", NULL, NULL, NULL, WEAK},
        {NULL, NULL, NULL, NULL, "RSA-1024", NULL, WEAK},
        {NULL, NULL, NULL, "SHA1", NULL, NULL, WEAK},
        {NULL, NULL, NULL, NULL, NULL, "SHA1", WEAK},
        {NULL, NULL, "RSA", NULL, NULL, "MD5", WEAK},
        {NULL, "SHA1", NULL, NULL, NULL, NULL, ""}, /* nobody verifies how an anchor signs itself */
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct certificate_wish root = {.authority = 1, .key = CASES[i].root_key, .hash = CASES[i].root_hash};
        struct certificate_wish signer = {
            .authority = 1, .key = CASES[i].signer_key, .hash = CASES[i].signer_hash};
        struct certificate_wish leaf = {
            .uris = {SHIPPER}, .key = CASES[i].leaf_key, .hash = CASES[i].leaf_hash};
        struct authority authority;
        authority.root = certificate_new(NULL, &root);
        authority.intermediate = certificate_new(&authority.root, &signer);
        check_weak(&authority, &leaf, CASES[i].said);
        authority_dispose(&authority);
    }
}

TEST(a_trust_anchor_is_no_leaf)
{
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct authority authority = authority_new();
    struct certificate proper = certificate_new(&authority.intermediate, &wish);
    struct certificate lone = certificate_new(NULL, &wish); /* self-signed, and in the bundle */
    char error[NS_REASON_MAX] = "";
    char *bundle = certificate_chain_pem(&authority.root, &lone);
    char *chains[] = {certificate_chain_pem(&proper, &authority.intermediate),
                      certificate_chain_pem(&lone, NULL)};
    char *keys[] = {certificate_key_pem(&proper), certificate_key_pem(&lone)};
    struct tls_credentials credentials[2];
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(credentials_init(&credentials[i], NULL, chains[i], keys[i], bundle, error, sizeof(error)),
                    0);
    struct pair pair;
    pair_run(&pair, &credentials[1], &credentials[0], SHIPPER);
    CHECK_TEXT(pair.server.tls.error, "peer certificate is not signed by a CA");
    pair_dispose(&pair);
    for (int i = 0; i < 2; i++) {
        credentials_dispose(&credentials[i]);
        free(chains[i]);
        free(keys[i]);
    }
    free(bundle);
    certificate_dispose(&proper);
    certificate_dispose(&lone);
    authority_dispose(&authority);
}

/* ---- damaged input ---- */

/* A proper leaf as DER, with each extension that the rules look at. */
static uint8_t *proper_leaf(int *length)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}, .other = "DNS:shipper.example,IP:10.77.1.10"};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    unsigned char *der = NULL;
    *length = i2d_X509(leaf.x509, &der);
    CHECK(*length > 0);
    certificate_dispose(&leaf);
    authority_dispose(&authority);
    return der;
}

TEST(damaged_certificates_are_refused_or_of_a_valid_identity)
{
    int length, read = 0, taken = 0;
    uint8_t *der = proper_leaf(&length);
    struct noise noise = noise_new(5);
    for (int round = 0; round < 4000; round++) {
        char identity[NS_IDENTITY_MAX];
        size_t damaged_length;
        uint8_t *damaged = noise_mutate(&noise, der, (size_t)length, &damaged_length);
        const unsigned char *at = damaged;
        X509 *x509 = d2i_X509(NULL, &at, (long)damaged_length);
        read += x509 != NULL;
        if (x509 != NULL && svid_leaf_fault(x509, SVID_CLIENT, DOMAIN, SVID_OWN_PATHS, identity) == NULL) {
            taken++;
            CHECK_CASE(spiffe_id_names_workload(identity, strlen(identity)), "round %d", round);
            CHECK_CASE(spiffe_id_in_domain(identity, strlen(identity), DOMAIN), "round %d", round);
        }
        X509_free(x509);
        free(damaged);
    }
    CHECK(read > 100 && taken > 0); /* the damage was not such that nothing was tried */
    OPENSSL_free(der);
}

/* ---- words ---- */

TEST(every_fault_fits_a_reason)
{
    for (int error = 0; error < 120; error++)
        for (int depth = 0; depth < 2; depth++) {
            const char *words = svid_path_fault(error, depth);
            CHECK_CASE(words == NULL || (words[0] != 0 && strlen(words) < NS_REASON_MAX), "%d", error);
        }
}

CHECK_MAIN
