/* snapshot.c: see snapshot.h. */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

enum { REFUSALS_APART_MS = 1000 };

static void describe(const struct flow *flow, struct ns_connection *out)
{
    memset(out, 0, sizeof(*out));
    out->id = flow->id;
    out->workload = flow->workload->key;
    out->direction = flow->direction;
    out->state = flow->state == FLOW_DECIDING     ? NS_STATE_DECIDING
                 : flow->state == FLOW_CONNECTING ? NS_STATE_CONNECTING
                                                  : NS_STATE_OPEN;
    out->mtls = flow->mtls && flow->peer[0] != 0;
    out->source = flow->source;
    out->destination = flow->destination;
    out->endpoint = flow->endpoint;
    const struct half *sent = flow->direction == NS_OUTBOUND ? &flow->to_far : &flow->to_near;
    const struct half *received = flow->direction == NS_OUTBOUND ? &flow->to_near : &flow->to_far;
    out->bytes_sent = sent->bytes;
    out->bytes_received = received->bytes;
    out->age_ms = flow->worker->now_ms - flow->accepted_ms;
    memcpy(out->peer, flow->peer, sizeof(out->peer));
    memcpy(out->tls, flow->tls, sizeof(out->tls));
    memcpy(out->reason, flow->reason, sizeof(out->reason));
}

static struct ns_connection *closed_slot(struct worker *worker)
{
    if (worker->closed == NULL)
        worker->closed = ns_alloc(CLOSED_KEPT * sizeof(worker->closed[0]));
    return &worker->closed[worker->closed_next++ % CLOSED_KEPT];
}

void snapshot_remember(struct flow *flow, const char *reason)
{
    struct worker *worker = flow->worker;
    struct ns_connection *slot = closed_slot(worker);
    describe(flow, slot);
    slot->state = NS_STATE_CLOSED;
    slot->closed_ms = worker->now_ms;
    if (reason != NULL && !(flow->state == FLOW_OPEN && !flow->mtls))
        snprintf(slot->reason, sizeof(slot->reason), "%s", reason);
}

void snapshot_refused(struct worker *worker, struct workload *workload, enum ns_direction direction,
                      const struct ns_address *source, const struct ns_address *destination,
                      enum ns_limit limit)
{
    if (direction == NS_INBOUND) {
        const struct refusal refusal = {
            .kind = destination->port == NS_HBONE_PORT ? NS_REFUSED_HANDSHAKE : NS_REFUSED_PLAINTEXT,
            .direction = NS_INBOUND,
            .source = *source,
            .destination = *destination,
            .reason = quota_reason(limit),
        };
        refusals_note(workload->quota->refusals, &refusal, worker->now_ms);
        return;
    }
    if (workload->refusal_shown_ms[limit] != 0 &&
        worker->now_ms - workload->refusal_shown_ms[limit] < REFUSALS_APART_MS)
        return;
    workload->refusal_shown_ms[limit] = worker->now_ms;
    struct ns_connection *slot = closed_slot(worker);
    memset(slot, 0, sizeof(*slot));
    slot->id = ((uint64_t)worker->index << 48) + worker->next_flow_id++;
    slot->workload = workload->key;
    slot->direction = direction;
    slot->state = NS_STATE_CLOSED;
    slot->source = *source;
    slot->destination = slot->endpoint = *destination;
    slot->closed_ms = worker->now_ms;
    snprintf(slot->reason, sizeof(slot->reason), "%s", quota_reason(limit));
}

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
        describe(container_of(at, struct flow, link), snapshot_next(argument));
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
    uint64_t first = worker->closed_next > CLOSED_KEPT ? worker->closed_next - CLOSED_KEPT : 0;
    for (uint64_t i = first; i < worker->closed_next; i++) {
        const struct ns_connection *closed = &worker->closed[i % CLOSED_KEPT];
        if (worker->now_ms - closed->closed_ms > CLOSED_SHOWN_MS)
            continue;
        struct ns_connection *out = snapshot_next(state);
        *out = *closed;
        out->closed_ms = worker->now_ms - closed->closed_ms;
    }
}

void snapshot_take(struct worker *worker, struct snapshot *snapshot)
{
    struct snapshot_part *part = &snapshot->parts[worker->index];
    if (snapshot->want_connections) {
        struct snapshot_state state = {.part = part};
        workloads_each(worker, snapshot_connections, &state);
        snapshot_closed(worker, &state);
    }
    workloads_each(worker, snapshot_workload, part);
    part->live_connections = worker->live_flows;
    part->live_tunnels = worker->live_tunnels;
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

void snapshot_begin(struct snapshot *snapshot, struct worker *workers, uint32_t count, int want_connections)
{
    memset(snapshot, 0, sizeof(*snapshot));
    pthread_mutex_init(&snapshot->mutex, NULL);
    pthread_cond_init(&snapshot->done, NULL);
    snapshot->missing = snapshot->part_count = count;
    snapshot->want_connections = want_connections;
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
    }
    free(snapshot->parts);
    pthread_cond_destroy(&snapshot->done);
    pthread_mutex_destroy(&snapshot->mutex);
}
