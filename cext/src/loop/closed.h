/* closed.h: the last connections of a worker that have ended, for the list of connections. */
#ifndef NS_CLOSED_H
#define NS_CLOSED_H

#include <stdint.h>

#include "nodeseal_core.h"

enum {
    CLOSED_KEPT = 64,
    CLOSED_SHOWN_MS = 60000,
};

/* A ring. */
struct closed {
    /* CLOSED_KEPT of them; NULL before the first. closed_ms holds the time of closing. */
    struct ns_connection *rows;
    /* How many were ever added. */
    uint64_t count;
};

void closed_dispose(struct closed *closed);
/* The place for one that ends now, in that of the oldest: zeroes but for its state and closed_ms. */
struct ns_connection *closed_add(struct closed *closed, uint64_t now_ms);
/* The oldest that is kept and still to be shown, beginning with number *at, which moves on; NULL: none is
 * left. Its closed_ms is the time of closing. */
const struct ns_connection *closed_next(const struct closed *closed, uint64_t *at, uint64_t now_ms);

#endif
