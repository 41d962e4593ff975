/*
 * quota.h: what one workload may have of a core, and what it has.
 *
 * One object per workload, shared by all workers of the core: the counts are atomic, so that a limit holds
 * for all workers together. They change when a connection begins or ends and when bytes have to be kept,
 * never while bytes flow.
 *
 * Four things run out:
 *   connections: live flows, and tunnels that peers opened. Over the limit a new one is refused.
 *   memory: blocks of bytes that a socket did not take yet (of flows and of tunnels), and bytes in pipes. Not
 * the objects themselves, which the number of connections bounds, nor the kernel's socket buffers, which
 * quota_buffers bounds. What peers have been promised, the windows of their tunnels, comes out of what is
 * left (windows.h), so that no peer can send what there is no room for. From half of the limit on less is
 * read at once (quota_tight), so that running flows go on slowly; at the limit new connections are refused.
 *   new connections: a bucket of one second's worth, refilled evenly.
 *   descriptors: the process's, which all workloads share. None may hold more of them than DESCRIPTORS_SHARE
 * times what is left: one that takes what it can ends with four fifths, two with four ninths each, and
 * something is always left for the others.
 *
 * What is refused is counted by the limit that it met. Somebody else says so in a log, at his leisure:
 * quota_notice.
 */
#ifndef NS_QUOTA_H
#define NS_QUOTA_H

#include <stddef.h>
#include <stdint.h>

#include "wire/byte_queue.h"
#include "limits/descriptors.h"
#include "limits/notices.h"
#include "base/link.h"
#include "nodeseal_core.h"
#include "limits/refusals.h"

enum {
    QUOTA_NOTICE_MS = 10000,     /* between two notices of one workload and limit */
    QUOTA_WINDOW_TIGHT = 16384,  /* of each stream, while its peer holds more than its part */
    QUOTA_READ_TIGHT = 16384,    /* at once from an application or a peer, while the workload is tight */
    QUOTA_PRODUCE_TIGHT = 32768, /* at once into a tunnel, same */
    BUFFERS_FREE = 64,           /* connections whose sockets' buffers are the system's affair */
    BUFFERS_LEAST = 8192,        /* of each direction of the others */
    BUFFERS_MOST = 65536,
    DESCRIPTORS_SHARE = 4,
};

/* Refusals because of one limit. All atomic; times in ms of CLOCK_MONOTONIC, 0: never. */
struct limited {
    uint64_t refused;
    /* The limit at the last refusal. */
    uint64_t value;
    uint64_t first_ms;
    uint64_t last_ms;
    /* Of `refused`, how many the last notice covered. */
    uint64_t noticed;
    /* When that was. */
    uint64_t noticed_ms;
};

struct quota {
    /* Atomic: of the core's register, each worker's workload, and the queue of questions. */
    uint32_t references;
    /* Key. */
    uint64_t workload;
    struct descriptors *process;
    /* The core's. */
    struct notices *notices;
    /* Each field atomic. */
    struct ns_limits limits;
    /* Atomic, as the next four. */
    uint64_t connections;
    /* Held in byte queues, whose accounts it is the parent of, and in pipes. */
    struct account memory;
    /* Bytes that peers may send in addition: the windows of their tunnels. */
    uint64_t promised;
    uint64_t descriptors;
    /* When the bucket of new connections is full again; see quota.c. */
    uint64_t rate_ns;
    struct limited limited[NS_LIMITS];
    /* Owned; NULL: none are kept. */
    struct refusals *refusals;
    /* Waiting for Python, oldest first; under the mutex of struct questions, as the next. */
    struct link questions;
    /* Its place among those that have some. */
    struct link question_link;
};

/* With one reference. `process` and `notices` must outlive it. */
struct quota *quota_new(uint64_t workload, struct descriptors *process, struct notices *notices);
struct quota *quota_hold(struct quota *quota);
void quota_release(struct quota *quota); /* NULL is allowed */

void quota_set_limits(struct quota *quota, const struct ns_limits *limits);
struct ns_limits quota_limits(const struct quota *quota);

/* Counts a new connection in and returns NS_LIMITS, or returns the limit that it meets: it is to be refused
 * then, and was counted as such. */
enum ns_limit quota_admit(struct quota *quota, uint64_t now_us);
/* The same, where `beside` other connections count as well. */
enum ns_limit quota_admit_beside(struct quota *quota, uint64_t beside, uint64_t now_us);
/* A connection that was counted in has ended. */
void quota_leave(struct quota *quota);
/* Counts a refusal. */
void quota_refused(struct quota *quota, enum ns_limit limit, uint64_t now_ms);
/* "limit-connections" and the like: the word that is shown for a connection. */
const char *quota_reason(enum ns_limit limit);
/* What the limit was when it last refused something. */
uint64_t quota_refused_at(const struct quota *quota, enum ns_limit limit);

/* Opened (1) or closed (-1) descriptors of the workload. */
void quota_descriptors(struct quota *quota, int change);
/* True from half of the memory limit on. */
static inline int quota_tight(const struct quota *quota)
{
    uint64_t limit = __atomic_load_n(&quota->limits.memory, __ATOMIC_RELAXED);
    return limit != 0 && __atomic_load_n(&quota->memory.bytes, __ATOMIC_RELAXED) >= limit / 2;
}

/* Bytes held or given back. */
void quota_memory(struct quota *quota, int64_t change);
/* Of the memory limit what is neither held nor promised: negative if it was set lower. INT64_MAX: no limit.
 */
int64_t quota_left(const struct quota *quota);
/* Bytes that the kernel should hold in each direction of a new connection's socket towards the application;
 * 0: as much as it likes. */
uint32_t quota_buffers(const struct quota *quota);

/* Fills the parts of `stats` that are told here. */
void quota_stats(const struct quota *quota, uint64_t now_ms, struct ns_workload_stats *stats);
/* True with a notice for one limit, if one is due. */
int quota_notice(struct quota *quota, uint64_t now_ms, struct ns_limit_notice *notice);

#endif
