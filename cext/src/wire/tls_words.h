/*
 * tls_words.h: what went wrong in TLS, in plain words. All texts are of static storage and shorter than
 * NS_REASON_MAX.
 */
#ifndef NS_TLS_WORDS_H
#define NS_TLS_WORDS_H

#include <stdint.h>

/* For an error of OpenSSL's queue; NULL: it has none of its own. */
const char *tls_error_words(unsigned long error);
/* The alert of the peer that such an error stands for; 0: none. */
uint8_t tls_error_alert(unsigned long error);
/* For an alert that the peer has sent (RFC 8446, 6.2); never NULL. */
const char *tls_alert_words(uint8_t alert);
/* Whether the alert refuses who the other end is, or its certificate, rather than what it has sent. */
int tls_alert_refuses(uint8_t alert);

#endif
