/* pem.c: see pem.h. */
#include "wire/pem.h"

#include <openssl/err.h>
#include <openssl/pem.h>

/* Reads the next certificate of a PEM text into libctx; NULL at its end, with *ok cleared if it is no good.
 */
static X509 *next_certificate(BIO *pem, OSSL_LIB_CTX *libctx, int *ok)
{
    X509 *certificate = X509_new_ex(libctx, NULL);
    if (certificate != NULL && PEM_read_bio_X509(pem, &certificate, NULL, NULL) == NULL) {
        X509_free(certificate);
        certificate = NULL;
        if (ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE)
            ERR_clear_error(); /* the end of the text */
        else
            *ok = 0;
    }
    return certificate;
}

X509_STORE *pem_bundle(OSSL_LIB_CTX *libctx, const char *bundle_pem)
{
    X509_STORE *store = X509_STORE_new();
    BIO *pem = BIO_new_mem_buf(bundle_pem, -1);
    int count = 0;
    int ok = store != NULL && pem != NULL;
    X509 *certificate;
    while (ok && (certificate = next_certificate(pem, libctx, &ok)) != NULL) {
        ok = X509_STORE_add_cert(store, certificate);
        X509_free(certificate);
        count++;
    }
    BIO_free(pem);
    if (ok && count > 0)
        return store;
    X509_STORE_free(store);
    return NULL;
}

int pem_load_chain(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *chain_pem)
{
    BIO *pem = BIO_new_mem_buf(chain_pem, -1);
    int count = 0;
    int ok = pem != NULL;
    X509 *certificate;
    while (ok && (certificate = next_certificate(pem, libctx, &ok)) != NULL) {
        ok = count == 0 ? SSL_CTX_use_certificate(ctx, certificate) == 1
                        : SSL_CTX_add1_chain_cert(ctx, certificate) == 1;
        X509_free(certificate);
        count++;
    }
    BIO_free(pem);
    return ok && count > 0 ? 0 : -1;
}

int pem_load_key(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *key_pem)
{
    BIO *pem = BIO_new_mem_buf(key_pem, -1);
    EVP_PKEY *key = pem == NULL ? NULL : PEM_read_bio_PrivateKey_ex(pem, NULL, NULL, NULL, libctx, NULL);
    BIO_free(pem);
    int ok = key != NULL && SSL_CTX_use_PrivateKey(ctx, key) && SSL_CTX_check_private_key(ctx);
    EVP_PKEY_free(key);
    return ok ? 0 : -1;
}
