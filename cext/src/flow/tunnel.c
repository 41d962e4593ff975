/*
 * tunnel.c: see tunnel.h.
 *
 * From the first dial to the end; tunnel_bytes.c moves the bytes in between. A tunnel that ends while a step
 * of its handshake is out (handshakes.h) is kept until the step is back.
 *
 * A tunnel must not be torn down while nghttp2 or OpenSSL are on the stack: what finds a reason in a callback
 * sets `doom` (tunnel_touch makes sure that the end of the turn looks at it).
 */
#include "flow/tunnel.h"

#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "flow/flow.h"
#include "base/hash.h"
#include "wire/names.h"
#include "snapshot.h"
#include "flow/stream.h"
#include "flow/tunnel_bytes.h"
#include "flow/warm.h"

enum {
    PING_AFTER_MS = 10000,
    PING_ANSWER_MS = 20000,
    RETRY_MS = 50,
    NOTICE_MS = 1000,     /* for streams that are on their way when the peer is told to open no more */
    UNSENT_MOST = 131072, /* bytes in the socket: they go before a new stream's */
};

static size_t bucket_of(const struct workload *workload, const struct ns_address *address)
{
    return hash_place(hash_bytes(workload->key, address->ip, sizeof(address->ip)), TUNNEL_BUCKETS);
}

static struct tunnel *tunnel_new(struct worker *worker, struct workload *workload, enum tls_role role)
{
    struct tunnel *tunnel = ns_alloc(sizeof(*tunnel));
    tunnel->magic = TUNNEL_MAGIC;
    tunnel->role = role;
    tunnel->state = TUNNEL_CONNECTING;
    tunnel->worker = worker;
    tunnel->workload = workload;
    link_init(&tunnel->pool_link);
    link_init(&tunnel->dirty_link);
    link_init(&tunnel->holder_link);
    link_init(&tunnel->task.link);
    step_init(&tunnel->step, &tunnel->tls);
    tunnel->task.kind = TASK_TUNNEL;
    tunnel->pending.account = tunnel->unfed.account = &workload->quota->memory;
    link_init(&tunnel->flows);
    tunnel->poll.fd = -1;
    tunnel->poll.kind = POLL_TUNNEL;
    tunnel->heard_ms = worker->now_ms;
    tunnel->idle_ms = worker->now_ms;
    tunnel->deadline_ms = worker->now_ms + worker->options->connect_timeout_ms;
    tunnel->h2 = h2_new(role == TLS_SERVER, &STREAM_EVENTS, tunnel);
    link_append(&workload->tunnels, &tunnel->link);
    return tunnel;
}

/* ---- beginning ---- */

static void prepare_socket(const struct tunnel *tunnel, int fd)
{
    socket_limit_unsent(fd, UNSENT_MOST);
    /* core_start has tried it; should it be gone since, the system's own does as well. */
    if (tunnel->worker->options->congestion_control[0] != 0)
        (void)socket_congestion(fd, tunnel->worker->options->congestion_control);
}

static void tunnel_count(struct tunnel *tunnel, int change)
{
    tunnel->worker->live_tunnels += (uint64_t)(int64_t)change;
    tunnel->workload->live_tunnels += (uint64_t)(int64_t)change;
}

/* A stranger's descriptor is none of the workload's. */
static void tunnel_count_descriptor(struct tunnel *tunnel, int change)
{
    if (stranger_is(&tunnel->stranger))
        descriptors_strangers(tunnel->workload->quota->process, change);
    else
        quota_descriptors(tunnel->workload->quota, change);
}

static void tunnel_adopt(struct tunnel *tunnel, int fd)
{
    tunnel->poll.fd = fd;
    tunnel_count_descriptor(tunnel, 1);
}

static void tunnel_close(struct tunnel *tunnel)
{
    if (tunnel->poll.fd < 0)
        return;
    close(tunnel->poll.fd);
    tunnel->poll.fd = -1;
    tunnel_count_descriptor(tunnel, -1);
}

/* Dials, or waits to dial again. 0, or -1 with errno when no socket can be had. */
static int tunnel_dial(struct tunnel *tunnel)
{
    struct ns_address to = tunnel->peer;
    to.port = NS_HBONE_PORT;
    int fd = socket_connect(&tunnel->workload->netns, &to, NULL, NS_MARK_CORE, 0);
    if (fd < 0)
        return -1;
    prepare_socket(tunnel, fd);
    tunnel_adopt(tunnel, fd);
    tunnel->poll.readable = tunnel->poll.writable = tunnel->poll.ending = 0;
    if (worker_watch(tunnel->worker, &tunnel->poll) != 0) {
        tunnel_close(tunnel);
        return -1;
    }
    return 0;
}

struct tunnel *tunnel_pooled(struct worker *worker, struct workload *workload,
                             const struct ns_address *address, const char *identity)
{
    struct link *bucket = &worker->tunnels[bucket_of(workload, address)];
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, pool_link);
        if (tunnel->workload == workload && !tunnel->retired && address_same_ip(&tunnel->peer, address) &&
            strcmp(tunnel->tls.expected, identity) == 0 && h2_room(tunnel->h2) > 0)
            return tunnel;
    }
    return NULL;
}

struct tunnel *tunnel_to(struct worker *worker, struct workload *workload, const struct ns_address *address,
                         const char *identity, int by_name)
{
    struct tunnel *tunnel = tunnel_pooled(worker, workload, address, identity);
    if (tunnel != NULL || workload->credentials.context == NULL)
        return tunnel;
    tunnel = tunnel_new(worker, workload, TLS_CLIENT);
    tunnel_count(tunnel, 1);
    turns_spend(&workload->share, TURN_TUNNEL);
    tunnel->peer = *address;
    tunnel->first_try_ms = worker->now_ms;
    if (tls_init(&tunnel->tls, TLS_CLIENT, &workload->credentials, worker->options->trust_domain, identity) !=
            0 ||
        (by_name && tls_ask_by_name(&tunnel->tls) != 0) || tunnel_dial(tunnel) != 0) {
        tunnel_abort(tunnel, "no socket for a tunnel");
        return NULL;
    }
    link_append(&worker->tunnels[bucket_of(workload, address)], &tunnel->pool_link);
    return tunnel;
}

/* The peer has said whom it wants of those who share the listener's address: from here on the tunnel is that
 * one's. Nothing was sent yet, and no stream can have begun. */
static void tunnel_pass_on(struct tunnel *tunnel, struct workload *workload)
{
    strangers_move(&tunnel->stranger, &workload->strangers);
    link_remove(&tunnel->task.link);
    link_remove(&tunnel->dirty_link);
    link_remove(&tunnel->link);
    link_append(&workload->tunnels, &tunnel->link);
    byte_queue_charge(&tunnel->pending, &workload->quota->memory);
    byte_queue_charge(&tunnel->unfed, &workload->quota->memory);
    tunnel->workload = workload;
}

void tunnel_choose(struct tunnel *tunnel)
{
    struct workload *workload = workload_named(tunnel->worker, tunnel->workload, tls_wanted(&tunnel->tls));
    if (workload != NULL && workload != tunnel->workload)
        tunnel_pass_on(tunnel, workload);
    tls_present(&tunnel->tls, workload != NULL ? &tunnel->workload->credentials : NULL);
}

/* Its end will be a reset, in the list of connections with the limit's word. */
static void tunnel_show_refused(struct tunnel *tunnel, enum ns_limit limit)
{
    snapshot_refused(tunnel->worker, tunnel->workload, NS_INBOUND, &tunnel->peer, &tunnel->local, limit);
    socket_reset_at_death(tunnel->poll.fd);
}

/* For one more stranger others have to go. */
static void tunnel_make_room(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct stranger *excess;
    strangers_room(&worker->strangers,
                   descriptors_for_strangers(tunnel->workload->quota->process, worker->now_ms) /
                       worker->all_count);
    while (stranger_is(&tunnel->stranger) &&
           (excess = strangers_excess(&worker->strangers, &tunnel->stranger)) != NULL) {
        struct tunnel *ended = container_of(excess, struct tunnel, stranger);
        quota_refused(ended->workload->quota, NS_LIMIT_HANDSHAKES, worker->now_ms);
        tunnel_show_refused(ended, NS_LIMIT_HANDSHAKES);
        tunnel_abort(ended, quota_reason(NS_LIMIT_HANDSHAKES));
    }
}

void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct ns_address *peer)
{
    if (workload->credentials.context == NULL) {
        socket_abort(fd);
        return;
    }
    struct tunnel *tunnel = tunnel_new(worker, workload, TLS_SERVER);
    tunnel->state = TUNNEL_HANDSHAKE;
    tunnel->peer = *peer;
    strangers_begin(&worker->strangers, &tunnel->stranger, &workload->strangers, peer,
                    published_has(worker->published, peer->ip) ? STRANGER_PUBLISHED : STRANGER_OTHER,
                    worker->now_us);
    tunnel_adopt(tunnel, fd);
    if (socket_local_address(fd, &tunnel->local) != 0 || worker_watch(worker, &tunnel->poll) != 0) {
        tunnel_abort(tunnel, "the connection could not be set up");
        return;
    }
    tunnel_make_room(tunnel);
}

int tunnel_answer(struct tunnel *tunnel)
{
    const struct workload *workload = tunnel->workload;
    prepare_socket(tunnel, tunnel->poll.fd);
    if (tls_init(&tunnel->tls, TLS_SERVER, &workload->credentials, tunnel->worker->options->trust_domain,
                 NULL) != 0)
        return -1;
    tunnel->tls.choosing = workload->neighbours != 0;
    return 0;
}

void tunnel_proven(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    enum ns_limit limit = quota_admit(tunnel->workload->quota, worker->now_us);
    tunnel_count_descriptor(tunnel, -1);
    strangers_end(&worker->strangers, &tunnel->stranger, 1, worker->now_us);
    tunnel_count_descriptor(tunnel, 1);
    tunnel_count(tunnel, 1);
    turns_spend(&tunnel->workload->share, TURN_TUNNEL);
    tunnel->admitted = limit == NS_LIMITS;
    if (limit != NS_LIMITS)
        tunnel_refuse(tunnel, limit);
}

void tunnel_refuse(struct tunnel *tunnel, enum ns_limit limit)
{
    if (tunnel->role == TLS_SERVER) /* else its flows are shown */
        tunnel_show_refused(tunnel, limit);
    tunnel->doom = quota_reason(limit);
}

/* ---- refusals ---- */

void tunnel_note_failed(const struct tunnel *tunnel, const char *reason)
{
    int is_server = tunnel->role == TLS_SERVER;
    struct refusal refusal = {
        .kind = NS_REFUSED_HANDSHAKE,
        .direction = is_server ? NS_INBOUND : NS_OUTBOUND,
        .source = is_server ? tunnel->peer : tunnel->workload->address,
        .destination = is_server ? tunnel->local : tunnel->peer,
        .reason = reason,
    };
    refusal.destination.port = NS_HBONE_PORT;
    refusals_note(tunnel->workload->quota->refusals, &refusal, tunnel->worker->now_ms);
}

void tunnel_note_refused(const struct tunnel *tunnel, int status, const struct ns_address *destination,
                         const char *reason)
{
    const struct refusal refusal = {
        .kind = NS_REFUSED_STREAM,
        .direction = NS_INBOUND,
        .status = status,
        .source = tunnel->peer,
        .destination = *destination,
        .peer = tunnel->tls.peer,
        .reason = reason,
    };
    refusals_note(tunnel->workload->quota->refusals, &refusal, tunnel->worker->now_ms);
}

/* ---- events ---- */

static void tunnel_refused(struct tunnel *tunnel, int error)
{
    struct worker *worker = tunnel->worker;
    tunnel_close(tunnel);
    /* A peer that is just being enrolled is announced a moment before, or after, its core listens. */
    if (error == ECONNREFUSED &&
        worker->now_ms + RETRY_MS < tunnel->first_try_ms + worker->options->refused_retry_ms) {
        worker->retrying_tunnels++;
        tunnel->state = TUNNEL_WAITING;
        return;
    }
    tunnel_abort(tunnel, error == ECONNREFUSED ? "the peer's port 15008 refuses connections"
                                               : "the peer cannot be reached");
}

static void tunnel_connected(struct tunnel *tunnel)
{
    tunnel->state = TUNNEL_HANDSHAKE;
    tunnel->poll.writable = 1;
    (void)socket_local_address(tunnel->poll.fd, &tunnel->local);
    tunnel_defer(tunnel); /* ClientHello */
}

void tunnel_event(struct tunnel *tunnel, uint32_t events)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    /* Noted in every state: an edge is told once. */
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        tunnel->poll.ending = 1;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        tunnel->poll.readable = 1;
    if (tunnel->state == TUNNEL_PARTING && tunnel->poll.ending) {
        tunnel_abort(tunnel, PROTOCOL_BROKEN);
        return;
    }
    if (tunnel->state == TUNNEL_CONNECTING) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        if (events & (EPOLLERR | EPOLLHUP)) {
            int error = socket_error(tunnel->poll.fd);
            tunnel_refused(tunnel, error != 0 ? error : ECONNRESET);
            return;
        }
        tunnel_connected(tunnel);
    }
    if (events & EPOLLOUT)
        tunnel_writable(tunnel);
    if (tunnel->poll.readable && tunnel->state < TUNNEL_OPEN) {
        tunnel_defer(tunnel);
    } else if (tunnel->poll.readable && tunnel->state == TUNNEL_OPEN) {
        struct turns *turns = &tunnel->worker->turns;
        if (turns_event(turns, &tunnel->workload->share))
            tunnel_read(tunnel);
        else
            task_wait(turns, &tunnel->workload->share, &tunnel->task);
    }
}

/* The core retires. A peer's request may cross our GOAWAY, and not every peer tries such a one again: so
 * first comes a notice, which refuses nothing yet (RFC 9113, 6.8). */
static void tick_leaving(struct tunnel *tunnel)
{
    uint64_t now_ms = tunnel->worker->now_ms;
    if (tunnel->role == TLS_SERVER && tunnel->notice_ms == 0) {
        tunnel->notice_ms = now_ms;
        h2_goaway_notice(tunnel->h2);
        tunnel_touch(tunnel);
    } else if (tunnel->role == TLS_CLIENT || now_ms - tunnel->notice_ms >= NOTICE_MS) {
        tunnel_retire(tunnel);
    }
}

int tunnel_peer_is_gone(const struct tunnel *tunnel, uint64_t now_ms)
{
    uint64_t since_ms = tunnel->ping_ms > tunnel->heard_ms ? tunnel->ping_ms : tunnel->heard_ms;
    return tunnel->ping_ms != 0 && now_ms - since_ms > PING_ANSWER_MS;
}

static void tick_open(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    if (worker->retiring && !tunnel->retired)
        tick_leaving(tunnel);
    if (tunnel_is_done(tunnel)) {
        tunnel_abort(tunnel, "no longer needed");
        return;
    }
    if (tunnel_peer_is_gone(tunnel, worker->now_ms)) {
        tunnel_abort(tunnel, "the peer does not answer");
        return;
    }
    if (tunnel->ping_ms == 0 && worker->now_ms - tunnel->heard_ms > PING_AFTER_MS) {
        tunnel->ping_ms = worker->now_ms;
        h2_ping(tunnel->h2);
        tunnel_touch(tunnel);
    }
    if (!tunnel->retired && link_empty(&tunnel->flows) &&
        worker->now_ms - tunnel->idle_ms > worker->options->idle_timeout_ms)
        tunnel_retire(tunnel);
}

void tunnel_tick(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    if (tunnel->state == TUNNEL_WAITING) {
        worker->retrying_tunnels--;
        tunnel->state = TUNNEL_CONNECTING;
        if (tunnel_dial(tunnel) != 0)
            tunnel_abort(tunnel, "no socket for a tunnel");
    } else if (tunnel->state < TUNNEL_OPEN && worker->now_ms > tunnel->deadline_ms) {
        if (tunnel->state == TUNNEL_HANDSHAKE)
            tunnel_note_failed(tunnel, tunnel->shaken > 0 ? "peer did not finish the handshake in time"
                                                          : "peer connected and sent nothing");
        tunnel_abort(tunnel, "the peer does not answer");
    } else if (tunnel->state == TUNNEL_PARTING && worker->now_ms > tunnel->deadline_ms) {
        tunnel_abort(tunnel, PROTOCOL_BROKEN);
    } else if (tunnel->state == TUNNEL_OPEN) {
        tick_open(tunnel);
    }
}

void tunnel_windows(struct tunnel *tunnel, uint32_t window)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    h2_windows(tunnel->h2, window);
    tunnel_touch(tunnel);
}

/* ---- ending ---- */

/* Closed before, it would take the rest with it: what the peer sends meanwhile (it gives windows back as a
 * slow reader reads) meets a closed socket, and is answered with a reset. */
int tunnel_is_done(const struct tunnel *tunnel)
{
    int unacknowledged = 0;
    return tunnel->state <= TUNNEL_OPEN && tunnel->retired && link_empty(&tunnel->flows) &&
           tunnel->pending.length == 0 && tunnel->unfed.length == 0 &&
           (ioctl(tunnel->poll.fd, SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0);
}

void tunnel_flow_left(struct tunnel *tunnel)
{
    if (!link_empty(&tunnel->flows))
        return;
    tunnel->idle_ms = tunnel->used_ms = tunnel->worker->now_ms;
    if (tunnel->retired)
        tunnel_touch(tunnel);
}

void tunnel_retire(struct tunnel *tunnel)
{
    if (tunnel->retired)
        return;
    warm_remember(tunnel);
    tunnel->retired = 1;
    link_remove(&tunnel->pool_link);
    h2_goaway(tunnel->h2);
    tunnel_touch(tunnel);
}

void tunnel_lose_flows(struct tunnel *tunnel, enum tunnel_state state, const char *reason)
{
    if (!tunnel->retired)
        warm_remember(tunnel);
    tunnel->retired = 1;
    link_remove(&tunnel->pool_link);
    tunnel->state = state;
    struct link *at, *next;
    link_each(at, next, &tunnel->flows) flow_tunnel_lost(container_of(at, struct flow, tunnel_link), reason);
}

void tunnel_abort(struct tunnel *tunnel, const char *reason)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    if (tunnel->state == TUNNEL_CLOSED)
        return;
    struct worker *worker = tunnel->worker;
    if (tunnel->state == TUNNEL_WAITING)
        worker->retrying_tunnels--;
    tunnel_farewell(tunnel);
    tunnel_lose_flows(tunnel, TUNNEL_CLOSED, reason);
    windows_close(tunnel);
    tunnel_close(tunnel);
    byte_queue_clear(&tunnel->pending, &worker->blocks); /* their account may not last as long as the step */
    byte_queue_clear(&tunnel->unfed, &worker->blocks);
    link_remove(&tunnel->dirty_link);
    link_remove(&tunnel->task.link);
    link_remove(&tunnel->link);
    if (!tunnel->step.out)
        link_append(&worker->dead_tunnels, &tunnel->link);
    if (!stranger_is(&tunnel->stranger))
        tunnel_count(tunnel, -1);
    strangers_end(&worker->strangers, &tunnel->stranger, 0, worker->now_us);
    if (tunnel->admitted)
        quota_leave(tunnel->workload->quota);
}

void tunnel_free(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    link_remove(&tunnel->link);
    h2_free(tunnel->h2);
    tls_dispose(&tunnel->tls);
    step_dispose(&tunnel->step);
    tunnel->magic = 0;
    free(tunnel);
}
