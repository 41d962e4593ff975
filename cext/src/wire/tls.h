/*
 * tls.h: a TLS 1.3 session and the credentials behind it, sans-I/O.
 *
 * Ciphertext goes in and out through memory only. While a call runs, the session reads from the bytes that
 * the caller feeds and writes into the caller's sink; between calls it holds an incomplete record, and no
 * buffer when idle. The handshake is OpenSSL's; once it is done, its session is freed and the record layer
 * (record.h) has the traffic secrets. One session belongs to one thread at a time.
 *
 * Both sides prove an identity: a chain to the trust bundle, and an X.509-SVID of the right trust domain
 * (svid.h). A client also names the only identity it accepts. All of this is checked inside the handshake, so
 * that a peer with a wrong certificate never gets to send a byte of application data.
 */
#ifndef NS_TLS_H
#define NS_TLS_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"
#include "wire/record.h"

enum tls_role { TLS_CLIENT = 0, TLS_SERVER = 1 };

enum { TLS_NAME_SIZE = 48 };

/* The anchors by which peers are verified; immutable, counted by OpenSSL through its store. */
struct tls_trust {
    /* NULL: nobody is trusted. */
    X509_STORE *store;
};

/* Reads them into `libctx`. On failure returns -1, writes one line to error, and leaves nothing allocated. */
int tls_trust_init(struct tls_trust *trust, OSSL_LIB_CTX *libctx, const char *bundle_pem, char *error,
                   size_t error_size);
void tls_trust_dispose(struct tls_trust *trust);

/* What one workload presents, and whom it trusts; counted by OpenSSL through its context. */
struct tls_credentials {
    /* For both roles. */
    SSL_CTX *context;
    /* Borrowed; NULL: OpenSSL's default. */
    OSSL_LIB_CTX *libctx;
    /* tls_name_of the certificate's identity; "": it has none. */
    char name[TLS_NAME_SIZE];
};

/* Makes them in `libctx` (one per worker, because OpenSSL 3.0's own locks are slow). They trust nobody yet.
 * On failure returns -1, writes one line to error, and leaves nothing allocated. */
int tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx, const char *chain_pem,
                         const char *key_pem, char *error, size_t error_size);
/* From now on peers are verified by `trust`, those of handshakes that have begun as well. It belongs to the
 * same thread as the sessions. Nothing happens if the credentials have no context. */
void tls_credentials_trust(struct tls_credentials *credentials, const struct tls_trust *trust);
void tls_credentials_dispose(struct tls_credentials *credentials);

struct tls {
    /* NULL once the handshake is done, and after dispose. */
    SSL *ssl;
    /* Begins when the handshake is done. */
    struct record record;
    /* Ciphertext being fed. */
    struct record_feed feed;
    /* Of a running tls_handshake; else NULL. */
    struct tls_sink *sink;
    /* The credentials'. */
    OSSL_LIB_CTX *libctx;
    /* Of the handshake's two Finished: 1: ours was written, 2: theirs read. */
    uint8_t finished;
    /* The handshake went on behind a Finished: no one else may go on with it. */
    uint8_t late;
    /* Borrowed; peers of another are refused. */
    const char *trust_domain;
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
/* "TLSv1.3 TLS_AES_128_GCM_SHA256", as negotiated; "" before the handshake is done. */
void tls_describe(const struct tls *tls, char *out, size_t size);

/* Upper bound of what tls_write makes of `length` bytes: 22 more for each record of 16 KiB, and a KeyUpdate.
 */
#define TLS_SEALED_SIZE(length) ((length) + ((length) / 16384 + 1) * 32 + 32)

#endif
