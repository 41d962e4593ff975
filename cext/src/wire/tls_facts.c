/* tls_facts.c: see tls_facts.h. */
#include "wire/tls_facts.h"

#include <openssl/objects.h>
#include <strings.h>

#include "wire/record_keys.h"

const struct tls_facts TLS_NO_FACTS = {"", "", "", {0}};

static const char OTHER[] = "other";

/* OpenSSL says their names in the registry's spelling or in one of its own. */
static const char *group_word(SSL *ssl)
{
    static const struct {
        const char *openssl;
        const char *word;
    } GROUPS[] = {
        {"X25519MLKEM768", "X25519MLKEM768"},
        {"SecP256r1MLKEM768", "SecP256r1MLKEM768"},
        {"x25519", "x25519"},
        {"secp256r1", "secp256r1"},
        {"P-256", "secp256r1"},
        {"prime256v1", "secp256r1"},
        {"secp384r1", "secp384r1"},
        {"P-384", "secp384r1"},
    };
    const char *name = SSL_group_to_name(ssl, (int)SSL_get_negotiated_group(ssl));
    for (size_t i = 0; name != NULL && i < sizeof(GROUPS) / sizeof(GROUPS[0]); i++)
        if (strcasecmp(name, GROUPS[i].openssl) == 0)
            return GROUPS[i].word;
    return OTHER;
}

/* In TLS 1.3 a hash belongs to one curve (RFC 8446, 4.2.3). */
static const char *signature_word(SSL *ssl)
{
    static const struct {
        int type;
        int hash;
        const char *word;
    } SIGNATURES[] = {
        {NID_X9_62_id_ecPublicKey, NID_sha256, "ecdsa_secp256r1_sha256"},
        {NID_X9_62_id_ecPublicKey, NID_sha384, "ecdsa_secp384r1_sha384"},
        {NID_X9_62_id_ecPublicKey, NID_sha512, "ecdsa_secp521r1_sha512"},
        {NID_ED25519, NID_undef, "ed25519"},
        {NID_rsaEncryption, NID_sha256, "rsa_pss_rsae_sha256"},
        {NID_rsaEncryption, NID_sha384, "rsa_pss_rsae_sha384"},
        {NID_rsaEncryption, NID_sha512, "rsa_pss_rsae_sha512"},
        {NID_rsassaPss, NID_sha256, "rsa_pss_pss_sha256"},
        {NID_rsassaPss, NID_sha384, "rsa_pss_pss_sha384"},
        {NID_rsassaPss, NID_sha512, "rsa_pss_pss_sha512"},
    };
    int type = NID_undef, hash = NID_undef;
    (void)SSL_get_peer_signature_type_nid(ssl, &type);
    (void)SSL_get_peer_signature_nid(ssl, &hash);
    /* Of both kinds of RSA keys OpenSSL tells the padding alone. */
    if (type == NID_rsassaPss && EVP_PKEY_is_a(X509_get0_pubkey(SSL_get0_peer_certificate(ssl)), "RSA"))
        type = NID_rsaEncryption;
    for (size_t i = 0; i < sizeof(SIGNATURES) / sizeof(SIGNATURES[0]); i++)
        if (SIGNATURES[i].type == type && (SIGNATURES[i].hash == NID_undef || SIGNATURES[i].hash == hash))
            return SIGNATURES[i].word;
    return OTHER;
}

struct tls_facts tls_facts_of(SSL *ssl)
{
    const struct record_suite *suite =
        record_suite_find(SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(ssl)));
    return (struct tls_facts){
        .suite = suite == NULL ? OTHER : suite->name,
        .group = group_word(ssl),
        .signature = signature_word(ssl),
    };
}
