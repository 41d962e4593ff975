/* events.c: see events.h. */
#include "loop/events.h"

#include <stdlib.h>
#include <string.h>

#include "base/link.h"

enum { CLEAN_HEAD = offsetof(struct ns_event, connection) };

void events_init(struct events *events)
{
    memset(events, 0, sizeof(*events));
}

void events_dispose(struct events *events)
{
    free(events->slots);
    events->slots = NULL;
}

struct ns_event *events_room(struct events *events, enum ns_event_kind kind)
{
    if (__atomic_load_n(&events->wanted, __ATOMIC_ACQUIRE) == 0)
        return NULL;
    if (events->written - __atomic_load_n(&events->read, __ATOMIC_ACQUIRE) >= EVENTS_KEPT) {
        __atomic_store_n(&events->lost, events->lost + 1, __ATOMIC_RELAXED);
        return NULL;
    }
    struct ns_event *event = &events->slots[events->written % EVENTS_KEPT];
    memset(event, 0, kind == NS_EVENT_REFUSED ? CLEAN_HEAD : CLEAN_HEAD + sizeof(event->connection));
    event->kind = kind;
    return event;
}

void events_put(struct events *events)
{
    __atomic_store_n(&events->written, events->written + 1, __ATOMIC_RELEASE);
}

void events_connection(struct events *events, enum ns_event_kind kind, const struct ns_connection *row,
                       uint64_t at_ms)
{
    struct ns_event *event = events_room(events, kind);
    if (event == NULL)
        return;
    event->ago_ms = at_ms;
    event->connection = *row;
    event->connection.closed_ms = 0;
    events_put(events);
}

void events_listen(struct events *events, int wanted)
{
    if (!wanted) {
        __atomic_store_n(&events->wanted, 0, __ATOMIC_RELEASE);
        return;
    }
    if (events->slots == NULL)
        events->slots = ns_alloc(EVENTS_KEPT * sizeof(events->slots[0]));
    if (__atomic_load_n(&events->wanted, __ATOMIC_RELAXED) == 0) {
        /* What an earlier listener did not take is nothing to this one. */
        __atomic_store_n(&events->read, __atomic_load_n(&events->written, __ATOMIC_ACQUIRE),
                         __ATOMIC_RELEASE);
        events->lost_told = __atomic_load_n(&events->lost, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&events->wanted, 1, __ATOMIC_RELEASE);
}

size_t events_take(struct events *events, uint64_t now_ms, struct ns_event *out, size_t capacity,
                   uint64_t *lost)
{
    uint64_t now_lost = __atomic_load_n(&events->lost, __ATOMIC_RELAXED);
    *lost += now_lost - events->lost_told;
    events->lost_told = now_lost;
    uint64_t waiting = __atomic_load_n(&events->written, __ATOMIC_ACQUIRE) - events->read;
    size_t count = waiting < capacity ? (size_t)waiting : capacity;
    for (size_t i = 0; i < count; i++) {
        out[i] = events->slots[(events->read + i) % EVENTS_KEPT];
        /* A worker reads its clock once in a turn, which may be ahead of the caller's. */
        out[i].ago_ms = now_ms > out[i].ago_ms ? now_ms - out[i].ago_ms : 0;
    }
    __atomic_store_n(&events->read, events->read + count, __ATOMIC_RELEASE);
    return count;
}
