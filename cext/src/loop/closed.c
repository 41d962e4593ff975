/* closed.c: see closed.h. */
#include "loop/closed.h"

#include <string.h>

#include "base/link.h"

void closed_dispose(struct closed *closed)
{
    free(closed->rows);
}

struct ns_connection *closed_add(struct closed *closed, uint64_t now_ms)
{
    if (closed->rows == NULL)
        closed->rows = ns_alloc(CLOSED_KEPT * sizeof(closed->rows[0]));
    struct ns_connection *row = &closed->rows[closed->count++ % CLOSED_KEPT];
    memset(row, 0, sizeof(*row));
    row->state = NS_STATE_CLOSED;
    row->closed_ms = now_ms;
    return row;
}

const struct ns_connection *closed_next(const struct closed *closed, uint64_t *at, uint64_t now_ms)
{
    if (closed->count > CLOSED_KEPT && *at < closed->count - CLOSED_KEPT)
        *at = closed->count - CLOSED_KEPT;
    while (*at < closed->count) {
        const struct ns_connection *row = &closed->rows[(*at)++ % CLOSED_KEPT];
        if (now_ms - row->closed_ms <= CLOSED_SHOWN_MS)
            return row;
    }
    return NULL;
}
