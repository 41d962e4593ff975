/* revoked.c: see revoked.h. */
#include "wire/revoked.h"

#include <openssl/bn.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/link.h"

/* ---- digests ---- */

enum { SHA256_SIZE = 32, SHA256_HEX = 2 * SHA256_SIZE };

/* A SHA-256 that is fetched once for all the texts of a certificate. */
struct hasher {
    EVP_MD *kind;
    EVP_MD_CTX *context;
};

static int hasher_init(struct hasher *hasher, OSSL_LIB_CTX *libctx)
{
    hasher->kind = EVP_MD_fetch(libctx, "SHA256", NULL);
    hasher->context = EVP_MD_CTX_new();
    return hasher->kind != NULL && hasher->context != NULL ? 0 : -1;
}

static void hasher_dispose(struct hasher *hasher)
{
    EVP_MD_CTX_free(hasher->context);
    EVP_MD_free(hasher->kind);
}

struct text {
    const void *bytes;
    size_t length;
};

/* Of the parts with a zero byte between them. 0, or -1. */
static int hash_texts(struct hasher *hasher, const struct text *parts, int count, uint8_t out[SHA256_SIZE])
{
    int ok = EVP_DigestInit_ex2(hasher->context, hasher->kind, NULL);
    for (int i = 0; i < count; i++)
        ok = ok && (i == 0 || EVP_DigestUpdate(hasher->context, "", 1)) &&
             EVP_DigestUpdate(hasher->context, parts[i].bytes, parts[i].length);
    return ok && EVP_DigestFinal_ex(hasher->context, out, NULL) ? 0 : -1;
}

static int digest(struct hasher *hasher, const struct text *parts, int count, uint8_t out[REVOKED_DIGEST])
{
    uint8_t whole[SHA256_SIZE];
    if (hash_texts(hasher, parts, count, whole) != 0)
        return -1;
    memcpy(out, whole, REVOKED_DIGEST);
    return 0;
}

static struct text text_of(const char *text)
{
    return (struct text){text, strlen(text)};
}

/* The trust domain in a SPIFFE id. */
static struct text domain_of(const char *identity)
{
    const char *begin = identity + strlen("spiffe://");
    return (struct text){begin, strcspn(begin, "/")};
}

/* NULL: OpenSSL cannot. For the caller to free with OPENSSL_free. */
static char *serial_text(const X509 *certificate)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(certificate), NULL);
    char *text = number == NULL ? NULL : BN_bn2hex(number);
    BN_free(number);
    if (text == NULL)
        return NULL;
    char *digits = text + (text[0] == '-');
    size_t zeros = strspn(digits, "0");
    if (digits[zeros] == 0 && zeros > 0)
        zeros--;
    memmove(digits, digits + zeros, strlen(digits + zeros) + 1);
    for (char *at = digits; *at != 0; at++)
        *at = (char)(*at >= 'A' && *at <= 'F' ? *at - 'A' + 'a' : *at);
    return text;
}

/* 0, or -1. */
static int issuer_text(struct hasher *hasher, const X509 *certificate, char out[SHA256_HEX + 1])
{
    struct text name;
    uint8_t whole[SHA256_SIZE];
    const unsigned char *der;
    if (!X509_NAME_get0_der(X509_get_issuer_name(certificate), &der, &name.length))
        return -1;
    name.bytes = der;
    if (hash_texts(hasher, &name, 1, whole) != 0)
        return -1;
    for (int i = 0; i < SHA256_SIZE; i++)
        snprintf(out + 2 * i, 3, "%02x", whole[i]);
    return 0;
}

int digest_anchor(OSSL_LIB_CTX *libctx, const X509 *anchor, uint8_t out[REVOKED_DIGEST])
{
    uint8_t whole[SHA256_SIZE];
    EVP_MD *kind = EVP_MD_fetch(libctx, "SHA256", NULL);
    int ok = kind != NULL && X509_digest(anchor, kind, whole, NULL);
    EVP_MD_free(kind);
    if (!ok)
        return -1;
    memcpy(out, whole, REVOKED_DIGEST);
    return 0;
}

/* Of one certificate of the trust domain. 0, or -1. */
static int number_digests(struct hasher *hasher, const X509 *certificate, struct text domain,
                          struct number_digests *out)
{
    char issuer[SHA256_HEX + 1];
    char *serial = serial_text(certificate);
    int result = -1;
    if (serial != NULL && issuer_text(hasher, certificate, issuer) == 0) {
        const struct text by_serial[] = {text_of("serial"), domain, text_of(serial)};
        const struct text by_issuer[] = {text_of("issued"), text_of(issuer), text_of(serial)};
        result = digest(hasher, by_serial, 3, out->serial);
        result |= digest(hasher, by_issuer, 3, out->issued);
    }
    OPENSSL_free(serial);
    return result;
}

int digests_of(OSSL_LIB_CTX *libctx, const X509 *certificate, const char *identity,
               const STACK_OF(X509) * chain, int from, int end, struct digests *out)
{
    const struct text by_identity[] = {text_of("identity"), text_of(identity)};
    const struct text domain = domain_of(identity);
    struct hasher hasher;
    int result = hasher_init(&hasher, libctx);
    out->signer_count = 0;
    if (end - from > REVOKED_SIGNERS_MOST)
        result = -1;
    if (result == 0)
        result = digest(&hasher, by_identity, 2, out->identity);
    if (result == 0)
        result = number_digests(&hasher, certificate, domain, &out->leaf);
    for (int i = from; i < end && result == 0; i++)
        result = number_digests(&hasher, sk_X509_value(chain, i), domain, &out->signers[out->signer_count++]);
    hasher_dispose(&hasher);
    return result;
}

/* ---- the set ---- */

enum { CAPACITY_LEAST = 64 };

typedef uint8_t slot[REVOKED_DIGEST];

static const slot FREE = {0};

void revoked_init(struct revoked *revoked)
{
    memset(revoked, 0, sizeof(*revoked));
    pthread_mutex_init(&revoked->mutex, NULL);
}

void revoked_dispose(struct revoked *revoked)
{
    free(revoked->slots);
    revoked->slots = NULL;
    revoked->capacity = revoked->used = 0;
    pthread_mutex_destroy(&revoked->mutex);
}

/* The digest's slot, or the free one where it belongs. Digests are as good as random: no more is made of
 * them. */
static size_t slot_of(slot *slots, size_t capacity, const uint8_t *digest)
{
    uint64_t hash;
    memcpy(&hash, digest, sizeof(hash));
    size_t at = hash_place(hash, capacity);
    while (memcmp(slots[at], FREE, sizeof(slot)) != 0 && memcmp(slots[at], digest, sizeof(slot)) != 0)
        at = (at + 1) & (capacity - 1);
    return at;
}

static int has(slot *slots, size_t capacity, const uint8_t *digest)
{
    return capacity > 0 && memcmp(slots[slot_of(slots, capacity, digest)], FREE, sizeof(slot)) != 0;
}

/* A table that is being filled. */
struct table {
    slot *slots;
    size_t capacity;
    size_t used;
};

static struct table table_for(size_t count)
{
    struct table table = {.capacity = CAPACITY_LEAST};
    if (count == 0)
        return (struct table){NULL, 0, 0};
    while (2 * table.capacity < 3 * count)
        table.capacity *= 2;
    table.slots = ns_alloc(table.capacity * sizeof(slot));
    return table;
}

static void table_add(struct table *table, const uint8_t *digest)
{
    if (memcmp(digest, FREE, sizeof(slot)) == 0)
        return; /* no text has it that anybody could find */
    uint8_t *place = table->slots[slot_of(table->slots, table->capacity, digest)];
    table->used += memcmp(place, FREE, sizeof(slot)) == 0;
    memcpy(place, digest, sizeof(slot));
}

size_t revoked_change(struct revoked *revoked, const uint8_t *added, size_t added_count,
                      const uint8_t *removed, size_t removed_count, int whole)
{
    /* Nobody else changes the set: it is read without the lock. */
    size_t kept = whole ? 0 : revoked->capacity;
    struct table gone = table_for(whole ? 0 : removed_count);
    struct table table = table_for((whole ? 0 : revoked->used) + added_count);
    for (size_t i = 0; i < removed_count && gone.capacity > 0; i++)
        table_add(&gone, removed + i * sizeof(slot));
    for (size_t i = 0; i < kept; i++)
        if (!has(gone.slots, gone.capacity, revoked->slots[i]))
            table_add(&table, revoked->slots[i]);
    for (size_t i = 0; i < added_count; i++)
        table_add(&table, added + i * sizeof(slot));
    free(gone.slots);
    slot *before = revoked->slots;
    pthread_mutex_lock(&revoked->mutex);
    revoked->slots = table.slots;
    revoked->capacity = table.capacity;
    revoked->used = table.used;
    pthread_mutex_unlock(&revoked->mutex);
    free(before);
    return table.used;
}

static int has_number(const struct revoked *revoked, const struct number_digests *digests)
{
    return has(revoked->slots, revoked->capacity, digests->serial) ||
           has(revoked->slots, revoked->capacity, digests->issued);
}

enum revoked_by revoked_look(struct revoked *revoked, const struct digests *digests)
{
    enum revoked_by by = REVOKED_NOT;
    if (revoked == NULL)
        return by;
    pthread_mutex_lock(&revoked->mutex);
    if (has(revoked->slots, revoked->capacity, digests->identity))
        by = REVOKED_IDENTITY;
    else if (has_number(revoked, &digests->leaf))
        by = REVOKED_CERTIFICATE;
    else if (has(revoked->slots, revoked->capacity, digests->anchor))
        by = REVOKED_ANCHOR;
    for (int i = 0; i < digests->signer_count && by == REVOKED_NOT; i++)
        if (has_number(revoked, &digests->signers[i]))
            by = REVOKED_SIGNER;
    pthread_mutex_unlock(&revoked->mutex);
    return by;
}

static const char *words(enum revoked_by by, int own)
{
    if (by == REVOKED_ANCHOR)
        return "the trust anchor that the peer was verified by was removed";
    if (by == REVOKED_SIGNER)
        return own ? "the CA of this workload's certificate was revoked"
                   : "the CA of the peer's certificate was revoked";
    if (by == REVOKED_IDENTITY)
        return own ? "this workload's identity was revoked" : "peer's identity was revoked";
    return own ? "this workload's certificate was revoked" : "peer's certificate was revoked";
}

const char *revoked_reason(struct revoked *revoked, const struct digests *peers, const struct digests *own,
                           uint8_t *alert)
{
    enum revoked_by by = revoked_look(revoked, peers);
    *alert = by == REVOKED_ANCHOR ? SSL_AD_UNKNOWN_CA : SSL_AD_CERTIFICATE_REVOKED;
    if (by != REVOKED_NOT)
        return words(by, 0);
    by = revoked_look(revoked, own);
    *alert = SSL_AD_ACCESS_DENIED;
    return by == REVOKED_NOT ? NULL : words(by, 1);
}
