/* Private keys of credentials are in OpenSSL's secure heap, and what happens when there is no room. */
#include "wire/key_heap.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "certificates.h"
#include "check.h"
#include "credentials.h"
#include "tls_pair.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"

struct texts {
    char *chain, *key, *bundle;
};

static struct texts texts_new(const char *kind)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}, .key = kind};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    struct texts texts = {certificate_chain_pem(&leaf, &authority.intermediate), certificate_key_pem(&leaf),
                          certificate_chain_pem(&authority.root, NULL)};
    certificate_dispose(&leaf);
    authority_dispose(&authority);
    return texts;
}

static void texts_dispose(struct texts *texts)
{
    free(texts->chain);
    free(texts->key);
    free(texts->bundle);
}

static int init(struct tls_credentials *credentials, const struct texts *texts, char error[NS_REASON_MAX])
{
    error[0] = 0;
    return credentials_init(credentials, NULL, texts->chain, texts->key, texts->bundle, error, NS_REASON_MAX);
}

static void check_handshake(const struct tls_credentials *client, const struct tls_credentials *server)
{
    struct pair pair;
    pair_run(&pair, client, server, SHIPPER);
    CHECK_CASE(pair.client.result == TLS_OK, "%s", pair.client.tls.error);
    CHECK_CASE(pair.server.result == TLS_OK, "%s", pair.server.tls.error);
    pair_dispose(&pair);
}

/* They cost what key_heap.h says. */
TEST(keys_of_every_kind_are_in_the_heap_and_leave_it)
{
    static const struct {
        const char *kind;
        size_t bytes;
    } KINDS[] = {{"P-256", 96}, {"P-384", 128}, {"ED25519", 96}, {"RSA", 1024}};
    CHECK(key_heap_begin(1 << 20) >= 0);
    for (size_t i = 0; i < sizeof(KINDS) / sizeof(KINDS[0]); i++) {
        char error[NS_REASON_MAX];
        struct tls_credentials first, second;
        struct texts texts = texts_new(KINDS[i].kind);
        /* With the first one OpenSSL makes what a thread needs. */
        CHECK_EQUAL(init(&first, &texts, error), 0);
        size_t before = CRYPTO_secure_used();
        CHECK_EQUAL(init(&second, &texts, error), 0);
        size_t used = CRYPTO_secure_used() - before;
        CHECK_CASE(used > 0 && used <= KINDS[i].bytes, "%s: %zu", KINDS[i].kind, used);
        credentials_dispose(&second);
        CHECK_EQUAL(CRYPTO_secure_used(), before);
        credentials_dispose(&first);
        texts_dispose(&texts);
    }
}

TEST(credentials_for_which_there_is_no_room_are_refused_and_those_that_are_there_stay)
{
    enum { MOST = 4096 };
    static struct tls_credentials credentials[MOST];
    char error[NS_REASON_MAX];
    int count = 0;
    struct texts texts = texts_new(NULL);
    CHECK(key_heap_begin(1 << 16) >= 0);
    while (count < MOST && init(&credentials[count], &texts, error) == 0)
        count++;
    CHECK(count > 10 && count < MOST);
    CHECK_CASE(strncmp(error, "the locked memory for private keys is full", 42) == 0, "%s", error);
    for (int i = 0; i < count; i++)
        CHECK_EQUAL(SSL_CTX_check_private_key(credentials[i].context), 1);
    check_handshake(&credentials[0], &credentials[count - 1]);
    /* With room again it works again. */
    while (count > 5)
        credentials_dispose(&credentials[--count]);
    CHECK_EQUAL(init(&credentials[count], &texts, error), 0);
    for (int i = 0; i <= count; i++)
        credentials_dispose(&credentials[i]);
    texts_dispose(&texts);
}

/* As with more handshakes under way than there is room for. */
TEST(a_handshake_for_which_there_is_no_room_says_so)
{
    static void *taken[1 << 12];
    struct tls_credentials credentials;
    char error[NS_REASON_MAX];
    size_t count = 0;
    struct texts texts = texts_new(NULL);
    CHECK(key_heap_begin(1 << 16) >= 0);
    CHECK_EQUAL(init(&credentials, &texts, error), 0);
    check_handshake(&credentials, &credentials);
    for (size_t size = 1 << 15; size >= 32; size /= 2)
        while ((taken[count] = OPENSSL_secure_malloc(size)) != NULL)
            count++;
    struct pair pair;
    pair_run(&pair, &credentials, &credentials, SHIPPER);
    CHECK_EQUAL(pair.client.result, TLS_FAILED);
    CHECK_TEXT(pair.client.tls.error, "TLS: the locked memory for private keys is full");
    pair_dispose(&pair);
    while (count > 0)
        OPENSSL_secure_free(taken[--count]);
    check_handshake(&credentials, &credentials);
    credentials_dispose(&credentials);
    texts_dispose(&texts);
}

TEST(without_a_heap_a_key_that_is_none_is_not_for_lack_of_room)
{
    char error[NS_REASON_MAX];
    struct tls_credentials credentials;
    struct texts texts = texts_new(NULL);
    texts.key[40] ^= 1;
    CHECK_EQUAL(init(&credentials, &texts, error), -1);
    CHECK_CASE(strstr(error, "the private key cannot be read or does not fit the certificate") != NULL, "%s",
               error);
    texts_dispose(&texts);
}

/* As for a process without CAP_IPC_LOCK (an unprivileged one is refused; root is not). */
TEST(memory_that_cannot_be_locked_is_told)
{
    const struct rlimit none = {0, 0};
    CHECK_EQUAL(setrlimit(RLIMIT_MEMLOCK, &none), 0);
    if (geteuid() == 0)
        CHECK_EQUAL(seteuid(65534), 0); /* drops the effective capabilities */
    CHECK_EQUAL(key_heap_begin(1 << 16), 0);
    CHECK_EQUAL(key_heap_begin(1 << 16), 0);
    (void)seteuid(getuid());
    (void)prctl(PR_SET_DUMPABLE, 1); /* for the leak checker */
}

CHECK_MAIN
