/* tls_words.c: see tls_words.h. */
#include "wire/tls_words.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stddef.h>

const char *tls_alert_words(uint8_t alert)
{
    switch (alert) {
    case SSL_AD_UNKNOWN_CA:
        return "peer refused this workload's certificate: it does not trust its CA";
    case SSL_AD_CERTIFICATE_EXPIRED:
        return "peer refused this workload's certificate: it has expired";
    case SSL_AD_CERTIFICATE_REVOKED:
        return "peer refused this workload's certificate: it was revoked";
    case SSL_AD_BAD_CERTIFICATE:
        return "peer refused this workload's certificate: broken, or of another than it expected";
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
        return "peer refused this workload's certificate: it is of a kind that it does not take";
    case SSL_AD_CERTIFICATE_UNKNOWN:
        return "peer refused this workload's certificate, and does not say why";
    case SSL_AD_ACCESS_DENIED:
        return "peer denies access: a certificate or an identity of either end may be revoked";
    case TLS13_AD_CERTIFICATE_REQUIRED:
        return "peer wants a certificate";
    case SSL_AD_HANDSHAKE_FAILURE:
        return "peer refused the handshake";
    case SSL_AD_PROTOCOL_VERSION:
        return "peer does not speak TLS 1.3";
    case SSL_AD_NO_APPLICATION_PROTOCOL:
        return "peer does not speak HTTP/2 (ALPN h2)";
    case SSL_AD_INTERNAL_ERROR:
        return "peer ended TLS: internal error";
    case SSL_AD_DECRYPT_ERROR:
        return "peer ended TLS: it could not verify a signature or decrypt";
    case SSL_AD_BAD_RECORD_MAC:
        return "peer ended TLS: it could not decrypt a record (bad_record_mac)";
    case SSL_AD_UNEXPECTED_MESSAGE:
        return "peer ended TLS: unexpected message";
    case SSL_AD_ILLEGAL_PARAMETER:
    case SSL_AD_DECODE_ERROR:
        return "peer ended TLS: it could not read a message";
    case SSL_AD_USER_CANCELLED:
        return "peer cancelled the handshake";
    default:
        return "peer ended TLS with an alert";
    }
}

int tls_alert_refuses(uint8_t alert)
{
    switch (alert) {
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_ACCESS_DENIED:
        return 1;
    default:
        return 0;
    }
}

uint8_t tls_error_alert(unsigned long error)
{
    int reason = ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0;
    int is_alert = reason >= SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256;
    return (uint8_t)(is_alert ? reason - SSL_AD_REASON_OFFSET : 0);
}

const char *tls_error_words(unsigned long error)
{
    if (ERR_GET_LIB(error) != ERR_LIB_SSL)
        return NULL;
    if (tls_error_alert(error) != 0)
        return tls_alert_words(tls_error_alert(error));
    switch (ERR_GET_REASON(error)) {
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
        return "peer speaks plain HTTP, not TLS";
    case SSL_R_WRONG_VERSION_NUMBER:
        return "peer does not speak TLS";
    case SSL_R_UNSUPPORTED_PROTOCOL:
        return "peer does not speak TLS 1.3";
    case SSL_R_NO_SHARED_CIPHER:
        return "peer offers none of the cipher suites (AES-GCM)";
    case SSL_R_NO_SUITABLE_KEY_SHARE:
    case SSL_R_NO_SUITABLE_GROUPS:
        return "peer offers none of the key exchange groups";
    case SSL_R_NO_APPLICATION_PROTOCOL:
        return "peer does not speak HTTP/2 (ALPN h2)";
    case SSL_R_EXCESSIVE_MESSAGE_SIZE:
        return "peer sends certificates of more bytes than are looked at";
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return "peer shows no certificate";
    case SSL_R_BAD_SIGNATURE:
        return "peer does not hold its certificate's key (bad signature)";
    default:
        return NULL;
    }
}
