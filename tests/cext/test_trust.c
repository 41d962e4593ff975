/*
 * trust.c: several trust domains, each with anchors of its own: a peer's certificate is verified by those of
 * its own domain and by no others.
 */
#include "wire/trust.h"

#include "certificates.h"
#include "check.h"
#include "credentials.h"
#include "tls_pair.h"
#include "wire/svid.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PARTNER "spiffe://partner.example/ns/default/sa/till"
#define STRANGER "spiffe://other.example/ns/default/sa/stranger"

/* Two trust domains with an authority each, and one end that trusts both. */
struct federation {
    struct authority own, partner;
    struct tls_credentials judge;
};

/* A leaf of the authority; it trusts example.org's anchors `own`, and partner.example's `partner` (NULL: none
 * of it). */
static struct tls_credentials show(const struct authority *authority, const char *identity,
                                   const struct authority *own, const struct authority *partner)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *key = certificate_key_pem(&leaf);
    char *anchors[] = {certificate_chain_pem(&own->root, NULL),
                       certificate_chain_pem(partner != NULL ? &partner->root : &own->root, NULL)};
    const struct ns_bundle domains[] = {{"example.org", anchors[0]}, {"partner.example", anchors[1]}};
    char error[256] = "";
    struct bundles *bundles = bundles_new(NULL, domains, partner != NULL ? 2 : 1, error, sizeof(error));
    CHECK_TEXT(error, "");
    struct tls_credentials credentials;
    CHECK_EQUAL(tls_credentials_init(&credentials, NULL, trust_new(bundles, NULL), chain, key_of(key), error,
                                     sizeof(error)),
                0);
    for (int i = 0; i < 2; i++)
        free(anchors[i]);
    free(chain);
    free(key);
    certificate_dispose(&leaf);
    return credentials;
}

static void federation_init(struct federation *federation)
{
    federation->own = authority_new();
    federation->partner = authority_new();
    federation->judge = show(&federation->own, SHIPPER, &federation->own, &federation->partner);
}

static void federation_dispose(struct federation *federation)
{
    credentials_dispose(&federation->judge);
    authority_dispose(&federation->own);
    authority_dispose(&federation->partner);
}

/* What the judge says, in both roles, of a leaf of that authority; "": it is taken. */
static void check_judged(struct federation *federation, const struct authority *authority,
                         const char *identity, const char *said)
{
    struct tls_credentials peer = show(authority, identity, &federation->own, &federation->partner);
    for (int role = 0; role < 2; role++) {
        struct pair pair;
        if (role == TLS_CLIENT)
            pair_run(&pair, &federation->judge, &peer, identity);
        else
            pair_run(&pair, &peer, &federation->judge, SHIPPER);
        const struct end *judge = role == TLS_CLIENT ? &pair.client : &pair.server;
        CHECK_TEXT(judge->tls.error, said);
        CHECK_TEXT(judge->tls.peer, said[0] == 0 ? identity : "");
        CHECK_TEXT(judge->tls.presented == NULL ? "" : judge->tls.presented, said[0] == 0 ? "" : identity);
        pair_dispose(&pair);
    }
    credentials_dispose(&peer);
}

/* The same of what is refused, whatever is presented of it. */
static void check_refused(struct federation *federation, const struct authority *authority,
                          const char *identity, const char *said)
{
    struct tls_credentials peer = show(authority, identity, &federation->own, &federation->partner);
    for (int role = 0; role < 2; role++) {
        struct pair pair;
        if (role == TLS_CLIENT)
            pair_run(&pair, &federation->judge, &peer, PARTNER);
        else
            pair_run(&pair, &peer, &federation->judge, SHIPPER);
        const struct end *judge = role == TLS_CLIENT ? &pair.client : &pair.server;
        CHECK_TEXT(judge->tls.error, said);
        CHECK_TEXT(judge->tls.peer, "");
        pair_dispose(&pair);
    }
    credentials_dispose(&peer);
}

TEST(peers_of_both_domains_are_taken_by_the_anchors_of_their_own)
{
    struct federation federation;
    federation_init(&federation);
    check_judged(&federation, &federation.own, SHIPPER, "");
    check_judged(&federation, &federation.partner, PARTNER, "");
    federation_dispose(&federation);
}

TEST(an_anchor_vouches_for_no_other_domain_in_either_direction)
{
    static const char UNTRUSTED[] = "peer certificate is of a CA that is not trusted here";
    struct federation federation;
    federation_init(&federation);
    check_judged(&federation, &federation.partner, SHIPPER, UNTRUSTED);
    check_judged(&federation, &federation.own, PARTNER, UNTRUSTED);
    federation_dispose(&federation);
}

TEST(a_peer_of_a_domain_that_is_not_trusted_is_refused_whoever_signed_it)
{
    struct federation federation;
    federation_init(&federation);
    check_judged(&federation, &federation.own, STRANGER, "peer is of another trust domain");
    check_judged(&federation, &federation.partner, STRANGER, "peer is of another trust domain");
    federation_dispose(&federation);
}

TEST(ids_of_other_domains_may_have_any_path)
{
    static const char *const IDS[] = {
        "spiffe://partner.example/till",
        "spiffe://partner.example/billing/api",
        "spiffe://partner.example/ns/default",
        "spiffe://partner.example/sa/till/ns/shop",
        "spiffe://partner.example/ns/shop/sa/till/7",
        "spiffe://partner.example/A.b-c_d/...",
    };
    struct federation federation;
    federation_init(&federation);
    for (size_t i = 0; i < sizeof(IDS) / sizeof(IDS[0]); i++) {
        check_judged(&federation, &federation.partner, IDS[i], "");
        check_judged(&federation, &federation.own, IDS[i],
                     "peer certificate is of a CA that is not trusted here");
    }
    check_judged(&federation, &federation.own, "spiffe://example.org/billing/api",
                 "peer's SPIFFE id is not of the form <trust domain>/ns/<namespace>/sa/<account>");
    federation_dispose(&federation);
}

TEST(ids_of_other_domains_must_be_valid_all_the_same)
{
    static const char *const IDS[] = {
        "spiffe://partner.example/",         "spiffe://partner.example/till/",
        "spiffe://partner.example//till",    "spiffe://partner.example/./till",
        "spiffe://partner.example/../till",  "spiffe://partner.example/till?a=b",
        "spiffe://partner.example/till#a",   "spiffe://partner.example/t%69ll",
        "spiffe://partner.example/till\n",   "spiffe://partner.example/t\xc3\xa4ll",
        "spiffe://partner.example/*",        "spiffe://Partner.example/till",
        "spiffe://partner.example:443/till", "spiffe://me@partner.example/till",
    };
    struct federation federation;
    federation_init(&federation);
    for (size_t i = 0; i < sizeof(IDS) / sizeof(IDS[0]); i++)
        check_refused(&federation, &federation.partner, IDS[i],
                      "peer certificate has a URI that is no SPIFFE id");
    check_refused(&federation, &federation.partner, "spiffe://partner.example",
                  "peer certificate has a SPIFFE id without a path");
    char uri[600] = "spiffe://partner.example/";
    memset(uri + strlen(uri), 'x', sizeof(uri) - strlen(uri));
    uri[NS_IDENTITY_MAX - 1] = 0;
    check_judged(&federation, &federation.partner, uri, "");
    uri[NS_IDENTITY_MAX - 1] = 'x';
    uri[NS_IDENTITY_MAX] = 0;
    check_refused(&federation, &federation.partner, uri, "peer's SPIFFE id is longer than 511 bytes");
    federation_dispose(&federation);
}

TEST(server_of_another_domain_has_the_very_id_that_is_expected)
{
    struct federation federation;
    struct pair pair;
    federation_init(&federation);
    struct tls_credentials peer = show(&federation.partner, "spiffe://partner.example/billing/api",
                                       &federation.own, &federation.partner);
    pair_run(&pair, &federation.judge, &peer, "spiffe://partner.example/billing/web");
    CHECK_TEXT(pair.client.tls.error, "peer has another identity than expected");
    pair_dispose(&pair);
    credentials_dispose(&peer);
    federation_dispose(&federation);
}

TEST(a_domain_whose_name_begins_as_a_trusted_one_is_another)
{
    struct federation federation;
    federation_init(&federation);
    check_judged(&federation, &federation.own, "spiffe://example.or/ns/default/sa/a",
                 "peer is of another trust domain");
    check_judged(&federation, &federation.own, "spiffe://example.org.example/ns/default/sa/a",
                 "peer is of another trust domain");
    federation_dispose(&federation);
}

/* The end of federation, and its beginning, need no new credentials. */
TEST(a_domain_counts_from_the_moment_that_it_comes_and_no_longer_than_it_stays)
{
    struct federation federation;
    federation_init(&federation);
    char *anchor = certificate_chain_pem(&federation.own.root, NULL);
    const struct ns_bundle own = {"example.org", anchor};
    char error[256] = "";
    trust_set(federation.judge.trust, bundles_new(NULL, &own, 1, error, sizeof(error)));
    check_judged(&federation, &federation.partner, PARTNER, "peer is of another trust domain");
    char *other = certificate_chain_pem(&federation.partner.root, NULL);
    const struct ns_bundle both[] = {{"example.org", anchor}, {"partner.example", other}};
    trust_set(federation.judge.trust, bundles_new(NULL, both, 2, error, sizeof(error)));
    check_judged(&federation, &federation.partner, PARTNER, "");
    CHECK_TEXT(error, "");
    free(anchor);
    free(other);
    federation_dispose(&federation);
}

TEST(a_bundle_that_cannot_be_read_is_named_by_its_domain)
{
    struct authority authority = authority_new();
    char *anchor = certificate_chain_pem(&authority.root, NULL);
    const struct ns_bundle domains[] = {{"example.org", anchor}, {"partner.example", "nothing"}};
    char error[256] = "";
    CHECK(bundles_new(NULL, domains, 2, error, sizeof(error)) == NULL);
    CHECK_CASE(strstr(error, "trust domain partner.example") != NULL, "%s", error);
    free(anchor);
    authority_dispose(&authority);
}

TEST(what_a_peer_presents_is_shown_in_printable_characters_and_shortened)
{
    struct authority authority = authority_new();
    char long_uri[400];
    memset(long_uri, 'a', sizeof(long_uri));
    memcpy(long_uri, "spiffe://other.example/", 23);
    long_uri[sizeof(long_uri) - 1] = 0;
    static const char *const URIS[] = {"spiffe://other/\033[31m", "spiffe://other/%2e", "", NULL};
    static const char *const SHOWN[] = {"spiffe://other/?[31m", "spiffe://other/%2e", "", ""};
    char out[TLS_PRESENTED_MAX];
    for (int i = 0; i < 4; i++) {
        struct certificate_wish wish = {.uris = {URIS[i]}};
        struct certificate leaf = certificate_new(&authority.intermediate, &wish);
        svid_presented(leaf.x509, out, sizeof(out));
        CHECK_TEXT(out, SHOWN[i]);
        certificate_dispose(&leaf);
    }
    struct certificate_wish wish = {.uris = {long_uri}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    svid_presented(leaf.x509, out, sizeof(out));
    CHECK_EQUAL(strlen(out), TLS_PRESENTED_MAX - 1);
    CHECK_TEXT(out + TLS_PRESENTED_MAX - 4, "...");
    certificate_dispose(&leaf);
    authority_dispose(&authority);
}

CHECK_MAIN
