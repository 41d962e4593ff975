/*
 * record.h: the record layer of a TLS 1.3 session after its handshake, sans-I/O (RFC 8446, sections 4.6, 5
 * and 6).
 *
 * Records are sealed straight from the caller's bytes into the sink, and opened straight from the ciphertext
 * that is fed into the caller's buffer: no byte is copied on the way but those of a record that a feed cuts
 * in two. No byte is handed on before its record has been verified.
 *
 * What the peer may send beside data: NewSessionTicket (ignored), KeyUpdate (followed, and answered in front
 * of what is written next), alerts. All else ends the session with a fatal alert.
 *
 * Of a session that is at rest nothing is on the heap but two EVP contexts. All that another process, or
 * kernel TLS, needs to go on with it is: the suite, which side it is, and of both directions the secret and
 * the sequence number, when no record is under way (kept == NULL, header_length == 0, message_length == 0).
 */
#ifndef NS_RECORD_H
#define NS_RECORD_H

#include "wire/record_keys.h"

/* Where ciphertext is written. */
struct tls_sink {
    uint8_t *bytes;
    /* Written so far. */
    size_t length;
    /* A session that finds no room fails: callers size it for the plaintext they write. */
    size_t capacity;
};

enum tls_result {
    TLS_OK = 0,     /* done; for reads: bytes were returned */
    TLS_WANT = 1,   /* more ciphertext from the peer is needed */
    TLS_CLOSED = 2, /* the peer said close_notify */
    TLS_FAILED = 3, /* protocol or verification failure; tls->error says which; an alert may be in the sink */
    TLS_CHOOSE = 4, /* a server's handshake waits for tls_present */
};

/* Ciphertext that has arrived; reading moves it on. */
struct record_feed {
    const uint8_t *bytes;
    /* Not read yet. */
    size_t length;
};

struct record {
    /* NULL before record_start: every call fails. */
    const struct record_suite *suite;
    /* Borrowed. */
    OSSL_LIB_CTX *libctx;
    /* Why the session is broken, for good; NULL: it is not. */
    const char *failure;
    /* Its secret, and that of `opening`, are put in place before the start. */
    struct record_keys sealing;
    struct record_keys opening;
    /* Records sealed under one key, at most; then comes a KeyUpdate of our own. */
    uint64_t renew_after;
    /* Heap; a body that is not whole, or opened bytes that found no room; or NULL. */
    uint8_t *kept;
    /* Bytes of that body so far; 0 with opened bytes. */
    uint16_t kept_length;
    /* Opened bytes in `kept` that wait for a reader: opened_at < opened_end. */
    uint16_t opened_at;
    /* 0: none wait. */
    uint16_t opened_end;
    /* Of the record whose body is, or will be, in `kept`. */
    uint8_t header[RECORD_HEADER];
    /* Bytes of it so far; 0: no record is under way. */
    uint8_t header_length;
    /* Header of a handshake message of several records. */
    uint8_t message[4];
    /* Bytes of it so far; 0: no message is under way. */
    uint8_t message_length;
    /* With its header whole: bytes of it that are to come. */
    uint32_t message_left;
    /* Only clients are sent tickets. */
    uint8_t is_client;
    /* The peer asked for a KeyUpdate of ours. */
    uint8_t answer_due;
    /* close_notify was received: whatever follows is ignored. */
    uint8_t peer_ended;
    /* close_notify was sent: nothing may be written any more. */
    uint8_t ended;
    /* Records without data in a row: they are bounded. */
    uint8_t dataless;
    /* By which the peer has ended the session; 0: by none. */
    uint8_t alert;
};

/* Begins with sequence number 0 in both directions, under the secrets that are in place. 0, or -1 with
 * `failure` set: the suite is unknown, a secret is missing, or OpenSSL cannot. */
int record_start(struct record *record, unsigned suite_id, OSSL_LIB_CTX *libctx, int is_client);
/* Wipes keys and frees all; harmless if it was all zero. */
void record_dispose(struct record *record);

/* As tls_read. A fatal alert goes to the sink if it has room. Each record for which `out` has no room, with
 * its type and padding, costs a copy: it should take all of the feed and RECORD_BODY_MAX bytes more. */
enum tls_result record_read(struct record *record, struct record_feed *feed, struct tls_sink *sink,
                            uint8_t *out, size_t capacity, size_t *length);
/* As tls_write; `bytes` must not overlap the sink. After TLS_FAILED the session is broken. */
enum tls_result record_write(struct record *record, struct tls_sink *sink, const uint8_t *bytes,
                             size_t length);
/* Writes close_notify, once. */
void record_end(struct record *record, struct tls_sink *sink);
/* Ends the session with a fatal alert instead. */
void record_refuse(struct record *record, struct tls_sink *sink, uint8_t alert);

#endif
