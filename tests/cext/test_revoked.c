/* revoked.c: what is revoked, and handshakes with whom. */
#define _GNU_SOURCE
#include "wire/revoked.h"

#include "certificates.h"
#include "check.h"
#include "credentials.h"
#include "noise.h"
#include "tls_pair.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

/* ---- digests ---- */

static void check_digest(const uint8_t digest[REVOKED_DIGEST], const char *expected)
{
    char text[2 * REVOKED_DIGEST + 1];
    for (int i = 0; i < REVOKED_DIGEST; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    CHECK_TEXT(text, expected);
}

static void name_issuer(X509 *x509)
{
    X509_NAME *name = X509_NAME_new();
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)"an issuer", -1, -1, 0);
    X509_set_issuer_name(x509, name);
    X509_NAME_free(name);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), 0x0a1b2c);
}

/* tests/unit/test_mesh_revoked.py has the same three. */
TEST(digests_are_those_that_agents_make)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}, .tamper = name_issuer};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    struct digests digests;
    CHECK_EQUAL(digests_of(NULL, leaf.x509, SHIPPER, NULL, 0, 0, &digests), 0);
    check_digest(digests.identity, "ec8315f56f5bd4e3db39a53eaddc9616");
    check_digest(digests.leaf.serial, "04f293c147a1a0d9e632bdd3736a94fe");
    check_digest(digests.leaf.issued, "ab1f2f886aa70aa87e6faf81af30cbc6");
    check_digest(digests.anchor, "00000000000000000000000000000000");
    certificate_dispose(&leaf);
    authority_dispose(&authority);
}

TEST(digest_of_an_anchor_is_the_beginning_of_its_fingerprint)
{
    struct authority authority = authority_new();
    uint8_t digest[REVOKED_DIGEST];
    unsigned char fingerprint[EVP_MAX_MD_SIZE];
    CHECK(X509_digest(authority.root.x509, EVP_sha256(), fingerprint, NULL) == 1);
    CHECK_EQUAL(digest_anchor(NULL, authority.root.x509, digest), 0);
    CHECK_EQUAL(memcmp(digest, fingerprint, sizeof(digest)), 0);
    authority_dispose(&authority);
}

/* ---- the set ---- */

static struct digests numbered(uint64_t number)
{
    struct digests digests;
    noise_fill(number + 1, 0, (uint8_t *)&digests, sizeof(digests));
    digests.signer_count = 2;
    return digests;
}

static int is_revoked(struct revoked *revoked, uint64_t number)
{
    const struct digests digests = numbered(number);
    return revoked_look(revoked, &digests) != REVOKED_NOT;
}

/* The serial digests of [from, end). */
static uint8_t *serials(uint64_t from, uint64_t end)
{
    uint8_t *all = malloc((end - from) * REVOKED_DIGEST + 1);
    for (uint64_t i = from; i < end; i++) {
        const struct digests digests = numbered(i);
        memcpy(all + (i - from) * REVOKED_DIGEST, digests.leaf.serial, REVOKED_DIGEST);
    }
    return all;
}

static size_t change(struct revoked *revoked, uint64_t add, uint64_t add_end, uint64_t drop,
                     uint64_t drop_end, int whole)
{
    uint8_t *added = serials(add, add_end), *dropped = serials(drop, drop_end);
    size_t count =
        revoked_change(revoked, added, (size_t)(add_end - add), dropped, (size_t)(drop_end - drop), whole);
    free(added);
    free(dropped);
    return count;
}

TEST(nothing_is_revoked_at_first)
{
    struct revoked revoked;
    revoked_init(&revoked);
    CHECK(!is_revoked(&revoked, 1));
    const struct digests none = {0};
    CHECK_EQUAL(revoked_look(&revoked, &none), REVOKED_NOT);
    CHECK_EQUAL(revoked_look(NULL, &none), REVOKED_NOT);
    revoked_dispose(&revoked);
}

TEST(what_was_revoked_is_so_until_it_is_restored)
{
    struct revoked revoked;
    revoked_init(&revoked);
    CHECK_EQUAL(change(&revoked, 0, 1000, 0, 0, 0), 1000);
    CHECK_EQUAL(change(&revoked, 1000, 1500, 0, 500, 0), 1000);
    for (uint64_t i = 0; i < 2000; i++)
        CHECK_CASE(is_revoked(&revoked, i) == (i >= 500 && i < 1500), "%d", (int)i);
    CHECK_EQUAL(change(&revoked, 700, 800, 700, 800, 0), 1000); /* what is in both is revoked */
    CHECK_EQUAL(change(&revoked, 0, 10, 0, 0, 1), 10);
    for (uint64_t i = 0; i < 2000; i++)
        CHECK_CASE(is_revoked(&revoked, i) == (i < 10), "%d", (int)i);
    CHECK_EQUAL(change(&revoked, 0, 0, 0, 0, 1), 0);
    CHECK(!is_revoked(&revoked, 1));
    revoked_dispose(&revoked);
}

TEST(each_of_the_digests_revokes)
{
    const struct digests digests = numbered(5);
    const struct {
        const uint8_t *digest;
        enum revoked_by by;
    } CASES[] = {{digests.identity, REVOKED_IDENTITY},        {digests.leaf.serial, REVOKED_CERTIFICATE},
                 {digests.leaf.issued, REVOKED_CERTIFICATE},  {digests.anchor, REVOKED_ANCHOR},
                 {digests.signers[0].issued, REVOKED_SIGNER}, {digests.signers[1].serial, REVOKED_SIGNER},
                 {digests.signers[2].serial, REVOKED_NOT}};
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct revoked revoked;
        revoked_init(&revoked);
        CHECK_EQUAL(revoked_change(&revoked, CASES[i].digest, 1, NULL, 0, 0), 1);
        CHECK_EQUAL(revoked_look(&revoked, &digests), CASES[i].by);
        revoked_dispose(&revoked);
    }
}

TEST(a_hundred_thousand_cost_four_megabytes)
{
    struct revoked revoked;
    revoked_init(&revoked);
    CHECK_EQUAL(change(&revoked, 0, 100000, 0, 0, 1), 100000);
    CHECK_EQUAL(revoked.capacity * REVOKED_DIGEST, 4 << 20);
    revoked_dispose(&revoked);
}

/* ---- handshakes ---- */

struct mesh {
    struct authority authority;
    struct revoked revoked;
    struct tls_credentials shipper, pipeline;
};

/* With the revocations of `revoked`; NULL: it hears of none. */
static struct tls_credentials credentials_of(const struct authority *authority, const char *identity,
                                             struct revoked *revoked)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *key = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&authority->root, NULL);
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
    credentials.trust->revoked = revoked;
    free(chain);
    free(key);
    free(bundle);
    certificate_dispose(&leaf);
    return credentials;
}

/* shipper hears of revocations, pipeline does not. */
static void mesh_init(struct mesh *mesh)
{
    mesh->authority = authority_new();
    revoked_init(&mesh->revoked);
    mesh->shipper = credentials_of(&mesh->authority, SHIPPER, &mesh->revoked);
    mesh->pipeline = credentials_of(&mesh->authority, PIPELINE, NULL);
}

static void mesh_dispose(struct mesh *mesh)
{
    credentials_dispose(&mesh->shipper);
    credentials_dispose(&mesh->pipeline);
    revoked_dispose(&mesh->revoked);
    authority_dispose(&mesh->authority);
}

/* What both say, with shipper in each role. */
static void check_handshakes(struct mesh *mesh, const char *shipper, const char *pipeline)
{
    for (int role = 0; role < 2; role++) {
        struct pair pair;
        if (role == TLS_CLIENT)
            pair_run(&pair, &mesh->shipper, &mesh->pipeline, PIPELINE);
        else
            pair_run(&pair, &mesh->pipeline, &mesh->shipper, SHIPPER);
        const struct end *one = role == TLS_CLIENT ? &pair.client : &pair.server;
        const struct end *other = role == TLS_CLIENT ? &pair.server : &pair.client;
        CHECK_TEXT(one->tls.error, shipper);
        CHECK_TEXT(other->tls.error, pipeline);
        CHECK_TEXT(one->tls.peer, shipper[0] == 0 ? PIPELINE : "");
        CHECK_EQUAL(tls_was_refused(&other->tls), strstr(pipeline, "was revoked") != NULL);
        pair_dispose(&pair);
    }
}

TEST(a_revoked_peer_is_refused_and_told_so)
{
    static const char SAID[] = "peer refused this workload's certificate: it was revoked";
    struct mesh mesh;
    mesh_init(&mesh);
    const struct digests digests = mesh.pipeline.digests;
    check_handshakes(&mesh, "", "");
    (void)revoked_change(&mesh.revoked, digests.identity, 1, NULL, 0, 0);
    check_handshakes(&mesh, "peer's identity was revoked", SAID);
    (void)revoked_change(&mesh.revoked, digests.leaf.serial, 1, NULL, 0, 1);
    check_handshakes(&mesh, "peer's certificate was revoked", SAID);
    (void)revoked_change(&mesh.revoked, digests.leaf.issued, 1, NULL, 0, 1);
    check_handshakes(&mesh, "peer's certificate was revoked", SAID);
    (void)revoked_change(&mesh.revoked, NULL, 0, digests.leaf.issued, 1, 0);
    check_handshakes(&mesh, "", "");
    mesh_dispose(&mesh);
}

/* Either form: that of `nodeseal revoke serial`, and a revocation list's of the root. */
TEST(an_intermediate_that_was_revoked_vouches_for_nobody)
{
    struct mesh mesh;
    struct pair pair;
    uint8_t alert = 0;
    mesh_init(&mesh);
    pair_run(&pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    CHECK_EQUAL(pair.client.tls.peers.signer_count, 1);
    const struct number_digests signer = pair.client.tls.peers.signers[0];
    const uint8_t *const FORMS[] = {signer.serial, signer.issued};
    for (int i = 0; i < 2; i++) {
        (void)revoked_change(&mesh.revoked, FORMS[i], 1, NULL, 0, 1);
        CHECK_TEXT(tls_revoked(&pair.client.tls, &alert), "the CA of the peer's certificate was revoked");
        CHECK_EQUAL(alert, SSL_AD_CERTIFICATE_REVOKED);
        check_handshakes(&mesh, "the CA of the peer's certificate was revoked",
                         "peer refused this workload's certificate: it was revoked");
    }
    pair_dispose(&pair);
    mesh_dispose(&mesh);
}

/* With so many intermediates, and the root sent along. */
static struct tls_credentials credentials_below(const struct authority *authority, int count,
                                                struct revoked *revoked)
{
    struct certificate path[REVOKED_SIGNERS_MOST + 1];
    const struct certificate *signer = &authority->root;
    for (int i = 0; i <= count; i++) {
        const struct certificate_wish wish = {.authority = i < count, .uris = {i < count ? NULL : SHIPPER}};
        path[i] = certificate_new(signer, &wish);
        signer = &path[i];
    }
    char *chain = certificate_chain_pem(&authority->root, NULL);
    for (int i = 0; i <= count; i++) {
        char *one = certificate_chain_pem(&path[i], NULL), *longer;
        CHECK(asprintf(&longer, "%s%s", one, chain) > 0);
        free(one);
        free(chain);
        chain = longer;
    }
    char *key = certificate_key_pem(&path[count]);
    char *bundle = certificate_chain_pem(&authority->root, NULL);
    char error[NS_REASON_MAX] = "";
    struct tls_credentials credentials;
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
    credentials.trust->revoked = revoked;
    for (int i = 0; i <= count; i++)
        certificate_dispose(&path[i]);
    free(chain);
    free(key);
    free(bundle);
    return credentials;
}

TEST(each_intermediate_counts_whether_there_are_none_or_eight)
{
    static const int COUNTS[] = {0, 1, 7, REVOKED_SIGNERS_MOST};
    struct revoked revoked;
    struct authority authority = authority_new();
    revoked_init(&revoked);
    for (size_t i = 0; i < sizeof(COUNTS) / sizeof(COUNTS[0]); i++) {
        struct pair pair;
        const int count = COUNTS[i];
        struct tls_credentials credentials = credentials_below(&authority, count, &revoked);
        pair_run(&pair, &credentials, &credentials, SHIPPER);
        CHECK_CASE(pair.client.result == TLS_OK, "%d: %s", count, pair.client.tls.error);
        CHECK_CASE(pair.server.result == TLS_OK, "%d: %s", count, pair.server.tls.error);
        const struct digests *peers = &pair.client.tls.peers, *own = &pair.client.tls.own;
        CHECK_EQUAL(peers->signer_count, count); /* the root is an anchor, and none of them */
        CHECK_EQUAL(own->signer_count, count < REVOKED_SIGNERS_MOST ? count + 1 : count);
        for (int at = 0; at < count; at++) {
            CHECK(memcmp(&peers->signers[at], &own->signers[at], sizeof(own->signers[at])) == 0);
            (void)revoked_change(&revoked, peers->signers[at].serial, 1, NULL, 0, 1);
            CHECK_EQUAL(revoked_look(&revoked, peers), REVOKED_SIGNER);
        }
        (void)revoked_change(&revoked, peers->anchor, 1, NULL, 0, 1);
        CHECK_EQUAL(revoked_look(&revoked, peers), REVOKED_ANCHOR);
        (void)revoked_change(&revoked, NULL, 0, NULL, 0, 1);
        CHECK_EQUAL(revoked_look(&revoked, peers), REVOKED_NOT);
        pair_dispose(&pair);
        credentials_dispose(&credentials);
    }
    revoked_dispose(&revoked);
    authority_dispose(&authority);
}

/* The one that is revoked is of another CA than its peer. */
TEST(who_has_its_certificate_of_a_revoked_intermediate_talks_with_nobody)
{
    struct mesh mesh;
    mesh_init(&mesh);
    CHECK_EQUAL(mesh.shipper.digests.signer_count, 1);
    struct digests without = {0};
    uint8_t alert = 0;
    (void)revoked_change(&mesh.revoked, mesh.shipper.digests.signers[0].serial, 1, NULL, 0, 1);
    CHECK_TEXT(revoked_reason(&mesh.revoked, &without, &mesh.shipper.digests, &alert),
               "the CA of this workload's certificate was revoked");
    CHECK_EQUAL(alert, SSL_AD_ACCESS_DENIED);
    mesh_dispose(&mesh);
}

TEST(who_is_revoked_itself_talks_with_nobody)
{
    struct mesh mesh;
    mesh_init(&mesh);
    const struct digests digests = mesh.shipper.digests;
    (void)revoked_change(&mesh.revoked, digests.identity, 1, NULL, 0, 0);
    check_handshakes(&mesh, "this workload's identity was revoked", "peer refused the handshake");
    struct pair pair;
    pair_run(&pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    CHECK(pair.client.tls.presented == NULL); /* the peer is not at fault */
    pair_dispose(&pair);
    (void)revoked_change(&mesh.revoked, digests.leaf.serial, 1, NULL, 0, 1);
    check_handshakes(&mesh, "this workload's certificate was revoked", "peer refused the handshake");
    mesh_dispose(&mesh);
}

TEST(a_session_that_is_refused_later_ends_with_words)
{
    struct mesh mesh;
    struct pair pair;
    mesh_init(&mesh);
    pair_run(&pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    CHECK_EQUAL(pair.client.result, TLS_OK);
    tls_refuse(&pair.client.tls, &pair.client.sink, SSL_AD_CERTIFICATE_REVOKED);
    tls_close(&pair.client.tls, &pair.client.sink); /* nothing follows an alert */
    end_deliver(&pair.client, &pair.server);
    CHECK_EQUAL(pair.server.result, TLS_FAILED);
    CHECK_TEXT(pair.server.tls.error, "peer refused this workload's certificate: it was revoked");
    CHECK(tls_was_refused(&pair.server.tls));
    pair_dispose(&pair);
    mesh_dispose(&mesh);
}

TEST(a_session_that_runs_can_be_asked_whether_an_end_was_revoked)
{
    struct mesh mesh;
    struct pair pair;
    uint8_t alert = 0;
    mesh_init(&mesh);
    const struct digests peers = mesh.pipeline.digests, ours = mesh.shipper.digests;
    pair_run(&pair, &mesh.shipper, &mesh.pipeline, PIPELINE);
    CHECK(tls_revoked(&pair.client.tls, &alert) == NULL);
    (void)revoked_change(&mesh.revoked, peers.leaf.serial, 1, NULL, 0, 1);
    CHECK_TEXT(tls_revoked(&pair.client.tls, &alert), "peer's certificate was revoked");
    CHECK_EQUAL(alert, SSL_AD_CERTIFICATE_REVOKED);
    (void)revoked_change(&mesh.revoked, ours.leaf.issued, 1, NULL, 0, 1);
    CHECK_TEXT(tls_revoked(&pair.client.tls, &alert), "this workload's certificate was revoked");
    CHECK_EQUAL(alert, SSL_AD_ACCESS_DENIED);
    CHECK(tls_revoked(&pair.server.tls, &alert) == NULL);
    (void)revoked_change(&mesh.revoked, pair.client.tls.facts.anchor, 1, NULL, 0, 1);
    CHECK_TEXT(tls_revoked(&pair.client.tls, &alert),
               "the trust anchor that the peer was verified by was removed");
    CHECK_EQUAL(alert, SSL_AD_UNKNOWN_CA);
    pair_dispose(&pair);
    mesh_dispose(&mesh);
}

CHECK_MAIN
