/* profile.c: see profile.h. */
#include "wire/profile.h"

#include <openssl/conf.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <stdio.h>

/* The module verifies itself by what the configuration says of it (fips_module(7)); `base` encodes and
 * decodes, and computes nothing. */
static int load_module(OSSL_LIB_CTX *libctx)
{
    char *path = CONF_get1_default_config_file();
    int done = path != NULL && OSSL_LIB_CTX_load_config(libctx, path) &&
               OSSL_PROVIDER_load(libctx, "fips") != NULL && OSSL_PROVIDER_load(libctx, "base") != NULL &&
               EVP_default_properties_enable_fips(libctx, 1);
    OPENSSL_free(path);
    return done;
}

OSSL_LIB_CTX *profile_context(int fips, char *error, size_t error_size)
{
    (void)OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CRYPTO_STRINGS, NULL); /* for the reason below */
    ERR_clear_error();
    OSSL_LIB_CTX *libctx = OSSL_LIB_CTX_new();
    if (libctx == NULL) {
        snprintf(error, error_size, "OpenSSL cannot make a library context");
    } else if (fips && !load_module(libctx)) {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        snprintf(error, error_size, "OpenSSL's FIPS module cannot be loaded: %s",
                 reason == NULL ? "no reason is given" : reason);
        OSSL_LIB_CTX_free(libctx);
        libctx = NULL;
    }
    ERR_clear_error();
    return libctx;
}

int profile_is_fips(OSSL_LIB_CTX *libctx)
{
    return EVP_default_properties_is_fips_enabled(libctx);
}
