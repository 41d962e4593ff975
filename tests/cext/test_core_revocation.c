/* The whole core: what is revoked is cut and refused, and what is trusted in other domains is taken. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "core_ends.h"
#include "credentials.h"

#define TILL "spiffe://partner.example/ns/default/sa/till"

/* By which every certificate of the identity is revoked. */
static struct digests digests_for(const char *identity)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    struct digests digests;
    CHECK_EQUAL(digests_of(NULL, leaf.x509, identity, NULL, 0, 0, &digests), 0);
    certificate_dispose(&leaf);
    authority_dispose(&authority);
    return digests;
}

static size_t revoke_identity(struct lab *lab, const char *identity)
{
    const struct digests digests = digests_for(identity);
    return core_revoke(lab->core, digests.identity, 1, NULL, 0, 0);
}

static size_t restore_identity(struct lab *lab, const char *identity)
{
    const struct digests digests = digests_for(identity);
    return core_revoke(lab->core, NULL, 0, digests.identity, 1, 0);
}

/* The reason of the workload's connection that was closed; "" if there is none, or no reason. */
static void closed_reason(struct lab *lab, uint64_t key, char out[NS_REASON_MAX])
{
    struct ns_connection rows[64];
    size_t count = core_connections(lab->core, rows, 64);
    out[0] = 0;
    for (size_t i = 0; i < count && i < 64; i++)
        if (rows[i].workload == key && rows[i].state == NS_STATE_CLOSED)
            snprintf(out, NS_REASON_MAX, "%s", rows[i].reason);
}

/* Whether a peer of the workload was refused for this reason; *row is that refusal. */
static int was_refused(struct lab *lab, uint64_t key, const char *reason, struct ns_refusal *row)
{
    struct ns_refusal rows[64];
    size_t count = core_refusals(lab->core, rows, 64);
    for (size_t i = 0; i < count && i < 64; i++) {
        if (rows[i].workload == key && strcmp(rows[i].reason, reason) == 0) {
            *row = rows[i];
            return 1;
        }
    }
    return 0;
}

TEST(what_runs_is_cut_when_an_end_is_revoked_and_says_why)
{
    static const char *const REVOKED[] = {SHIPPER, PIPELINE};
    static const char OWN[] = "this workload's identity was revoked", PEERS[] = "peer's identity was revoked";
    for (int i = 0; i < 2; i++) {
        struct lab *lab = lab_new_of_one_worker(); /* with two, one may hear of it from the other */
        struct ends ends = lab_connect(lab);
        struct ns_refusal row;
        char reason[NS_REASON_MAX];
        CHECK_EQUAL(revoke_identity(lab, REVOKED[i]), 1);
        expect_reset(ends.client);
        expect_reset(ends.server);
        closed_reason(lab, SHIPPER_KEY, reason);
        CHECK_TEXT(reason, i == 0 ? OWN : PEERS);
        closed_reason(lab, PIPELINE_KEY, reason);
        CHECK_TEXT(reason, i == 0 ? PEERS : OWN);
        CHECK(was_refused(lab, SHIPPER_KEY, i == 0 ? OWN : PEERS, &row));
        CHECK(was_refused(lab, PIPELINE_KEY, i == 0 ? PEERS : OWN, &row));
        ends_close(&ends);
        WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
        lab_free(lab);
    }
}

TEST(what_others_have_goes_on)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    CHECK_EQUAL(revoke_identity(lab, SIEM), 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, 1); /* asked behind it: all workers have looked */
    send_stream(ends.client, 1, 0, 100000);
    receive_stream(ends.server, 1, 0, 100000);
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_tunnel_in_the_pool_is_cut_as_well)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1);
    CHECK_EQUAL(revoke_identity(lab, PIPELINE), 1);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    lab_free(lab);
}

TEST(what_is_revoked_is_refused_until_it_is_restored)
{
    static const char REFUSED[] = "peer refused this workload's certificate: it was revoked";
    struct lab *lab = lab_new();
    struct ns_refusal row;
    CHECK_EQUAL(revoke_identity(lab, PIPELINE), 1);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(was_refused(lab, SHIPPER_KEY, "peer's identity was revoked", &row));
    CHECK_TEXT(row.presented, PIPELINE);
    WAIT_UNTIL(was_refused(lab, PIPELINE_KEY, REFUSED, &row));
    CHECK_TEXT(row.presented, PIPELINE);
    CHECK_EQUAL(restore_identity(lab, PIPELINE), 0);
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 1000);
    receive_stream(ends.server, 1, 0, 1000);
    ends_close(&ends);
    lab_free(lab);
}

/* A peer that takes nothing in has no time to read why; the application on this end is not to wait for it. */
TEST(what_cannot_be_sent_does_not_keep_a_revoked_peers_connections)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    uint8_t bytes[65536] = {0};
    for (int i = 0; i < 200; i++)
        (void)!send(ends.client, bytes, sizeof(bytes), MSG_NOSIGNAL | MSG_DONTWAIT);
    CHECK_EQUAL(revoke_identity(lab, SHIPPER), 1);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    ends_close(&ends);
    lab_free(lab);
}

/* ---- trust domains ---- */

/* Credentials of another authority; their chain has its root as well, which the peer has too. */
static void give(struct lab *lab, uint64_t key, const struct authority *authority, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    char *below = certificate_chain_pem(&leaf, &authority->intermediate);
    char *root = certificate_chain_pem(&authority->root, NULL);
    char *secret = certificate_key_pem(&leaf);
    char *chain, error[NS_REASON_MAX] = "";
    CHECK(asprintf(&chain, "%s%s", below, root) > 0);
    int fd = memfd_create("key", MFD_CLOEXEC);
    CHECK_EQUAL(write(fd, secret, strlen(secret)), (ssize_t)strlen(secret)); /* the position is its end */
    CHECK_EQUAL(core_workload_credentials_from(lab->core, key, chain, fd, error, sizeof(error)), 0);
    close(fd);
    free(below);
    free(root);
    free(chain);
    free(secret);
    certificate_dispose(&leaf);
}

static void trust(struct lab *lab, const struct authority *partner)
{
    char *anchors[] = {certificate_chain_pem(&lab->authority.root, NULL),
                       certificate_chain_pem(&partner->root, NULL)};
    const struct ns_bundle domains[] = {{"example.org", anchors[0]}, {"partner.example", anchors[1]}};
    char error[256] = "";
    CHECK_EQUAL(core_trust(lab->core, domains, 2, error, sizeof(error)), 0);
    free(anchors[0]);
    free(anchors[1]);
}

TEST(a_workload_of_a_federated_domain_is_dialled_by_its_own_anchors)
{
    struct lab *lab = lab_new();
    struct authority partner = authority_new();
    struct ns_refusal row;
    give(lab, PIPELINE_KEY, &partner, TILL);
    LAB_SET(lab, identity, TILL);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(was_refused(lab, SHIPPER_KEY, "peer is of another trust domain", &row));
    CHECK_TEXT(row.presented, TILL);
    trust(lab, &partner);
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 1000);
    receive_stream(ends.server, 1, 0, 1000);
    ends_close(&ends);
    authority_dispose(&partner);
    lab_free(lab);
}

TEST(a_peer_of_an_unknown_domain_is_told_of_with_what_it_presented)
{
    struct lab *lab = lab_new();
    struct authority partner = authority_new();
    struct ns_refusal row;
    give(lab, SHIPPER_KEY, &partner, TILL);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(was_refused(lab, PIPELINE_KEY, "peer is of another trust domain", &row));
    CHECK_TEXT(row.presented, TILL);
    CHECK_TEXT(row.expected, "example.org");
    WAIT_UNTIL(was_refused(lab, SHIPPER_KEY,
                           "peer refused this workload's certificate: it does not trust its CA", &row));
    CHECK_TEXT(row.presented, TILL);
    CHECK_TEXT(row.expected, "");
    authority_dispose(&partner);
    lab_free(lab);
}

/* ---- trust anchors ---- */

/* Its names are others than those of the lab's: each source counts for itself. */
static struct authority another_authority(void)
{
    struct authority first = authority_new();
    authority_dispose(&first);
    return authority_new();
}

/* Both roots are anchors of the own domain. */
static void trust_both(struct lab *lab, const struct authority *another)
{
    char *anchors = certificate_chain_pem(&lab->authority.root, &another->root);
    const struct ns_bundle own = {"example.org", anchors};
    char error[256] = "";
    CHECK_EQUAL(core_trust(lab->core, &own, 1, error, sizeof(error)), 0);
    free(anchors);
}

static struct digests anchored(const struct authority *authority)
{
    struct digests digests = {.anchor = {0}};
    CHECK_EQUAL(digest_anchor(NULL, authority->root.x509, digests.anchor), 0);
    return digests;
}

/* The anchor that verified the peer of the workload's live connection. */
static struct digests anchor_of(struct lab *lab, uint64_t key)
{
    struct ns_connection rows[64];
    struct digests digests = {.anchor = {0}};
    size_t count = core_connections(lab->core, rows, 64);
    for (size_t i = 0; i < count && i < 64; i++)
        if (rows[i].workload == key && rows[i].state == NS_STATE_OPEN)
            memcpy(digests.anchor, rows[i].anchor, sizeof(digests.anchor));
    return digests;
}

static int same_anchor(const struct digests one, const struct digests other)
{
    return memcmp(one.anchor, other.anchor, sizeof(one.anchor)) == 0;
}

/* Of the anchor; zeros: nothing needs it. */
static struct ns_anchor_use use_of(struct lab *lab, const struct digests *digests)
{
    struct ns_anchor_use uses[8];
    size_t count = core_anchors(lab->core, uses, 8);
    for (size_t i = 0; i < count; i++)
        if (memcmp(uses[i].anchor, digests->anchor, sizeof(uses[i].anchor)) == 0)
            return uses[i];
    return (struct ns_anchor_use){.connections = 0};
}

TEST(both_ends_tell_the_anchor_that_verified_their_peer_and_how_many_need_it)
{
    struct lab *lab = lab_new();
    struct authority another = another_authority();
    const struct digests first = anchored(&lab->authority), second = anchored(&another);
    CHECK_EQUAL(core_anchors(lab->core, NULL, 0), 0);
    trust_both(lab, &another);
    give(lab, PIPELINE_KEY, &another, PIPELINE);
    struct ends ends = lab_connect(lab), more = lab_connect(lab);
    CHECK(same_anchor(anchor_of(lab, SHIPPER_KEY), second));
    CHECK(same_anchor(anchor_of(lab, PIPELINE_KEY), first));
    CHECK_EQUAL(core_anchors(lab->core, NULL, 0), 2);
    CHECK_EQUAL(use_of(lab, &first).connections, 2);
    CHECK_EQUAL(use_of(lab, &second).connections, 2);
    ends_close(&ends);
    ends_close(&more);
    WAIT_UNTIL(use_of(lab, &first).connections == 0 && use_of(lab, &second).connections == 0);
    CHECK(use_of(lab, &second).tunnels >= 1); /* they wait in the pool */
    authority_dispose(&another);
    lab_free(lab);
}

TEST(removed_anchor_cuts_whom_it_verified_on_both_ends_and_refuses_them)
{
    static const char REMOVED[] = "the trust anchor that the peer was verified by was removed";
    static const char TOLD[] = "peer refused this workload's certificate: it does not trust its CA";
    struct lab *lab = lab_new_of_one_worker();
    struct authority another = another_authority(), unused = authority_new();
    const struct digests second = anchored(&another), third = anchored(&unused);
    struct ns_refusal row;
    char reason[NS_REASON_MAX];
    trust_both(lab, &another);
    give(lab, PIPELINE_KEY, &another, PIPELINE);
    struct ends ends = lab_connect(lab);
    CHECK_EQUAL(core_revoke(lab->core, third.anchor, 1, NULL, 0, 0), 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, 1); /* asked behind it: all workers have looked */
    send_stream(ends.client, 1, 0, 1000);
    receive_stream(ends.server, 1, 0, 1000);
    CHECK_EQUAL(core_revoke(lab->core, second.anchor, 1, NULL, 0, 0), 2);
    expect_reset(ends.client);
    expect_reset(ends.server);
    closed_reason(lab, SHIPPER_KEY, reason);
    CHECK_TEXT(reason, REMOVED);
    closed_reason(lab, PIPELINE_KEY, reason);
    CHECK_TEXT(reason, TOLD);
    ends_close(&ends);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(was_refused(lab, SHIPPER_KEY, REMOVED, &row) && row.count >= 2);
    WAIT_UNTIL(was_refused(lab, PIPELINE_KEY, TOLD, &row) && row.count >= 2);
    CHECK_EQUAL(core_revoke(lab->core, NULL, 0, second.anchor, 1, 0), 1);
    ends = lab_connect(lab);
    ends_close(&ends);
    authority_dispose(&another);
    authority_dispose(&unused);
    lab_free(lab);
}

/* ---- keys in files ---- */

TEST(a_key_is_read_from_a_file_in_both_forms_and_refused_in_others)
{
    struct lab *lab = lab_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&lab->authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &lab->authority.intermediate);
    char *pem = certificate_key_pem(&leaf);
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(leaf.key);
    unsigned char *der = NULL;
    int der_length = i2d_PKCS8_PRIV_KEY_INFO(info, &der);
    static const uint8_t TOO_LONG[20000] = {0x30};
    const struct {
        const void *bytes;
        size_t length;
        const char *said;
    } CASES[] = {
        {pem, strlen(pem), ""},
        {der, (size_t)der_length, ""},
        {der, (size_t)der_length - 1, "the private key cannot be read or does not fit the certificate"},
        {"", 0, "the private key cannot be read or does not fit the certificate"},
        {TOO_LONG, sizeof(TOO_LONG), "the private key is too long"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        char error[256] = "";
        int fd = memfd_create("key", MFD_CLOEXEC);
        CHECK_EQUAL(write(fd, CASES[i].bytes, CASES[i].length), (ssize_t)CASES[i].length);
        int result = core_workload_credentials_from(lab->core, SHIPPER_KEY, chain, fd, error, sizeof(error));
        CHECK_EQUAL(result, CASES[i].said[0] == 0 ? 0 : -1);
        CHECK_CASE(strncmp(error, CASES[i].said, strlen(CASES[i].said)) == 0, "%s", error);
        close(fd);
    }
    char error[256] = "";
    CHECK_EQUAL(core_workload_credentials_from(lab->core, SHIPPER_KEY, chain, -1, error, sizeof(error)), -1);
    CHECK_TEXT(error, "the private key cannot be read: Bad file descriptor");
    struct ends ends = lab_connect(lab);
    ends_close(&ends);
    OPENSSL_free(der);
    PKCS8_PRIV_KEY_INFO_free(info);
    free(chain);
    free(pem);
    certificate_dispose(&leaf);
    lab_free(lab);
}

CHECK_MAIN
