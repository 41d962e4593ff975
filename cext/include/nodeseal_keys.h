/*
 * nodeseal_keys.h: private keys in the agent's process.
 *
 * A key is made here, signs its own certificate request, and is handed to a core in a descriptor. It lies in
 * OpenSSL's secure heap: memory that is locked, left out of core dumps, between guard pages, and wiped when
 * it is freed. No function returns a key's bytes. Other threads may be in here at the same time; one key
 * belongs to one thread at a time.
 *
 * Functions that fail write one line to `error`, which holds nothing made of a key.
 *
 * The text between the cffi marks is read by cext/build_keys.py as well: keep preprocessor lines out of it.
 */
#ifndef NODESEAL_KEYS_H
#define NODESEAL_KEYS_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

enum ns_key_kind { NS_KEY_P256 = 0, NS_KEY_P384 = 1, NS_KEY_ED25519 = 2 };

struct ns_key;

/* Makes the secure heap of this process, once; later calls do nothing. 1; 0: there is one, but it could not
 * be locked, or not be left out of dumps; -1: there is none, and keys lie in ordinary memory. */
int keys_begin(void);

/* A fresh key of an enum ns_key_kind; NULL with error. */
struct ns_key *key_new(int kind, char *error, size_t error_size);
/* A key that somebody else made: PEM, or PKCS 8 in DER, not encrypted. OpenSSL's decoders may leave copies of
 * it in this process's ordinary memory. NULL with error. */
struct ns_key *key_read(const uint8_t *bytes, size_t length, char *error, size_t error_size);
void key_free(struct ns_key *key);

/* The public key (SubjectPublicKeyInfo, DER). Its size; 0 with error, also where `capacity` is too small. */
size_t key_public(const struct ns_key *key, uint8_t *out, size_t capacity, char *error, size_t error_size);
/* A certificate request (PKCS 10, DER) without a subject and with the one URI as its alternative name, signed
 * by the key. Returns as key_public. */
size_t key_request(const struct ns_key *key, const char *uri, uint8_t *out, size_t capacity, char *error,
                   size_t error_size);
/* The key as PKCS 8 in DER, in a memfd that can no longer change: its descriptor (close-on-exec), the
 * caller's; -1 with error. */
int key_export(const struct ns_key *key, char *error, size_t error_size);

/* cffi: end */

#endif
