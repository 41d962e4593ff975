/*
 * credentials.h: credentials with the anchors that they trust, in one call.
 */
#ifndef NS_TEST_CREDENTIALS_H
#define NS_TEST_CREDENTIALS_H

#include <stdlib.h>
#include <string.h>

#include "wire/tls.h"

static inline struct tls_key key_of(const char *pem)
{
    return (struct tls_key){(const uint8_t *)pem, strlen(pem)};
}

/* A trust of its own for `bundles`, which it takes over. */
static inline struct trust *trust_new(struct bundles *bundles, struct revoked *revoked)
{
    struct trust *trust = malloc(sizeof(*trust));
    trust_init(trust, revoked);
    trust_set(trust, bundles);
    return trust;
}

/* As tls_credentials_init; peers of example.org are verified by `bundle`, others are trusted not at all. */
static inline int credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx,
                                   const char *chain, const char *key, const char *bundle, char *error,
                                   size_t error_size)
{
    const struct ns_bundle own = {"example.org", bundle};
    memset(credentials, 0, sizeof(*credentials));
    struct bundles *bundles = bundles_new(libctx, &own, 1, error, error_size);
    if (bundles == NULL)
        return -1;
    struct trust *trust = trust_new(bundles, NULL);
    int result = tls_credentials_init(credentials, libctx, trust, chain, key_of(key), error, error_size);
    if (result != 0) {
        trust_dispose(trust);
        free(trust);
        credentials->trust = NULL;
    }
    return result;
}

/* With their trust. */
static inline void credentials_dispose(struct tls_credentials *credentials)
{
    if (credentials->trust != NULL) {
        trust_dispose(credentials->trust);
        free(credentials->trust);
        credentials->trust = NULL;
    }
    tls_credentials_dispose(credentials);
}

#endif
