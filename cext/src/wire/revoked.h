/*
 * revoked.h: identities and certificates that are not to be talked with any more; one set for each core.
 *
 * The set holds digests, 16 bytes for whatever they stand for: the first half of the SHA-256 of a text
 * (agent/nodeseal/mesh/revoked.py makes the same ones). A certificate has three, and one that was verified
 * has another, of the trust anchor at the end of its chain. Each certificate between the two has the middle
 * ones. It is revoked by any of them:
 *
 *   "identity" 0 SPIFFE id
 *   "serial" 0 trust domain 0 serial number
 *   "issued" 0 SHA-256 of the issuer's name in DER 0 serial number
 *   the trust anchor's certificate in DER: its fingerprint
 *
 * Numbers and SHA-256 are in hexadecimal, numbers without leading zeros.
 *
 * The set is replaced as a whole: who looks meets the one before or the one behind, and never a part. 100,000
 * digests are 4 MiB, and twice that for the moment in which they are replaced.
 */
#ifndef NS_REVOKED_H
#define NS_REVOKED_H

#include <openssl/x509.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum { REVOKED_DIGEST = 16 };

enum { REVOKED_SIGNERS_MOST = 8 };

/* By which a certificate is named by its serial number. */
struct number_digests {
    uint8_t serial[REVOKED_DIGEST];
    uint8_t issued[REVOKED_DIGEST];
};

/* What a workload's certificate can be revoked by. */
struct digests {
    uint8_t identity[REVOKED_DIGEST];
    struct number_digests leaf;
    /* Zeros: it was not verified here, as the own one. */
    uint8_t anchor[REVOKED_DIGEST];
    /* Of the intermediates between it and its anchor. */
    struct number_digests signers[REVOKED_SIGNERS_MOST];
    uint8_t signer_count;
};

/* Of a certificate whose (valid) SPIFFE id is `identity`, and of those between it and its trust anchor, the
 * next one first: [from, end) of `chain`. Its anchor's stays as it is. 0, or -1: OpenSSL cannot, or there are
 * too many. */
int digests_of(OSSL_LIB_CTX *libctx, const X509 *certificate, const char *identity,
               const STACK_OF(X509) * chain, int from, int end, struct digests *out);
/* Of a trust anchor: 5 us. 0, or -1: OpenSSL cannot. */
int digest_anchor(OSSL_LIB_CTX *libctx, const X509 *anchor, uint8_t out[REVOKED_DIGEST]);

/* Open addressing, linear probing, at most two thirds full; a slot of zeros is free. */
struct revoked {
    /* Held while the slots of a certificate are looked for, and while a table takes another's place. */
    pthread_mutex_t mutex;
    uint8_t (*slots)[REVOKED_DIGEST];
    /* A power of two; 0: nothing is revoked, and there are no slots. */
    size_t capacity;
    /* Slots. */
    size_t used;
};

void revoked_init(struct revoked *revoked);
void revoked_dispose(struct revoked *revoked);

/* Digests lie one after the other; any may be there several times. From now on what is in `added` is revoked,
 * and what is in `removed` alone is not; `whole`: nothing else is. One caller at a time. Returns how many
 * are. */
size_t revoked_change(struct revoked *revoked, const uint8_t *added, size_t added_count,
                      const uint8_t *removed, size_t removed_count, int whole);

enum revoked_by {
    REVOKED_NOT = 0,
    REVOKED_CERTIFICATE = 1,
    REVOKED_IDENTITY = 2,
    REVOKED_ANCHOR = 3,
    REVOKED_SIGNER = 4,
};

/* For any thread. NULL for `revoked`: nothing is. */
enum revoked_by revoked_look(struct revoked *revoked, const struct digests *digests);
/* Whether one of two ends is: why, in words of storage that lasts, shorter than NS_REASON_MAX; NULL: neither
 * is. *alert: as which the peer is told, SSL_AD_ACCESS_DENIED if it is the own one. */
const char *revoked_reason(struct revoked *revoked, const struct digests *peers, const struct digests *own,
                           uint8_t *alert);

#endif
