/*
 * trust.h: whom peers are verified by: the anchors of each trust domain that is trusted, and what was
 * revoked.
 *
 * A set of bundles never changes. A worker's trust is the set in force; the worker replaces it while the
 * thread that makes its handshakes verifies by it, and who verifies holds the set meanwhile.
 */
#ifndef NS_TRUST_H
#define NS_TRUST_H

#include <openssl/x509.h>
#include <pthread.h>

#include "nodeseal_core.h"
#include "wire/revoked.h"

enum { TRUST_DOMAIN_MAX = 256 }; /* a trust domain's name with its terminating zero */

/* The anchors of several trust domains; immutable, counted. */
struct bundles;

/* Reads them into `libctx`. On failure returns NULL and writes one line to error, which names the domain. */
struct bundles *bundles_new(OSSL_LIB_CTX *libctx, const struct ns_bundle *domains, size_t count, char *error,
                            size_t error_size);
/* NULL is allowed. */
void bundles_release(struct bundles *bundles);
/* Of one trust domain; they last as long as the bundles. NULL: it is not trusted. */
STACK_OF(X509) * bundles_anchors(const struct bundles *bundles, const char *domain);
/* Of one of these anchors, by its address (digest_anchor); NULL: it is none of them. */
const uint8_t *bundles_digest(const struct bundles *bundles, const char *domain, const X509 *anchor);

struct trust {
    /* Held for a few instructions only. */
    pthread_mutex_t mutex;
    /* Held; NULL: nobody is trusted. */
    struct bundles *bundles;
    /* Borrowed, of all workers; NULL: nothing is. */
    struct revoked *revoked;
};

void trust_init(struct trust *trust, struct revoked *revoked);
void trust_dispose(struct trust *trust);
/* Takes the bundles over. Verifications that have begun go on with the ones before. */
void trust_set(struct trust *trust, struct bundles *bundles);
/* Those in force, for the caller to release; NULL: there are none. */
struct bundles *trust_hold(struct trust *trust);

#endif
