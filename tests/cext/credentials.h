/*
 * credentials.h: credentials with the anchors that they trust, in one call.
 */
#ifndef NS_TEST_CREDENTIALS_H
#define NS_TEST_CREDENTIALS_H

#include "wire/tls.h"

/* As tls_credentials_init; they trust `bundle`. */
static inline int credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx,
                                   const char *chain, const char *key, const char *bundle, char *error,
                                   size_t error_size)
{
    struct tls_trust trust;
    credentials->context = NULL;
    if (tls_trust_init(&trust, libctx, bundle, error, error_size) != 0)
        return -1;
    int result = tls_credentials_init(credentials, libctx, chain, key, error, error_size);
    tls_credentials_trust(credentials, &trust);
    tls_trust_dispose(&trust);
    return result;
}

#endif
