/*
 * tls.h: a TLS 1.3 session and the credentials behind it, sans-I/O.
 *
 * Ciphertext goes in and out through memory only. While a call runs, the session reads from the bytes that
 * the caller feeds and writes into the caller's sink; between calls it holds an incomplete record, and no
 * buffer when idle. The handshake is OpenSSL's; once it is done, its session is freed and the record layer
 * (record.h) has the traffic secrets. With the profile `fips` OpenSSL's session goes on (library.h). One
 * session belongs to one thread at a time.
 *
 * Both sides prove an identity: an X.509-SVID (svid.h) and a chain from it to an anchor of its own trust
 * domain (trust.h); a domain that is not trusted has none. Nothing of it may be revoked (revoked.h). A client
 * also names the only identity it accepts. All of this is checked inside the handshake, so that a peer with a
 * wrong certificate never gets to send a byte of application data.
 */
#ifndef NS_TLS_H
#define NS_TLS_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"
#include "wire/library.h"
#include "wire/record.h"
#include "wire/tls_facts.h"
#include "wire/trust.h"

enum tls_role { TLS_CLIENT = 0, TLS_SERVER = 1 };

enum { TLS_NAME_SIZE = 48 };

/* What one workload presents, and whom it trusts. */
struct tls_credentials {
    /* For both roles; counted by OpenSSL. */
    SSL_CTX *context;
    /* Borrowed; NULL: OpenSSL's default. */
    OSSL_LIB_CTX *libctx;
    /* Borrowed: by which its peers are verified. */
    struct trust *trust;
    /* tls_name_of the certificate's identity; "": it has none. */
    char name[TLS_NAME_SIZE];
    /* Held: what the certificate says of whom it is for (svid_presented). */
    char *presented;
    /* What the certificate can be revoked by; all zero if it has no identity. */
    struct digests digests;
};

/* A private key, in PEM form or DER. */
struct tls_key {
    const uint8_t *bytes;
    size_t length;
};

/* Makes them in `libctx` (one per worker, because OpenSSL 3.0's own locks are slow). On failure returns -1,
 * writes one line to error, and leaves nothing allocated. */
int tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx, struct trust *trust,
                         const char *chain_pem, struct tls_key key, char *error, size_t error_size);
/* Harmless if they are all zero. */
void tls_credentials_dispose(struct tls_credentials *credentials);

enum {
    TLS_PRESENTED_MAX = 192, /* what a peer's certificate says of whom it is for, shortened */
};

struct tls {
    /* NULL once the handshake is done, unless `library` goes on with it, and after dispose. */
    SSL *ssl;
    /* Begins when the handshake is done, unless `library` does. */
    struct record record;
    struct library library;
    /* Ciphertext being fed. */
    struct record_feed feed;
    /* Of a running call to OpenSSL's session; else NULL. */
    struct tls_sink *sink;
    /* The credentials'. */
    OSSL_LIB_CTX *libctx;
    /* Of the handshake's two Finished: 1: ours was written, 2: theirs read. */
    uint8_t finished;
    /* The handshake went on behind a Finished: no one else may go on with it. */
    uint8_t late;
    /* Borrowed: by which the peer is verified. */
    struct trust *trust;
    /* Borrowed: the own one; what is said when a peer is of one that is not trusted. */
    const char *trust_domain;
    /* Of the own certificate, and, verified, the peer's. */
    struct digests own, peers;
    struct tls_facts facts;
    /* Held: what the certificate that was refused says of whom it is for, unverified; NULL: none was. */
    char *presented;
    /* Server, set by the caller: once the client has said whom it wants, TLS_CHOOSE. */
    uint8_t choosing;
    /* Client: the only peer identity accepted. */
    char expected[NS_IDENTITY_MAX];
    /* Verified identity of the peer; "" before the handshake is done. */
    char peer[NS_IDENTITY_MAX];
    /* After TLS_FAILED: one line. */
    char error[NS_REASON_MAX];
};

/* `expected` is NULL for servers. 0, or -1 when OpenSSL cannot allocate. */
int tls_init(struct tls *tls, enum tls_role role, const struct tls_credentials *credentials,
             const char *trust_domain, const char *expected);
void tls_dispose(struct tls *tls);

/* The host name by which a client asks for one of several identities that live at one address (server_name,
 * RFC 6066): a digest, which tells those who listen nothing that they do not know. "" if OpenSSL cannot. */
void tls_name_of(OSSL_LIB_CTX *libctx, const char *identity, char out[TLS_NAME_SIZE]);
/* Client, before the handshake: asks for the expected identity by its name. 0, or -1 when OpenSSL cannot. */
int tls_ask_by_name(struct tls *tls);

/* Gives the session ciphertext for the following calls; they have taken all of it once one returns TLS_WANT.
 */
void tls_feed(struct tls *tls, const uint8_t *bytes, size_t length);
/* Drives the handshake. TLS_OK once it is complete and the peer is verified; TLS_CHOOSE at most once. */
enum tls_result tls_handshake(struct tls *tls, struct tls_sink *sink);
/* After TLS_CHOOSE: whom the client asks for; NULL if it does not say. */
const char *tls_wanted(const struct tls *tls);
/* After TLS_CHOOSE: what the handshake goes on with; NULL: what the session began with. */
void tls_present(struct tls *tls, const struct tls_credentials *credentials);
/* Decrypts as much as fits into `out`, which must not overlap the feed; TLS_OK with *length > 0, or another
 * result with *length == 0. */
enum tls_result tls_read(struct tls *tls, struct tls_sink *sink, uint8_t *out, size_t capacity,
                         size_t *length);
/* Encrypts all of it, in as few records as the protocol allows; it must not overlap the sink. TLS_OK or
 * TLS_FAILED. */
enum tls_result tls_write(struct tls *tls, struct tls_sink *sink, const uint8_t *bytes, size_t length);
/* Writes close_notify. */
void tls_close(struct tls *tls, struct tls_sink *sink);
/* Ends the session with a fatal alert (RFC 8446, 6.2), or without a word (library.h). */
void tls_refuse(struct tls *tls, struct tls_sink *sink, uint8_t alert);
/* After TLS_FAILED: the peer's alert refuses who this end is, or its certificate. */
int tls_was_refused(const struct tls *tls);
/* Whether the peer has said anything since the handshake, before what failed now. */
int tls_has_heard(const struct tls *tls);
/* Whether the peer, or this end, is revoked by now: why, in words of storage that lasts; NULL: neither is.
 * *alert: as which the peer is told. */
const char *tls_revoked(const struct tls *tls, uint8_t *alert);

/* Upper bound of what tls_write makes of `length` bytes: 22 more for each record of 16 KiB, and a KeyUpdate.
 */
#define TLS_SEALED_SIZE(length) ((length) + ((length) / 16384 + 1) * 32 + 32)

#endif
