/*
 * events.h: what a worker tells without being asked: connections that opened and ended, peers that were
 * refused, limits that were met.
 *
 * One object per worker: a ring with one writer (the worker) and one reader (whoever holds the core's lock
 * for events), without a lock between them. Nobody listens at first, and then an event costs one load. The
 * ring is allocated when somebody listens for the first time and lasts as long as the worker. A worker never
 * waits: an event that finds the ring full is counted as lost.
 *
 *   written - read <= EVENTS_KEPT; slot (n % EVENTS_KEPT) belongs to the reader for read <= n < written,
 *   else to the worker.
 */
#ifndef NS_EVENTS_H
#define NS_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"

/* Until events_take, `ago_ms` of an event in the ring is when it happened. */
enum { EVENTS_KEPT = 512 };

struct events {
    /* Atomic: somebody listens. Set after `slots`. */
    uint32_t wanted;
    /* EVENTS_KEPT of them; NULL until somebody listens. Read by the worker only while `wanted`. */
    struct ns_event *slots;
    /* Atomic; the worker's: how many were ever put there. */
    uint64_t written;
    /* Atomic; the worker's: how many found no room. */
    uint64_t lost;
    /* Atomic; the reader's: how many of `written` it has taken. */
    uint64_t read;
    /* The reader's: how many of `lost` it has told. */
    uint64_t lost_told;
};

void events_init(struct events *events);
/* No worker runs any more. */
void events_dispose(struct events *events);

/* The worker: room for an event, all zero but `kind`, and but `refusal`, which is the longest, and written by
 * one who writes all of it. events_put shows it to the reader. NULL: nobody listens, or there is none. */
struct ns_event *events_room(struct events *events, enum ns_event_kind kind);
void events_put(struct events *events);
/* Tells one of a connection, as `row` has it; `at_ms`: the worker's clock. */
void events_connection(struct events *events, enum ns_event_kind kind, const struct ns_connection *row,
                       uint64_t at_ms);

/* The reader: from now on events are kept, from this moment on, or are not any more. */
void events_listen(struct events *events, int wanted);
/* The reader: takes the oldest, at most `capacity`; how many. Adds to `lost` what was lost since the last
 * call. */
size_t events_take(struct events *events, uint64_t now_ms, struct ns_event *out, size_t capacity,
                   uint64_t *lost);

#endif
