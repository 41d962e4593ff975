/*
 * keys.c: see nodeseal_keys.h.
 *
 * OpenSSL keeps private numbers in its secure heap, but its assembler works on copies of them on the stack,
 * which it does not wipe, and its encoders build PKCS 8 in ordinary memory. So every function that works with
 * a private number wipes the stack below itself before it returns, and PKCS 8 of the kinds of keys that are
 * made here is put together by hand, in a buffer that is wiped. What somebody else made (key_read) has been
 * in others' memory anyway.
 */
#define _GNU_SOURCE
#include "nodeseal_keys.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/decoder.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/secure_heap.h"
#include "base/wipe.h"

enum {
    HEAP_SIZE = 1 << 20, /* bytes, of which only those in use become resident */
    NUMBER_MAX = 48,     /* of a private key that is made here, P-384's */
    POINT_MAX = 97,      /* its public key */
    PKCS8_MAX = 192,     /* of a key that is made here */
};

struct ns_key {
    EVP_PKEY *pkey;
};

/* How PKCS 8 of one kind of key looks: `head`, the private number, `middle`, the public point (RFC 5958, RFC
 * 5915, RFC 8410). */
struct form {
    const char *type; /* OpenSSL's name of the algorithm */
    const char *group;
    uint8_t number_size;
    uint8_t point_size;
    uint8_t head_size;
    uint8_t middle_size;
    uint8_t head[40];
    uint8_t middle[8];
};

static const struct form FORMS[] = {
    [NS_KEY_P256] = {.type = "EC",
                     .group = "P-256",
                     .number_size = 32,
                     .point_size = 65,
                     .head_size = 36,
                     .middle_size = 5,
                     .head = {0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86,
                              0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
                              0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20},
                     .middle = {0xa1, 0x44, 0x03, 0x42, 0x00}},
    [NS_KEY_P384] = {.type = "EC",
                     .group = "P-384",
                     .number_size = 48,
                     .point_size = 97,
                     .head_size = 35,
                     .middle_size = 5,
                     .head = {0x30, 0x81, 0xb6, 0x02, 0x01, 0x00, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86,
                              0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22,
                              0x04, 0x81, 0x9e, 0x30, 0x81, 0x9b, 0x02, 0x01, 0x01, 0x04, 0x30},
                     .middle = {0xa1, 0x64, 0x03, 0x62, 0x00}},
    [NS_KEY_ED25519] = {.type = "ED25519",
                        .number_size = 32,
                        .head_size = 16,
                        .head = {0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04,
                                 0x22, 0x04, 0x20}},
};
enum { FORM_COUNT = sizeof(FORMS) / sizeof(FORMS[0]) };

/* One line, with OpenSSL's reason if it gave one, which never holds anything of a key. */
static void fail(char *error, size_t size, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    snprintf(error, size, "%s%s%s", what, reason == NULL ? "" : ": ", reason == NULL ? "" : reason);
    ERR_clear_error();
}

int keys_begin(void)
{
    return secure_heap_begin(HEAP_SIZE);
}

static struct ns_key *key_of(EVP_PKEY *pkey, char *error, size_t error_size)
{
    struct ns_key *key = pkey == NULL ? NULL : malloc(sizeof(*key));
    if (key == NULL) {
        EVP_PKEY_free(pkey);
        fail(error, error_size, "no memory for a key");
        return NULL;
    }
    key->pkey = pkey;
    return key;
}

struct ns_key *key_new(int kind, char *error, size_t error_size)
{
    ERR_clear_error();
    if (kind < 0 || kind >= FORM_COUNT) {
        fail(error, error_size, "no such kind of key");
        return NULL;
    }
    const struct form *form = &FORMS[kind];
    EVP_PKEY *pkey = form->group != NULL ? EVP_PKEY_Q_keygen(NULL, NULL, form->type, form->group)
                                         : EVP_PKEY_Q_keygen(NULL, NULL, form->type);
    wipe_behind();
    if (pkey == NULL) {
        fail(error, error_size, "OpenSSL cannot make a key");
        return NULL;
    }
    return key_of(pkey, error, error_size);
}

struct ns_key *key_read(const uint8_t *bytes, size_t length, char *error, size_t error_size)
{
    ERR_clear_error();
    EVP_PKEY *pkey = NULL;
    /* Without a passphrase, and nobody to ask for one: an encrypted key is refused. */
    OSSL_DECODER_CTX *decoder =
        OSSL_DECODER_CTX_new_for_pkey(&pkey, NULL, NULL, NULL, EVP_PKEY_KEYPAIR, NULL, NULL);
    int read = decoder != NULL && OSSL_DECODER_CTX_set_passphrase(decoder, (const uint8_t *)"", 0) &&
               OSSL_DECODER_from_data(decoder, &bytes, &length);
    OSSL_DECODER_CTX_free(decoder);
    wipe_behind();
    if (!read || pkey == NULL) {
        EVP_PKEY_free(pkey);
        ERR_clear_error();
        fail(error, error_size, "it is no private key in PEM form or PKCS 8, or it is encrypted");
        return NULL;
    }
    return key_of(pkey, error, error_size);
}

void key_free(struct ns_key *key)
{
    if (key == NULL)
        return;
    EVP_PKEY_free(key->pkey);
    free(key);
    wipe_behind();
}

/* Takes over `made`, of `length` bytes or an error. */
static size_t give(uint8_t *made, int length, uint8_t *out, size_t capacity, char *error, size_t error_size)
{
    size_t size = length > 0 && (size_t)length <= capacity ? (size_t)length : 0;
    if (size > 0)
        memcpy(out, made, size);
    else
        fail(error, error_size,
             length > 0 ? "it is larger than there is room for" : "OpenSSL cannot encode it");
    OPENSSL_free(made);
    return size;
}

size_t key_public(const struct ns_key *key, uint8_t *out, size_t capacity, char *error, size_t error_size)
{
    ERR_clear_error();
    uint8_t *made = NULL;
    int length = i2d_PUBKEY(key->pkey, &made);
    return give(made, length, out, capacity, error, error_size);
}

/* The extensions of a request; NULL: OpenSSL cannot. */
static STACK_OF(X509_EXTENSION) * extensions_for(const char *uri)
{
    STACK_OF(X509_EXTENSION) *extensions = sk_X509_EXTENSION_new_null();
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();
    X509_EXTENSION *extension = NULL;
    if (extensions != NULL && names != NULL && name != NULL && text != NULL &&
        ASN1_STRING_set(text, uri, -1)) {
        GENERAL_NAME_set0_value(name, GEN_URI, text);
        text = NULL;
        if (sk_GENERAL_NAME_push(names, name)) {
            name = NULL;
            /* There is no subject, so it is critical (RFC 5280, 4.2.1.6). */
            extension = X509V3_EXT_i2d(NID_subject_alt_name, 1, names);
        }
    }
    ASN1_IA5STRING_free(text);
    GENERAL_NAME_free(name);
    GENERAL_NAMES_free(names);
    if (extension != NULL && sk_X509_EXTENSION_push(extensions, extension))
        return extensions;
    X509_EXTENSION_free(extension);
    sk_X509_EXTENSION_free(extensions);
    return NULL;
}

/* What the key signs over; NULL: the algorithm has its own. */
static const EVP_MD *digest_for(EVP_PKEY *pkey)
{
    if (EVP_PKEY_is_a(pkey, "ED25519") || EVP_PKEY_is_a(pkey, "ED448"))
        return NULL;
    return EVP_PKEY_is_a(pkey, "EC") && EVP_PKEY_get_bits(pkey) == 384 ? EVP_sha384() : EVP_sha256();
}

size_t key_request(const struct ns_key *key, const char *uri, uint8_t *out, size_t capacity, char *error,
                   size_t error_size)
{
    ERR_clear_error();
    X509_REQ *request = X509_REQ_new();
    STACK_OF(X509_EXTENSION) *extensions = extensions_for(uri);
    int made = request != NULL && extensions != NULL && X509_REQ_set_version(request, X509_REQ_VERSION_1) &&
               X509_REQ_set_pubkey(request, key->pkey) && X509_REQ_add_extensions(request, extensions) &&
               X509_REQ_sign(request, key->pkey, digest_for(key->pkey)) > 0;
    uint8_t *encoded = NULL;
    int length = made ? i2d_X509_REQ(request, &encoded) : -1;
    sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
    X509_REQ_free(request);
    wipe_behind();
    return give(encoded, length, out, capacity, error, error_size);
}

/* The form of a key; NULL: it is of a kind that is not made here. */
static const struct form *form_of(EVP_PKEY *pkey)
{
    char group[32] = "";
    if (EVP_PKEY_is_a(pkey, "ED25519"))
        return &FORMS[NS_KEY_ED25519];
    if (!EVP_PKEY_is_a(pkey, "EC") || !EVP_PKEY_get_group_name(pkey, group, sizeof(group), NULL))
        return NULL;
    if (strcmp(group, "prime256v1") == 0 || strcmp(group, "P-256") == 0)
        return &FORMS[NS_KEY_P256];
    return strcmp(group, "secp384r1") == 0 || strcmp(group, "P-384") == 0 ? &FORMS[NS_KEY_P384] : NULL;
}

/* Big-endian, as PKCS 8 has it. 0, or -1. */
static int private_number(EVP_PKEY *pkey, const struct form *form, uint8_t out[NUMBER_MAX])
{
    size_t size = form->number_size;
    if (form->group == NULL)
        /* Not EVP_PKEY_get_raw_private_key: it leaves a copy in ordinary memory. */
        return EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PRIV_KEY, out, NUMBER_MAX, &size) &&
                       size == form->number_size
                   ? 0
                   : -1;
    uint8_t native[NUMBER_MAX];
    OSSL_PARAM wanted[] = {OSSL_PARAM_construct_BN(OSSL_PKEY_PARAM_PRIV_KEY, native, size),
                           OSSL_PARAM_construct_end()};
    int got = EVP_PKEY_get_params(pkey, wanted) && wanted[0].return_size == size;
    for (size_t i = 0; got && i < size; i++)
        out[i] = native[__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? size - 1 - i : i];
    OPENSSL_cleanse(native, sizeof(native));
    return got ? 0 : -1;
}

/* PKCS 8 of a key that has a form; its size, or 0. */
static size_t pkcs8_of(EVP_PKEY *pkey, const struct form *form, uint8_t out[PKCS8_MAX])
{
    uint8_t *at = out;
    memcpy(at, form->head, form->head_size);
    at += form->head_size;
    if (private_number(pkey, form, at) != 0)
        return 0;
    at += form->number_size;
    memcpy(at, form->middle, form->middle_size);
    at += form->middle_size;
    size_t size = 0;
    if (form->point_size > 0 &&
        (!EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PUB_KEY, at, POINT_MAX, &size) ||
         size != form->point_size))
        return 0;
    return (size_t)(at - out) + size;
}

/* A memfd with these bytes, sealed; -1. */
static int sealed(const uint8_t *bytes, size_t size)
{
    int fd = memfd_create("nodeseal-key", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (write(fd, bytes, size) == (ssize_t)size &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0)
        return fd;
    close(fd);
    return -1;
}

int key_export(const struct ns_key *key, char *error, size_t error_size)
{
    ERR_clear_error();
    const struct form *form = form_of(key->pkey);
    int fd = -1;
    if (form != NULL) {
        uint8_t encoded[PKCS8_MAX];
        size_t size = pkcs8_of(key->pkey, form, encoded);
        if (size > 0)
            fd = sealed(encoded, size);
        OPENSSL_cleanse(encoded, sizeof(encoded));
    } else {
        PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(key->pkey);
        uint8_t *encoded = NULL;
        int size = info == NULL ? -1 : i2d_PKCS8_PRIV_KEY_INFO(info, &encoded);
        if (size > 0) {
            fd = sealed(encoded, (size_t)size);
            OPENSSL_clear_free(encoded, (size_t)size);
        }
        PKCS8_PRIV_KEY_INFO_free(info);
    }
    wipe_behind();
    if (fd < 0)
        fail(error, error_size, "the key cannot be put into a memfd");
    return fd;
}
