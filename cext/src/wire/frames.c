/* frames.c: see frames.h. */
#include "wire/frames.h"

#include <endian.h>
#include <string.h>

#include "base/clock.h"

enum { PREFACE = 24 }; /* RFC 9113 section 3.4 */

void frames_init(struct frames *frames, int server)
{
    memset(frames, 0, sizeof(*frames));
    frames->server = server;
    frames->left = server ? PREFACE : 0;
}

static uint32_t load_32(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof(word));
    return be32toh(word);
}

/* Goes on behind the payload, which ends before the bytes do, to behind the next frame's header. Returns the
 * header, or NULL if the bytes end in it. */
static const uint8_t *frames_next(struct frames *frames, const uint8_t *bytes, size_t length, size_t *at)
{
    const uint8_t *header = bytes + *at + frames->left;
    size_t here = length - *at - frames->left;
    size_t part = FRAMES_HEADER - frames->begun < here ? FRAMES_HEADER - frames->begun : here;
    *at += frames->left + part;
    frames->left = 0;
    if (part < FRAMES_HEADER) {
        memcpy(frames->header + frames->begun, header, part);
        frames->begun += part;
        if (frames->begun < FRAMES_HEADER)
            return NULL;
        frames->begun = 0;
        header = frames->header;
    }
    frames->left = load_32(header) >> 8;
    return header;
}

void frames_reset(struct frames *frames, int32_t stream)
{
    int32_t *place = &frames->reset[frames->resets % FRAMES_RESET_MOST];
    if (*place > frames->forgotten)
        frames->forgotten = *place;
    *place = stream;
    frames->resets++;
}

static int was_reset(const struct frames *frames, int32_t stream)
{
    if (stream <= frames->forgotten)
        return 1;
    for (size_t i = 0; i < FRAMES_RESET_MOST; i++)
        if (frames->reset[i] == stream)
            return 1;
    return 0;
}

static int was_skipped(const struct frames *frames, int32_t stream)
{
    for (size_t i = 0; i < FRAMES_SKIPPED_MOST; i++)
        if (stream > frames->skipped[i].above && stream < frames->skipped[i].below)
            return 1;
    return 0;
}

/* The peer opens a stream. */
static void frames_open(struct frames *frames, int32_t stream)
{
    if (stream > frames->last + 2) {
        uint32_t place = frames->skips++ % FRAMES_SKIPPED_MOST;
        frames->skipped[place].above = frames->last;
        frames->skipped[place].below = stream;
    }
    frames->last = stream;
    if (frames->closing)
        frames_reset(frames, stream);
}

/* The error that a DATA or HEADERS frame is, 0 if it is none, of whose stream the session has none that is
 * open. `next_own` is the id of the next stream that we open. */
static uint32_t frames_stray(struct frames *frames, const struct frame *frame, uint32_t next_own)
{
    int32_t stream = frame->stream;
    int clients = stream % 2; /* id; servers open none in a tunnel */
    /* Streams that are still to begin, and those that cannot, are nghttp2's. */
    if (frames->server && clients && stream > frames->last) {
        if (frame->type == NGHTTP2_HEADERS)
            frames_open(frames, stream);
        return 0;
    }
    if (!clients || (!frames->server && (uint32_t)stream >= next_own) || was_reset(frames, stream))
        return 0;
    return frame->type == NGHTTP2_HEADERS && was_skipped(frames, stream) ? NGHTTP2_PROTOCOL_ERROR
                                                                         : NGHTTP2_STREAM_CLOSED;
}

void frames_answered(struct frames *frames)
{
    if (frames->wasted > 0)
        frames->wasted--;
}

/* True if there have been too many. */
static int frames_count_reset(struct frames *frames)
{
    uint64_t now_s = clock_us(CLOCK_MONOTONIC) / 1000000;
    uint64_t forgiven = (now_s - frames->wasted_s) * FRAMES_WASTED_A_SECOND;
    frames->wasted_s = now_s;
    frames->wasted = frames->wasted > forgiven ? frames->wasted - (uint32_t)forgiven : 0;
    return frames->server && ++frames->wasted > FRAMES_WASTED_MOST;
}

static int is_open(nghttp2_session *session, int32_t stream)
{
    return nghttp2_session_get_stream_remote_close(session, stream) >= 0;
}

static int session_feed(nghttp2_session *session, const uint8_t *bytes, size_t length, uint32_t *error)
{
    if (length == 0)
        return 0;
    ssize_t taken = nghttp2_session_mem_recv(session, bytes, length);
    if (taken == NGHTTP2_ERR_FLOODED)
        *error = NGHTTP2_ENHANCE_YOUR_CALM;
    return taken == (ssize_t)length || *error != 0 ? 0 : -1;
}

/* What is between a frame's header and the next is not looked at. The session gets as much as possible at
 * once, but must have seen all that comes before a frame that is judged: its streams may begin or end there.
 */
int frames_feed(struct frames *frames, nghttp2_session *session, const uint8_t *bytes, size_t length,
                uint32_t *error)
{
    size_t fed = 0, at = 0;
    int ends = 0; /* what was not fed yet ends a stream */
    const uint8_t *header;
    *error = 0;
    while (frames->left < length - at && *error == 0 &&
           (header = frames_next(frames, bytes, length, &at)) != NULL) {
        struct frame frame = {header[3], header[4], (int32_t)(load_32(header + 5) & INT32_MAX)};
        int carries = frame.type <= NGHTTP2_HEADERS; /* DATA too */
        frames->continuations = frame.type == NGHTTP2_CONTINUATION ? frames->continuations + 1 : 0;
        if (carries && (ends || !is_open(session, frame.stream))) {
            size_t before = at > fed + FRAMES_HEADER ? at - FRAMES_HEADER : fed;
            if (session_feed(session, bytes + fed, before - fed, error) != 0)
                return -1;
            fed = before;
            ends = 0;
            if (*error == 0 && !is_open(session, frame.stream))
                *error = frames_stray(frames, &frame, nghttp2_session_get_next_stream_id(session));
        } else if (frame.type == NGHTTP2_RST_STREAM ? frames_count_reset(frames)
                                                    : frames->continuations > FRAMES_CONTINUATIONS) {
            *error = NGHTTP2_ENHANCE_YOUR_CALM;
        }
        ends |= frame.type == NGHTTP2_RST_STREAM || (carries && (frame.flags & NGHTTP2_FLAG_END_STREAM));
    }
    if (*error != 0)
        return 0;
    frames->left -= length - at;
    return session_feed(session, bytes + fed, length - fed, error);
}
