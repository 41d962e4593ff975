/* refusals.c: see refusals.h. */
#include "limits/refusals.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/link.h"
#include "wire/names.h"

/* Times in ms of CLOCK_MONOTONIC. */
struct row {
    uint64_t count; /* 0: the row is free */
    uint64_t first_ms, last_ms;
    uint64_t noticed;    /* of `count`, how many were told in notices */
    uint64_t noticed_ms; /* when that was, 0: never */
    enum ns_refusal_kind kind;
    enum ns_direction direction;
    int status;
    struct ns_address source;
    struct ns_address destination; /* of the last one */
    char *peer;                    /* owned; NULL: none */
    char *presented, *expected;    /* same, of the last one */
    char reason[NS_REASON_MAX];
};

enum part { STRANGERS = 0, PEERS = 1, DIALLED = 2, PARTS = 3 };

struct refusals {
    pthread_mutex_t mutex; /* of all below */
    uint64_t workload;
    struct notices *notices;
    struct row *parts[PARTS]; /* REFUSAL_ROWS each; allocated with the first */
    uint64_t period_ms;       /* when the present period of notices began, 0: never */
    uint32_t told;            /* notices in it */
    uint64_t untold;          /* refusals of rows that were pushed out before they were told */
};

static const char *or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

/* NULL for an empty one, or without memory. */
static char *copy(const char *text)
{
    return or_empty(text)[0] == 0 ? NULL : strdup(text);
}

/* Most refusals of a row say the same. */
static void replace(char **place, const char *text)
{
    if (strcmp(or_empty(*place), or_empty(text)) == 0)
        return;
    free(*place);
    *place = copy(text);
}

/* Frees what it owns. */
static void row_forget(struct row *row)
{
    free(row->peer);
    free(row->presented);
    free(row->expected);
}

struct refusals *refusals_new(uint64_t workload, struct notices *notices)
{
    struct refusals *refusals = ns_alloc(sizeof(*refusals));
    pthread_mutex_init(&refusals->mutex, NULL);
    refusals->workload = workload;
    refusals->notices = notices;
    return refusals;
}

void refusals_free(struct refusals *refusals)
{
    if (refusals == NULL)
        return;
    for (int part = 0; part < PARTS; part++) {
        for (int i = 0; refusals->parts[part] != NULL && i < REFUSAL_ROWS; i++)
            row_forget(&refusals->parts[part][i]);
        free(refusals->parts[part]);
    }
    pthread_mutex_destroy(&refusals->mutex);
    free(refusals);
}

/* ---- rows ---- */

static enum part part_of(const struct refusal *refusal)
{
    return refusal->direction == NS_OUTBOUND    ? DIALLED
           : refusal->kind == NS_REFUSED_STREAM ? PEERS
                                                : STRANGERS;
}

static int row_matches(const struct row *row, const struct refusal *refusal)
{
    return row->count > 0 && row->kind == refusal->kind && row->direction == refusal->direction &&
           row->status == refusal->status && address_same_ip(&row->source, &refusal->source) &&
           (row->direction == NS_INBOUND || address_same_ip(&row->destination, &refusal->destination)) &&
           strcmp(or_empty(row->peer), or_empty(refusal->peer)) == 0 &&
           strncmp(row->reason, refusal->reason, sizeof(row->reason) - 1) == 0;
}

/* Whether `a` is to give its place rather than `b`. */
static int row_gives_way(const struct row *a, const struct row *b, uint64_t now_ms)
{
    int stale_a = now_ms - a->last_ms >= REFUSAL_STALE_MS, stale_b = now_ms - b->last_ms >= REFUSAL_STALE_MS;
    if (a->count == 0 || b->count == 0)
        return b->count != 0;
    if (stale_a != stale_b)
        return stale_a;
    if (!stale_a && a->count != b->count)
        return a->count < b->count;
    return a->last_ms < b->last_ms;
}

/* The refusal's row; a new one, with a count of 0, takes another's place. */
static struct row *row_for(struct refusals *refusals, const struct refusal *refusal, uint64_t now_ms)
{
    struct row **part = &refusals->parts[part_of(refusal)];
    if (*part == NULL)
        *part = ns_alloc(REFUSAL_ROWS * sizeof(**part));
    struct row *place = *part;
    for (struct row *row = *part; row < *part + REFUSAL_ROWS; row++) {
        if (row_matches(row, refusal))
            return row;
        if (row_gives_way(row, place, now_ms))
            place = row;
    }
    refusals->untold += place->count - place->noticed;
    row_forget(place);
    memset(place, 0, sizeof(*place));
    place->kind = refusal->kind;
    place->direction = refusal->direction;
    place->status = refusal->status;
    place->source = refusal->source;
    place->source.port = 0;
    place->first_ms = now_ms;
    place->peer = copy(refusal->peer);
    snprintf(place->reason, sizeof(place->reason), "%s", refusal->reason);
    return place;
}

void refusals_note(struct refusals *refusals, const struct refusal *refusal, uint64_t now_ms)
{
    if (refusals == NULL)
        return;
    pthread_mutex_lock(&refusals->mutex);
    struct row *row = row_for(refusals, refusal, now_ms);
    row->count++;
    row->last_ms = now_ms;
    row->destination = refusal->destination;
    replace(&row->presented, refusal->presented);
    replace(&row->expected, refusal->expected);
    pthread_mutex_unlock(&refusals->mutex);
    notices_set(refusals->notices);
}

/* ---- what is told ---- */

void refusal_describe(const struct refusal *refusal, uint64_t workload, struct ns_refusal *out)
{
    memset(out, 0, sizeof(*out));
    out->workload = workload;
    out->count = 1;
    out->kind = refusal->kind;
    out->direction = refusal->direction;
    out->status = (uint32_t)refusal->status;
    out->source = refusal->source;
    out->source.port = 0;
    out->destination = refusal->destination;
    snprintf(out->peer, sizeof(out->peer), "%s", or_empty(refusal->peer));
    snprintf(out->reason, sizeof(out->reason), "%s", refusal->reason);
    snprintf(out->presented, sizeof(out->presented), "%s", or_empty(refusal->presented));
    snprintf(out->expected, sizeof(out->expected), "%s", or_empty(refusal->expected));
}

static void row_describe(const struct refusals *refusals, const struct row *row, uint64_t now_ms,
                         struct ns_refusal *out)
{
    memset(out, 0, sizeof(*out));
    out->workload = refusals->workload;
    out->count = row->count;
    out->first_ms = now_ms - row->first_ms;
    out->last_ms = now_ms - row->last_ms;
    out->kind = row->kind;
    out->direction = row->direction;
    out->status = (uint32_t)row->status;
    out->source = row->source;
    out->destination = row->destination;
    snprintf(out->peer, sizeof(out->peer), "%s", or_empty(row->peer));
    memcpy(out->reason, row->reason, sizeof(out->reason));
    snprintf(out->presented, sizeof(out->presented), "%s", or_empty(row->presented));
    snprintf(out->expected, sizeof(out->expected), "%s", or_empty(row->expected));
}

/* The rows one after the other: NULL first. NULL behind the last. */
static struct row *row_next(struct refusals *refusals, int *at)
{
    while (++*at < PARTS * REFUSAL_ROWS) {
        struct row *part = refusals->parts[*at / REFUSAL_ROWS];
        if (part != NULL && part[*at % REFUSAL_ROWS].count > 0)
            return &part[*at % REFUSAL_ROWS];
    }
    return NULL;
}

size_t refusals_list(struct refusals *refusals, uint64_t now_ms, struct ns_refusal *out, size_t capacity)
{
    size_t count = 0;
    struct row *row;
    pthread_mutex_lock(&refusals->mutex);
    for (int at = -1; (row = row_next(refusals, &at)) != NULL;) {
        /* A worker's clock is read once a turn, and may be behind, or ahead of, the caller's. */
        uint64_t now = now_ms > row->last_ms ? now_ms : row->last_ms;
        if (now - row->last_ms > REFUSAL_SHOWN_MS)
            continue;
        if (count < capacity)
            row_describe(refusals, row, now, &out[count]);
        count++;
    }
    pthread_mutex_unlock(&refusals->mutex);
    return count;
}

/* What is not told now is due later. */
static struct row *row_to_tell(struct refusals *refusals, uint64_t now_ms, int *later)
{
    struct row *row;
    for (int at = -1; (row = row_next(refusals, &at)) != NULL;) {
        if (row->count == row->noticed)
            continue;
        if (refusals->told < REFUSAL_NOTICES &&
            (row->noticed_ms == 0 || now_ms - row->noticed_ms >= REFUSAL_PERIOD_MS))
            return row;
        *later = 1;
    }
    return NULL;
}

int refusals_notice(struct refusals *refusals, uint64_t now_ms, struct ns_refusal *out)
{
    int later = 0;
    pthread_mutex_lock(&refusals->mutex);
    if (refusals->period_ms == 0 || now_ms - refusals->period_ms >= REFUSAL_PERIOD_MS) {
        refusals->period_ms = now_ms;
        refusals->told = 0;
    }
    struct row *row = row_to_tell(refusals, now_ms, &later);
    if (row != NULL) {
        row_describe(refusals, row, now_ms > row->last_ms ? now_ms : row->last_ms, out);
        out->count = row->count - row->noticed;
        out->untold = refusals->untold;
        refusals->untold = 0;
        refusals->told++;
        row->noticed = row->count;
        row->noticed_ms = now_ms;
    }
    pthread_mutex_unlock(&refusals->mutex);
    if (row != NULL || later)
        notices_set(refusals->notices);
    return row != NULL;
}
