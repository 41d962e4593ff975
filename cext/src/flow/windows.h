/*
 * windows.h: what the peers of a workload's tunnels may send it, and what one of them holds of its memory.
 *
 * The window of a tunnel's connection (RFC 9113 section 6.9) is a promise: what a peer may send must be kept
 * if the applications do not take it, so it comes out of the workload's memory limit before a byte of it has
 * arrived. What is promised and what is held together stay within the limit, whatever a peer does with the
 * windows of its streams: one that sends more than its connection's window has broken the protocol, and its
 * tunnel ends.
 *
 * A holder is one peer of a workload, by its identity: its tunnels, what they were promised, and what is held
 * of what they sent. While it has less than half of what is left for everybody, received bytes are given back
 * to its connections' windows at once: a stream that nobody reads then costs its neighbours nothing. Beyond,
 * the holder is tight. Its peers are asked for small streams' windows, and their connections get back only
 * what applications have taken; so one peer ends with a third of the limit, and two with less than two
 * thirds. What is withheld is `owed` while its stream lives, `lost` when the stream has ended before the
 * application took it. As long as a holder has less than all that is left, the tick gives back what it
 * withholds from a connection that has little left to send, so that streams that are read go on beside those
 * that are not: so at worst one peer has half.
 *
 * All of it is a worker's own but the sums, which are the quota's: several workers that serve one workload
 * know a peer apart, and share the limit.
 */
#ifndef NS_WINDOWS_H
#define NS_WINDOWS_H

#include "wire/byte_queue.h"
#include "base/link.h"
#include "limits/quota.h"

struct stream;
struct tunnel;
struct workload;

enum {
    WINDOW_LEAST = 65535,   /* what a connection begins with (RFC 9113 section 6.9.2) */
    WINDOW_FIRST = 4 << 20, /* at most, before it was seen that more is needed */
    WINDOW_MOST = 32 << 20, /* of a connection */
    WINDOW_PART = 16,       /* the first is so many parts of what is left of half of the limit */
};

/* One peer of a workload. Lasts while it has a tunnel or anything is held of it. */
struct holder {
    /* In its workload's holders. */
    struct link link;
    /* In the bucket of worker->holders where it is looked for. */
    struct link found_link;
    /* Its workload's. */
    struct quota *quota;
    /* Of what its tunnels and their streams hold. */
    struct account account;
    /* What its tunnels may send. */
    uint64_t promised;
    /* By tunnel.holder_link. */
    struct link tunnels;
    int tight;
    /* Its identity. */
    char peer[];
};

/* The handshake is done. Gives the tunnel its holder and its first window. NS_LIMITS, or NS_LIMIT_MEMORY:
 * there is no room for another tunnel of this peer. */
enum ns_limit windows_open(struct tunnel *tunnel);
/* The tunnel ends. */
void windows_close(struct tunnel *tunnel);
/* The tunnel is about to be fed: decides whether what it receives is given back at once. So one read may be
 * given back too much. */
void windows_look(struct tunnel *tunnel);
/* Bytes have arrived for the stream, and the tunnel is withholding. */
void windows_received(struct stream *stream, size_t length);
/* The stream's application has taken some, and `received` bytes in all, or 0 if some are left. To be called
 * if the stream owes any, or if its window (from widen_bytes received on) or its tunnel's is to be looked at.
 */
void windows_taken(struct stream *stream, size_t length, uint64_t received);
/* The stream ends, and what the application has not taken is dropped; it has ended before all was taken. */
void windows_dropped(struct stream *stream);
void windows_parted(struct stream *stream);

/* The receive window for a stream or a connection that has `window` now, `most` at most, and received `bytes`
 * in `elapsed_us`, where a round trip takes `round_trip_us`: the same, or twice as much. */
uint32_t window_wanted(uint32_t window, uint32_t most, uint64_t bytes, uint64_t elapsed_us,
                       uint32_t round_trip_us);

/* A second has passed: looks which of the workload's peers are tight, gives back what may be, and makes
 * windows smaller if the limit was lowered. */
void windows_tick(struct workload *workload);
/* Its flows and tunnels have ended. */
void windows_forget(struct workload *workload);

#endif
