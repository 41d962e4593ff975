/* thread.c: see thread.h. */
#define _GNU_SOURCE
#include "core/thread.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>

#include "core/commands.h"
#include "core/listener.h"
#include "core/recheck.h"
#include "core/ring_reader.h"
#include "flow/patience.h"
#include "flow/pool.h"
#include "flow/route.h"
#include "flow/tunnel_bytes.h"
#include "flow/tunnel_events.h"
#include "flow/tunnel_handshake.h"
#include "flow/windows.h"
#include "loop/answers.h"
#include "wire/profile.h"

enum {
    EVENTS_PER_TURN = 256,
    TICK_MS = 1000,
    TICK_RETRY_MS = 50,    /* while a tunnel waits to dial again, or a listener is paused */
    BATCHES_PER_TURN = 16, /* of events, when workloads share the turn: most are only noted */
    ENDS_PER_TURN = 64,    /* flows and tunnels of a removed workload */
    BLOCKS_PER_TICK = 512, /* 8 MiB that are given back: 2 ms */
    LEFT_MANY = 500,       /* flows and tunnels fewer than there were: their memory is given back */
};

/* ---- decisions ---- */

static int ask(void *owner, const struct ns_question *question)
{
    struct worker *worker = owner;
    const struct workload *workload = workload_find(worker, question->workload);
    return workload != NULL ? questions_put(worker->context->questions, workload->quota, question) : -1;
}

static void answered(void *owner, struct decision_waiter *waiter, struct decision *decision)
{
    struct worker *worker = owner;
    if (waiter->kind == WAITER_PRECONNECT) {
        pool_preconnect_decided(container_of(waiter, struct preconnect, waiter), decision);
        return;
    }
    struct flow *flow = container_of(waiter, struct flow, waiter);
    struct budget *budget = &flow->workload->budget;
    /* Thousands may have waited for one answer. A flow that goes on later finds it in the cache. */
    if (flow->state != FLOW_DECIDING || turns_event(&worker->turns, budget))
        route_decided(flow, decision);
    else
        task_wait(&worker->turns, budget, &flow->task);
}

/* ---- events ---- */

static void handshakes_go_on(struct worker *worker)
{
    struct link made;
    link_init(&made);
    handshakes_take(&worker->handshakes, &made);
    while (!link_empty(&made)) {
        struct step *step = container_of(made.next, struct step, link);
        link_remove(&step->link);
        tunnel_stepped(container_of(step, struct tunnel, step));
    }
}

static void dispatch(struct worker *worker, struct pollable *pollable, uint32_t events)
{
    if (pollable->fd < 0)
        return; /* closed earlier in this batch */
    switch (pollable->kind) {
    case POLL_WAKE:
        commands_run(worker); /* first: it lowers the eventfd, which the next is told by as well */
        handshakes_go_on(worker);
        break;
    case POLL_LISTENER:
        listener_event(worker, container_of(pollable, struct listener, poll));
        break;
    case POLL_RING:
        ring_reader_event(worker, container_of(pollable, struct listener, poll));
        break;
    case POLL_QUEUE:
        ring_reader_queue_event(worker, container_of(pollable, struct listener, poll));
        break;
    case POLL_TUNNEL:
        tunnel_event(container_of(pollable, struct tunnel, poll), events);
        break;
    case POLL_NEAR:
        route_event(container_of(pollable, struct flow, near), pollable, events);
        break;
    case POLL_FAR:
        route_event(container_of(pollable, struct flow, far), pollable, events);
        break;
    }
}

static void handle_events(struct worker *worker, struct epoll_event *events, int count)
{
    for (int batch = 0; count > 0; batch++) {
        for (int i = 0; i < count; i++)
            dispatch(worker, events[i].data.ptr, events[i].events);
        /* More are there: somebody's may be behind thousands of another's, which are soon noted. */
        if (count < EVENTS_PER_TURN || batch == BATCHES_PER_TURN || !turns_contended(&worker->turns))
            return;
        count = epoll_wait(worker->epoll_fd, events, EVENTS_PER_TURN, 0);
    }
}

/* Answers the SYNs of which it is known now what becomes of them. Those that were released have gone through
 * lo when they are sent: their connections can be accepted, without another turn. */
static void answer_syns(struct worker *worker)
{
    if (worker->answers.count > 0)
        answers_send(&worker->answers);
    while (!link_empty(&worker->answers.released)) {
        struct workload *workload =
            container_of(worker->answers.released.next, struct workload, released_link);
        struct listener *listener = &workload->listeners[NS_LISTEN_OUTBOUND];
        link_remove(&workload->released_link);
        if (listener->poll.fd >= 0) /* else another worker has it, which is woken */
            listener_event(worker, listener);
    }
}

static void task_continue(void *owner, struct link *link)
{
    struct task *task = container_of(link, struct task, link);
    (void)owner;
    if (task->kind == TASK_FLOW)
        route_continue(container_of(task, struct flow, task));
    else
        tunnel_read(container_of(task, struct tunnel, task));
}

static void tunnel_write(void *owner, struct link *link)
{
    (void)owner;
    tunnel_flush(container_of(link, struct tunnel, dirty_link));
}

/* ---- steps of handshakes ---- */

/* Whose step of that kind is next; NULL: there was none after all. */
static struct tunnel *next_of_kind(struct worker *worker, enum step_kind kind)
{
    if (kind == STEP_STRANGE) {
        struct stranger *stranger = strangers_next(&worker->strangers, worker->now_us);
        return stranger != NULL ? container_of(stranger, struct tunnel, stranger) : NULL;
    }
    struct link *task_link = turns_next_step(&worker->turns, kind);
    return task_link != NULL ? container_of(task_link, struct tunnel, task.link) : NULL;
}

/* Whose step is next; NULL: nobody's, for now. A stranger's is given only when no other is being made:
 * whoever comes then waits for one of them at most. */
static struct tunnel *next_to_step(struct worker *worker)
{
    for (;;) {
        const int has[STEP_KINDS] = {!link_empty(&worker->turns.steps[STEP_DIALLED]),
                                     !link_empty(&worker->turns.steps[STEP_PUBLISHED]),
                                     strangers_due_us(&worker->strangers) <= worker->now_us};
        enum step_kind kind = turns_step_kind(&worker->turns, has);
        if (kind == STEP_KINDS || (kind == STEP_STRANGE && worker->handshakes.out > 0))
            return NULL;
        struct tunnel *tunnel = next_of_kind(worker, kind);
        if (tunnel != NULL) {
            tunnel->step_kind = kind;
            return tunnel;
        }
    }
}

static void continue_handshakes(struct worker *worker)
{
    struct tunnel *tunnel;
    while (handshakes_room(&worker->handshakes) && (tunnel = next_to_step(worker)) != NULL)
        tunnel_handshake(tunnel);
}

/* ---- time ---- */

static void tick_tunnels(struct worker *worker, struct workload *workload, void *dials)
{
    struct link *at, *next;
    link_each(at, next, &workload->tunnels) tunnel_tick(container_of(at, struct tunnel, link));
    windows_tick(workload);
    pool_preconnect(worker, workload, dials);
}

static uint64_t live_objects(const struct worker *worker)
{
    return worker->live.flows + worker->live.tunnels;
}

static int many_have_left(const struct worker *worker)
{
    uint64_t live = live_objects(worker);
    return worker->live.most >= live + LEFT_MANY && worker->live.most >= 2 * live;
}

/* Gives back what a burst has left: little at once, and only what nobody needed for a second. What malloc has
 * are flows and streams of 1 to 2 KB each; it looks through the free ones of all threads, some milliseconds.
 */
static void tidy(struct worker *worker)
{
    block_pool_trim(&worker->blocks, BLOCKS_PER_TICK);
    if (many_have_left(worker)) {
        malloc_trim(0);
        worker->live.most = live_objects(worker);
    }
}

/* Flows that are not open yet. */
static void look_at_waiting(struct worker *worker)
{
    struct link *at, *next;
    link_each(at, next, &worker->live.waiting)
    {
        struct flow *flow = container_of(at, struct flow, waiting_link);
        if (flow->deadline_ms != 0 && worker->now_ms > flow->deadline_ms) {
            flow->cause = CAUSE_SILENT;
            flow_fail(flow, "timed out");
        }
    }
}

/* Of those, the ones that want to be woken. What one of them does may end others. */
static void look_at_timed(struct worker *worker)
{
    struct live *live = &worker->live;
    struct link all;
    link_init(&all);
    link_splice(&all, &live->timed);
    live->wake_ms = UINT64_MAX;
    while (!link_empty(&all)) {
        struct flow *flow = container_of(all.next, struct flow, timed_link);
        link_remove(&flow->timed_link);
        if (flow->wake_ms != 0 && worker->now_ms >= flow->wake_ms)
            route_wake(flow);
        if (flow->state >= FLOW_OPEN || flow->wake_ms == 0)
            continue;
        if (flow->wake_ms < live->wake_ms)
            live->wake_ms = flow->wake_ms;
        if (link_empty(&flow->timed_link))
            link_append(&live->timed, &flow->timed_link);
    }
}

static void tick(struct worker *worker)
{
    int dials = POOL_PRECONNECTS;
    worker->last_tick_ms = worker->now_ms;
    listeners_resume(worker);
    ring_reader_tick(worker);
    if (worker->live.most < live_objects(worker))
        worker->live.most = live_objects(worker);
    workloads_each(worker, tick_tunnels, &dials);
    tidy(worker);
    look_at_waiting(worker);
    look_at_timed(worker);
    if (worker->rechecks.missed) {
        worker->rechecks.missed = 0;
        recheck_begin(worker, NULL);
    }
}

static void bury_workload(struct workload *workload)
{
    windows_forget(workload);
    workload_free(workload);
}

static void bury(struct worker *worker)
{
    while (!link_empty(&worker->graveyard.flows))
        flow_free(container_of(worker->graveyard.flows.next, struct flow, link));
    while (!link_empty(&worker->graveyard.tunnels))
        tunnel_free(container_of(worker->graveyard.tunnels.next, struct tunnel, link));
    while (!link_empty(&worker->graveyard.workloads))
        bury_workload(container_of(worker->graveyard.workloads.next, struct workload, link));
}

/* ---- the loop ---- */

static uint64_t tick_interval(const struct worker *worker)
{
    return worker->pool.retrying > 0 || !link_empty(&worker->paused_listeners) ? TICK_RETRY_MS : TICK_MS;
}

/* How long to sleep: until the next tick, if anything depends on time; else until something happens. */
static int sleep_ms(const struct worker *worker)
{
    if (turns_busy(&worker->turns) || !link_empty(&worker->rechecks.workloads) ||
        !link_empty(&worker->workloads.leaving))
        return 0;
    if (worker->live.tunnels == 0 && worker->parking.count == 0 && strangers_count(&worker->strangers) == 0 &&
        link_empty(&worker->live.waiting) && worker->pool.preconnects == 0 &&
        link_empty(&worker->paused_listeners) && worker->blocks.touched == 0 && !many_have_left(worker))
        return -1;
    uint64_t next = worker->last_tick_ms + tick_interval(worker);
    if (!link_empty(&worker->hasty.tunnels) && worker->hasty.due_ms < next)
        next = worker->hasty.due_ms;
    if (worker->live.wake_ms < next)
        next = worker->live.wake_ms;
    if (!link_empty(&worker->strangers.ring) && worker->handshakes.out == 0) {
        uint64_t due_ms = strangers_due_us(&worker->strangers) / 1000 + 1;
        next = due_ms < next ? due_ms : next;
    }
    return next > worker->now_ms ? (int)(next - worker->now_ms) : 0;
}

static void *turn_until_stopped(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[EVENTS_PER_TURN];
    while (!worker->stopping) {
        int count = spin_wait(&worker->spin, worker->options->spin_us, worker->epoll_fd, events,
                              EVENTS_PER_TURN, sleep_ms(worker));
        worker_look_at_clock(worker);
        worker->mailbox_taken = 0;
        turns_begin(&worker->turns, worker->now_ms);
        handle_events(worker, events, count);
        answer_syns(worker);
        if (!link_empty(&worker->turns.tasks))
            turns_run_tasks(&worker->turns, task_continue, worker);
        if (!link_empty(&worker->turns.writes)) {
            turns_begin(&worker->turns, worker->now_ms);
            turns_run_writes(&worker->turns, tunnel_write, worker);
        }
        if (!link_empty(&worker->turns.steps[STEP_DIALLED]) ||
            !link_empty(&worker->turns.steps[STEP_PUBLISHED]) || !link_empty(&worker->strangers.ring))
            continue_handshakes(worker);
        if (!link_empty(&worker->rechecks.workloads))
            recheck_continue(worker);
        if (!link_empty(&worker->workloads.leaving))
            commands_end_workloads(worker, ENDS_PER_TURN);
        if (worker->now_ms - worker->last_tick_ms >= tick_interval(worker))
            tick(worker);
        else if (worker->now_ms >= worker->live.wake_ms)
            look_at_timed(worker);
        if (!link_empty(&worker->hasty.tunnels))
            patience_look_at_hasty(worker);
        answer_syns(worker);
        bury(worker);
        if (worker->context->worker_count > 1)
            placement_show(&worker->context->places[worker->index], live_objects(worker), worker->now_ms,
                           &worker->spin.spent_us);
    }
    handshakes_stop(&worker->handshakes);
    handshakes_go_on(worker);
    workloads_each(worker, commands_remove, NULL);
    commands_end_workloads(worker, INT_MAX);
    answers_send(&worker->answers);
    bury(worker);
    return NULL;
}

/* ---- life ---- */

/* 0, or an errno. */
static int begin(pthread_t *thread, void *(*run)(void *), void *argument, const char *kind, uint32_t index)
{
    char name[16];
    sigset_t all, before;
    /* Signals are the main thread's; a thread inherits the mask it is started under. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return error;
    snprintf(name, sizeof(name), "%s-%u", kind, index % 100);
    pthread_setname_np(*thread, name);
    return 0;
}

static int begin_both(struct worker *worker)
{
    int error =
        begin(&worker->handshakes.thread, handshakes_main, &worker->handshakes, "handshakes", worker->index);
    if (error != 0)
        return error;
    error = begin(&worker->thread, turn_until_stopped, worker, "worker", worker->index);
    if (error != 0)
        handshakes_stop(&worker->handshakes);
    return error;
}

int thread_start(struct worker *worker, const struct context *context, uint32_t index, char *error,
                 size_t error_size)
{
    worker_init(worker, context, index);
    worker->decisions = decisions_new(index, ask, answered, worker);
    worker->h2_events = &STREAM_H2_EVENTS;
    worker->stream_events = &ROUTE_EVENTS;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &worker->wake};
    int failure = 0;
    char why[NS_REASON_MAX] = "";
    if (worker->epoll_fd < 0 || worker->wake.fd < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake.fd, &event) != 0)
        failure = errno;
    else if ((worker->libctx = profile_context((int)worker->options->fips, why, sizeof(why))) == NULL)
        failure = ENOMEM;
    else
        failure = begin_both(worker);
    if (failure != 0) {
        snprintf(error, error_size, "worker %u cannot be started: %s", index,
                 why[0] != 0 ? why : strerror(failure));
        decisions_free(worker->decisions);
        worker_dispose(worker);
        return -1;
    }
    return 0;
}

void thread_join(struct worker *worker)
{
    pthread_join(worker->thread, NULL);
    decisions_free(worker->decisions);
    worker_dispose(worker);
}
