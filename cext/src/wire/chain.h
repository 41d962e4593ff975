/*
 * chain.h: what is looked at in a peer's certificates before OpenSSL reads them.
 *
 * OpenSSL decodes the key of each certificate as it reads it, before anything is known of who made it. For a
 * key on a curve that the certificate itself describes that can take tens of milliseconds: the point is given
 * by one coordinate, and the other is a square root modulo a prime that the peer has chosen (named curves
 * with such primes, secp224r1, take half a millisecond). A message of 16 KiB holds dozens of them. So the
 * kinds of keys, and the number of certificates, are looked at first, in the bytes.
 */
#ifndef NS_CHAIN_H
#define NS_CHAIN_H

#include <stddef.h>
#include <stdint.h>

enum { CHAIN_MOST = 10 }; /* a leaf, eight intermediates, and a root that somebody sends along */

/* `message` is a Certificate message of TLS 1.3 with its header (RFC 8446, 4.4.2). NULL, or why it is not to
 * be read: too many certificates, one that is no certificate, or a key that is neither RSA, nor Ed25519, nor
 * on P-256, P-384 or P-521. */
const char *chain_refused(const uint8_t *message, size_t length);
/* Makes such a message one that is wrong in its first byte, before any certificate. */
void chain_spoil(uint8_t *message, size_t length);

#endif
