/*
 * profile.h: which cryptography handshakes may use: all that is sound, or what OpenSSL's FIPS module offers.
 *
 * With the profile `fips` a library context has the module and no other implementation of anything; groups
 * are the NIST's curves, and signatures those of ECDSA and RSA. Without the module there is no context.
 */
#ifndef NS_PROFILE_H
#define NS_PROFILE_H

#include <openssl/crypto.h>
#include <stddef.h>

/* For one worker. NULL with one line in error: there is no memory, or OpenSSL's configuration does not lead
 * to the module. */
OSSL_LIB_CTX *profile_context(int fips, char *error, size_t error_size);
/* Harmless if it is NULL. Everything that was made in it is gone before. */
void profile_context_free(OSSL_LIB_CTX *libctx);
/* Whether the context is one of the profile `fips`. */
int profile_is_fips(OSSL_LIB_CTX *libctx);

#endif
