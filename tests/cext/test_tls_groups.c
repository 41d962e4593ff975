/* Which group a handshake's key exchange has, by what the linked OpenSSL knows: 3.5 and later have
 * X25519MLKEM768. Where it does not, the tests hold the fallback. */
#include "wire/tls.h"

#include "certificates.h"
#include "credentials.h"
#include "check.h"
#include "tls_pair.h"
#include "wire/tls_bounds.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"

static const char HYBRID[] = "X25519MLKEM768";

/* What two ends show, by role. */
struct mesh {
    struct authority authority;
    struct tls_credentials credentials[2];
};

static struct mesh mesh_new(void)
{
    static const char *const IDENTITIES[] = {[TLS_CLIENT] = SHIPPER, [TLS_SERVER] = PIPELINE};
    struct mesh mesh = {.authority = authority_new()};
    char *bundle = certificate_chain_pem(&mesh.authority.root, NULL);
    for (int role = 0; role < 2; role++) {
        char error[NS_REASON_MAX] = "";
        struct certificate_wish wish = {.uris = {IDENTITIES[role]}};
        struct certificate leaf = certificate_new(&mesh.authority.intermediate, &wish);
        char *chain = certificate_chain_pem(&leaf, &mesh.authority.intermediate);
        char *key = certificate_key_pem(&leaf);
        CHECK_EQUAL(credentials_init(&mesh.credentials[role], NULL, chain, key, bundle, error, sizeof(error)),
                    0);
        certificate_dispose(&leaf);
        free(chain);
        free(key);
    }
    free(bundle);
    return mesh;
}

static void mesh_dispose(struct mesh *mesh)
{
    for (int role = 0; role < 2; role++)
        credentials_dispose(&mesh->credentials[role]);
    authority_dispose(&mesh->authority);
}

static int library_has_hybrid(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    int has = SSL_CTX_set1_groups_list(context, HYBRID) == 1;
    SSL_CTX_free(context);
    return has;
}

static void check_groups(struct mesh *mesh, const char *group)
{
    struct pair pair;
    pair_run(&pair, &mesh->credentials[TLS_CLIENT], &mesh->credentials[TLS_SERVER], PIPELINE);
    CHECK_CASE(pair.client.result == TLS_OK, "%s", pair.client.tls.error);
    CHECK_CASE(pair.server.result == TLS_OK, "%s", pair.server.tls.error);
    CHECK_TEXT(pair.client.tls.facts.group, group);
    CHECK_TEXT(pair.server.tls.facts.group, group);
    pair_dispose(&pair);
}

/* A release of OpenSSL may have the group under another provider; what is asked here is the linked one. */
TEST(openssl_from_3_5_on_has_the_hybrid_group)
{
    CHECK_EQUAL(library_has_hybrid(), OpenSSL_version_num() >= 0x30500000L);
}

TEST(two_ends_agree_on_the_hybrid_group_where_openssl_has_it)
{
    struct mesh mesh = mesh_new();
    check_groups(&mesh, library_has_hybrid() ? HYBRID : "x25519");
    mesh_dispose(&mesh);
}

TEST(a_peer_with_x25519_alone_is_talked_to)
{
    for (int odd = 0; odd < 2; odd++) {
        struct mesh mesh = mesh_new();
        CHECK_EQUAL(SSL_CTX_set1_groups_list(mesh.credentials[odd].context, "X25519"), 1);
        check_groups(&mesh, "x25519");
        mesh_dispose(&mesh);
    }
}

/* As a ztunnel whose policy is post-quantum. OpenSSL before 3.5 cannot even be such a peer. */
TEST(a_peer_with_the_hybrid_group_alone_is_talked_to)
{
    for (int odd = 0; odd < 2; odd++) {
        struct mesh mesh = mesh_new();
        int set = SSL_CTX_set1_groups_list(mesh.credentials[odd].context, HYBRID) == 1;
        CHECK_EQUAL(set, library_has_hybrid());
        check_groups(&mesh, set ? HYBRID : "x25519");
        mesh_dispose(&mesh);
    }
}

/* RFC 8446, 4.1.3: what tells a HelloRetryRequest from a ServerHello. */
static int asks_for_another_share(const struct end *server)
{
    static const uint8_t RANDOM[] = {0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11};
    enum { RECORD_AND_MESSAGE_HEADERS_AND_VERSION = 5 + 4 + 2 };
    return server->sink.length > 64 &&
           memcmp(server->sink.bytes + RECORD_AND_MESSAGE_HEADERS_AND_VERSION, RANDOM, sizeof(RANDOM)) == 0;
}

/* The hello has shares for both kinds of groups: that costs it 1.2 kB, and saves a round trip. */
TEST(no_server_asks_for_another_share)
{
    enum { SHARE = 1184 + 32, CLASSICAL_HELLO = 600 };
    static const char *const SERVERS[] = {"", "X25519"};
    for (size_t i = 0; i < sizeof(SERVERS) / sizeof(SERVERS[0]); i++) {
        struct mesh mesh = mesh_new();
        uint8_t sent[2][8192];
        struct end ends[2] = {0};
        if (SERVERS[i][0] != 0)
            CHECK_EQUAL(SSL_CTX_set1_groups_list(mesh.credentials[TLS_SERVER].context, SERVERS[i]), 1);
        for (int role = 0; role < 2; role++) {
            ends[role].result = TLS_WANT;
            ends[role].sink = (struct tls_sink){.bytes = sent[role], .capacity = sizeof(sent[role])};
            CHECK_EQUAL(tls_init(&ends[role].tls, (enum tls_role)role, &mesh.credentials[role], DOMAIN,
                                 role == TLS_CLIENT ? PIPELINE : NULL),
                        0);
        }
        tls_feed(&ends[TLS_CLIENT].tls, NULL, 0);
        CHECK_EQUAL(tls_handshake(&ends[TLS_CLIENT].tls, &ends[TLS_CLIENT].sink), TLS_WANT);
        size_t hello = ends[TLS_CLIENT].sink.length;
        CHECK_CASE(library_has_hybrid() == (hello > SHARE), "%zu bytes", hello);
        CHECK_CASE(hello < CLASSICAL_HELLO + (library_has_hybrid() ? SHARE : 0), "%zu bytes", hello);
        end_deliver(&ends[TLS_CLIENT], &ends[TLS_SERVER]);
        CHECK_EQUAL(ends[TLS_SERVER].result, TLS_WANT);
        CHECK(!asks_for_another_share(&ends[TLS_SERVER]));
        for (int role = 0; role < 2; role++)
            tls_dispose(&ends[role].tls);
        mesh_dispose(&mesh);
    }
}

CHECK_MAIN
