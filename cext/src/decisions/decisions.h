/*
 * decisions.h: one worker's cache of answers, and the questions that are on their way to Python.
 *
 * A question is identified by what it depends on (its key). The first flow with a new key causes one
 * question; others with the same key wait beside it. An answer serves all of them and is kept until an epoch
 * of the mesh state concerns it, or for as long as it says itself; one that is neither yes nor no, until the
 * next epoch. Sans-I/O: the worker sends the questions and delivers the answers.
 *
 * Workloads share the room: none may have more answers cached, or more questions under way, than there is
 * room left. One that asks about ever new destinations ends with half of it and forgets its own oldest
 * answers, not others'.
 */
#ifndef NS_DECISIONS_H
#define NS_DECISIONS_H

#include "base/latencies.h"
#include "base/link.h"
#include "decisions/concern.h"
#include "nodeseal_core.h"

enum {
    DECISIONS_BUCKETS = 4096,
    /* Cached and pending together, of all workloads. */
    DECISIONS_MAX = 16384,
    /* Questions under way, same; beyond a workload's part its new flows are refused. */
    DECISIONS_PENDING_MAX = 4096,
};

/* An answer, shared by the cache and the flows that go by it. Immutable, counted, of one thread. */
struct decision {
    uint32_t references;
    /* Of the question that it answers. */
    uint64_t id;
    /* Where the next flow starts: round robin. */
    uint32_t next_endpoint;
    uint64_t epoch;
    /* Until when it serves new flows, of CLOCK_MONOTONIC; 0: as long as the epoch stays. */
    uint64_t until_us;
    /* enum ns_verdict. */
    uint32_t verdict;
    uint32_t endpoint_count;
    char reason[NS_REASON_MAX];
    struct ns_endpoint endpoints[];
};

/* May be made by one thread and handed to another. */
struct decision *decision_new(const struct ns_answer *answer);
struct decision *decision_hold(struct decision *decision);
void decision_release(struct decision *decision); /* NULL is allowed */

/* What the waiter is embedded in. */
enum waiter_kind { WAITER_FLOW = 0, WAITER_PRECONNECT = 1 };

/* Something that waits for an answer. */
struct decision_waiter {
    /* In its entry's list of waiters; unlinked when it does not wait. */
    struct link link;
    enum waiter_kind kind;
};

/* One workload's part of a cache; embedded in it. */
struct decision_share {
    /* Entries, oldest first. */
    struct link answered;
    /* Entries. */
    struct link pending;
    /* Entries in both. */
    size_t count;
    size_t pending_count;
};

struct decisions;

/* Called for each waiter when its answer is there. The waiter is unlinked already; it may be freed or wait
 * again. */
typedef void decision_ready(void *owner, struct decision_waiter *waiter, struct decision *decision);
/* Sends a question; 0, or -1 if it cannot be sent. The id in it is set. */
typedef int decision_ask(void *owner, const struct ns_question *question);

struct decisions *decisions_new(uint32_t worker_index, decision_ask *ask, decision_ready *ready, void *owner);
/* All shares have been forgotten before. */
void decisions_free(struct decisions *decisions);

void decision_share_init(struct decision_share *share);
/* Drops all that is known and asked of the workload; nobody is to wait for it any more. */
void decisions_forget(struct decisions *decisions, struct decision_share *share);

/*
 * Looks up the answer to `question` (its id is ignored), which is of the share's workload. Returns a cached
 * decision (borrowed: hold it to keep it), or NULL: then either *waiting is 1 and `ready` will be called for
 * the waiter, or *waiting is 0 and no answer can be had.
 */
struct decision *decisions_get(struct decisions *decisions, struct decision_share *share,
                               const struct ns_question *question, struct decision_waiter *waiter,
                               int *waiting);
/* Stops waiting; harmless if it does not wait. */
void decision_waiter_cancel(struct decision_waiter *waiter);

/* An answer from Python, taken over. If it was made before the last epoch that concerns it, the question is
 * asked once more. */
void decisions_answer(struct decisions *decisions, struct decision *answer);
/* `concern`: NULL: all answers. Takes time for all that are cached, some 50 ns each. */
void decisions_epoch(struct decisions *decisions, uint64_t epoch, const struct concern *concern);

/* From sending each question to having its answer. */
const struct latencies *decisions_latencies(const struct decisions *decisions);
uint64_t decisions_hits(const struct decisions *decisions);

#endif
