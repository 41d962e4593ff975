/*
 * tls_bounds.h: what a peer can make a handshake cost before it has proven anything, in both roles.
 *
 * Groups. A key exchange is done for whoever sends a hello, and a hello can be recorded once and sent for
 * ever. OpenSSL takes every group that it knows, ffdhe8192 among them: 0.1 s of CPU for each hello. Here the
 * list is X25519MLKEM768 (where the library has it), X25519, P-256 and P-384, and nothing else is offered or
 * taken. The dearest is P-384.
 *
 * Certificates. Those of a peer are read, and its chain is looked for, before it has shown that it holds a
 * key. TLS_CERTIFICATES_MOST bounds their bytes, TLS_INTERMEDIATES_MOST the chain, and chain.h their number
 * and the kinds of their keys. No key of a certificate is used that no trusted one has signed: how large a
 * stranger's are does not matter.
 *
 * Bytes. TLS_HANDSHAKE_MOST is for the caller, who counts what a peer sends before its handshake is done.
 */
#ifndef NS_TLS_BOUNDS_H
#define NS_TLS_BOUNDS_H

#include <openssl/ssl.h>

enum {
    TLS_CERTIFICATES_MOST = 16384, /* bytes; a chain of three with RSA keys of 4096 bits is a third of that */
    TLS_INTERMEDIATES_MOST = 8,    /* between a leaf and what is trusted */
    TLS_HANDSHAKE_MOST = 65536,    /* bytes from a peer, until its handshake is done */
    TLS_STRENGTH = 2, /* OpenSSL's level of 112 bits: no RSA below 2048 bits, no SHA-1 in certificates */
};

/* NULL, or what OpenSSL lacks. `fips`: the groups and signatures of that profile alone (profile.h). */
const char *tls_bounds_set(SSL_CTX *context, int fips);

#endif
