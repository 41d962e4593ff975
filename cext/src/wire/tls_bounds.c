/* tls_bounds.c: see tls_bounds.h. */
#include "wire/tls_bounds.h"

#include <openssl/err.h>
#include <stdio.h>

#include "wire/revoked.h"

enum { LIST_SIZE = 128 };

/* The best first. A library may lack some. */
static const char *const GROUPS[] = {"X25519MLKEM768", "X25519", "P-256", "P-384"};
enum { GROUP_COUNT = sizeof(GROUPS) / sizeof(GROUPS[0]) };

/* Of the profile `fips`: NIST's curves (SP 800-56A), and signatures of FIPS 186-4. */
static const char FIPS_GROUPS[] = "P-256:P-384";
static const char FIPS_SIGNATURES[] =
    "ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"
    "rsa_pss_pss_sha256:rsa_pss_pss_sha384:rsa_pss_pss_sha512";

/* `mark` before each name. */
static void list_append(char list[LIST_SIZE], size_t *length, const char *mark, const char *name)
{
    *length +=
        (size_t)snprintf(list + *length, LIST_SIZE - *length, "%s%s%s", *length > 0 ? ":" : "", mark, name);
}

/* A client sends a key share for the first group only, unless others are marked (OpenSSL 3.5): without one
 * for a classical group, every peer that does not know the first would cost a round trip more. */
static int set_with_two_shares(SSL_CTX *context, const int known[GROUP_COUNT])
{
    char list[LIST_SIZE] = "";
    size_t length = 0;
    int shares = 0;
    if (!known[0])
        return 0;
    for (int i = 0; i < GROUP_COUNT; i++)
        if (known[i])
            list_append(list, &length, shares++ < 2 ? "*" : "", GROUPS[i]);
    return SSL_CTX_set1_groups_list(context, list) == 1;
}

static int set_groups(SSL_CTX *context)
{
    char list[LIST_SIZE] = "";
    size_t length = 0;
    int known[GROUP_COUNT];
    for (int i = 0; i < GROUP_COUNT; i++) {
        known[i] = SSL_CTX_set1_groups_list(context, GROUPS[i]) == 1;
        if (known[i])
            list_append(list, &length, "", GROUPS[i]);
    }
    int done = length > 0 && (set_with_two_shares(context, known) || SSL_CTX_set1_groups_list(context, list));
    ERR_clear_error();
    return done;
}

static int set_fips(SSL_CTX *context)
{
    return SSL_CTX_set1_groups_list(context, FIPS_GROUPS) == 1 &&
           SSL_CTX_set1_sigalgs_list(context, FIPS_SIGNATURES) == 1;
}

const char *tls_bounds_set(SSL_CTX *context, int fips)
{
    if (fips && !set_fips(context))
        return "OpenSSL's FIPS module lacks P-256 and P-384, or ECDSA and RSA";
    if (!fips && !set_groups(context))
        return "OpenSSL lacks X25519, P-256 and P-384";
    SSL_CTX_set_security_level(context, TLS_STRENGTH);
    SSL_CTX_set_max_cert_list(context, TLS_CERTIFICATES_MOST);
#ifdef SSL_OP_NO_RX_CERTIFICATE_COMPRESSION /* OpenSSL 3.2: what is small may become large */
    SSL_CTX_set_options(context, SSL_OP_NO_RX_CERTIFICATE_COMPRESSION | SSL_OP_NO_TX_CERTIFICATE_COMPRESSION);
#endif
    _Static_assert((int)TLS_INTERMEDIATES_MOST == REVOKED_SIGNERS_MOST, "each can be revoked");
    SSL_CTX_set_verify_depth(context, TLS_INTERMEDIATES_MOST);
    return NULL;
}
