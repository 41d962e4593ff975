/* snapshot.h: what workers tell of their flows and workloads when they are asked. */
#ifndef NS_SNAPSHOT_H
#define NS_SNAPSHOT_H

#include <pthread.h>

#include "base/latencies.h"
#include "loop/worker.h"

/* Beside the workloads and the numbers. */
enum snapshot_wanted { SNAPSHOT_NO_MORE = 0, SNAPSHOT_CONNECTIONS = 1, SNAPSHOT_ANCHORS = 2 };

/* What one worker puts into a snapshot. */
struct snapshot_part {
    struct ns_connection *connections;
    size_t connection_count;
    struct ns_workload_stats *workloads;
    size_t workload_count;
    /* Each anchor once. */
    struct ns_anchor_use *anchors;
    size_t anchor_count;
    uint64_t live_connections;
    uint64_t live_tunnels;
    uint64_t cache_hits;
    /* As in struct ns_core_stats. */
    uint64_t strangers, strangers_ended, strangers_slowed;
    /* Of the questions answered so far. */
    struct latencies decisions;
};

struct snapshot {
    pthread_mutex_t mutex;
    pthread_cond_t done;
    /* Workers that have not answered. */
    uint32_t missing;
    enum snapshot_wanted wanted;
    /* One per worker. */
    struct snapshot_part *parts;
    uint32_t part_count;
};

/* Asks the workers for their parts, and waits until all are there. */
void snapshot_begin(struct snapshot *snapshot, struct worker *workers, uint32_t count,
                    enum snapshot_wanted wanted);
/* Sums what the parts say of anchors: writes at most `capacity`, returns how many there are. */
size_t snapshot_anchors(const struct snapshot *snapshot, struct ns_anchor_use *out, size_t capacity);
/* Frees the parts. */
void snapshot_end(struct snapshot *snapshot);
/* Fills this worker's part and counts it off; the last worker wakes the caller. */
void snapshot_take(struct worker *worker, struct snapshot *snapshot);

#endif
