/* trust.c: see trust.h. */
#include "wire/trust.h"

#include <openssl/err.h>
#include <stdio.h>
#include <string.h>

#include "base/link.h"
#include "wire/pem.h"

struct bundle {
    char domain[TRUST_DOMAIN_MAX];
    STACK_OF(X509) * anchors;
    /* Of each. */
    uint8_t (*digests)[REVOKED_DIGEST];
};

struct bundles {
    /* Atomic. */
    uint32_t references;
    size_t count;
    struct bundle bundles[];
};

/* 0, or -1: there is no certificate, or one cannot be read. */
static int bundle_read(struct bundle *bundle, OSSL_LIB_CTX *libctx, const char *pem)
{
    bundle->anchors = pem_certificates(libctx, pem);
    if (bundle->anchors == NULL)
        return -1;
    const int count = sk_X509_num(bundle->anchors);
    bundle->digests = ns_alloc((size_t)count * sizeof(bundle->digests[0]));
    for (int i = 0; i < count; i++)
        if (digest_anchor(libctx, sk_X509_value(bundle->anchors, i), bundle->digests[i]) != 0)
            return -1;
    return 0;
}

struct bundles *bundles_new(OSSL_LIB_CTX *libctx, const struct ns_bundle *domains, size_t count, char *error,
                            size_t error_size)
{
    struct bundles *made = ns_alloc(sizeof(*made) + count * sizeof(made->bundles[0]));
    made->references = 1;
    for (size_t i = 0; i < count; i++) {
        struct bundle *bundle = &made->bundles[i];
        ERR_clear_error();
        snprintf(bundle->domain, sizeof(bundle->domain), "%s", domains[i].trust_domain);
        made->count = i + 1;
        if (bundle_read(bundle, libctx, domains[i].pem) == 0)
            continue;
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        snprintf(error, error_size,
                 "the trust bundle cannot be read or holds no certificate: trust domain %s%s%s",
                 bundle->domain, reason == NULL ? "" : ": ", reason == NULL ? "" : reason);
        ERR_clear_error();
        bundles_release(made);
        return NULL;
    }
    return made;
}

void bundles_release(struct bundles *bundles)
{
    if (bundles == NULL || __atomic_sub_fetch(&bundles->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    for (size_t i = 0; i < bundles->count; i++) {
        sk_X509_pop_free(bundles->bundles[i].anchors, X509_free);
        free(bundles->bundles[i].digests);
    }
    free(bundles);
}

static const struct bundle *bundle_of(const struct bundles *bundles, const char *domain)
{
    for (size_t i = 0; bundles != NULL && i < bundles->count; i++)
        if (strcmp(bundles->bundles[i].domain, domain) == 0)
            return &bundles->bundles[i];
    return NULL;
}

STACK_OF(X509) * bundles_anchors(const struct bundles *bundles, const char *domain)
{
    const struct bundle *bundle = bundle_of(bundles, domain);
    return bundle == NULL ? NULL : bundle->anchors;
}

const uint8_t *bundles_digest(const struct bundles *bundles, const char *domain, const X509 *anchor)
{
    const struct bundle *bundle = bundle_of(bundles, domain);
    const int count = bundle == NULL ? 0 : sk_X509_num(bundle->anchors);
    for (int i = 0; i < count; i++)
        if (sk_X509_value(bundle->anchors, i) == anchor)
            return bundle->digests[i];
    return NULL;
}

void trust_init(struct trust *trust, struct revoked *revoked)
{
    pthread_mutex_init(&trust->mutex, NULL);
    trust->bundles = NULL;
    trust->revoked = revoked;
}

void trust_dispose(struct trust *trust)
{
    bundles_release(trust->bundles);
    trust->bundles = NULL;
    pthread_mutex_destroy(&trust->mutex);
}

void trust_set(struct trust *trust, struct bundles *bundles)
{
    pthread_mutex_lock(&trust->mutex);
    struct bundles *before = trust->bundles;
    trust->bundles = bundles;
    pthread_mutex_unlock(&trust->mutex);
    bundles_release(before);
}

struct bundles *trust_hold(struct trust *trust)
{
    pthread_mutex_lock(&trust->mutex);
    struct bundles *bundles = trust->bundles;
    if (bundles != NULL)
        __atomic_add_fetch(&bundles->references, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&trust->mutex);
    return bundles;
}
