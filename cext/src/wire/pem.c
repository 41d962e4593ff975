/* pem.c: see pem.h. */
#include "wire/pem.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>

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

STACK_OF(X509) * pem_certificates(OSSL_LIB_CTX *libctx, const char *text)
{
    STACK_OF(X509) *found = sk_X509_new_null();
    BIO *pem = BIO_new_mem_buf(text, -1);
    int ok = found != NULL && pem != NULL;
    X509 *certificate;
    while (ok && (certificate = next_certificate(pem, libctx, &ok)) != NULL) {
        ok = sk_X509_push(found, certificate) > 0;
        if (!ok)
            X509_free(certificate);
    }
    BIO_free(pem);
    if (ok && sk_X509_num(found) > 0)
        return found;
    sk_X509_pop_free(found, X509_free);
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

static int is_pem(const uint8_t *key, size_t length)
{
    static const char BEGIN[] = "-----BEGIN ";
    return length >= sizeof(BEGIN) - 1 && memcmp(key, BEGIN, sizeof(BEGIN) - 1) == 0;
}

/* NULL: it cannot be read. */
static EVP_PKEY *read_key(OSSL_LIB_CTX *libctx, const uint8_t *key, size_t length)
{
    const unsigned char *der = key;
    if (!is_pem(key, length))
        return d2i_AutoPrivateKey_ex(NULL, &der, (long)length, libctx, NULL);
    BIO *pem = BIO_new_mem_buf(key, (int)length);
    EVP_PKEY *read = pem == NULL ? NULL : PEM_read_bio_PrivateKey_ex(pem, NULL, NULL, NULL, libctx, NULL);
    BIO_free(pem);
    return read;
}

int pem_load_key(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const uint8_t *key, size_t length)
{
    EVP_PKEY *read = length <= PEM_KEY_MOST ? read_key(libctx, key, length) : NULL;
    int ok = read != NULL && SSL_CTX_use_PrivateKey(ctx, read) && SSL_CTX_check_private_key(ctx);
    EVP_PKEY_free(read);
    return ok ? 0 : -1;
}
