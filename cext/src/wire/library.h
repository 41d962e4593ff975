/*
 * library.h: a TLS 1.3 session after its handshake whose records OpenSSL makes itself: of the profile `fips`.
 *
 * It has the place of record.h, with the same results: no secret of the session leaves OpenSSL. It is slower,
 * for each byte is copied once more, and a session at rest keeps OpenSSL's, 23 kB. It cannot be ended
 * with an alert of one's own choice: then it ends without any word. A message of the peer's
 * (NewSessionTicket, KeyUpdate) that comes in several records has to be whole before anything is written:
 * else that fails.
 */
#ifndef NS_LIBRARY_H
#define NS_LIBRARY_H

#include <openssl/ssl.h>

#include "wire/record.h"

/* Of one session. All zero: it is not OpenSSL's. */
struct library {
    /* Borrowed; NULL: the session is not OpenSSL's after its handshake. */
    SSL *ssl;
    /* Records written under one key, at most; then comes a KeyUpdate. */
    uint64_t renew_after;
    /* Written under this one. */
    uint64_t written;
    /* Bytes were read. */
    uint8_t heard;
    /* Messages read since the last bytes, in a row: they are bounded. */
    uint8_t dataless;
    /* close_notify was sent, or the session was given up: nothing is written any more. */
    uint8_t ended;
    /* A call failed: so does each from now on. */
    uint8_t broken;
    /* Why, of static storage; NULL: OpenSSL tells, or none has. */
    const char *failure;
};

/* From now on OpenSSL goes on, whose session has done its handshake. */
void library_start(struct library *library, SSL *ssl);
/* As tls_read and tls_write, but that after TLS_FAILED the reason is `failure`, or in OpenSSL's queue, or
 * there is none. The session's BIO has the feed and the sink. */
enum tls_result library_read(struct library *library, uint8_t *out, size_t capacity, size_t *length);
enum tls_result library_write(struct library *library, const uint8_t *bytes, size_t length);
/* Writes close_notify, once. */
void library_end(struct library *library);
/* OpenSSL has read a message of a handshake (NewSessionTicket, KeyUpdate), which it does not bound. */
void library_note_message(struct library *library);
/* There were too many of them: nothing more is to be read, and the session is broken by that. */
int library_is_flooded(const struct library *library);

#endif
