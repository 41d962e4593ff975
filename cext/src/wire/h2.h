/*
 * h2.h: HTTP/2 CONNECT tunnels in both roles, sans-I/O. nghttp2 is hidden behind it.
 *
 * Plaintext from the peer goes in through h2_feed; plaintext for the peer comes out of h2_produce.
 * Application bytes are not copied on their way out: `source` is asked to place them right behind the 9 bytes
 * of the frame header in the buffer that is being produced.
 *
 * Flow control. A stream's window is given back only when its bytes have been taken by the application
 * (h2_taken): that bounds what one slow reader makes us hold to its window. All begin with H2_STREAM_WINDOW;
 * the owner widens those that move much (h2_widen). The connection's window is the owner's to set
 * (h2_connection_window). It is given back on receipt, so that slow readers do not use it up and stall all
 * others of the tunnel; or, while the owner withholds it (h2_withhold), by h2_give_back, as applications take
 * the bytes, so that no more is ever held. A peer that exceeds a window has broken the protocol.
 *
 * Callbacks run inside h2_feed and h2_produce. They may call any h2_ function of the same session except
 * h2_feed, h2_produce and h2_free.
 */
#ifndef NS_H2_H
#define NS_H2_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "nodeseal_core.h"
#include "wire/outcome.h"

enum {
    H2_STREAM_WINDOW = 1 << 20,
    H2_STREAM_WINDOW_MAX = 16 << 20,
    H2_FRAME_MAX = 224
        << 10, /* largest DATA frame; a scratch buffer holds one. When sent, the peer's limit also holds */
    H2_PRODUCE_MIN = 24 << 10,
    H2_STREAMS_PER_TUNNEL = 100, /* opened by us on one connection */
    H2_STREAMS_ACCEPTED = 200,   /* announced to peers; ztunnel's server accepts as many */
};

/* Error codes of RFC 9113 section 7 that we send. */
enum {
    H2_NO_ERROR = 0,
    H2_PROTOCOL_ERROR = 1,
    H2_CANCEL = 8,         /* the stream is not needed any more */
    H2_CONNECT_ERROR = 10, /* what a tunnel led to, or came from, was reset (section 8.5) */
};

/* What h2_source returns instead of a byte count. */
enum { H2_SOURCE_LATER = -1, H2_SOURCE_FAILED = -2 };

struct h2;

/* The owner's side. `stream` is what h2_stream_set or h2_connect attached, NULL if nothing. */
struct h2_events {
    /* Server: a request came in, which is not malformed. Attach a stream or answer at once.
     * `client` is what the peer says of the application that dialled (the forwarded header); all zero if it
     * says nothing. */
    void (*request)(void *owner, int32_t id, const struct ns_address *authority,
                    const struct ns_address *client);
    /* Server: a malformed request came in, and was answered so. NULL: nobody wants to know. */
    void (*malformed)(void *owner, enum outcome outcome);
    /* Client: the peer answered with this status, of 100 to 999. Any below 200 precedes another; one of 2xx
     * opens the tunnel, and what comes before or behind it (data or an end; another answer) the owner resets
     * with H2_PROTOCOL_ERROR. `outcome`: what any other amounts to. */
    void (*response)(void *owner, void *stream, int status, enum outcome outcome);
    /* Bytes from the peer; to be acknowledged by h2_taken, and, what came while h2_withhold, by h2_give_back.
     */
    void (*data)(void *owner, void *stream, const uint8_t *bytes, size_t length);
    /* The peer will send no more (half close). */
    void (*end)(void *owner, void *stream);
    /* The stream is gone; code 0 if both sides ended it. No call with this stream follows. */
    void (*closed)(void *owner, void *stream, uint32_t code);
    /* Places up to `capacity` bytes at out. Returns how many (with *end set if they are the last, 0 is then
     * allowed), or H2_SOURCE_LATER (h2_resume continues), or H2_SOURCE_FAILED (the stream is reset with
     * H2_CONNECT_ERROR). */
    ssize_t (*source)(void *owner, void *stream, uint8_t *out, size_t capacity, int *end);
    /* Asked behind each frame that h2_produce has written: true to leave the rest for the next one. */
    int (*enough)(void *owner);
    /* The peer will accept no new streams (GOAWAY). */
    void (*goaway)(void *owner);
    void (*pong)(void *owner);
};

struct h2 *h2_new(int server, const struct h2_events *events, void *owner);
/* Frees the session without calling back. */
void h2_free(struct h2 *h2);

/* 0, or -1 when the connection is to be closed at once: what the peer speaks is not HTTP/2, or it was told so
 * before. Other violations are answered first: then h2_broken is true, as soon as nothing that the peer sends
 * counts any more. What h2_produce has to say until h2_wants_produce is false, a GOAWAY last, should reach
 * the peer before the connection is closed. No stream is called back for its sake; the owner ends them. */
int h2_feed(struct h2 *h2, const uint8_t *bytes, size_t length);
int h2_broken(const struct h2 *h2);
/* Writes frames to out; returns their length. *more is set if the buffer, or `enough`, ended before the
 * frames did. The capacity must be at least H2_PRODUCE_MIN; frames are as large as there is room. Returns
 * (size_t)-1 on an internal failure. */
size_t h2_produce(struct h2 *h2, uint8_t *out, size_t capacity, int *more);
/* True while h2_produce would write something (streams that wait in LATER apart). */
int h2_wants_produce(const struct h2 *h2);

/* Client: opens a stream. Returns its id, or -1. The caller keeps below h2_room. */
int32_t h2_connect(struct h2 *h2, const struct ns_address *authority, const struct ns_address *client,
                   void *stream);
/* How many further streams may be opened: our own limit, the peer's, ids left, no GOAWAY seen. */
size_t h2_room(const struct h2 *h2);

void h2_stream_set(struct h2 *h2, int32_t id, void *stream);
/* Server: OUTCOME_OPEN opens the tunnel; any other answer ends the stream. */
void h2_respond(struct h2 *h2, int32_t id, enum outcome outcome);
void h2_resume(struct h2 *h2, int32_t id);
void h2_reset(struct h2 *h2, int32_t id, uint32_t code);
/* The application took `length` bytes that `data` delivered. */
void h2_taken(struct h2 *h2, int32_t id, size_t length);
/* The connection's receive window, which begins with 65,535 bytes (RFC 9113 section 6.9.2). A smaller one
 * than before leaves the peer what it may send already, and gives nothing back until that has been sent. */
void h2_connection_window(struct h2 *h2, uint32_t window);
/* From now on received bytes are not given back to the connection's window, or are; those for streams that
 * are gone always. */
void h2_withhold(struct h2 *h2, int on);
/* Of the bytes that `data` delivered meanwhile, of whatever stream, the peer may send `length` again;
 * `withheld` others it may not yet. */
void h2_give_back(struct h2 *h2, size_t length, size_t withheld);
/* Sets a stream's receive window, which must be larger than before. */
void h2_widen(struct h2 *h2, int32_t id, uint32_t window);
/* Asks the peer to begin all streams with this window, and to take the difference off, or on, the windows of
 * those that are open (RFC 9113 section 6.9.2); H2_STREAM_WINDOW at first. */
void h2_windows(struct h2 *h2, uint32_t window);
/* True while flow control, the peer's reluctance, keeps this stream from sending. */
int h2_stream_blocked(struct h2 *h2, int32_t id);

void h2_ping(struct h2 *h2);
/* Server: asks the peer to open no further streams; those that are on their way are still accepted. To be
 * followed by h2_goaway when they have had the time to arrive. */
void h2_goaway_notice(struct h2 *h2);
/* Tells the peer that no further streams are accepted; running ones go on. */
void h2_goaway(struct h2 *h2);

#endif
