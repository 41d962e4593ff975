/* ring_reader.c: see ring_reader.h. */
#include "core/ring_reader.h"

#include <stdlib.h>
#include <string.h>

#include "core/listener.h"
#include "flow/bearing.h"
#include "flow/route.h"
#include "loop/packet_queue.h"
#include "loop/syn_answer.h"

enum {
    RECORDS_PER_EVENT = 64,
    BEARING_MOST = 64, /* records of what is borne, on their way to one worker */
};

static struct worker *holder_of(struct worker *worker, const struct parked *parked)
{
    return &worker->context->workers[parked->worker];
}

/* ---- a SYN ---- */

/* The holder may want to release it once more. */
static void came_again(struct worker *worker, struct parked *parked, struct syn *syn)
{
    struct worker *to = holder_of(worker, parked);
    parked_seen(parked, worker->now_ms);
    if (to == worker) {
        route_again(worker, &parked->tuple, parked->sequence);
        free(syn);
        return;
    }
    struct command *command = command_new(COMMAND_PARKED, parked->tuple.workload);
    command->tuple = parked->tuple;
    command->syn = syn;
    mailbox_post(&to->mailbox, command);
}

static void gave_up(struct worker *worker, struct parked *parked)
{
    struct worker *to = holder_of(worker, parked);
    if (to == worker) {
        route_gave_up(worker, &parked->tuple, parked->sequence);
    } else {
        struct command *command = command_new(COMMAND_GAVE_UP, parked->tuple.workload);
        command->tuple = parked->tuple;
        command->sequence = parked->sequence;
        mailbox_post(&to->mailbox, command);
    }
    parked_forget(&worker->parking, parked);
}

static void refuse(struct worker *worker, struct workload *workload, enum ns_direction direction,
                   struct syn *syn, enum ns_limit limit)
{
    struct held held = {0};
    workload_show_refused(worker, workload, direction, &syn->source, &syn->destination, limit);
    held_init(&held);
    held_begin(&worker->parking, workload->key, &held, syn, 0);
    syn_refuse(worker, workload, &held, CAUSE_REFUSED);
}

static void hand_over(struct worker *to, struct workload *workload, const struct parked_record *record,
                      struct syn *syn)
{
    struct command *command = command_new(COMMAND_PARKED, workload->key);
    command->quota = quota_hold(workload->quota);
    command->syn = syn;
    command->mark = record->mark;
    command->native = (record->value & PARKED_NATIVE) != 0;
    mailbox_post(&to->mailbox, command);
}

static void came(struct worker *worker, struct workload *workload, const struct parked_record *record,
                 struct syn *syn)
{
    enum ns_direction direction = record->kind == PARKED_SYN ? NS_OUTBOUND : NS_INBOUND;
    const struct tuple tuple = {workload->key, syn->source, syn->destination};
    struct parked *parked = parked_find(&worker->parking, &tuple);
    if (parked != NULL && parked->sequence == syn->sequence) {
        came_again(worker, parked, syn);
        return;
    }
    if (parked != NULL)
        gave_up(worker, parked); /* and dials again from the same port */
    turns_spend(&workload->budget, TURN_ACCEPT);
    enum ns_limit limit = quota_admit_beside(workload->quota, record->value & ~PARKED_NATIVE, worker->now_us);
    if (limit != NS_LIMITS) {
        refuse(worker, workload, direction, syn, limit);
        return;
    }
    /* What only asks is done at once; it costs no other worker anything. */
    struct worker *to = direction == NS_OUTBOUND ? listener_place(worker) : worker;
    parked = parked_new(&worker->parking, &tuple, syn->sequence, worker->now_ms);
    parked->worker = to->index;
    if (to == worker)
        route_park(worker, workload, direction, syn, record->mark, (record->value & PARKED_NATIVE) != 0);
    else
        hand_over(to, workload, record, syn);
}

void ring_reader_parked(struct worker *worker, struct workload *workload, struct command *command)
{
    struct syn *syn = command->syn;
    if (command->quota == NULL) { /* it was counted in when it came first */
        route_again(worker, &command->tuple, syn->sequence);
    } else if (workload == NULL) {
        quota_leave(command->quota);
    } else {
        command->syn = NULL;
        route_park(worker, workload, NS_OUTBOUND, syn, command->mark, command->native);
    }
}

/* ---- the ring ---- */

static void read_syn(struct worker *worker, struct workload *workload, const struct parked_record *record)
{
    struct syn *syn = ns_alloc(sizeof(*syn));
    if (syn_parse(record->packet, record->length, syn) == 0)
        came(worker, workload, record, syn);
    else
        free(syn);
}

static void read_gone(struct worker *worker, struct workload *workload, const struct parked_record *record)
{
    struct tuple tuple = {.workload = workload->key};
    parked_addresses(record, &tuple.source, &tuple.destination);
    struct parked *parked = parked_find(&worker->parking, &tuple);
    if (parked != NULL)
        gave_up(worker, parked);
}

/* The flow is here, or on any other worker. An application may say it as often as it likes: where others wait
 * to be told, it is not. */
static void read_tolerance(struct worker *worker, struct workload *workload,
                           const struct parked_record *record)
{
    struct tuple ends = {.workload = workload->key};
    const struct tolerance tolerance = {record->value, record->mark};
    parked_addresses(record, &ends.source, &ends.destination);
    if (bearing_tell(worker, &ends, &tolerance))
        return;
    for (uint32_t i = 0; i < worker->context->worker_count; i++) {
        struct worker *to = &worker->context->workers[i];
        if (to == worker || __atomic_load_n(&to->bearing, __ATOMIC_RELAXED) >= BEARING_MOST)
            continue;
        __atomic_add_fetch(&to->bearing, 1, __ATOMIC_RELAXED);
        struct command *command = command_new(COMMAND_TOLERANCE, workload->key);
        command->tuple = ends;
        command->tolerance = tolerance;
        mailbox_post(&to->mailbox, command);
    }
}

void ring_reader_event(struct worker *worker, struct listener *listener)
{
    struct workload *workload = listener->workload;
    const struct parked_record *record;
    (void)turns_event(&worker->turns, &workload->budget);
    for (int i = 0; i < RECORDS_PER_EVENT &&
                    (i == 0 || turns_left(&worker->turns, &workload->budget, TURN_BUDGET / 2)) &&
                    (record = ring_next(&workload->ring)) != NULL;
         i++) {
        if (record->kind == PARKED_SYN || record->kind == PARKED_ARRIVED)
            read_syn(worker, workload, record);
        else if (record->kind == PARKED_GONE)
            read_gone(worker, workload, record);
        else if (record->kind == PARKED_TOLERANCE)
            read_tolerance(worker, workload, record);
    }
    ring_done(&workload->ring);
}

void ring_reader_queue_event(struct worker *worker, struct listener *listener)
{
    struct workload *workload = listener->workload;
    struct packet_batch batch;
    int count = QUEUE_PACKETS;
    (void)turns_event(&worker->turns, &workload->budget);
    /* What is left raises the event again. */
    for (int read = 0; count == QUEUE_PACKETS && read < RECORDS_PER_EVENT &&
                       (read == 0 || turns_left(&worker->turns, &workload->budget, TURN_BUDGET / 2));
         read += count) {
        count = packet_queue_read(listener->poll.fd, &batch);
        for (int i = 0; i < batch.count; i++)
            read_syn(worker, workload, &batch.records[i]);
    }
}

void ring_reader_tick(struct worker *worker)
{
    parked_each_silent(&worker->parking, worker->now_ms, worker, gave_up);
}
