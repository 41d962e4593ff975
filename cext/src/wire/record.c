/*
 * record.c: see record.h.
 *
 * Reading: a record that is whole in the feed is opened where it lies. The head of one that is not is
 * gathered: its header in the struct, its body in a heap buffer of the announced size, which is freed once
 * the record has been opened. A record for which the reader's buffer has no room is opened into `kept` and
 * handed out from there; who gives much room at a time never meets that.
 */
#include "wire/record.h"

#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "wire/tls_words.h"

enum {
    DATALESS_MAX = 32, /* as OpenSSL allows empty records */
    MESSAGE_HEADER = 4,
    NEW_SESSION_TICKET = 4,
    KEY_UPDATE = 24,
    TICKET_LEAST = 14,                                     /* RFC 8446, 4.6.1: ticket of one byte */
    TICKET_MOST = 4 + 4 + 1 + 255 + 2 + 65535 + 2 + 65534, /* all fields at their greatest */
    ALERT_WARNING = 1,
    ALERT_FATAL = 2,
};

/* RFC 8446, 5.5, allows 2^24.5 records under one AES-GCM key. */
static const uint64_t RENEW_AFTER = 1u << 23;

int record_start(struct record *record, unsigned suite_id, OSSL_LIB_CTX *libctx, int is_client)
{
    record->suite = record_suite_find(suite_id);
    record->libctx = libctx;
    record->is_client = is_client != 0;
    record->renew_after = RENEW_AFTER;
    if (record->suite == NULL)
        record->failure = "a cipher suite was negotiated that was not offered";
    else if (record_keys_start(&record->sealing, record->suite, libctx, 1) != 0 ||
             record_keys_start(&record->opening, record->suite, libctx, 0) != 0)
        record->failure = "the traffic secrets are missing or cannot be used";
    return record->failure == NULL ? 0 : -1;
}

static void kept_free(struct record *record)
{
    if (record->opened_end > 0)
        OPENSSL_cleanse(record->kept, record->opened_end);
    free(record->kept);
    record->kept = NULL;
    record->kept_length = record->opened_at = record->opened_end = 0;
}

void record_dispose(struct record *record)
{
    kept_free(record);
    record_keys_dispose(&record->sealing);
    record_keys_dispose(&record->opening);
    record->suite = NULL;
}

/* ---- writing ---- */

/* Seals one record into the sink. 0, or -1 if it has no room, or OpenSSL cannot. */
static int sink_seal(struct record *record, struct tls_sink *sink, enum record_type type,
                     const uint8_t *content, size_t length)
{
    if (sink == NULL || sink->capacity - sink->length < length + RECORD_OVERHEAD ||
        record_seal(&record->sealing, type, content, length, sink->bytes + sink->length) != 0)
        return -1;
    sink->length += length + RECORD_OVERHEAD;
    return 0;
}

/* Tells the peer that our next records are under new keys. 0 or -1. */
static int renew_keys(struct record *record, struct tls_sink *sink)
{
    static const uint8_t NOT_REQUESTED[] = {KEY_UPDATE, 0, 0, 1, 0};
    record->answer_due = 0;
    return sink_seal(record, sink, RECORD_HANDSHAKE, NOT_REQUESTED, sizeof(NOT_REQUESTED)) == 0
               ? record_keys_update(&record->sealing, record->suite, record->libctx)
               : -1;
}

enum tls_result record_write(struct record *record, struct tls_sink *sink, const uint8_t *bytes,
                             size_t length)
{
    if (record->failure == NULL && (record->suite == NULL || record->ended))
        record->failure = record->ended ? "written to after its end" : "written to before its handshake";
    while (length > 0 && record->failure == NULL) {
        size_t part = length < RECORD_CONTENT_MAX ? length : RECORD_CONTENT_MAX;
        if (((record->answer_due || record->sealing.sequence >= record->renew_after) &&
             renew_keys(record, sink) != 0) ||
            sink_seal(record, sink, RECORD_APPLICATION, bytes, part) != 0)
            record->failure = "a record could not be sealed, or found no room";
        bytes += part;
        length -= part;
    }
    return record->failure == NULL ? TLS_OK : TLS_FAILED;
}

/* Our last record is an alert. */
static void last_words(struct record *record, struct tls_sink *sink, uint8_t level, uint8_t alert)
{
    const uint8_t content[] = {level, alert};
    if (record->suite == NULL || record->failure != NULL || record->ended)
        return;
    record->ended = 1;
    (void)sink_seal(record, sink, RECORD_ALERT, content, sizeof(content));
}

void record_end(struct record *record, struct tls_sink *sink)
{
    last_words(record, sink, ALERT_WARNING, SSL3_AD_CLOSE_NOTIFY);
}

void record_refuse(struct record *record, struct tls_sink *sink, uint8_t alert)
{
    last_words(record, sink, ALERT_FATAL, alert);
}

/* ---- reading ---- */

/* Breaks the session: nothing is read or written any more. The peer is told by this alert. */
static void record_fail(struct record *record, struct tls_sink *sink, int alert, const char *failure)
{
    const uint8_t content[] = {ALERT_FATAL, (uint8_t)alert};
    if (!record->ended)
        (void)sink_seal(record, sink, RECORD_ALERT, content, sizeof(content));
    record->failure = failure;
}

/* The length of the body that this header announces, or 0 after record_fail. */
static size_t header_check(struct record *record, struct tls_sink *sink, const uint8_t *header)
{
    size_t length = (size_t)header[3] << 8 | header[4];
    /* Not looked at: the version, which is authenticated with the rest. */
    if (header[0] != RECORD_APPLICATION)
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "unprotected record after the handshake");
    else if (length > RECORD_BODY_MAX)
        record_fail(record, sink, SSL_AD_RECORD_OVERFLOW, "record longer than allowed");
    else if (length < RECORD_TAG)
        record_fail(record, sink, SSL_AD_BAD_RECORD_MAC, "record too short to be authentic");
    return record->failure == NULL ? length : 0;
}

static size_t feed_take(struct record_feed *feed, uint8_t *out, size_t length)
{
    size_t part = feed->length < length ? feed->length : length;
    if (part > 0) { /* the feed may be NULL */
        memcpy(out, feed->bytes, part);
        feed->bytes += part;
        feed->length -= part;
    }
    return part;
}

/* Gathers a record that no single feed holds. Its body's length once it is whole in `kept`, else 0. */
static size_t record_gather(struct record *record, struct record_feed *feed, struct tls_sink *sink)
{
    record->header_length += (uint8_t)feed_take(feed, record->header + record->header_length,
                                                (size_t)RECORD_HEADER - record->header_length);
    if (record->header_length < RECORD_HEADER)
        return 0;
    size_t length = header_check(record, sink, record->header);
    if (length == 0)
        return 0;
    if (record->kept == NULL) {
        if (feed->length == 0)
            return 0;
        record->kept = malloc(length);
        if (record->kept == NULL) {
            record_fail(record, sink, SSL_AD_INTERNAL_ERROR, "out of memory");
            return 0;
        }
    }
    record->kept_length +=
        (uint16_t)feed_take(feed, record->kept + record->kept_length, length - record->kept_length);
    return record->kept_length == length ? length : 0;
}

/* A KeyUpdate, whose one byte must be the last of its record: what follows has other keys. */
static void take_key_update(struct record *record, struct tls_sink *sink, const uint8_t *body, size_t length)
{
    record->message_length = 0;
    if (length != 1)
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "data behind a KeyUpdate in its record");
    else if (body[0] > 1)
        record_fail(record, sink, SSL_AD_ILLEGAL_PARAMETER, "KeyUpdate with an unknown request");
    else if (record_keys_update(&record->opening, record->suite, record->libctx) != 0)
        record_fail(record, sink, SSL_AD_INTERNAL_ERROR, "new keys could not be derived");
    else if (body[0] == 1)
        record->answer_due = 1;
}

/* Looks at the header of a handshake message. */
static void take_message_header(struct record *record, struct tls_sink *sink)
{
    const uint8_t *header = record->message;
    uint32_t length = (uint32_t)header[1] << 16 | (uint32_t)header[2] << 8 | header[3];
    record->message_left = length;
    if (header[0] == KEY_UPDATE) {
        if (length != 1)
            record_fail(record, sink, SSL_AD_DECODE_ERROR, "KeyUpdate of a wrong length");
    } else if (header[0] != NEW_SESSION_TICKET || !record->is_client) {
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "unexpected handshake message");
    } else if (length < TICKET_LEAST || length > TICKET_MOST) {
        record_fail(record, sink, SSL_AD_DECODE_ERROR, "NewSessionTicket of a wrong length");
    }
}

/* Handshake messages are cut into records, and put together in them, as the peer likes. */
static void take_handshake(struct record *record, struct tls_sink *sink, const uint8_t *bytes, size_t length)
{
    while (length > 0 && record->failure == NULL) {
        if (record->message_length < MESSAGE_HEADER) {
            record->message[record->message_length++] = *bytes++;
            length--;
            if (record->message_length == MESSAGE_HEADER)
                take_message_header(record, sink);
        } else if (record->message[0] == KEY_UPDATE) {
            take_key_update(record, sink, bytes, length);
            return;
        } else {
            size_t part = record->message_left < length ? record->message_left : length;
            record->message_left -= (uint32_t)part;
            bytes += part;
            length -= part;
            if (record->message_left == 0)
                record->message_length = 0;
        }
    }
}

static void take_alert(struct record *record, struct tls_sink *sink, const uint8_t *bytes, size_t length)
{
    if (length != 2)
        record_fail(record, sink, SSL_AD_DECODE_ERROR, "alert of a wrong length");
    else if (bytes[1] == SSL_AD_CLOSE_NOTIFY)
        record->peer_ended = 1;
    else if (bytes[1] != SSL_AD_USER_CANCELLED) { /* the level means nothing (RFC 8446, 6) */
        record->alert = bytes[1];
        record->failure = tls_alert_words(bytes[1]);
    }
}

/* Acts on an opened record's inner plaintext. Returns how many bytes of it, from its beginning, are data. */
static size_t take_inner(struct record *record, struct tls_sink *sink, const uint8_t *inner, size_t length)
{
    while (length > 0 && inner[length - 1] == 0)
        length--; /* padding */
    uint8_t type = length == 0 ? 0 : inner[--length];
    if (record->message_length > 0 && type != RECORD_HANDSHAKE) {
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "record inside a handshake message");
    } else if (type == RECORD_APPLICATION && length > 0) {
        record->dataless = 0;
        return length;
    } else if (++record->dataless > DATALESS_MAX) {
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "too many records without data");
    } else if (type == RECORD_ALERT) {
        take_alert(record, sink, inner, length);
    } else if (type == RECORD_HANDSHAKE && length > 0) {
        take_handshake(record, sink, inner, length);
    } else if (type != RECORD_APPLICATION) {
        record_fail(record, sink, SSL_AD_UNEXPECTED_MESSAGE, "record of an unexpected type");
    }
    return 0;
}

/* Opens a record into `kept`, where it waits for room in the reader's buffer. */
static void open_kept(struct record *record, struct tls_sink *sink, const uint8_t *header,
                      const uint8_t *body, size_t length)
{
    if (record->kept == NULL && (record->kept = malloc(length)) == NULL) {
        record_fail(record, sink, SSL_AD_INTERNAL_ERROR, "out of memory");
    } else if (record_open(&record->opening, header, body, length, record->kept) != 0) {
        record_fail(record, sink, SSL_AD_BAD_RECORD_MAC, "bad record mac");
    } else {
        record->kept_length = 0;
        record->opened_end = (uint16_t)take_inner(record, sink, record->kept, length - RECORD_TAG);
    }
    if (record->opened_end == 0)
        kept_free(record);
}

/* Opens the next record. 1 if it did and more may follow, 0 if its end is not there, or the session is over.
 */
static int read_record(struct record *record, struct record_feed *feed, struct tls_sink *sink, uint8_t *out,
                       size_t capacity, size_t *filled)
{
    const uint8_t *header = NULL, *body = NULL;
    size_t length = 0;
    int in_feed = 0;
    if (record->header_length == 0 && feed->length >= RECORD_HEADER) {
        header = feed->bytes;
        body = header + RECORD_HEADER;
        length = header_check(record, sink, header);
        in_feed = length > 0 && feed->length - RECORD_HEADER >= length;
    }
    if (record->failure == NULL && !in_feed) {
        header = record->header;
        length = record_gather(record, feed, sink);
        body = record->kept;
    }
    if (record->failure != NULL || length == 0)
        return 0;
    size_t inner = length - RECORD_TAG;
    if (inner > capacity - *filled) {
        open_kept(record, sink, header, body, length);
    } else {
        if (record_open(&record->opening, header, body, length, out + *filled) != 0)
            record_fail(record, sink, SSL_AD_BAD_RECORD_MAC, "bad record mac");
        else
            *filled += take_inner(record, sink, out + *filled, inner);
        if (!in_feed)
            kept_free(record);
    }
    record->header_length = 0;
    if (in_feed) {
        feed->bytes += RECORD_HEADER + length;
        feed->length -= RECORD_HEADER + length;
    }
    return record->failure == NULL && !record->peer_ended;
}

enum tls_result record_read(struct record *record, struct record_feed *feed, struct tls_sink *sink,
                            uint8_t *out, size_t capacity, size_t *length)
{
    *length = 0;
    if (record->suite == NULL && record->failure == NULL)
        record->failure = "read from before its handshake";
    while (record->failure == NULL && !record->peer_ended && *length < capacity) {
        if (record->opened_end > 0) {
            size_t waiting = (size_t)record->opened_end - record->opened_at;
            size_t part = waiting < capacity - *length ? waiting : capacity - *length;
            memcpy(out + *length, record->kept + record->opened_at, part);
            record->opened_at = (uint16_t)(record->opened_at + part);
            *length += part;
            if (record->opened_at == record->opened_end)
                kept_free(record);
        } else if (!read_record(record, feed, sink, out, capacity, length)) {
            break;
        }
    }
    if (*length > 0)
        return TLS_OK; /* a failure met after these bytes is told by the next call */
    if (record->failure != NULL)
        return TLS_FAILED;
    return record->peer_ended ? TLS_CLOSED : TLS_WANT;
}
