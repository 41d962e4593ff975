/*
 * revoked.c: what revocation costs a handshake. Prints, with as many digests revoked as asked for: bytes of
 * the set, nanoseconds that a handshake looks into it (for both ends), and nanoseconds in all, with the
 * digests of a peer's certificate and of its intermediate.
 */
#include "wire/revoked.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "certificates.h"

#define PEER "spiffe://example.org/ns/default/sa/pipeline"

enum { HANDSHAKES = 100000 };

/* Of numbers, as good as random. */
static void fill(uint8_t *digests, size_t count)
{
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < count * REVOKED_DIGEST; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        digests[i] = (uint8_t)(state >> 32);
    }
}

/* CPU time: whatever else the machine does. */
static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* For both ends, of whom none is revoked; another place each time. */
static void look(struct revoked *revoked, struct digests *own, struct digests *peers)
{
    own->identity[0]++;
    peers->leaf.serial[0]++;
    if (revoked_look(revoked, own) != REVOKED_NOT || revoked_look(revoked, peers) != REVOKED_NOT)
        abort();
}

int main(int argc, char **argv)
{
    size_t count = argc > 1 ? (size_t)atol(argv[1]) : 100000;
    uint8_t *digests = malloc(count * REVOKED_DIGEST + 1);
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {PEER}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    struct revoked revoked;
    struct digests peers, own;
    revoked_init(&revoked);
    fill(digests, count);
    (void)revoked_change(&revoked, digests, count, NULL, 0, 1);
    memset(&own, 7, sizeof(own));
    memset(&peers, 9, sizeof(peers));
    own.signer_count = peers.signer_count = 1;
    STACK_OF(X509) *signers = sk_X509_new_null();
    sk_X509_push(signers, authority.intermediate.x509);
    double begun = now_ns();
    for (int i = 0; i < HANDSHAKES; i++)
        look(&revoked, &own, &peers);
    double looking = (now_ns() - begun) / HANDSHAKES;
    begun = now_ns();
    for (int i = 0; i < HANDSHAKES; i++) {
        if (digests_of(NULL, leaf.x509, PEER, signers, 0, 1, &peers) != 0)
            return 1;
        look(&revoked, &own, &peers);
    }
    printf("%zu %.0f %.0f\n", revoked.capacity * REVOKED_DIGEST, looking, (now_ns() - begun) / HANDSHAKES);
    sk_X509_free(signers);
    revoked_dispose(&revoked);
    certificate_dispose(&leaf);
    authority_dispose(&authority);
    free(digests);
    return 0;
}
