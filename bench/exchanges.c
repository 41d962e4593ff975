/*
 * exchanges.c: what a handshake costs by the groups that its client knows. For each argument, a list of
 * groups: microseconds of CPU that both ends take, bytes of the hello, and bytes of memory that a server has
 * while it waits for the client's second message. The groups take turns, so that whatever else the machine
 * does falls on all of them.
 */
#include <malloc.h>
#include <time.h>

#include "certificates.h"
#include "credentials.h"

#define CLIENT "spiffe://example.org/ns/default/sa/shipper"
#define SERVER "spiffe://example.org/ns/default/sa/pipeline"

enum { ROUNDS = 20, HANDSHAKES = 50, ROOM = 16384, GROUPS_MOST = 8 };

static struct tls_credentials credentials_of(const struct authority *authority, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    struct tls_credentials made;
    char error[NS_REASON_MAX];
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *key = certificate_key_pem(&leaf), *bundle = certificate_chain_pem(&authority->root, NULL);
    CHECK_EQUAL(credentials_init(&made, NULL, chain, key, bundle, error, sizeof(error)), 0);
    certificate_dispose(&leaf);
    free(chain);
    free(key);
    free(bundle);
    return made;
}

struct cost {
    double us;
    size_t hello, waiting;
};

static double cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* One step with what the other end has said. */
static void step(struct tls *tls, struct tls_sink *in, struct tls_sink *out, enum tls_result expected)
{
    tls_feed(tls, in->bytes, in->length);
    CHECK_CASE(tls_handshake(tls, out) == expected, "%s", tls->error);
    in->length = 0;
}

static void handshake(struct tls_credentials credentials[2], struct cost *cost)
{
    uint8_t bytes[2][ROOM];
    struct tls ends[2];
    struct tls_sink said[2] = {{bytes[0], 0, ROOM}, {bytes[1], 0, ROOM}};
    double begin = cpu_us();
    size_t before = mallinfo2().uordblks;
    CHECK_EQUAL(tls_init(&ends[1], TLS_SERVER, &credentials[1], "example.org", NULL), 0);
    size_t server = mallinfo2().uordblks - before;
    CHECK_EQUAL(tls_init(&ends[0], TLS_CLIENT, &credentials[0], "example.org", SERVER), 0);
    step(&ends[0], &said[1], &said[0], TLS_WANT);
    cost->hello = said[0].length;
    before = mallinfo2().uordblks;
    step(&ends[1], &said[0], &said[1], TLS_WANT);
    cost->waiting = server + mallinfo2().uordblks - before;
    step(&ends[0], &said[1], &said[0], TLS_OK);
    step(&ends[1], &said[0], &said[1], TLS_OK);
    tls_dispose(&ends[0]);
    tls_dispose(&ends[1]);
    cost->us += cpu_us() - begin;
}

int main(int argc, char **argv)
{
    struct cost costs[GROUPS_MOST] = {0};
    struct authority authority = authority_new();
    struct tls_credentials credentials[2] = {credentials_of(&authority, CLIENT),
                                             credentials_of(&authority, SERVER)};
    if (argc < 2 || argc > GROUPS_MOST)
        return 2;
    for (int round = 0; round <= ROUNDS; round++)
        for (int i = 1; i < argc; i++) {
            if (SSL_CTX_set1_groups_list(credentials[0].context, argv[i]) != 1)
                continue;
            if (round == 1)
                costs[i - 1].us = 0; /* the first round warms up */
            for (int j = 0; j < HANDSHAKES; j++)
                handshake(credentials, &costs[i - 1]);
        }
    for (int i = 0; i < argc - 1; i++)
        printf("%.1f %zu %zu\n", costs[i].us / (ROUNDS * HANDSHAKES), costs[i].hello, costs[i].waiting);
    return 0;
}
