/* reports.c: what the core tells of itself (nodeseal_core.h): notices for a log, refusals, snapshots. */
#include <string.h>

#include "base/clock.h"
#include "core/core.h"
#include "core/snapshot.h"

/* ---- notices ---- */

/* True with a notice of the workload in out, if one is due. */
typedef int notice_take(struct quota *quota, uint64_t now_ms, void *out);

static int take_limit(struct quota *quota, uint64_t now_ms, void *out)
{
    return quota_notice(quota, now_ms, out);
}

static int take_refusal(struct quota *quota, uint64_t now_ms, void *out)
{
    return refusals_notice(quota->refusals, now_ms, out);
}

/* Writes at most `capacity` notices of `size` bytes each; what is left is due at the next look. */
static size_t notices_take(struct core *core, struct notices *notices, notice_take *take, void *out,
                           size_t size, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    if (!notices_are_due(notices))
        return 0;
    size_t count = 0;
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    pthread_mutex_lock(&core->mutex);
    if (notices_begin(notices, now_ms)) {
        struct link *at, *next;
        link_each(at, next, &core->registered)
        {
            struct quota *quota = container_of(at, struct registered, link)->quota;
            while (count < capacity && take(quota, now_ms, (char *)out + count * size))
                count++;
        }
        if (count == capacity)
            notices_set(notices);
    }
    pthread_mutex_unlock(&core->mutex);
    return count;
}

size_t core_limit_notices(struct core *core, struct ns_limit_notice *out, size_t capacity)
{
    return notices_take(core, &core->limits_due, take_limit, out, sizeof(*out), capacity);
}

size_t core_refusal_notices(struct core *core, struct ns_refusal *out, size_t capacity)
{
    return notices_take(core, &core->refusals_due, take_refusal, out, sizeof(*out), capacity);
}

size_t core_refusals(struct core *core, struct ns_refusal *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    size_t total = 0;
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    struct link *at, *next;
    pthread_mutex_lock(&core->mutex);
    link_each(at, next, &core->registered)
    {
        struct quota *quota = container_of(at, struct registered, link)->quota;
        size_t written = total < capacity ? total : capacity;
        total += refusals_list(quota->refusals, now_ms, out + written, capacity - written);
    }
    pthread_mutex_unlock(&core->mutex);
    return total;
}

/* ---- events ---- */

void core_events_listen(struct core *core, int wanted)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    for (uint32_t i = 0; i < core->worker_count; i++)
        events_listen(&core->workers[i].events, wanted);
    pthread_mutex_unlock(&core->mutex);
}

size_t core_next_events(struct core *core, struct ns_event *out, size_t capacity, uint64_t *lost)
{
    NS_CHECK(core, CORE_MAGIC);
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    size_t count = 0;
    pthread_mutex_lock(&core->mutex);
    /* Each call begins with another worker, so that a busy one does not take all of the room. */
    core->next_heard++;
    for (uint32_t i = 0; i < core->worker_count; i++) {
        struct worker *worker = &core->workers[(core->next_heard + i) % core->worker_count];
        count += events_take(&worker->events, now_ms, out + count, capacity - count, lost);
    }
    pthread_mutex_unlock(&core->mutex);
    return count;
}

/* ---- snapshots ---- */

size_t core_connections(struct core *core, struct ns_connection *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    size_t total = 0;
    snapshot_begin(&snapshot, core->workers, core->worker_count, SNAPSHOT_CONNECTIONS);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        const struct snapshot_part *part = &snapshot.parts[i];
        for (size_t j = 0; j < part->connection_count; j++, total++)
            if (total < capacity)
                out[total] = part->connections[j];
    }
    snapshot_end(&snapshot);
    return total;
}

/* The workloads are the same on every worker, in an order of their own: sums by key. What the quota tells is
 * of all workers already. */
static void stats_add(struct ns_workload_stats *sum, const struct ns_workload_stats *part)
{
    sum->connections += part->connections;
    sum->tunnels += part->tunnels;
    sum->accepted += part->accepted;
    sum->tunnelled += part->tunnelled;
    sum->plaintext += part->plaintext;
    sum->refused += part->refused;
    sum->failed += part->failed;
    sum->tls_failed += part->tls_failed;
}

size_t core_workload_stats(struct core *core, struct ns_workload_stats *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    snapshot_begin(&snapshot, core->workers, core->worker_count, SNAPSHOT_NO_MORE);
    const struct snapshot_part *first = &snapshot.parts[0];
    size_t total = first->workload_count;
    for (size_t i = 0; i < total && i < capacity; i++) {
        out[i] = first->workloads[i];
        for (uint32_t w = 1; w < core->worker_count; w++)
            for (size_t j = 0; j < snapshot.parts[w].workload_count; j++)
                if (snapshot.parts[w].workloads[j].workload == out[i].workload)
                    stats_add(&out[i], &snapshot.parts[w].workloads[j]);
    }
    snapshot_end(&snapshot);
    return total;
}

void core_stats(struct core *core, struct ns_core_stats *out)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    struct latencies decisions = {{0}};
    memset(out, 0, sizeof(*out));
    snapshot_begin(&snapshot, core->workers, core->worker_count, SNAPSHOT_NO_MORE);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        out->live_connections += snapshot.parts[i].live_connections;
        out->live_tunnels += snapshot.parts[i].live_tunnels;
        out->cache_hits += snapshot.parts[i].cache_hits;
        out->strangers += snapshot.parts[i].strangers;
        out->strangers_ended += snapshot.parts[i].strangers_ended;
        out->strangers_slowed += snapshot.parts[i].strangers_slowed;
        latencies_merge(&decisions, &snapshot.parts[i].decisions);
    }
    out->decision_p50_ns = latencies_percentile(&decisions, 50);
    out->decision_p99_ns = latencies_percentile(&decisions, 99);
    snapshot_end(&snapshot);
    pthread_mutex_lock(&core->mutex);
    out->epoch = core->epoch;
    pthread_mutex_unlock(&core->mutex);
    out->workers = core->worker_count;
    out->descriptors = __atomic_load_n(&core->descriptors.used, __ATOMIC_RELAXED) +
                       __atomic_load_n(&core->descriptors.strangers, __ATOMIC_RELAXED);
    (void)descriptors_left(&core->descriptors, clock_us(CLOCK_MONOTONIC) / 1000);
    out->descriptor_limit = __atomic_load_n(&core->descriptors.limit, __ATOMIC_RELAXED);
    out->questions = questions_asked(&core->questions);
}

size_t core_anchors(struct core *core, struct ns_anchor_use *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    snapshot_begin(&snapshot, core->workers, core->worker_count, SNAPSHOT_ANCHORS);
    size_t total = snapshot_anchors(&snapshot, out, capacity);
    snapshot_end(&snapshot);
    return total;
}
