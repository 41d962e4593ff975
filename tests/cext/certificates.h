/*
 * certificates.h: a certificate authority in memory, for good certificates and for every kind of bad one.
 *
 * Keys are P-256 unless another is wished for. Texts that are returned are the caller's to free.
 */
#ifndef NS_CERTIFICATES_H
#define NS_CERTIFICATES_H

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "check.h"

struct certificate {
    X509 *x509;
    EVP_PKEY *key;
};

/* What is asked of a certificate; all zero: a leaf that is valid now, without names. */
struct certificate_wish {
    int authority;       /* may sign others */
    const char *uris[2]; /* NULL: none */
    size_t uri_length;   /* of uris[0] if it holds zero bytes; 0: strlen */
    const char *other;   /* further names as X509V3_EXT_conf reads them, "DNS:a,IP:10.0.0.1"; NULL: none */
    const char *usage;   /* extended key usage; NULL: server and client; "": no such extension */
    const char *constraints; /* basic constraints; NULL: by `authority`; "": no such extension */
    const char *key_usage;   /* same */
    void (*tamper)(X509 *);  /* called before it is signed; NULL: nothing */
    long begins, ends;       /* seconds from now; both 0: an hour ago until in an hour */
    const char *key;         /* "P-384", "ED25519", "RSA" or "RSA-1024"; NULL: "P-256" */
    const char *hash;        /* that it is signed with; NULL: SHA-256 */
};

/* "": nothing is added. */
static inline void certificate_extend(X509 *x509, X509 *issuer, int nid, const char *value)
{
    if (value[0] == 0)
        return;
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, x509, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    CHECK(extension != NULL);
    CHECK(X509_add_ext(x509, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

static inline void certificate_add_uri(GENERAL_NAMES *names, const char *uri, size_t length)
{
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();
    CHECK(ASN1_STRING_set(text, uri, (int)length) == 1);
    GENERAL_NAME_set0_value(name, GEN_URI, text);
    CHECK(sk_GENERAL_NAME_push(names, name) > 0);
}

static inline void certificate_add_names(X509 *x509, const struct certificate_wish *wish)
{
    GENERAL_NAMES *names = NULL;
    if (wish->other != NULL) {
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, wish->other);
        CHECK(extension != NULL);
        names = X509V3_EXT_d2i(extension);
        X509_EXTENSION_free(extension);
    } else {
        names = GENERAL_NAMES_new();
    }
    for (int i = 0; i < 2 && wish->uris[i] != NULL; i++)
        certificate_add_uri(names, wish->uris[i],
                            i == 0 && wish->uri_length > 0 ? wish->uri_length : strlen(wish->uris[i]));
    if (sk_GENERAL_NAME_num(names) > 0) /* critical, because the subject is empty */
        CHECK(X509_add1_ext_i2d(x509, NID_subject_alt_name, names, 1, X509V3_ADD_DEFAULT) == 1);
    GENERAL_NAMES_free(names);
}

static inline EVP_PKEY *certificate_key_new(const char *kind)
{
    if (kind == NULL)
        return EVP_EC_gen("P-256");
    if (strncmp(kind, "RSA", 3) == 0)
        return EVP_RSA_gen(strcmp(kind, "RSA") == 0 ? 2048 : 1024);
    return kind[0] == 'P' ? EVP_EC_gen(kind) : EVP_PKEY_Q_keygen(NULL, NULL, kind);
}

/* Ed25519 has a hash of its own. */
static inline const EVP_MD *certificate_hash(const EVP_PKEY *signer, const struct certificate_wish *wish)
{
    if (EVP_PKEY_is_a(signer, "ED25519"))
        return NULL;
    return EVP_get_digestbyname(wish->hash == NULL ? "SHA256" : wish->hash);
}

/* OpenSSL 3.5 makes whatever has extensions a certificate of version 3 when it signs it. One that was wished
 * to be of another version is given that again, and a signature over it. */
static inline void certificate_sign(X509 *x509, EVP_PKEY *key, const EVP_MD *hash)
{
    const long version = X509_get_version(x509);
    CHECK(X509_sign(x509, key, hash) > 0);
    if (X509_get_version(x509) == version)
        return;
    const ASN1_BIT_STRING *signature;
    unsigned char made[512], *signed_part = NULL;
    size_t made_length = sizeof(made);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    CHECK(X509_set_version(x509, version) == 1);
    int length = i2d_re_X509_tbs(x509, &signed_part);
    CHECK(length > 0 && EVP_DigestSignInit(context, NULL, hash, NULL, key) == 1 &&
          EVP_DigestSign(context, made, &made_length, signed_part, (size_t)length) == 1);
    X509_get0_signature(&signature, NULL, x509);
    CHECK(ASN1_STRING_set((ASN1_BIT_STRING *)(uintptr_t)signature, made, (int)made_length) == 1);
    EVP_MD_CTX_free(context);
    OPENSSL_free(signed_part);
}

/* `issuer` NULL: self-signed. */
static inline struct certificate certificate_new(const struct certificate *issuer,
                                                 const struct certificate_wish *wish)
{
    static long serial;
    struct certificate made = {X509_new(), certificate_key_new(wish->key)};
    CHECK(made.x509 != NULL && made.key != NULL);
    const struct certificate *signer = issuer == NULL ? &made : issuer;
    int timed = wish->begins != 0 || wish->ends != 0;
    X509_set_version(made.x509, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(made.x509), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made.x509), timed ? wish->begins : -3600);
    X509_gmtime_adj(X509_getm_notAfter(made.x509), timed ? wish->ends : 3600);
    X509_set_pubkey(made.x509, made.key);
    if (wish->authority) {
        char name[32];
        snprintf(name, sizeof(name), "authority %ld", serial);
        X509_NAME_add_entry_by_txt(X509_get_subject_name(made.x509), "CN", MBSTRING_ASC,
                                   (const unsigned char *)name, -1, -1, 0);
    }
    X509_set_issuer_name(made.x509, X509_get_subject_name(signer->x509));
    certificate_extend(made.x509, signer->x509, NID_basic_constraints,
                       wish->constraints != NULL ? wish->constraints
                       : wish->authority         ? "critical,CA:TRUE"
                                                 : "critical,CA:FALSE");
    certificate_extend(made.x509, signer->x509, NID_key_usage,
                       wish->key_usage != NULL ? wish->key_usage
                       : wish->authority       ? "critical,keyCertSign,cRLSign"
                                               : "critical,digitalSignature");
    if (wish->usage != NULL || !wish->authority)
        certificate_extend(made.x509, signer->x509, NID_ext_key_usage,
                           wish->usage == NULL ? "serverAuth,clientAuth" : wish->usage);
    certificate_add_names(made.x509, wish);
    if (wish->tamper != NULL)
        wish->tamper(made.x509);
    certificate_sign(made.x509, signer->key, certificate_hash(signer->key, wish));
    return made;
}

static inline void certificate_dispose(struct certificate *certificate)
{
    X509_free(certificate->x509);
    EVP_PKEY_free(certificate->key);
}

static inline char *pem_text(BIO *bio)
{
    char *bytes;
    long length = BIO_get_mem_data(bio, &bytes);
    char *text = malloc((size_t)length + 1);
    CHECK(text != NULL);
    memcpy(text, bytes, (size_t)length);
    text[length] = 0;
    BIO_free(bio);
    return text;
}

/* The first certificate, then the second if it is not NULL. */
static inline char *certificate_chain_pem(const struct certificate *first, const struct certificate *second)
{
    BIO *bio = BIO_new(BIO_s_mem());
    CHECK(PEM_write_bio_X509(bio, first->x509) == 1);
    if (second != NULL)
        CHECK(PEM_write_bio_X509(bio, second->x509) == 1);
    return pem_text(bio);
}

static inline char *certificate_key_pem(const struct certificate *certificate)
{
    BIO *bio = BIO_new(BIO_s_mem());
    CHECK(PEM_write_bio_PKCS8PrivateKey(bio, certificate->key, NULL, NULL, 0, NULL, NULL) == 1);
    return pem_text(bio);
}

/* A root and an intermediate, as `nodeseal ca init` makes them. */
struct authority {
    struct certificate root;
    struct certificate intermediate;
};

static inline struct authority authority_new(void)
{
    struct certificate_wish wish = {.authority = 1};
    struct authority authority;
    authority.root = certificate_new(NULL, &wish);
    authority.intermediate = certificate_new(&authority.root, &wish);
    return authority;
}

static inline void authority_dispose(struct authority *authority)
{
    certificate_dispose(&authority->root);
    certificate_dispose(&authority->intermediate);
}

#endif
