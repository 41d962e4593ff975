/* worker.c: see worker.h. */
#define _GNU_SOURCE
#include "loop/worker.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "wire/profile.h"

static void links_init(struct link *links, size_t count)
{
    for (size_t i = 0; i < count; i++)
        link_init(&links[i]);
}

static void lists_init(struct worker *worker)
{
    struct link *lists[] = {
        &worker->workloads.leaving, &worker->rechecks.workloads,  &worker->paused_listeners,
        &worker->live.waiting,      &worker->live.timed,          &worker->graveyard.flows,
        &worker->graveyard.tunnels, &worker->graveyard.workloads, &worker->hasty.tunnels,
    };
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
        link_init(lists[i]);
    links_init(worker->workloads.buckets, WORKLOAD_BUCKETS);
    links_init(worker->pool.buckets, TUNNEL_BUCKETS);
    links_init(worker->holders, HOLDER_BUCKETS);
    links_init(worker->bearings, BEARING_BUCKETS);
}

void worker_init(struct worker *worker, const struct context *context, uint32_t index)
{
    uint64_t seed = 0;
    (void)!getrandom(&seed, sizeof(seed), GRND_NONBLOCK); /* predictable is better than none */
    worker->index = index;
    worker->context = context;
    worker->options = context->options;
    worker->wake.kind = POLL_WAKE;
    worker->live.next_id = 1;
    worker->live.wake_ms = UINT64_MAX;
    lists_init(worker);
    turns_init(&worker->turns);
    strangers_init(&worker->strangers, seed);
    endpoints_init(&worker->endpoints);
    events_init(&worker->events);
    parking_init(&worker->parking);
    answers_init(&worker->answers);
    worker_look_at_clock(worker);
    worker->last_tick_ms = worker->now_ms;
    worker->scratch.incoming = ns_alloc(SCRATCH_SIZE);
    worker->scratch.cipher = ns_alloc(TLS_SEALED_SIZE(SCRATCH_SIZE) + 4096);
    worker->scratch.plain = ns_alloc(SCRATCH_SIZE + SCRATCH_SPARE);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    trust_init(&worker->trust, context->revoked);
    mailbox_init(&worker->mailbox, worker->wake.fd);
    handshakes_init(&worker->handshakes, worker->wake.fd);
}

void worker_dispose(struct worker *worker)
{
    mailbox_dispose(&worker->mailbox);
    block_pool_dispose(&worker->blocks);
    splice_pool_dispose(&worker->pipes);
    handshakes_dispose(&worker->handshakes);
    strangers_dispose(&worker->strangers);
    endpoints_dispose(&worker->endpoints);
    closed_dispose(&worker->closed);
    events_dispose(&worker->events);
    parking_dispose(&worker->parking);
    answers_dispose(&worker->answers);
    concern_release(worker->rechecks.concern);
    trust_dispose(&worker->trust);
    profile_context_free(worker->libctx);
    int fds[] = {worker->epoll_fd, worker->wake.fd, worker->spare_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(worker->scratch.incoming);
    free(worker->scratch.cipher);
    free(worker->scratch.plain);
}

int worker_watch(struct worker *worker, struct pollable *pollable)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET,
                                .data.ptr = pollable};
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, pollable->fd, &event);
}

uint64_t worker_next_id(struct worker *worker)
{
    return ((uint64_t)worker->index << 48) + worker->live.next_id++;
}
