/* pem.h: what a TLS context presents and trusts, read from PEM texts. 0, or -1 with OpenSSL's errors queued.
 */
#ifndef NS_PEM_H
#define NS_PEM_H

#include <openssl/ssl.h>

/* Trust anchors, one or more; NULL: they cannot be read, or there is none. */
X509_STORE *pem_bundle(OSSL_LIB_CTX *libctx, const char *bundle_pem);
/* The certificates that the context presents, the leaf first. 0, or -1. */
int pem_load_chain(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *chain_pem);
/* The leaf's private key; after its certificate. 0, or -1. */
int pem_load_key(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *key_pem);

#endif
