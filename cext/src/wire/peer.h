/*
 * peer.h: whether a peer is who may be talked with: its certificate, those that it is verified by, and what
 * was revoked. Called inside a handshake, in the place of OpenSSL's own verification.
 */
#ifndef NS_PEER_H
#define NS_PEER_H

#include <openssl/x509.h>

#include "wire/revoked.h"
#include "wire/svid.h"
#include "wire/trust.h"

/* What a peer is looked at by. All is borrowed. */
struct peer {
    OSSL_LIB_CTX *libctx;
    struct trust *trust;
    /* The own one. */
    const char *trust_domain;
    /* In which the peer shows itself. */
    enum svid_role role;
    /* The only identity that is accepted; NULL: any. */
    const char *expected;
    /* Of the own certificate. */
    const struct digests *own;
};

/* 1: it is good, and *digests are its certificate's. 0: it is not; `error` says why, and the context has the
 * error by which OpenSSL chooses the alert for the peer. */
int peer_verify(const struct peer *peer, X509_STORE_CTX *store_ctx, struct digests *digests,
                char error[NS_REASON_MAX]);

#endif
