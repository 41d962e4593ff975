/* chain.c: see chain.h. */
#include "wire/chain.h"

#include <string.h>

static const char BROKEN[] = "peer certificate cannot be read";

/* What is left to read. */
struct part {
    const uint8_t *at;
    size_t length;
};

enum { SEQUENCE = 0x30, INTEGER = 0x02, OBJECT_IDENTIFIER = 0x06, VERSION = 0xa0 };
enum { HEADER = 4 }; /* of a handshake message */

static int skip(struct part *part, size_t count)
{
    if (part->length < count)
        return -1;
    part->at += count;
    part->length -= count;
    return 0;
}

/* Takes what is prefixed by its length, in `size` bytes. 0, or -1. */
static int take_vector(struct part *from, size_t size, struct part *out)
{
    size_t length = 0;
    if (from->length < size)
        return -1;
    for (size_t i = 0; i < size; i++)
        length = length << 8 | from->at[i];
    from->at += size;
    from->length -= size;
    out->at = from->at;
    out->length = length;
    return skip(from, length);
}

/* Takes the next value of DER (X.690) and its tag. 0, or -1: there is none, or it is longer than what is
 * left.
 */
static int take_value(struct part *from, uint8_t *tag, struct part *out)
{
    if (from->length < 2)
        return -1;
    *tag = from->at[0];
    uint8_t first = from->at[1];
    if (first < 0x80) {
        (void)skip(from, 1);
        return take_vector(from, 1, out);
    }
    size_t size = first & 0x7f;
    if (size < 1 || size > 3)
        return -1;
    (void)skip(from, 2);
    return take_vector(from, size, out);
}

static int take(struct part *from, uint8_t tag, struct part *out)
{
    uint8_t found;
    return take_value(from, &found, out) == 0 && found == tag ? 0 : -1;
}

struct name {
    uint8_t length;
    uint8_t bytes[9];
};

static const struct name EC = {7, {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01}};
static const struct name OTHER_KEYS[] = {
    {9, {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}}, /* RSA */
    {9, {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a}}, /* RSASSA-PSS */
    {3, {0x2b, 0x65, 0x70}},                                     /* Ed25519 */
};
static const struct name CURVES[] = {
    {8, {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}}, /* P-256 */
    {5, {0x2b, 0x81, 0x04, 0x00, 0x22}},                   /* P-384 */
    {5, {0x2b, 0x81, 0x04, 0x00, 0x23}},                   /* P-521 */
};

static int is(const struct part *part, const struct name *name)
{
    return part->length == name->length && memcmp(part->at, name->bytes, name->length) == 0;
}

static int is_one_of(const struct part *part, const struct name *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (is(part, &names[i]))
            return 1;
    return 0;
}

/* `key` is a SubjectPublicKeyInfo (RFC 5280, 4.1). */
static const char *key_refused(struct part key)
{
    static const char UNUSUAL[] = "peer certificate has a key of a kind that is not taken";
    struct part algorithm, name, curve;
    if (take(&key, SEQUENCE, &algorithm) != 0 || take(&algorithm, OBJECT_IDENTIFIER, &name) != 0)
        return BROKEN;
    if (is_one_of(&name, OTHER_KEYS, sizeof(OTHER_KEYS) / sizeof(OTHER_KEYS[0])))
        return NULL;
    if (!is(&name, &EC) || take(&algorithm, OBJECT_IDENTIFIER, &curve) != 0 ||
        !is_one_of(&curve, CURVES, sizeof(CURVES) / sizeof(CURVES[0])))
        return UNUSUAL;
    return NULL;
}

/* Certificate: TBSCertificate: version, serial number, signature, issuer, validity, subject, key (RFC 5280,
 * 4.1). The version may be missing. */
static const char *certificate_refused(struct part bytes)
{
    static const uint8_t TAGS[] = {INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE};
    struct part certificate, fields, value;
    uint8_t tag;
    if (take(&bytes, SEQUENCE, &certificate) != 0 || take(&certificate, SEQUENCE, &fields) != 0)
        return BROKEN;
    if (fields.length > 0 && fields.at[0] == VERSION && take_value(&fields, &tag, &value) != 0)
        return BROKEN;
    for (size_t i = 0; i < sizeof(TAGS); i++)
        if (take(&fields, TAGS[i], &value) != 0)
            return BROKEN;
    return key_refused(value);
}

const char *chain_refused(const uint8_t *message, size_t length)
{
    struct part part = {message, length}, context, list, certificate, extensions;
    if (skip(&part, HEADER) != 0 || take_vector(&part, 1, &context) != 0 || take_vector(&part, 3, &list) != 0)
        return BROKEN;
    for (int count = 1; list.length > 0; count++) {
        if (count > CHAIN_MOST)
            return "peer sends more certificates than are looked at";
        if (take_vector(&list, 3, &certificate) != 0 || take_vector(&list, 2, &extensions) != 0)
            return BROKEN;
        const char *wrong = certificate_refused(certificate);
        if (wrong != NULL)
            return wrong;
    }
    return NULL;
}

void chain_spoil(uint8_t *message, size_t length)
{
    if (length > HEADER)
        message[HEADER] = 0xff; /* the length of its context, which has to be 0 in a handshake */
}
