/*
 * record_keys.h: the keys of one direction of a TLS 1.3 session, and what they do to one record (RFC 8446,
 * sections 5.2, 5.3 and 7.2).
 */
#ifndef NS_RECORD_KEYS_H
#define NS_RECORD_KEYS_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RECORD_HEADER = 5,
    RECORD_TAG = 16,
    RECORD_IV = 12,
    RECORD_SECRET_MAX = 48,
    RECORD_CONTENT_MAX = 16384,
    RECORD_BODY_MAX = RECORD_CONTENT_MAX + 1 + RECORD_TAG, /* what follows the header: no padding beyond it */
    RECORD_OVERHEAD = RECORD_HEADER + 1 + RECORD_TAG,      /* bytes of a sealed record beside its content */
};

enum record_type { RECORD_ALERT = 21, RECORD_HANDSHAKE = 22, RECORD_APPLICATION = 23 };

struct record_suite {
    /* IANA's number. */
    unsigned id;
    /* The protocol, and the suite as RFC 8446 writes it. */
    const char *name;
    /* EVP's name. */
    const char *cipher;
    /* EVP's name. */
    const char *digest;
    /* Bytes. */
    size_t key_length;
    /* Bytes; of the digest. */
    size_t secret_length;
};

/* The suite of this number; NULL if records of it cannot be sealed here. */
const struct record_suite *record_suite_find(unsigned id);

/* All zero: no secret yet. */
struct record_keys {
    /* Has the key; NULL before record_keys_start. */
    EVP_CIPHER_CTX *aead;
    /* Of the next record under this key; the last number is never used. */
    uint64_t sequence;
    /* The traffic secret in use. */
    uint8_t secret[RECORD_SECRET_MAX];
    /* 0: none. */
    size_t secret_length;
    uint8_t iv[RECORD_IV];
};

/* Derives key and IV from the secret that is in place; `sealing`: for record_seal, else for record_open.
 * 0, or -1 if the secret is of another length than the suite's, or OpenSSL cannot. */
int record_keys_start(struct record_keys *keys, const struct record_suite *suite, OSSL_LIB_CTX *libctx,
                      int sealing);
/* Goes on to the next secret, as a KeyUpdate says. 0 or -1. */
int record_keys_update(struct record_keys *keys, const struct record_suite *suite, OSSL_LIB_CTX *libctx);
/* Wipes everything. */
void record_keys_dispose(struct record_keys *keys);

/* Writes a record of length + RECORD_OVERHEAD bytes to out, which must not overlap `content`; length is at
 * most RECORD_CONTENT_MAX. 0 or -1. */
int record_seal(struct record_keys *keys, enum record_type type, const uint8_t *content, size_t length,
                uint8_t *out);
/* Verifies and decrypts a body of RECORD_TAG <= length <= RECORD_BODY_MAX bytes into the length - RECORD_TAG
 * bytes at out, which is elsewhere, or `body` itself. 0, or -1 with these bytes wiped. */
int record_open(struct record_keys *keys, const uint8_t header[RECORD_HEADER], const uint8_t *body,
                size_t length, uint8_t *out);

#endif
