/* listener.c: see listener.h. */
#define _GNU_SOURCE
#include "core/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "flow/route.h"
#include "flow/tunnel_server.h"
#include "loop/packet_queue.h"

enum {
    ACCEPTS_PER_EVENT = 64,
    STRANGERS_PER_EVENT = 8, /* their workload does not pay for them with its share of the turn */
    COMING_MOST = 64,        /* strangers on their way to one worker */
};

static int is_for_tunnels(int role)
{
    return role == NS_LISTEN_HBONE || role == NS_LISTEN_HBONE6;
}

struct worker *listener_place(struct worker *home)
{
    const struct context *context = home->context;
    uint32_t index = placement_choose(context->places, context->worker_count, home->index,
                                      home->live.flows + home->live.tunnels, home->now_ms);
    return index == home->index ? home : &context->workers[index];
}

static void connection_refuse(struct worker *worker, struct workload *workload, int role, int fd,
                              const struct ns_address *peer, enum ns_limit limit)
{
    struct ns_address local;
    if (socket_local_address(fd, &local) == 0)
        workload_show_refused(worker, workload, role == NS_LISTEN_OUTBOUND ? NS_OUTBOUND : NS_INBOUND, peer,
                              &local, limit);
    socket_abort(fd);
}

static void connection_begin(struct worker *worker, struct workload *workload, int role, int fd,
                             const struct ns_address *peer)
{
    route_accept(worker, workload, role == NS_LISTEN_OUTBOUND ? NS_OUTBOUND : NS_INBOUND, fd, peer);
}

/* Nobody waits for it after all: a connection like any other. */
static void connection_admit(struct worker *worker, struct workload *workload, int role, int fd,
                             const struct ns_address *peer)
{
    enum ns_limit limit = quota_admit(workload->quota, worker->now_us);
    if (limit == NS_LIMITS)
        connection_begin(worker, workload, role, fd, peer);
    else
        connection_refuse(worker, workload, role, fd, peer, limit);
}

static int connection_tuple(uint64_t workload, int fd, const struct ns_address *peer, struct tuple *tuple)
{
    tuple->workload = workload;
    tuple->source = *peer;
    return socket_local_address(fd, &tuple->destination);
}

void connection_taken(struct worker *worker, struct workload *workload, struct command *command)
{
    int is_stranger = is_for_tunnels(command->role);
    if (is_stranger) {
        descriptors_strangers(command->quota->process, -1);
        __atomic_sub_fetch(&worker->coming, 1, __ATOMIC_RELAXED);
    } else {
        quota_descriptors(command->quota, -1);
    }
    struct tuple tuple;
    if (workload == NULL) {
        socket_abort(command->fd);
        if (!is_stranger && !command->paired)
            quota_leave(command->quota);
    } else if (command->paired) {
        if (connection_tuple(workload->key, command->fd, &command->address, &tuple) != 0 ||
            !route_pair(worker, &tuple, command->fd))
            connection_admit(worker, workload, command->role, command->fd, &command->address);
    } else if (is_stranger) {
        tunnel_accept(worker, workload, command->fd, &command->address);
    } else {
        connection_begin(worker, workload, command->role, command->fd, &command->address);
    }
    command->fd = -1;
}

static void connection_hand_over(struct worker *to, const struct listener *listener, int fd,
                                 const struct ns_address *peer, int paired)
{
    struct command *command = command_new(COMMAND_ACCEPTED, listener->workload->key);
    command->paired = paired;
    command->quota = quota_hold(listener->workload->quota);
    if (is_for_tunnels(listener->role)) {
        descriptors_strangers(command->quota->process, 1);
        __atomic_add_fetch(&to->coming, 1, __ATOMIC_RELAXED);
    } else {
        quota_descriptors(command->quota, 1);
    }
    command->role = listener->role;
    command->fd = fd;
    command->address = *peer;
    mailbox_post(&to->mailbox, command);
}

/* A stranger costs the workload nothing yet, wherever it goes. */
static void stranger_accepted(struct worker *worker, struct listener *listener, int fd,
                              const struct ns_address *peer)
{
    struct worker *to = listener->closing ? worker : listener_place(worker);
    if (to == worker || __atomic_load_n(&to->coming, __ATOMIC_RELAXED) >= COMING_MOST)
        tunnel_accept(worker, listener->workload, fd, peer);
    else
        connection_hand_over(to, listener, fd, peer, 0);
}

/* Gives it to the flow whose SYN was released, here or on another worker; 0: there is none. */
static int connection_paired(struct worker *worker, const struct listener *listener, int fd,
                             const struct ns_address *peer)
{
    struct tuple tuple;
    if (worker->parking.count == 0 || listener->role != NS_LISTEN_OUTBOUND ||
        connection_tuple(listener->workload->key, fd, peer, &tuple) != 0)
        return 0;
    struct parked *parked = parked_find(&worker->parking, &tuple);
    if (parked == NULL)
        return 0;
    struct worker *to = &worker->context->workers[parked->worker];
    parked_forget(&worker->parking, parked);
    if (to == worker)
        return route_pair(worker, &tuple, fd);
    connection_hand_over(to, listener, fd, peer, 1);
    return 1;
}

static void connection_accepted(struct worker *worker, struct listener *listener, int fd,
                                const struct ns_address *peer)
{
    struct workload *workload = listener->workload;
    turns_spend(&workload->budget, TURN_ACCEPT);
    if (connection_paired(worker, listener, fd, peer))
        return;
    enum ns_limit limit = quota_admit(workload->quota, worker->now_us);
    if (limit != NS_LIMITS) {
        connection_refuse(worker, workload, listener->role, fd, peer, limit);
        return;
    }
    struct worker *to = listener->closing ? worker : listener_place(worker);
    if (to == worker)
        connection_begin(worker, workload, listener->role, fd, peer);
    else
        connection_hand_over(to, listener, fd, peer, 0);
}

/* Out of descriptors: the connection is taken and reset, instead of waking us again and again. 0, or -1 with
 * errno: EAGAIN when nobody waits, another one when even that could not be done. */
static int listener_shed(struct worker *worker, struct listener *listener)
{
    if (worker->spare_fd >= 0)
        close(worker->spare_fd);
    int fd = accept4(listener->poll.fd, NULL, NULL, SOCK_CLOEXEC);
    int error = errno;
    if (fd >= 0) {
        socket_abort(fd);
        quota_refused(listener->workload->quota, NS_LIMIT_DESCRIPTORS, worker->now_ms);
    }
    worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    errno = error;
    return fd >= 0 ? 0 : -1;
}

/* Nothing can be accepted now, though somebody waits: it would wake us again at once. They wait for the next
 * tick. */
static void listener_pause(struct worker *worker, struct listener *listener)
{
    struct epoll_event event = {.events = 0, .data.ptr = &listener->poll};
    if (listener->closing || epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, listener->poll.fd, &event) != 0)
        return;
    link_append(&worker->paused_listeners, &listener->paused_link);
}

void listeners_resume(struct worker *worker)
{
    while (!link_empty(&worker->paused_listeners)) {
        struct listener *listener = container_of(worker->paused_listeners.next, struct listener, paused_link);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener->poll};
        link_remove(&listener->paused_link);
        (void)epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, listener->poll.fd, &event);
    }
}

static int may_accept(struct worker *worker, const struct listener *listener, int accepted)
{
    if (listener->closing)
        return (uint32_t)accepted < listener->waiting;
    if (accepted == 0)
        return 1;
    if (is_for_tunnels(listener->role))
        return accepted < STRANGERS_PER_EVENT;
    return accepted < ACCEPTS_PER_EVENT &&
           turns_left(&worker->turns, &listener->workload->budget, TURN_BUDGET / 2);
}

void listener_event(struct worker *worker, struct listener *listener)
{
    if (!is_for_tunnels(listener->role))
        (void)turns_event(&worker->turns, &listener->workload->budget);
    for (int i = 0; may_accept(worker, listener, i); i++) {
        struct ns_address peer;
        int fd = socket_accept(listener->poll.fd, &peer);
        if (fd >= 0) {
            if (is_for_tunnels(listener->role))
                stranger_accepted(worker, listener, fd, &peer);
            else
                connection_accepted(worker, listener, fd, &peer);
            continue;
        }
        if ((errno == EMFILE || errno == ENFILE) && listener_shed(worker, listener) == 0)
            continue;
        if (errno == EAGAIN)
            return; /* all are taken */
        if (errno != ECONNABORTED && errno != EINTR && errno != EAFNOSUPPORT) {
            listener_pause(worker, listener);
            return;
        }
    }
}

void listener_leave(struct worker *worker, struct listener *listener)
{
    if (listener->poll.fd < 0)
        return;
    link_remove(&listener->paused_link);
    (void)epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, listener->poll.fd, NULL);
    close(listener->poll.fd);
    descriptors_change(listener->workload->quota->process, -1);
    listener->poll.fd = -1;
    if (listener->role == NS_LISTEN_PARKED) {
        ring_close(&listener->workload->ring);
        parked_left(&worker->parking, listener->workload->key, worker->now_ms);
    }
}

void listener_close(struct worker *worker, struct listener *listener)
{
    if (listener->poll.fd < 0)
        return;
    /* Those who are in the queue were promised a connection. They stay here: none is to be on its way to
     * another worker when the caller counts what is left. Who comes meanwhile was promised nothing: a flood
     * would keep the worker here for as long as it lasts. */
    listener->closing = 1;
    if (listener->role != NS_LISTEN_PARKED) {
        listener->waiting = socket_waiting(listener->poll.fd);
        listener_event(worker, listener);
    }
    listener_leave(worker, listener);
}

static enum pollable_kind kind_of(int role, int fd)
{
    if (role != NS_LISTEN_PARKED)
        return POLL_LISTENER;
    return packet_queue_is(fd) ? POLL_QUEUE : POLL_RING;
}

void listener_open(struct worker *worker, struct workload *workload, struct command *command)
{
    struct listener *listener = &workload->listeners[command->role];
    listener_close(worker, listener);
    listener->workload = workload;
    listener->role = command->role;
    listener->poll.kind = kind_of(command->role, command->fd);
    listener->poll.fd = command->fd;
    descriptors_change(workload->quota->process, 1);
    listener->closing = 0;
    command->fd = -1;
    if (listener->poll.kind == POLL_RING &&
        ring_open(&workload->ring, listener->poll.fd, ring_size(listener->poll.fd)) != 0) {
        fprintf(stderr, "nodeseal core: cannot read the ring of a workload: %s\n", strerror(errno));
        listener_leave(worker, listener);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener->poll};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, listener->poll.fd, &event) != 0)
        fprintf(stderr, "nodeseal core: cannot watch a listener: %s\n", strerror(errno));
}
