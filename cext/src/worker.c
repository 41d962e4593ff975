/* worker.c: see worker.h for how a turn goes. */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "balance.h"
#include "clock.h"
#include "flow.h"
#include "snapshot.h"
#include "spin.h"
#include "tunnel.h"
#include "warm.h"

enum {
    WORKLOAD_MAGIC = 0x6e73776c,
    EVENTS_PER_TURN = 256,
    ACCEPTS_PER_EVENT = 64,
    TUNNELS_PER_EVENT = 8, /* accepted; one costs several times what a flow does */
    TICK_MS = 1000,
    TICK_RETRY_MS = 50, /* while a tunnel waits to dial again */
};

/* ---- workloads ---- */

static struct link *workload_bucket(struct worker *worker, uint64_t key)
{
    return &worker->workloads[key % WORKLOAD_BUCKETS];
}

static struct workload *workload_find(struct worker *worker, uint64_t key)
{
    struct link *bucket = workload_bucket(worker, key);
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct workload *workload = container_of(at, struct workload, link);
        NS_CHECK(workload, WORKLOAD_MAGIC);
        if (workload->key == key)
            return workload;
    }
    return NULL;
}

void workloads_each(struct worker *worker, workload_visit *visit, void *argument)
{
    for (int i = 0; i < WORKLOAD_BUCKETS; i++) {
        struct link *at, *next;
        link_each(at, next, &worker->workloads[i])
            visit(worker, container_of(at, struct workload, link), argument);
    }
}

static void workload_add(struct worker *worker, struct command *command)
{
    struct workload *workload = ns_alloc(sizeof(*workload));
    workload->magic = WORKLOAD_MAGIC;
    workload->key = command->workload;
    workload->netns.fd = command->fd;
    workload->netns.serial = command->serial;
    workload->address = command->address;
    workload->stats.workload = command->workload;
    for (int role = 0; role < LISTENER_ROLES; role++)
        workload->listeners[role].poll.fd = -1;
    link_init(&workload->flows);
    link_init(&workload->tunnels);
    link_init(&workload->warm_peers);
    link_append(workload_bucket(worker, workload->key), &workload->link);
}

static void workload_credentials(struct workload *workload, struct command *command)
{
    tls_credentials_dispose(&workload->credentials);
    workload->credentials = command->credentials;
    memset(&command->credentials, 0, sizeof(command->credentials));
    struct link *at, *next;
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        if (tunnel->role == TLS_CLIENT)
            tunnel_retire(tunnel);
    }
}

/* ---- listeners ---- */

static int is_for_tunnels(int role)
{
    return role == NS_LISTEN_HBONE || role == NS_LISTEN_HBONE6;
}

static void connection_begin(struct worker *worker, struct workload *workload, int role, int fd,
                             const struct ns_address *peer)
{
    if (is_for_tunnels(role))
        tunnel_accept(worker, workload, fd, peer);
    else
        flow_accept(worker, workload, role == NS_LISTEN_OUTBOUND ? NS_OUTBOUND : NS_INBOUND, fd, peer);
}

static void connection_hand_over(struct worker *to, const struct listener *listener, int fd,
                                 const struct ns_address *peer)
{
    struct command *command = command_new(COMMAND_ACCEPTED, listener->workload->key);
    command->role = listener->role;
    command->fd = fd;
    command->address = *peer;
    worker_post(to, command);
}

/* Out of descriptors: the connection is taken and reset, instead of waking us again and again. */
static void listener_shed(struct worker *worker, int listener_fd)
{
    if (worker->spare_fd >= 0)
        close(worker->spare_fd);
    int fd = accept4(listener_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        socket_abort(fd);
    worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void listener_event(struct worker *worker, struct listener *listener)
{
    int limit = is_for_tunnels(listener->role) ? TUNNELS_PER_EVENT : ACCEPTS_PER_EVENT;
    for (int i = 0; i < limit || listener->closing; i++) {
        struct ns_address peer;
        int fd = socket_accept(listener->poll.fd, &peer);
        if (fd >= 0) {
            struct worker *to = listener->closing ? worker : balance_choose(worker);
            if (to == worker)
                connection_begin(worker, listener->workload, listener->role, fd, &peer);
            else
                connection_hand_over(to, listener, fd, &peer);
        }
        if (fd >= 0)
            continue;
        if (errno == EMFILE || errno == ENFILE)
            listener_shed(worker, listener->poll.fd);
        else if (errno != ECONNABORTED && errno != EINTR)
            return; /* EAGAIN: all are taken */
    }
}

/* The queue stays for whoever else holds the listener. */
static void listener_leave(struct worker *worker, struct listener *listener)
{
    if (listener->poll.fd < 0)
        return;
    (void)epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, listener->poll.fd, NULL);
    close(listener->poll.fd);
    listener->poll.fd = -1;
}

static void listener_close(struct worker *worker, struct listener *listener)
{
    if (listener->poll.fd < 0)
        return;
    /* Those who are in the queue were promised a connection. They stay here: none is to be on its way to
     * another worker when the caller counts what is left. */
    listener->closing = 1;
    listener_event(worker, listener);
    listener_leave(worker, listener);
}

static void listener_open(struct worker *worker, struct workload *workload, struct command *command)
{
    struct listener *listener = &workload->listeners[command->role];
    listener_close(worker, listener);
    listener->workload = workload;
    listener->role = command->role;
    listener->poll.kind = POLL_LISTENER;
    listener->poll.fd = command->fd;
    listener->closing = 0;
    command->fd = -1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener->poll};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, listener->poll.fd, &event) != 0)
        fprintf(stderr, "nodeseal core: cannot watch a listener: %s\n", strerror(errno));
}

int worker_watch(struct worker *worker, struct pollable *pollable)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET,
                                .data.ptr = pollable};
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, pollable->fd, &event);
}

static void workload_remove(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_close(worker, &workload->listeners[role]);
    struct link *at, *next;
    link_each(at, next, &workload->flows)
        flow_abort(container_of(at, struct flow, link), "the workload was removed");
    link_each(at, next, &workload->tunnels)
        tunnel_abort(container_of(at, struct tunnel, link), "the workload was removed");
    warm_forget(workload);
    tls_credentials_dispose(&workload->credentials);
    link_remove(&workload->link);
    link_append(&worker->dead_workloads, &workload->link);
}

static void workload_retire(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_leave(worker, &workload->listeners[role]);
    warm_forget(workload);
}

/* ---- commands ---- */

static void recheck_flows(struct worker *worker, struct workload *workload, void *unused)
{
    (void)worker;
    (void)unused;
    struct link *at, *next;
    link_each(at, next, &workload->flows) flow_recheck(container_of(at, struct flow, link));
}

static void command_run(struct worker *worker, struct command *command)
{
    struct workload *workload = workload_find(worker, command->workload);
    switch (command->kind) {
    case COMMAND_ADD:
        workload_add(worker, command);
        command->fd = -1;
        break;
    case COMMAND_CREDENTIALS:
        if (workload != NULL)
            workload_credentials(workload, command);
        break;
    case COMMAND_LISTEN:
        if (workload != NULL)
            listener_open(worker, workload, command);
        break;
    case COMMAND_UNLISTEN:
        if (workload != NULL)
            listener_close(worker, &workload->listeners[command->role]);
        break;
    case COMMAND_ACCEPTED:
        if (workload != NULL)
            connection_begin(worker, workload, command->role, command->fd, &command->address);
        else
            socket_abort(command->fd);
        command->fd = -1;
        break;
    case COMMAND_REMOVE:
        if (workload != NULL)
            workload_remove(worker, workload, NULL);
        break;
    case COMMAND_RETIRE:
        worker->retiring = 1;
        workloads_each(worker, workload_retire, NULL);
        break;
    case COMMAND_EPOCH:
        decisions_epoch(worker->decisions, command->epoch);
        workloads_each(worker, recheck_flows, NULL);
        break;
    case COMMAND_ANSWER:
        decisions_answer(worker->decisions, command->decision);
        command->decision = NULL;
        break;
    case COMMAND_SNAPSHOT:
        snapshot_take(worker, command->snapshot);
        break;
    case COMMAND_STOP:
        worker->stopping = 1;
        break;
    }
}

struct command *command_new(enum command_kind kind, uint64_t workload)
{
    struct command *command = ns_alloc(sizeof(*command));
    command->kind = kind;
    command->workload = workload;
    command->fd = -1;
    return command;
}

static void command_free(struct command *command)
{
    if (command->fd >= 0)
        close(command->fd);
    tls_credentials_dispose(&command->credentials);
    decision_release(command->decision);
    free(command);
}

void worker_post(struct worker *worker, struct command *command)
{
    command->next = NULL;
    pthread_mutex_lock(&worker->mailbox_mutex);
    int first = worker->mailbox_head == NULL;
    *worker->mailbox_tail = command;
    worker->mailbox_tail = &command->next;
    pthread_mutex_unlock(&worker->mailbox_mutex);
    /* What lies beside others was announced with the first of them, and is taken with them. */
    uint64_t one = 1;
    if (first)
        (void)!write(worker->wake.fd, &one, sizeof(one)); /* fails only when raised to the brim already */
}

/* What lies in the mailbox, or the first TURN_COMMANDS of it: an answer may dial a tunnel, and a thousand of
 * them would be felt by every open stream. The eventfd stays raised until all are taken. */
static struct command *mailbox_take(struct worker *worker)
{
    uint64_t count;
    pthread_mutex_lock(&worker->mailbox_mutex);
    struct command *first = worker->mailbox_head;
    struct command **end = &first;
    for (int i = 0; i < TURN_COMMANDS && *end != NULL; i++)
        end = &(*end)->next;
    worker->mailbox_head = *end;
    *end = NULL;
    if (worker->mailbox_head == NULL) {
        worker->mailbox_tail = &worker->mailbox_head;
        (void)!read(worker->wake.fd, &count, sizeof(count));
    }
    pthread_mutex_unlock(&worker->mailbox_mutex);
    return first;
}

static void mailbox_run(struct worker *worker)
{
    struct command *command = mailbox_take(worker);
    while (command != NULL) {
        struct command *next = command->next;
        command_run(worker, command);
        command_free(command);
        command = next;
    }
}

/* ---- decisions ---- */

static int ask(void *owner, const struct ns_question *question)
{
    struct worker *worker = owner;
    return core_ask(worker->core, question);
}

static void answered(void *owner, struct decision_waiter *waiter, struct decision *decision)
{
    (void)owner;
    if (waiter->kind == WAITER_WARM)
        warm_decided(container_of(waiter, struct warm_peer, waiter), decision);
    else
        flow_decided(container_of(waiter, struct flow, waiter), decision);
}

/* ---- the loop ---- */

static void dispatch(struct worker *worker, struct pollable *pollable, uint32_t events)
{
    if (pollable->fd < 0)
        return; /* closed earlier in this batch */
    switch (pollable->kind) {
    case POLL_WAKE:
        mailbox_run(worker);
        break;
    case POLL_LISTENER:
        listener_event(worker, container_of(pollable, struct listener, poll));
        break;
    case POLL_TUNNEL:
        tunnel_event(container_of(pollable, struct tunnel, poll), events);
        break;
    case POLL_NEAR:
        flow_event(container_of(pollable, struct flow, near), pollable, events);
        break;
    case POLL_FAR:
        flow_event(container_of(pollable, struct flow, far), pollable, events);
        break;
    }
}

/* Those on the lists now; who is put there meanwhile has its turn later. */
static void continue_busy(struct worker *worker)
{
    struct link flows, tunnels;
    link_init(&flows);
    link_init(&tunnels);
    link_splice(&flows, &worker->busy_flows);
    link_splice(&tunnels, &worker->busy_tunnels);
    while (!link_empty(&flows)) {
        struct flow *flow = container_of(flows.next, struct flow, busy_link);
        link_remove(&flow->busy_link);
        flow_relay(flow);
    }
    while (!link_empty(&tunnels)) {
        struct tunnel *tunnel = container_of(tunnels.next, struct tunnel, busy_link);
        link_remove(&tunnel->busy_link);
        tunnel_read(tunnel);
    }
}

/* As many steps as take no longer than the rest of the turn, which began at begun_us; one at least. */
static void continue_handshakes(struct worker *worker, uint64_t begun_us)
{
    if (link_empty(&worker->handshakes))
        return;
    uint64_t now_us = clock_us(CLOCK_MONOTONIC);
    uint64_t until_us = now_us + (now_us - begun_us);
    for (int i = 0; i < TURN_HANDSHAKES && !link_empty(&worker->handshakes); i++) {
        if (i > 0 && clock_us(CLOCK_MONOTONIC) >= until_us)
            return;
        struct tunnel *tunnel = container_of(worker->handshakes.next, struct tunnel, busy_link);
        link_remove(&tunnel->busy_link);
        tunnel_handshake(tunnel);
    }
}

static void flush_tunnels(struct worker *worker)
{
    struct link tunnels;
    link_init(&tunnels);
    link_splice(&tunnels, &worker->dirty_tunnels);
    while (!link_empty(&tunnels)) {
        struct tunnel *tunnel = container_of(tunnels.next, struct tunnel, dirty_link);
        link_remove(&tunnel->dirty_link);
        tunnel_flush(tunnel);
    }
}

static void tick_tunnels(struct worker *worker, struct workload *workload, void *dials)
{
    struct link *at, *next;
    link_each(at, next, &workload->tunnels) tunnel_tick(container_of(at, struct tunnel, link));
    warm_tick(worker, workload, dials);
}

static void tick(struct worker *worker)
{
    int dials = WARM_DIALS;
    worker->last_tick_ms = worker->now_ms;
    workloads_each(worker, tick_tunnels, &dials);
    struct link *at, *next;
    link_each(at, next, &worker->waiting_flows)
    {
        struct flow *flow = container_of(at, struct flow, waiting_link);
        if (worker->now_ms > flow->deadline_ms)
            flow_fail(flow, "timed out");
    }
    if (worker->recheck_missed) {
        worker->recheck_missed = 0;
        workloads_each(worker, recheck_flows, NULL);
    }
}

static void bury(struct worker *worker)
{
    while (!link_empty(&worker->dead_flows))
        flow_free(container_of(worker->dead_flows.next, struct flow, link));
    while (!link_empty(&worker->dead_tunnels))
        tunnel_free(container_of(worker->dead_tunnels.next, struct tunnel, link));
    while (!link_empty(&worker->dead_workloads)) {
        struct workload *workload = container_of(worker->dead_workloads.next, struct workload, link);
        link_remove(&workload->link);
        close(workload->netns.fd);
        workload->magic = 0;
        free(workload);
    }
}

static uint64_t tick_interval(const struct worker *worker)
{
    return worker->retrying_tunnels > 0 ? TICK_RETRY_MS : TICK_MS;
}

/* How long to sleep: until the next tick, if anything depends on time; else until something happens. */
static int sleep_ms(const struct worker *worker)
{
    if (!link_empty(&worker->busy_flows) || !link_empty(&worker->busy_tunnels) ||
        !link_empty(&worker->dirty_tunnels) || !link_empty(&worker->handshakes))
        return 0;
    if (worker->live_tunnels == 0 && link_empty(&worker->waiting_flows) && worker->warm == 0)
        return -1;
    uint64_t next = worker->last_tick_ms + tick_interval(worker);
    return next > worker->now_ms ? (int)(next - worker->now_ms) : 0;
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[EVENTS_PER_TURN];
    while (!worker->stopping) {
        int count = spin_wait(worker, events, EVENTS_PER_TURN, sleep_ms(worker));
        uint64_t begun_us = clock_us(CLOCK_MONOTONIC);
        worker->now_ms = begun_us / 1000;
        for (int i = 0; i < count; i++)
            dispatch(worker, events[i].data.ptr, events[i].events);
        continue_busy(worker);
        continue_handshakes(worker, begun_us);
        flush_tunnels(worker);
        if (worker->now_ms - worker->last_tick_ms >= tick_interval(worker))
            tick(worker);
        bury(worker);
        balance_show(worker);
    }
    workloads_each(worker, workload_remove, NULL);
    bury(worker);
    return NULL;
}

/* ---- life ---- */

static void worker_init(struct worker *worker, struct core *core, uint32_t index)
{
    worker->core = core;
    worker->index = index;
    worker->wake.kind = POLL_WAKE;
    worker->mailbox_tail = &worker->mailbox_head;
    pthread_mutex_init(&worker->mailbox_mutex, NULL);
    for (int i = 0; i < WORKLOAD_BUCKETS; i++)
        link_init(&worker->workloads[i]);
    for (int i = 0; i < TUNNEL_BUCKETS; i++)
        link_init(&worker->tunnels[i]);
    link_init(&worker->dirty_tunnels);
    link_init(&worker->busy_tunnels);
    link_init(&worker->handshakes);
    link_init(&worker->busy_flows);
    link_init(&worker->waiting_flows);
    link_init(&worker->dead_flows);
    link_init(&worker->dead_tunnels);
    link_init(&worker->dead_workloads);
    worker->next_flow_id = 1;
    worker->window_spare = WINDOW_SPARE;
    worker->now_ms = worker->last_tick_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    worker->decisions = decisions_new(index, ask, answered, worker);
    worker->incoming = ns_alloc(SCRATCH_SIZE);
    worker->cipher = ns_alloc(TLS_SEALED_SIZE(SCRATCH_SIZE) + 4096);
    worker->plain = ns_alloc(SCRATCH_SIZE + SCRATCH_SPARE);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    worker->libctx = OSSL_LIB_CTX_new();
}

static void worker_dispose(struct worker *worker)
{
    struct command *command = worker->mailbox_head;
    while (command != NULL) {
        struct command *next = command->next;
        command_free(command);
        command = next;
    }
    decisions_free(worker->decisions);
    block_pool_dispose(&worker->blocks);
    splice_pool_dispose(&worker->pipes);
    OSSL_LIB_CTX_free(worker->libctx);
    int fds[] = {worker->epoll_fd, worker->wake.fd, worker->spare_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(worker->closed);
    free(worker->incoming);
    free(worker->cipher);
    free(worker->plain);
    pthread_mutex_destroy(&worker->mailbox_mutex);
}

int worker_start(struct worker *worker, struct core *core, uint32_t index, char *error, size_t error_size)
{
    worker_init(worker, core, index);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &worker->wake};
    sigset_t all, before;
    sigfillset(&all);
    int failed = worker->epoll_fd < 0 || worker->wake.fd < 0 || worker->libctx == NULL ||
                 epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake.fd, &event) != 0;
    if (!failed) {
        /* Signals are the main thread's; a worker inherits the mask it is started under. */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        failed = pthread_create(&worker->thread, NULL, worker_main, worker) != 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (failed) {
        snprintf(error, error_size, "worker %u cannot be started: %s", index, strerror(errno));
        worker_dispose(worker);
        return -1;
    }
    char name[16];
    snprintf(name, sizeof(name), "worker-%u", index % 100);
    pthread_setname_np(worker->thread, name);
    return 0;
}

void worker_join(struct worker *worker)
{
    pthread_join(worker->thread, NULL);
    worker_dispose(worker);
}
