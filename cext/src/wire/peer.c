/* peer.c: see peer.h. */
#include "wire/peer.h"

#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

/* Why a handshake comes to nothing: words, and the error by which OpenSSL chooses the alert for the peer. */
struct fault {
    const char *words;
    int error;
};

/* The error for which OpenSSL sends certificate_revoked, unsupported_certificate, bad_certificate, unknown_ca
 * or handshake_failure. */
enum {
    AS_REVOKED = X509_V_ERR_CERT_REVOKED,
    AS_UNSUPPORTED = X509_V_ERR_INVALID_PURPOSE,
    AS_ANOTHERS = X509_V_ERR_HOSTNAME_MISMATCH,
    AS_UNTRUSTED = X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    AS_OUR_OWN = X509_V_ERR_APPLICATION_VERIFICATION,
};

static struct fault revocation_fault(const struct peer *peer, const struct digests *digests)
{
    uint8_t alert;
    const char *words = revoked_reason(peer->trust->revoked, digests, peer->own, &alert);
    const int error = alert == SSL_AD_ACCESS_DENIED ? AS_OUR_OWN
                      : alert == SSL_AD_UNKNOWN_CA  ? AS_UNTRUSTED
                                                    : AS_REVOKED;
    return (struct fault){words, error};
}

static enum svid_paths paths_of(const struct peer *peer, const char *domain)
{
    return strcmp(domain, peer->trust_domain) == 0 ? SVID_OWN_PATHS : SVID_ANY_PATHS;
}

/* The peer's certificate, whose trust domain is `domain`, and those that it is verified by; OpenSSL has found
 * their path good. */
static struct fault leaf_fault(const struct peer *peer, X509_STORE_CTX *store_ctx,
                               const struct bundles *bundles, const char *domain, struct digests *digests)
{
    X509 *leaf = X509_STORE_CTX_get0_cert(store_ctx);
    STACK_OF(X509) *chain = X509_STORE_CTX_get0_chain(store_ctx);
    char identity[NS_IDENTITY_MAX];
    const char *wrong = svid_leaf_fault(leaf, peer->role, domain, paths_of(peer, domain), identity);
    if (wrong == NULL)
        wrong = svid_signers_fault(chain, domain);
    if (wrong != NULL)
        return (struct fault){wrong, AS_UNSUPPORTED};
    if (peer->expected != NULL && strcmp(identity, peer->expected) != 0)
        return (struct fault){"peer has another identity than expected", AS_ANOTHERS};
    const int last = sk_X509_num(chain) - 1;
    const uint8_t *anchor = bundles_digest(bundles, domain, sk_X509_value(chain, last));
    if (anchor == NULL || digests_of(peer->libctx, leaf, identity, chain, 1, last, digests) != 0)
        return (struct fault){"OpenSSL cannot look at the peer certificate", AS_OUR_OWN};
    memcpy(digests->anchor, anchor, sizeof(digests->anchor));
    return revocation_fault(peer, digests);
}

/* OpenSSL has found the path wrong: notes why. Of a leaf that it cannot read, or not use, our own rules tell
 * more. */
static void note_path_fault(const struct peer *peer, X509_STORE_CTX *store_ctx, const char *domain,
                            char error_text[NS_REASON_MAX])
{
    X509 *certificate = X509_STORE_CTX_get_current_cert(store_ctx);
    int error = X509_STORE_CTX_get_error(store_ctx);
    int depth = X509_STORE_CTX_get_error_depth(store_ctx);
    char identity[NS_IDENTITY_MAX];
    const char *wrong = NULL;
    if (depth == 0 && certificate != NULL &&
        (error == X509_V_ERR_INVALID_PURPOSE || (X509_get_extension_flags(certificate) & EXFLAG_INVALID)))
        wrong = svid_leaf_fault(certificate, peer->role, domain, paths_of(peer, domain), identity);
    if (wrong == NULL)
        wrong = svid_path_fault(error, depth);
    if (wrong != NULL)
        snprintf(error_text, NS_REASON_MAX, "%s", wrong);
    else
        snprintf(error_text, NS_REASON_MAX, "peer certificate refused: %.60s",
                 X509_verify_cert_error_string(error));
}

/* Why the certificate tells no trust domain: which of the rules it breaks. */
static struct fault domain_fault(const struct peer *peer, X509 *leaf)
{
    char identity[NS_IDENTITY_MAX];
    const char *wrong = svid_leaf_fault(leaf, peer->role, peer->trust_domain, SVID_OWN_PATHS, identity);
    return (struct fault){wrong != NULL ? wrong : "peer certificate cannot be read", AS_UNSUPPORTED};
}

/* NULL as words: the peer's chain is good. */
static struct fault chain_fault(const struct peer *peer, X509_STORE_CTX *store_ctx,
                                const struct bundles *bundles, struct digests *digests,
                                char error[NS_REASON_MAX])
{
    X509 *leaf = X509_STORE_CTX_get0_cert(store_ctx);
    char domain[TRUST_DOMAIN_MAX];
    if (svid_domain(leaf, domain) != 0)
        return domain_fault(peer, leaf);
    STACK_OF(X509) *anchors = bundles_anchors(bundles, domain);
    if (anchors == NULL && strcmp(domain, peer->trust_domain) == 0)
        return (struct fault){svid_path_fault(AS_UNTRUSTED, 0), AS_UNTRUSTED};
    if (anchors == NULL)
        return (struct fault){"peer is of another trust domain", AS_UNTRUSTED};
    X509_STORE_CTX_set0_trusted_stack(store_ctx, anchors);
    if (X509_verify_cert(store_ctx) == 1)
        return leaf_fault(peer, store_ctx, bundles, domain, digests);
    note_path_fault(peer, store_ctx, domain, error);
    int code = X509_STORE_CTX_get_error(store_ctx);
    return (struct fault){error, code != X509_V_OK ? code : AS_UNTRUSTED};
}

int peer_verify(const struct peer *peer, X509_STORE_CTX *store_ctx, struct digests *digests,
                char error[NS_REASON_MAX])
{
    struct bundles *bundles = trust_hold(peer->trust);
    const struct fault fault = chain_fault(peer, store_ctx, bundles, digests, error);
    bundles_release(bundles);
    X509_STORE_CTX_set0_trusted_stack(store_ctx, NULL); /* those were the bundles' */
    if (fault.words == NULL)
        return 1;
    if (fault.words != error)
        snprintf(error, NS_REASON_MAX, "%s", fault.words);
    X509_STORE_CTX_set_error(store_ctx, fault.error);
    return 0;
}
