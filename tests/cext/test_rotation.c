/*
 * trust.c and peer.c: two nodes at every two stages of docs/rotate-your-trust-anchor.md, in real handshakes.
 *
 * A stage is whom a node trusts and by which root the certificates are that its workloads show. While it is
 * being given certificates of the new root it has those of both. Of each root there are two intermediates:
 * one may be renewed at any stage.
 */
#include "wire/trust.h"

#include "certificates.h"
#include "check.h"
#include "credentials.h"
#include "tls_pair.h"

#define IDENTITY "spiffe://example.org/ns/default/sa/shipper"

enum root { OLD, NEW };
enum stage { BEFORE, TRUSTS_BOTH, GETS_NEW, ISSUES_NEW, AFTER, STAGES };

static const char *const NAMES[STAGES] = {"before", "trusts both", "gets new certificates",
                                          "issues by the new", "after"};
static const int TRUSTS[STAGES][2] = {{1, 0}, {1, 1}, {1, 1}, {1, 1}, {0, 1}};
static const int SHOWS[STAGES][2] = {{1, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 1}};

/* Stages that two nodes may be at at the same time: the page has all nodes trust both roots before one issues
 * by the new one, and no certificate of the old one left before one trusts it no more. */
static const int PERMITTED[STAGES][STAGES] = {
    {1, 1, 0, 0, 0}, {1, 1, 1, 1, 0}, {0, 1, 1, 1, 0}, {0, 1, 1, 1, 1}, {0, 0, 0, 1, 1},
};

/* What a node at the first stage refuses of one at the second: certificates of no root, the old or the new
 * one.
 */
enum { NONE = -1 };
static const int REFUSED[STAGES][STAGES] = {
    {NONE, NONE, NEW, NEW, NEW},    {NONE, NONE, NONE, NONE, NONE}, {NONE, NONE, NONE, NONE, NONE},
    {NONE, NONE, NONE, NONE, NONE}, {OLD, OLD, OLD, NONE, NONE},
};

enum { INTERMEDIATES = 2 };

struct ca {
    struct certificate root, intermediates[INTERMEDIATES];
};

/* What the workloads of a node at a stage show; `shown` is unused where there is no such certificate. */
struct node {
    struct tls_credentials shown[2][INTERMEDIATES];
};

struct rotation {
    struct ca cas[2];
    struct node nodes[STAGES];
};

/* The roots that a node trusts. */
static char *bundle_at(const struct rotation *rotation, enum stage stage)
{
    const struct ca *cas = rotation->cas;
    const int *trusts = TRUSTS[stage];
    return certificate_chain_pem(&cas[trusts[OLD] ? OLD : NEW].root,
                                 trusts[OLD] && trusts[NEW] ? &cas[NEW].root : NULL);
}

static struct tls_credentials credentials_at(const struct rotation *rotation, enum stage stage,
                                             enum root root, int intermediate)
{
    const struct certificate *signer = &rotation->cas[root].intermediates[intermediate];
    struct certificate_wish wish = {.uris = {IDENTITY}};
    struct certificate leaf = certificate_new(signer, &wish);
    char *chain = certificate_chain_pem(&leaf, signer);
    char *key = certificate_key_pem(&leaf);
    char *bundle = bundle_at(rotation, stage);
    struct tls_credentials credentials;
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
    free(chain);
    free(key);
    free(bundle);
    certificate_dispose(&leaf);
    return credentials;
}

static void rotation_init(struct rotation *rotation)
{
    const struct certificate_wish wish = {.authority = 1};
    memset(rotation, 0, sizeof(*rotation));
    for (int root = 0; root < 2; root++) {
        struct ca *ca = &rotation->cas[root];
        ca->root = certificate_new(NULL, &wish);
        for (int i = 0; i < INTERMEDIATES; i++)
            ca->intermediates[i] = certificate_new(&ca->root, &wish);
    }
    for (int stage = 0; stage < STAGES; stage++)
        for (int root = 0; root < 2; root++)
            for (int i = 0; SHOWS[stage][root] && i < INTERMEDIATES; i++)
                rotation->nodes[stage].shown[root][i] =
                    credentials_at(rotation, (enum stage)stage, (enum root)root, i);
}

static void rotation_dispose(struct rotation *rotation)
{
    for (int stage = 0; stage < STAGES; stage++)
        for (int root = 0; root < 2; root++)
            for (int i = 0; SHOWS[stage][root] && i < INTERMEDIATES; i++)
                credentials_dispose(&rotation->nodes[stage].shown[root][i]);
    for (int root = 0; root < 2; root++) {
        for (int i = 0; i < INTERMEDIATES; i++)
            certificate_dispose(&rotation->cas[root].intermediates[i]);
        certificate_dispose(&rotation->cas[root].root);
    }
}

/* One that is shown by a node at `stage`, which is the `number`th of four; NULL: it has none such. */
static const struct tls_credentials *shown(const struct rotation *rotation, int stage, int number)
{
    const enum root root = number < INTERMEDIATES ? OLD : NEW;
    return SHOWS[stage][root] ? &rotation->nodes[stage].shown[root][number % INTERMEDIATES] : NULL;
}

static int is_refused(int judge, int stage, int number)
{
    return REFUSED[judge][stage] == (number < INTERMEDIATES ? OLD : NEW);
}

static const char UNTRUSTED[] = "peer certificate is of a CA that is not trusted here";
static const char TOLD[] = "peer refused this workload's certificate: it does not trust its CA";

/* The client looks at the server's certificate first: a server whose client refused it has seen none. */
static void check_handshake(const struct rotation *rotation, int client, int server, int clients, int servers)
{
    const int by_client = is_refused(client, server, servers);
    const int by_server = !by_client && is_refused(server, client, clients);
    struct pair pair;
    pair_run(&pair, shown(rotation, client, clients), shown(rotation, server, servers), IDENTITY);
    CHECK_TEXT(pair.client.tls.error, by_client ? UNTRUSTED : by_server ? TOLD : "");
    CHECK_TEXT(pair.server.tls.error, by_server ? UNTRUSTED : by_client ? TOLD : "");
    const char *peer = by_client || by_server ? "" : IDENTITY;
    if (!by_server) /* the client is done before the server refuses it */
        CHECK_TEXT(pair.client.tls.peer, peer);
    CHECK_TEXT(pair.server.tls.peer, peer);
    pair_dispose(&pair);
}

TEST(nodes_at_two_stages_talk_both_ways_as_the_page_says_and_not_otherwise)
{
    struct rotation rotation;
    rotation_init(&rotation);
    for (int client = 0; client < STAGES; client++)
        for (int server = 0; server < STAGES; server++) {
            const int works = REFUSED[client][server] == NONE && REFUSED[server][client] == NONE;
            CHECK_CASE(works == PERMITTED[client][server], "client %s, server %s", NAMES[client],
                       NAMES[server]);
            for (int i = 0; i < 2 * INTERMEDIATES; i++)
                for (int j = 0; j < 2 * INTERMEDIATES; j++)
                    if (shown(&rotation, client, i) != NULL && shown(&rotation, server, j) != NULL)
                        check_handshake(&rotation, client, server, i, j);
        }
    rotation_dispose(&rotation);
}

/* Whom a node trusts changes under the certificates that it has: it needs no new ones to follow. */
TEST(a_node_follows_the_trust_with_the_certificates_that_it_has)
{
    static const enum stage TRUSTED[] = {BEFORE, TRUSTS_BOTH, AFTER};
    struct rotation rotation;
    rotation_init(&rotation);
    for (int root = 0; root < 2; root++) {
        struct tls_credentials own = credentials_at(&rotation, BEFORE, (enum root)root, 0);
        for (int step = 0; step < 3; step++) {
            const int *trusts = TRUSTS[TRUSTED[step]];
            char *anchors = bundle_at(&rotation, TRUSTED[step]);
            const struct ns_bundle bundle = {DOMAIN, anchors};
            char error[NS_REASON_MAX] = "";
            trust_set(own.trust, bundles_new(NULL, &bundle, 1, error, sizeof(error)));
            CHECK_TEXT(error, "");
            free(anchors);
            for (int peer = 0; peer < STAGES; peer++)
                for (int i = 0; i < 2 * INTERMEDIATES; i++) {
                    const struct tls_credentials *theirs = shown(&rotation, peer, i);
                    if (theirs == NULL)
                        continue;
                    struct pair pair;
                    pair_run(&pair, &own, theirs, IDENTITY);
                    CHECK_TEXT(pair.client.tls.error, !trusts[i < INTERMEDIATES ? OLD : NEW] ? UNTRUSTED
                                                      : !TRUSTS[peer][root]                  ? TOLD
                                                                                             : "");
                    pair_dispose(&pair);
                }
        }
        credentials_dispose(&own);
    }
    rotation_dispose(&rotation);
}

/* ---- a root and its renewal: the same name and key, another certificate ---- */

static const struct certificate *renewed;

/* The anchor's own signature is not looked at. */
static void renew(X509 *x509)
{
    X509_set_subject_name(x509, X509_get_subject_name(renewed->x509));
    X509_set_issuer_name(x509, X509_get_subject_name(renewed->x509));
    X509_set_pubkey(x509, renewed->key);
}

/* nodeseal.identity.trust orders them by that. */
TEST(of_two_anchors_with_one_key_the_first_that_is_valid_verifies)
{
    static const struct {
        long begins, ends;
        int first; /* whether it verifies where it comes first */
    } CASES[] = {{-60, 9000, 1}, {-9000, -60, 0}, {60, 9000, 0}};
    struct authority authority = authority_new();
    renewed = &authority.root;
    for (int i = 0; i < 3; i++)
        for (int first = 0; first < 2; first++) {
            struct certificate_wish wish = {
                .authority = 1, .tamper = renew, .begins = CASES[i].begins, .ends = CASES[i].ends};
            struct certificate other = certificate_new(NULL, &wish);
            const struct certificate *anchors[] = {first ? &other : &authority.root,
                                                   first ? &authority.root : &other};
            struct certificate_wish leaf_wish = {.uris = {IDENTITY}};
            struct certificate leaf = certificate_new(&authority.intermediate, &leaf_wish);
            char *chain = certificate_chain_pem(&leaf, &authority.intermediate);
            char *key = certificate_key_pem(&leaf);
            char *bundle = certificate_chain_pem(anchors[0], anchors[1]);
            struct tls_credentials credentials;
            char error[NS_REASON_MAX] = "";
            CHECK_EQUAL(credentials_init(&credentials, NULL, chain, key, bundle, error, sizeof(error)), 0);
            struct pair pair;
            pair_run(&pair, &credentials, &credentials, IDENTITY);
            uint8_t expected[REVOKED_DIGEST];
            const int is_other = first && CASES[i].first;
            CHECK_EQUAL(digest_anchor(NULL, (is_other ? &other : &authority.root)->x509, expected), 0);
            CHECK_TEXT(pair.client.tls.error, "");
            CHECK_CASE(memcmp(pair.client.tls.facts.anchor, expected, sizeof(expected)) == 0,
                       "case %d, first %d", i, first);
            pair_dispose(&pair);
            credentials_dispose(&credentials);
            free(chain);
            free(key);
            free(bundle);
            certificate_dispose(&leaf);
            certificate_dispose(&other);
        }
    authority_dispose(&authority);
}

CHECK_MAIN
