/* snapshot.c: see snapshot.h. */
#include "core/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "flow/flow.h"
#include "flow/tunnel.h"

struct snapshot_state {
    struct snapshot_part *part;
    size_t capacity;
};

static struct ns_connection *snapshot_next(struct snapshot_state *state)
{
    struct snapshot_part *part = state->part;
    if (part->connection_count == state->capacity) {
        state->capacity = state->capacity == 0 ? 64 : state->capacity * 2;
        part->connections = realloc(part->connections, state->capacity * sizeof(part->connections[0]));
        if (part->connections == NULL)
            abort();
    }
    return &part->connections[part->connection_count++];
}

static void snapshot_connections(struct worker *worker, struct workload *workload, void *argument)
{
    (void)worker;
    struct link *at, *next;
    link_each(at, next, &workload->flows)
    {
        struct ns_connection *out = snapshot_next(argument);
        memset(out, 0, sizeof(*out));
        flow_describe(container_of(at, struct flow, link), out);
    }
}

static void snapshot_workload(struct worker *worker, struct workload *workload, void *argument)
{
    struct snapshot_part *part = argument;
    part->workloads = realloc(part->workloads, (part->workload_count + 1) * sizeof(part->workloads[0]));
    if (part->workloads == NULL)
        abort();
    struct ns_workload_stats *stats = &part->workloads[part->workload_count++];
    *stats = workload->stats;
    stats->connections = workload->live_flows;
    stats->tunnels = workload->live_tunnels;
    quota_stats(workload->quota, worker->now_ms, stats);
}

static void snapshot_closed(struct worker *worker, struct snapshot_state *state)
{
    const struct ns_connection *closed;
    for (uint64_t at = 0; (closed = closed_next(&worker->closed, &at, worker->now_ms)) != NULL;) {
        struct ns_connection *out = snapshot_next(state);
        *out = *closed;
        out->closed_ms = worker->now_ms - closed->closed_ms;
    }
}

/* The anchor's among `count`; NULL: it is not there. */
static struct ns_anchor_use *use_of(struct ns_anchor_use *uses, size_t count, const uint8_t *anchor)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(uses[i].anchor, anchor, sizeof(uses[i].anchor)) == 0)
            return &uses[i];
    return NULL;
}

static struct ns_anchor_use *snapshot_use(struct snapshot_part *part, const uint8_t *anchor)
{
    struct ns_anchor_use *use = use_of(part->anchors, part->anchor_count, anchor);
    if (use != NULL)
        return use;
    part->anchors = realloc(part->anchors, (part->anchor_count + 1) * sizeof(part->anchors[0]));
    if (part->anchors == NULL)
        abort();
    use = &part->anchors[part->anchor_count++];
    memset(use, 0, sizeof(*use));
    memcpy(use->anchor, anchor, sizeof(use->anchor));
    return use;
}

static void snapshot_tunnels(struct worker *worker, struct workload *workload, void *argument)
{
    (void)worker;
    struct link *at, *next;
    link_each(at, next, &workload->tunnels)
    {
        const struct tunnel *tunnel = container_of(at, struct tunnel, link);
        static const uint8_t NONE[REVOKED_DIGEST];
        const uint8_t *anchor = tunnel->tls.facts.anchor;
        if (tunnel->state != TUNNEL_OPEN || memcmp(anchor, NONE, sizeof(NONE)) == 0)
            continue;
        struct ns_anchor_use *use = snapshot_use(argument, anchor);
        use->tunnels++;
        use->connections += tunnel->stream_count;
    }
}

size_t snapshot_anchors(const struct snapshot *snapshot, struct ns_anchor_use *out, size_t capacity)
{
    struct snapshot_part sum = {.anchors = NULL};
    for (uint32_t i = 0; i < snapshot->part_count; i++) {
        const struct snapshot_part *part = &snapshot->parts[i];
        for (size_t j = 0; j < part->anchor_count; j++) {
            struct ns_anchor_use *use = snapshot_use(&sum, part->anchors[j].anchor);
            use->tunnels += part->anchors[j].tunnels;
            use->connections += part->anchors[j].connections;
        }
    }
    size_t written = sum.anchor_count < capacity ? sum.anchor_count : capacity;
    if (written > 0)
        memcpy(out, sum.anchors, written * sizeof(out[0]));
    free(sum.anchors);
    return sum.anchor_count;
}

void snapshot_take(struct worker *worker, struct snapshot *snapshot)
{
    struct snapshot_part *part = &snapshot->parts[worker->index];
    if (snapshot->wanted == SNAPSHOT_CONNECTIONS) {
        struct snapshot_state state = {.part = part};
        workloads_each(worker, snapshot_connections, &state);
        snapshot_closed(worker, &state);
    }
    if (snapshot->wanted == SNAPSHOT_ANCHORS)
        workloads_each(worker, snapshot_tunnels, part);
    workloads_each(worker, snapshot_workload, part);
    part->live_connections = worker->live.flows;
    part->live_tunnels = worker->live.tunnels;
    part->cache_hits = decisions_hits(worker->decisions);
    part->strangers = strangers_count(&worker->strangers);
    part->strangers_ended = worker->strangers.evicted;
    part->strangers_slowed = worker->strangers.slowed;
    part->decisions = *decisions_latencies(worker->decisions);
    pthread_mutex_lock(&snapshot->mutex);
    if (--snapshot->missing == 0)
        pthread_cond_signal(&snapshot->done);
    pthread_mutex_unlock(&snapshot->mutex);
}

void snapshot_begin(struct snapshot *snapshot, struct worker *workers, uint32_t count,
                    enum snapshot_wanted wanted)
{
    memset(snapshot, 0, sizeof(*snapshot));
    pthread_mutex_init(&snapshot->mutex, NULL);
    pthread_cond_init(&snapshot->done, NULL);
    snapshot->missing = snapshot->part_count = count;
    snapshot->wanted = wanted;
    snapshot->parts = ns_alloc(count * sizeof(snapshot->parts[0]));
    for (uint32_t i = 0; i < count; i++) {
        struct command *command = command_new(COMMAND_SNAPSHOT, 0);
        command->snapshot = snapshot;
        mailbox_post(&workers[i].mailbox, command);
    }
    pthread_mutex_lock(&snapshot->mutex);
    while (snapshot->missing > 0)
        pthread_cond_wait(&snapshot->done, &snapshot->mutex);
    pthread_mutex_unlock(&snapshot->mutex);
}

void snapshot_end(struct snapshot *snapshot)
{
    for (uint32_t i = 0; i < snapshot->part_count; i++) {
        free(snapshot->parts[i].connections);
        free(snapshot->parts[i].workloads);
        free(snapshot->parts[i].anchors);
    }
    free(snapshot->parts);
    pthread_cond_destroy(&snapshot->done);
    pthread_mutex_destroy(&snapshot->mutex);
}
