/* profile.c: see profile.h. */
#include "wire/profile.h"

#include <openssl/conf.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <stdio.h>
#include <string.h>

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

/* What load_module has loaded; the context's own end would leave it in memory. */
struct loaded {
    OSSL_PROVIDER *providers[2];
    size_t count;
};

static int note_loaded(OSSL_PROVIDER *provider, void *pointer)
{
    struct loaded *loaded = pointer;
    const char *name = OSSL_PROVIDER_get0_name(provider);
    if (loaded->count < 2 && (strcmp(name, "fips") == 0 || strcmp(name, "base") == 0))
        loaded->providers[loaded->count++] = provider;
    return 1;
}

void profile_context_free(OSSL_LIB_CTX *libctx)
{
    struct loaded loaded = {.count = 0};
    if (libctx != NULL && profile_is_fips(libctx)) {
        (void)OSSL_PROVIDER_do_all(libctx, note_loaded, &loaded);
        for (size_t i = 0; i < loaded.count; i++)
            OSSL_PROVIDER_unload(loaded.providers[i]);
    }
    OSSL_LIB_CTX_free(libctx);
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
