/*
 * record_keys.c: see record_keys.h.
 *
 * The AEAD contexts live as long as the keys: per record only the nonce is set. A record's content and its
 * type byte are encrypted by two calls, which saves copying them together.
 */
#include "wire/record_keys.h"

#include <openssl/crypto.h>
#include <string.h>

static const struct record_suite SUITES[] = {
    {0x1301, "TLSv1.3 TLS_AES_128_GCM_SHA256", "AES-128-GCM", "SHA256", 16, 32},
    {0x1302, "TLSv1.3 TLS_AES_256_GCM_SHA384", "AES-256-GCM", "SHA384", 32, 48},
};

const struct record_suite *record_suite_find(unsigned id)
{
    for (size_t i = 0; i < sizeof(SUITES) / sizeof(SUITES[0]); i++)
        if (SUITES[i].id == id)
            return &SUITES[i];
    return NULL;
}

/* HKDF-Expand-Label (RFC 8446, 7.1) with an empty context. No output here is longer than the digest, so that
 * HKDF-Expand is its first block alone: the HMAC of the label and a counter of 1. */
static int expand_label(const struct record_suite *suite, OSSL_LIB_CTX *libctx, const uint8_t *secret,
                        const char *label, uint8_t *out, size_t length)
{
    static const char PREFIX[] = {'t', 'l', 's', '1', '3', ' '};
    uint8_t info[32];
    uint8_t block[EVP_MAX_MD_SIZE];
    size_t block_length = 0;
    size_t label_length = strlen(label);
    size_t at = 0;
    info[at++] = (uint8_t)(length >> 8);
    info[at++] = (uint8_t)length;
    info[at++] = (uint8_t)(sizeof(PREFIX) + label_length);
    memcpy(info + at, PREFIX, sizeof(PREFIX));
    at += sizeof(PREFIX);
    memcpy(info + at, label, label_length);
    at += label_length;
    info[at++] = 0;
    info[at++] = 1;
    int ok = EVP_Q_mac(libctx, "HMAC", NULL, suite->digest, NULL, secret, suite->secret_length, info, at,
                       block, sizeof(block), &block_length) != NULL &&
             block_length >= length;
    if (ok)
        memcpy(out, block, length);
    OPENSSL_cleanse(block, sizeof(block));
    return ok ? 0 : -1;
}

/* Puts the secret's key into the context; `cipher` is NULL if it knows its cipher and direction. */
static int keys_install(struct record_keys *keys, const struct record_suite *suite, OSSL_LIB_CTX *libctx,
                        const EVP_CIPHER *cipher, int sealing)
{
    uint8_t key[32];
    int ok = expand_label(suite, libctx, keys->secret, "key", key, suite->key_length) == 0 &&
             expand_label(suite, libctx, keys->secret, "iv", keys->iv, RECORD_IV) == 0 &&
             EVP_CipherInit_ex2(keys->aead, cipher, key, NULL, sealing, NULL);
    OPENSSL_cleanse(key, sizeof(key));
    keys->sequence = 0;
    return ok ? 0 : -1;
}

int record_keys_start(struct record_keys *keys, const struct record_suite *suite, OSSL_LIB_CTX *libctx,
                      int sealing)
{
    if (keys->secret_length != suite->secret_length)
        return -1;
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(libctx, suite->cipher, NULL);
    keys->aead = EVP_CIPHER_CTX_new();
    int result = cipher == NULL || keys->aead == NULL
                     ? -1
                     : keys_install(keys, suite, libctx, cipher, sealing ? 1 : 0);
    EVP_CIPHER_free(cipher);
    return result;
}

int record_keys_update(struct record_keys *keys, const struct record_suite *suite, OSSL_LIB_CTX *libctx)
{
    uint8_t next[RECORD_SECRET_MAX];
    int result = expand_label(suite, libctx, keys->secret, "traffic upd", next, suite->secret_length);
    if (result == 0) {
        memcpy(keys->secret, next, suite->secret_length);
        result = keys_install(keys, suite, libctx, NULL, -1);
    }
    OPENSSL_cleanse(next, sizeof(next));
    return result;
}

void record_keys_dispose(struct record_keys *keys)
{
    EVP_CIPHER_CTX_free(keys->aead); /* wipes its key */
    OPENSSL_cleanse(keys, sizeof(*keys));
}

/* Begins the next record: the nonce is the IV xor the sequence number. */
static int record_begin(struct record_keys *keys, const uint8_t header[RECORD_HEADER])
{
    uint8_t nonce[RECORD_IV];
    int length;
    if (keys->sequence == UINT64_MAX)
        return -1;
    memcpy(nonce, keys->iv, sizeof(nonce));
    for (int i = 0; i < 8; i++)
        nonce[RECORD_IV - 1 - i] ^= (uint8_t)(keys->sequence >> (8 * i));
    keys->sequence++;
    return EVP_CipherInit_ex2(keys->aead, NULL, NULL, nonce, -1, NULL) &&
                   EVP_CipherUpdate(keys->aead, NULL, &length, header, RECORD_HEADER)
               ? 0
               : -1;
}

int record_seal(struct record_keys *keys, enum record_type type, const uint8_t *content, size_t length,
                uint8_t *out)
{
    size_t body = length + 1 + RECORD_TAG;
    const uint8_t inner_type = (uint8_t)type;
    int part;
    out[0] = RECORD_APPLICATION;
    out[1] = 3;
    out[2] = 3;
    out[3] = (uint8_t)(body >> 8);
    out[4] = (uint8_t)body;
    if (record_begin(keys, out) != 0)
        return -1;
    out += RECORD_HEADER;
    int ok = EVP_CipherUpdate(keys->aead, out, &part, content, (int)length) &&
             EVP_CipherUpdate(keys->aead, out + length, &part, &inner_type, 1) &&
             EVP_CipherFinal_ex(keys->aead, out + length + 1, &part) &&
             EVP_CIPHER_CTX_ctrl(keys->aead, EVP_CTRL_AEAD_GET_TAG, RECORD_TAG, out + length + 1) == 1;
    return ok ? 0 : -1;
}

int record_open(struct record_keys *keys, const uint8_t header[RECORD_HEADER], const uint8_t *body,
                size_t length, uint8_t *out)
{
    size_t inner = length - RECORD_TAG;
    uint8_t tag[RECORD_TAG]; /* the interface for it is not const */
    int part;
    memcpy(tag, body + inner, RECORD_TAG);
    int ok = record_begin(keys, header) == 0 && EVP_CipherUpdate(keys->aead, out, &part, body, (int)inner) &&
             EVP_CIPHER_CTX_ctrl(keys->aead, EVP_CTRL_AEAD_SET_TAG, RECORD_TAG, tag) == 1 &&
             EVP_CipherFinal_ex(keys->aead, out + inner, &part) == 1;
    if (!ok)
        OPENSSL_cleanse(out, inner);
    return ok ? 0 : -1;
}
