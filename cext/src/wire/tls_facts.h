/*
 * tls_facts.h: how a handshake was done: what was negotiated, in the words of the IANA's registry "Transport
 * Layer Security (TLS) Parameters", and by which trust anchor the peer was verified.
 */
#ifndef NS_TLS_FACTS_H
#define NS_TLS_FACTS_H

#include <openssl/ssl.h>
#include <stdint.h>

#include "wire/revoked.h"

/* How a session is protected, in words of storage that lasts; "" before the handshake is done. */
struct tls_facts {
    /* "TLSv1.3 TLS_AES_128_GCM_SHA256". */
    const char *suite;
    /* Of the key exchange: "X25519MLKEM768". */
    const char *group;
    /* By which the peer has signed the handshake: "ecdsa_secp256r1_sha256". */
    const char *signature;
    /* The first half of the SHA-256 of the trust anchor's certificate; zeros before the handshake is done. */
    uint8_t anchor[REVOKED_DIGEST];
};

/* Empty texts. */
extern const struct tls_facts TLS_NO_FACTS;

/* Of a handshake that is complete, without the anchor. A group or a signature that has no word here is
 * "other". */
struct tls_facts tls_facts_of(SSL *ssl);

#endif
