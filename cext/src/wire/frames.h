/*
 * frames.h: the frames of a peer on their way to nghttp2, which does not refuse all that it should. Sans-I/O.
 *
 * nghttp2 keeps no stream that has ended (no version does for a client, none from 1.66 on for a server), so
 * it takes in silence what a peer goes on to send there. What RFC 9113 section 5.1 says of such a frame
 * depends on how the stream has ended:
 *   - we have reset it while the peer's side was open: the peer may not know yet, and what it sends is
 * dropped;
 *   - the peer has ended or reset it itself: DATA and HEADERS are an error, STREAM_CLOSED;
 *   - it never began, because the peer has begun one with a higher id (5.1.1): HEADERS are a PROTOCOL_ERROR.
 * So those of the first kind are remembered, as many as FRAMES_RESET_MOST. Of what is forgotten only the
 * highest id is kept: up to that one everything is dropped, and nobody is ever taken for worse than he is.
 *
 * A request that is reset before it is answered costs its peer nothing, and us a connection (CVE-2023-44487).
 * Resets are counted, and answers take off as many: a peer may waste what ran into a time limit of its own,
 * but not all that it can send.
 */
#ifndef NS_FRAMES_H
#define NS_FRAMES_H

#include <nghttp2/nghttp2.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAMES_HEADER = 9,
    FRAMES_RESET_MOST = 64,
    FRAMES_SKIPPED_MOST = 8,
    FRAMES_CONTINUATIONS = 8,  /* of one header block, as nghttp2's own limit where it has one */
    FRAMES_WASTED_MOST = 1000, /* resets without an answer: more than a peer has open at once */
    FRAMES_WASTED_A_SECOND = 100,
};

struct frame {
    uint8_t type;
    uint8_t flags;
    int32_t stream;
};

struct frames {
    /* The peer is a client, and opens streams. */
    int server;
    /* Bytes of a payload, or of the client's preface, before the next header. */
    size_t left;
    /* Bytes of that header that are here. */
    size_t begun;
    uint8_t header[FRAMES_HEADER];
    /* In a row. */
    uint32_t continuations;
    /* Server: the highest id that the peer has used. */
    int32_t last;
    /* Server: our GOAWAY has left, and what begins behind it was not taken. */
    int closing;
    int32_t reset[FRAMES_RESET_MOST];
    /* So far; the latest are in `reset`. */
    uint32_t resets;
    /* The highest of the earlier ones; 0: none. */
    int32_t forgotten;
    /* Server: ids between these were never used. */
    struct {
        int32_t above, below;
    } skipped[FRAMES_SKIPPED_MOST];
    /* So far; the latest are in `skipped`. */
    uint32_t skips;
    /* Server: resets, less the answers meanwhile. */
    uint32_t wasted;
    /* When that was last looked at. */
    uint64_t wasted_s;
};

void frames_init(struct frames *frames, int server);
/* Gives the session bytes of the peer. 0, with *error the code that the connection is to be ended with, or 0;
 * -1 if the session has failed. */
int frames_feed(struct frames *frames, nghttp2_session *session, const uint8_t *bytes, size_t length,
                uint32_t *error);
/* We have reset the stream, or not taken it, and the peer's side of it was open. */
void frames_reset(struct frames *frames, int32_t stream);
/* We have answered a request. */
void frames_answered(struct frames *frames);

#endif
