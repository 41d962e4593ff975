/*
 * svid.h: the rules that a peer's certificates must keep beside those of RFC 5280's path validation, which is
 * OpenSSL's part.
 *
 * Source: X509-SVID.md of https://github.com/spiffe/spiffe, and RFC 5280. docs/identity.md has each rule with
 * its source and its test; change both together. The same rules hold for clients and for servers.
 *
 * A fault is a text of static storage, in plain words, shorter than NS_REASON_MAX.
 */
#ifndef NS_SVID_H
#define NS_SVID_H

#include <openssl/x509.h>

#include "nodeseal_core.h"
#include "wire/trust.h"

/* What a certificate that a peer shows is to be good for. */
enum svid_role { SVID_CLIENT = 0, SVID_SERVER = 1 };

/* Which paths the ids of a trust domain may have: those of the mesh's own have one form, those of domains
 * that it is federated with are named by others. */
enum svid_paths { SVID_OWN_PATHS = 0, SVID_ANY_PATHS = 1 };

/* NULL, with the id in `identity`, if the certificate may stand for a workload of the trust domain; else its
 * fault, and `identity` is "". */
const char *svid_leaf_fault(X509 *certificate, enum svid_role role, const char *trust_domain,
                            enum svid_paths paths, char identity[NS_IDENTITY_MAX]);
/* Why the chain, leaf first, must not vouch for that leaf; NULL: it may. */
const char *svid_signers_fault(const STACK_OF(X509) * chain, const char *trust_domain);
/* What OpenSSL found wrong at `depth` of a chain (0: the leaf), by its X509_V_ERR_; NULL: there are no
 * plainer words than its own. */
const char *svid_path_fault(int error, int depth);

/* The certificate's only URI if it is a SPIFFE id with a path; 0, or -1. */
int svid_identity(X509 *certificate, char identity[NS_IDENTITY_MAX]);
/* The trust domain of the certificate's only URI if that is a SPIFFE id, of whatever path; 0, or -1. */
int svid_domain(X509 *certificate, char domain[TRUST_DOMAIN_MAX]);
/* What a certificate that was refused, or is to be, says of who it is for: its first URI, which nobody has
 * verified. For people: what is not printable ASCII, or blank, becomes "?", and what is too long ends in
 * "...". "": it has no URI that can be read. */
void svid_presented(X509 *certificate, char *out, size_t size);

#endif
