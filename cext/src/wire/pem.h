/*
 * pem.h: what a TLS context presents, and certificates that are to be trusted. What fails has OpenSSL's
 * errors queued.
 */
#ifndef NS_PEM_H
#define NS_PEM_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

enum { PEM_KEY_MOST = 16384 }; /* bytes of a private key */

/* Certificates, one or more, the caller's; NULL: they cannot be read, or there is none. */
STACK_OF(X509) * pem_certificates(OSSL_LIB_CTX *libctx, const char *text);
/* The certificates that the context presents, the leaf first. 0, or -1. */
int pem_load_chain(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *chain_pem);
/* The leaf's private key, in PEM form or DER; after its certificate. 0, or -1. */
int pem_load_key(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const uint8_t *key, size_t length);

#endif
