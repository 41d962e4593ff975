/*
 * stream_events.h: what a tunnel's streams tell those whom they belong to (stream.h). Each worker has one
 * table of it. All but `delayed`, `lost`, `read` and what stream_give_up tells are called inside h2_feed or
 * h2_produce.
 */
#ifndef NS_STREAM_EVENTS_H
#define NS_STREAM_EVENTS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cause.h"
#include "nodeseal_core.h"

struct stream;
struct tunnel;
struct worker;

/* What `source` returns instead of a byte count. */
enum { STREAM_LATER = -1, STREAM_FAILED = -2 };

struct stream_events {
    /* Server: a request came in and was counted in (quota_admit). The owner takes it (stream_accept).
     * `source` is who the peer says dialled, at the peer's address; `destination` is what was dialled. */
    void (*requested)(struct tunnel *tunnel, int32_t id, const struct ns_address *source,
                      const struct ns_address *destination);
    /* Client: the peer has answered, whatever it says: who it is may be told (stream_describe). `opened` or
     * `refused` follows. */
    void (*answered)(struct stream *stream);
    /* Client: the peer has let it in; bytes may move. */
    void (*opened)(struct stream *stream);
    /* Client, STREAM_ASKED: it comes to nothing, whether it was answered or not. `again`: another tunnel to
     * the same endpoint may do. The owner parts from it (stream_leave). */
    void (*refused)(struct stream *stream, int again, enum cause cause, const char *reason);
    /* Client, STREAM_ASKED: the peer's port refuses, and is tried again in a moment. The owner may end it. */
    void (*delayed)(struct stream *stream, const char *reason);
    /* Bytes from the peer, which last until `read`. */
    void (*data)(struct tunnel *tunnel, struct stream *stream, const uint8_t *bytes, size_t length);
    /* The peer will send no more (half close). */
    void (*end)(struct stream *stream);
    /* It has ended, and has parted from its tunnel. `clean`: by the peer, without an error. */
    void (*closed)(struct stream *stream, int clean);
    /* It was reset, because the peer has sent what does not belong there, or nothing for too long. */
    void (*broken)(struct stream *stream, const char *reason);
    /* Its tunnel ends. The owner parts from it. The others: as in `refused`. */
    void (*lost)(struct stream *stream, int again, enum cause cause, const char *reason);
    /* Places up to `capacity` bytes for the peer at out. Returns how many (with *end set if they are the
     * last, 0 is then allowed), or STREAM_LATER (stream_ready continues), or STREAM_FAILED (it is reset). */
    ssize_t (*source)(struct tunnel *tunnel, struct stream *stream, uint8_t *out, size_t capacity, int *end);
    /* All that was read from a tunnel at once has been told; the bytes that `data` gave go now. */
    void (*read)(struct worker *worker);
};

#endif
