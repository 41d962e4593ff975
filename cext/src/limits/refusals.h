/*
 * refusals.h: peers of one workload that were refused, or refused it: who, why, how often and when.
 *
 * One object per workload, shared by all workers; its mutex is held while one row is looked for, and taken
 * only when something is refused, which costs a handshake or an accepted connection each time.
 *
 * A row stands for all refusals of the same direction, kind, status, identity and reason, of one source
 * (outbound: of one address that was dialled). What it costs is bounded, whoever comes: there are
 * REFUSAL_ROWS for each of three parts, so that those who have proven no identity cannot push out those who
 * have. In a full part a new row takes the place of one that was not met for REFUSAL_STALE_MS, or else of the
 * one that was met least often, and of several of these the oldest: a peer that tries again and again
 * outlives a flood of addresses.
 *
 * What is new is told for a log by refusals_notice: at most REFUSAL_NOTICES lines in REFUSAL_PERIOD_MS for
 * the workload, and one for each row. What was pushed out before it was told is counted.
 */
#ifndef NS_REFUSALS_H
#define NS_REFUSALS_H

#include <stddef.h>
#include <stdint.h>

#include "limits/notices.h"
#include "nodeseal_core.h"

enum {
    REFUSAL_ROWS = 32,
    REFUSAL_STALE_MS = 3600000,
    REFUSAL_SHOWN_MS = 86400000, /* rows that were met longer ago are not told */
    REFUSAL_NOTICES = 8,
    REFUSAL_PERIOD_MS = 60000,
};

/* One refusal, as it happens. */
struct refusal {
    enum ns_refusal_kind kind;
    enum ns_direction direction;
    /* Of HTTP, with which it was answered; 0: none. */
    int status;
    /* Who dialled; the port means nothing. */
    struct ns_address source;
    /* What was dialled. */
    struct ns_address destination;
    /* Verified identity; NULL or "": none. */
    const char *peer;
    const char *reason;
    /* As in struct ns_refusal; NULL or "": nothing. Of refusals in one row the last ones are told. */
    const char *presented;
    const char *expected;
};

struct refusals;

/* `notices` must outlive the object. */
struct refusals *refusals_new(uint64_t workload, struct notices *notices);
void refusals_free(struct refusals *refusals); /* NULL is allowed */

/* It alone, met just now, as a row of `workload`. */
void refusal_describe(const struct refusal *refusal, uint64_t workload, struct ns_refusal *out);
/* Counts it. NULL for `refusals`: nothing is kept. */
void refusals_note(struct refusals *refusals, const struct refusal *refusal, uint64_t now_ms);
/* Writes at most `capacity` rows, returns how many there are. */
size_t refusals_list(struct refusals *refusals, uint64_t now_ms, struct ns_refusal *out, size_t capacity);
/* True with the next notice, whose `count` is what came since the row's last one. */
int refusals_notice(struct refusals *refusals, uint64_t now_ms, struct ns_refusal *out);

#endif
