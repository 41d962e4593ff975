/* svid.c: see svid.h. */
#include "wire/svid.h"

#include <openssl/asn1t.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "wire/names.h"

enum { EXTENSIONS_MAX = 64 }; /* of one certificate: they are compared with one another */

/* ---- what both kinds of certificates have ---- */

static int same_object(const X509_EXTENSION *a, const X509_EXTENSION *b)
{
    return OBJ_cmp(X509_EXTENSION_get_object((X509_EXTENSION *)a),
                   X509_EXTENSION_get_object((X509_EXTENSION *)b)) == 0;
}

/* RFC 5280, 4.2: none twice. */
static int has_duplicates(const X509 *certificate)
{
    int count = X509_get_ext_count(certificate);
    for (int i = 1; i < count; i++)
        for (int j = 0; j < i; j++)
            if (same_object(X509_get_ext(certificate, i), X509_get_ext(certificate, j)))
                return 1;
    return 0;
}

enum presence { ABSENT = 0, READ = 1, MALFORMED = 2 };

/* Reads the extension, which is there once at most. READ: *value is the caller's to free. It must be DER, all
 * of it: what is encoded anew is the same. */
static enum presence extension_read(const X509 *certificate, int nid, const ASN1_ITEM *item, void **value,
                                    int *critical)
{
    int at = X509_get_ext_by_NID(certificate, nid, -1);
    *value = NULL;
    *critical = 0;
    if (at < 0)
        return ABSENT;
    X509_EXTENSION *extension = X509_get_ext(certificate, at);
    const ASN1_OCTET_STRING *whole = X509_EXTENSION_get_data(extension);
    const unsigned char *bytes = ASN1_STRING_get0_data(whole);
    int length = ASN1_STRING_length(whole);
    unsigned char *again = NULL;
    ASN1_VALUE *read = ASN1_item_d2i(NULL, &bytes, length, item);
    int encoded = read == NULL ? -1 : ASN1_item_i2d(read, &again, item);
    int same = encoded == length && memcmp(again, ASN1_STRING_get0_data(whole), (size_t)length) == 0;
    OPENSSL_free(again);
    ERR_clear_error();
    if (!same) {
        ASN1_item_free(read, item);
        return MALFORMED;
    }
    *critical = X509_EXTENSION_get_critical(extension);
    *value = read;
    return READ;
}

/* The faults that leaves and signing certificates share, each in words for both. */
enum fault {
    SOUND = 0,
    NOT_VERSION_3,
    TOO_MANY_EXTENSIONS,
    EXTENSION_TWICE,
    CONSTRAINTS_MALFORMED,
    USAGE_MALFORMED,
    USAGE_ABSENT,
    USAGE_NOT_CRITICAL,
    NAMES_MALFORMED,
    SEVERAL_URIS,
};

static const char *leaf_words(enum fault fault)
{
    static const char *const WORDS[] = {
        [NOT_VERSION_3] = "peer certificate is not of X.509 version 3",
        [TOO_MANY_EXTENSIONS] = "peer certificate has more than 64 extensions",
        [EXTENSION_TWICE] = "peer certificate has an extension twice",
        [CONSTRAINTS_MALFORMED] = "peer certificate has malformed basic constraints",
        [USAGE_MALFORMED] = "peer certificate has a malformed key usage",
        [USAGE_ABSENT] = "peer certificate has no key usage",
        [USAGE_NOT_CRITICAL] = "peer certificate has a key usage that is not critical",
        [NAMES_MALFORMED] = "peer certificate has malformed alternative names",
        [SEVERAL_URIS] = "peer certificate has more than one URI",
    };
    return fault == SOUND ? NULL : WORDS[fault];
}

static const char *signer_words(enum fault fault)
{
    static const char *const WORDS[] = {
        [NOT_VERSION_3] = "a signing certificate of the peer is not of X.509 version 3",
        [TOO_MANY_EXTENSIONS] = "a signing certificate of the peer has more than 64 extensions",
        [EXTENSION_TWICE] = "a signing certificate of the peer has an extension twice",
        [CONSTRAINTS_MALFORMED] = "a signing certificate of the peer has malformed basic constraints",
        [USAGE_MALFORMED] = "a signing certificate of the peer has a malformed key usage",
        [USAGE_ABSENT] = "a signing certificate of the peer has no key usage",
        [USAGE_NOT_CRITICAL] = "a signing certificate of the peer has a key usage that is not critical",
        [NAMES_MALFORMED] = "a signing certificate of the peer has malformed alternative names",
        [SEVERAL_URIS] = "a signing certificate of the peer has more than one URI",
    };
    return fault == SOUND ? NULL : WORDS[fault];
}

/* A certificate as far as the rules look at it. */
struct reading {
    int authority;        /* basic constraints: cA */
    uint32_t usage;       /* key usage: KU_ bits */
    int usage_critical;   /* 0 too if it has none */
    int names_critical;   /* of the alternative names, 0 if it has none */
    GENERAL_NAMES *names; /* held; NULL: none */
    int uris;             /* how many of them are URIs */
    const char *uri;      /* of the first one; in `names`, not terminated */
    size_t uri_length;
};

static uint32_t usage_bits(const ASN1_BIT_STRING *usage)
{
    static const uint32_t BITS[] = {KU_DIGITAL_SIGNATURE, KU_NON_REPUDIATION, KU_KEY_ENCIPHERMENT,
                                    KU_DATA_ENCIPHERMENT, KU_KEY_AGREEMENT,   KU_KEY_CERT_SIGN,
                                    KU_CRL_SIGN};
    uint32_t bits = 0;
    for (int i = 0; i < (int)(sizeof(BITS) / sizeof(BITS[0])); i++)
        bits |= ASN1_BIT_STRING_get_bit(usage, i) ? BITS[i] : 0;
    return bits;
}

static void read_uris(struct reading *reading)
{
    for (int i = 0; reading->names != NULL && i < sk_GENERAL_NAME_num(reading->names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(reading->names, i);
        if (name->type != GEN_URI)
            continue;
        if (reading->uris++ == 0) {
            reading->uri = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
            reading->uri_length = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        }
    }
}

/* The reading is to be disposed of in any case. */
static enum fault certificate_read(const X509 *certificate, struct reading *reading)
{
    void *value;
    int critical;
    memset(reading, 0, sizeof(*reading));
    if (X509_get_version(certificate) != X509_VERSION_3)
        return NOT_VERSION_3;
    if (X509_get_ext_count(certificate) > EXTENSIONS_MAX)
        return TOO_MANY_EXTENSIONS;
    if (has_duplicates(certificate))
        return EXTENSION_TWICE;
    enum presence presence = extension_read(certificate, NID_basic_constraints,
                                            ASN1_ITEM_rptr(BASIC_CONSTRAINTS), &value, &critical);
    if (presence == MALFORMED)
        return CONSTRAINTS_MALFORMED;
    if (presence == READ)
        reading->authority = ((const BASIC_CONSTRAINTS *)value)->ca != 0;
    BASIC_CONSTRAINTS_free(value);

    presence = extension_read(certificate, NID_key_usage, ASN1_ITEM_rptr(ASN1_BIT_STRING), &value,
                              &reading->usage_critical);
    if (presence == MALFORMED)
        return USAGE_MALFORMED;
    if (presence == ABSENT)
        return USAGE_ABSENT;
    reading->usage = usage_bits(value);
    ASN1_BIT_STRING_free(value);

    presence = extension_read(certificate, NID_subject_alt_name, ASN1_ITEM_rptr(GENERAL_NAMES), &value,
                              &reading->names_critical);
    reading->names = value;
    read_uris(reading);
    return presence == MALFORMED ? NAMES_MALFORMED : SOUND;
}

static void reading_dispose(struct reading *reading)
{
    GENERAL_NAMES_free(reading->names);
}

/* ---- leaves ---- */

static const char *leaf_usage_fault(const struct reading *reading)
{
    if (reading->authority)
        return "peer certificate is a CA certificate";
    if (reading->usage & KU_KEY_CERT_SIGN)
        return "peer certificate may sign certificates (key usage keyCertSign)";
    if (reading->usage & KU_CRL_SIGN)
        return "peer certificate may sign revocation lists (key usage cRLSign)";
    if (!(reading->usage & KU_DIGITAL_SIGNATURE))
        return "peer certificate is not for signatures (key usage digitalSignature)";
    return reading->usage_critical ? NULL : leaf_words(USAGE_NOT_CRITICAL);
}

/* Without the extension it is for every purpose. */
static const char *extended_usage_fault(const X509 *certificate, enum svid_role role)
{
    void *value;
    int critical;
    int wanted = role == SVID_CLIENT ? NID_client_auth : NID_server_auth;
    enum presence presence =
        extension_read(certificate, NID_ext_key_usage, ASN1_ITEM_rptr(EXTENDED_KEY_USAGE), &value, &critical);
    if (presence == MALFORMED)
        return "peer certificate has a malformed extended key usage";
    EXTENDED_KEY_USAGE *usages = value;
    int found = presence == ABSENT;
    for (int i = 0; usages != NULL && i < sk_ASN1_OBJECT_num(usages); i++)
        found |= OBJ_obj2nid(sk_ASN1_OBJECT_value(usages, i)) == wanted;
    EXTENDED_KEY_USAGE_free(usages);
    if (found)
        return NULL;
    return role == SVID_CLIENT ? "peer certificate is not for clients (extended key usage)"
                               : "peer certificate is not for servers (extended key usage)";
}

static const char *leaf_name_fault(const X509 *certificate, const struct reading *reading)
{
    if (reading->uris == 0)
        return "peer certificate has no SPIFFE id";
    if (reading->uris > 1)
        return leaf_words(SEVERAL_URIS);
    if (spiffe_domain_id_valid(reading->uri, reading->uri_length))
        return "peer certificate has a SPIFFE id without a path";
    if (!spiffe_id_valid(reading->uri, reading->uri_length))
        return "peer certificate has a URI that is no SPIFFE id";
    if (X509_NAME_entry_count(X509_get_subject_name(certificate)) == 0 && !reading->names_critical)
        return "peer certificate has no subject, and its alternative names are not critical";
    return NULL;
}

/* Of ids that are valid. */
static const char *identity_fault(const struct reading *reading, const char *trust_domain,
                                  enum svid_paths paths)
{
    if (!spiffe_id_in_domain(reading->uri, reading->uri_length, trust_domain))
        return "peer is of another trust domain";
    if (paths == SVID_OWN_PATHS && !spiffe_id_names_workload(reading->uri, reading->uri_length))
        return "peer's SPIFFE id is not of the form <trust domain>/ns/<namespace>/sa/<account>";
    return reading->uri_length < NS_IDENTITY_MAX ? NULL : "peer's SPIFFE id is longer than 511 bytes";
}

static void take_identity(const struct reading *reading, char identity[NS_IDENTITY_MAX])
{
    memcpy(identity, reading->uri, reading->uri_length);
    identity[reading->uri_length] = 0;
}

const char *svid_leaf_fault(X509 *certificate, enum svid_role role, const char *trust_domain,
                            enum svid_paths paths, char identity[NS_IDENTITY_MAX])
{
    struct reading reading;
    identity[0] = 0;
    const char *wrong = leaf_words(certificate_read(certificate, &reading));
    if (wrong == NULL)
        wrong = leaf_usage_fault(&reading);
    if (wrong == NULL)
        wrong = extended_usage_fault(certificate, role);
    if (wrong == NULL)
        wrong = leaf_name_fault(certificate, &reading);
    if (wrong == NULL)
        wrong = identity_fault(&reading, trust_domain, paths);
    if (wrong == NULL)
        take_identity(&reading, identity);
    reading_dispose(&reading);
    return wrong;
}

int svid_identity(X509 *certificate, char identity[NS_IDENTITY_MAX])
{
    struct reading reading;
    identity[0] = 0;
    if (certificate_read(certificate, &reading) == SOUND && reading.uris == 1 &&
        reading.uri_length < NS_IDENTITY_MAX && spiffe_id_valid(reading.uri, reading.uri_length))
        take_identity(&reading, identity);
    reading_dispose(&reading);
    return identity[0] != 0 ? 0 : -1;
}

int svid_domain(X509 *certificate, char domain[TRUST_DOMAIN_MAX])
{
    static const size_t SCHEME = sizeof("spiffe://") - 1;
    struct reading reading;
    size_t length = 0;
    if (certificate_read(certificate, &reading) == SOUND && reading.uris == 1 &&
        (spiffe_id_valid(reading.uri, reading.uri_length) ||
         spiffe_domain_id_valid(reading.uri, reading.uri_length))) {
        const char *end = memchr(reading.uri + SCHEME, '/', reading.uri_length - SCHEME);
        length = end == NULL ? reading.uri_length - SCHEME : (size_t)(end - reading.uri) - SCHEME;
        memcpy(domain, reading.uri + SCHEME, length); /* valid ones have 255 bytes at most */
    }
    domain[length] = 0;
    reading_dispose(&reading);
    return length > 0 ? 0 : -1;
}

void svid_presented(X509 *certificate, char *out, size_t size)
{
    static const char CUT[] = "...";
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    struct reading reading = {.names = names};
    size_t length;
    ERR_clear_error();
    read_uris(&reading);
    length = reading.uri_length < size ? reading.uri_length : size - 1;
    for (size_t i = 0; i < length; i++)
        out[i] = (char)(reading.uri[i] > ' ' && reading.uri[i] < 0x7f ? reading.uri[i] : '?');
    out[length] = 0;
    if (length < reading.uri_length)
        memcpy(out + size - sizeof(CUT), CUT, sizeof(CUT));
    GENERAL_NAMES_free(names);
}

/* ---- signing certificates ---- */

/* One need not be an SVID itself: then its names are of no concern. */
static int is_svid(const struct reading *reading)
{
    static const char SCHEME[] = "spiffe:";
    for (int i = 0; reading->names != NULL && i < sk_GENERAL_NAME_num(reading->names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(reading->names, i);
        if (name->type == GEN_URI &&
            ASN1_STRING_length(name->d.uniformResourceIdentifier) >= (int)sizeof(SCHEME) - 1 &&
            OPENSSL_strncasecmp((const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier),
                                SCHEME, sizeof(SCHEME) - 1) == 0)
            return 1;
    }
    return 0;
}

static const char *signer_svid_fault(const struct reading *reading, int signs_leaf, const char *trust_domain)
{
    if (!reading->usage_critical)
        return signer_words(USAGE_NOT_CRITICAL);
    if (reading->uris > 1)
        return signer_words(SEVERAL_URIS);
    if (spiffe_id_valid(reading->uri, reading->uri_length))
        return "a signing certificate of the peer has a SPIFFE id with a path";
    if (!spiffe_domain_id_valid(reading->uri, reading->uri_length))
        return "a signing certificate of the peer has a malformed SPIFFE id";
    /* Others may be above it: a trust domain may have its signing certificate signed by another. */
    if (signs_leaf && !spiffe_id_in_domain(reading->uri, reading->uri_length, trust_domain))
        return "peer certificate is signed by another trust domain";
    return NULL;
}

static const char *signer_fault(const X509 *certificate, int signs_leaf, const char *trust_domain)
{
    struct reading reading;
    const char *wrong = signer_words(certificate_read(certificate, &reading));
    if (wrong == NULL && !reading.authority)
        wrong = "a signing certificate of the peer is no CA certificate";
    if (wrong == NULL && !(reading.usage & KU_KEY_CERT_SIGN))
        wrong = "a signing certificate of the peer may not sign certificates (key usage keyCertSign)";
    if (wrong == NULL && is_svid(&reading))
        wrong = signer_svid_fault(&reading, signs_leaf, trust_domain);
    reading_dispose(&reading);
    return wrong;
}

const char *svid_signers_fault(const STACK_OF(X509) * chain, const char *trust_domain)
{
    const char *wrong = NULL;
    if (sk_X509_num(chain) < 2)
        return "peer certificate is not signed by a CA"; /* it is a trust anchor itself */
    for (int i = 1; i < sk_X509_num(chain) && wrong == NULL; i++)
        wrong = signer_fault(sk_X509_value(chain, i), i == 1, trust_domain);
    return wrong;
}

/* ---- paths ---- */

const char *svid_path_fault(int error, int depth)
{
    switch (error) {
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return "peer certificate is of a CA that is not trusted here";
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return depth == 0 ? "peer certificate has expired" : "a signing certificate of the peer has expired";
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return depth == 0 ? "peer certificate is not yet valid"
                          : "a signing certificate of the peer is not yet valid";
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return depth == 0 ? "peer certificate has a wrong signature"
                          : "a signing certificate of the peer has a wrong signature";
    case X509_V_ERR_INVALID_CA:
    case X509_V_ERR_KEYUSAGE_NO_CERTSIGN:
        return "peer certificate is signed by a certificate that may not sign";
    case X509_V_ERR_PATH_LENGTH_EXCEEDED:
        return "the chain of the peer certificate is longer than a signing certificate allows";
    case X509_V_ERR_UNHANDLED_CRITICAL_EXTENSION:
        return depth == 0 ? "peer certificate has an unknown critical extension"
                          : "a signing certificate of the peer has an unknown critical extension";
    case X509_V_ERR_PERMITTED_VIOLATION:
    case X509_V_ERR_EXCLUDED_VIOLATION:
        return "peer certificate has a name that its CA's name constraints do not allow";
    case X509_V_ERR_INVALID_PURPOSE:
        return depth == 0 ? "peer certificate is not for this role (key usage or extended key usage)"
                          : "a signing certificate of the peer is not for this role (extended key usage)";
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return "peer certificate, or one that it is verified by, has a weak key or signature";
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
        return "the chain of the peer certificate is too long";
    default:
        return NULL;
    }
}
