/*
 * tunnel.c: see tunnel.h.
 *
 * Reading: one recv of up to SCRATCH_SIZE, decrypted into one buffer, given to HTTP/2 in one piece, which
 * hands the bytes of each DATA frame straight to the application's socket. Writing: at the end of a turn,
 * frames of all ready streams are produced into one buffer, sealed into another, and sent. Whatever the
 * socket does not take is kept in `pending`, and as long as there is some, nothing new is produced: streams
 * then stay unread, and so the applications feel the pressure.
 *
 * A workload that holds half of its memory limit produces little at once, so that little can be left, and its
 * peers are asked for small windows (tunnel_windows): what is on its way already still arrives. A tunnel is
 * read in any case: unread, it would answer no ping, and its peer would end all that runs in it.
 *
 * The handshake's steps are made by another thread (handshakes.h). A tunnel that ends meanwhile is kept until
 * its step is back.
 *
 * A tunnel must not be torn down while nghttp2 or OpenSSL are on the stack: what finds a reason in a callback
 * sets `doom` (tunnel_touch makes sure that the end of the turn looks at it).
 */
#include "tunnel.h"

#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "flow.h"
#include "names.h"
#include "relay.h"
#include "warm.h"

enum {
    TUNNEL_MAGIC = 0x6e737475,
    PING_AFTER_MS = 10000,
    PING_ANSWER_MS = 20000,
    RETRY_MS = 50,
    NOTICE_MS = 1000, /* for streams that are on their way when the peer is told to open no more */
    WRITE_VECTORS = 64,
    HANDSHAKE_READ = 32768, /* what one step of a handshake gets */
};

static size_t bucket_of(const struct workload *workload, const struct ns_address *address)
{
    uint64_t hash = workload->key;
    for (size_t i = 0; i < sizeof(address->ip); i++)
        hash = (hash ^ address->ip[i]) * 1099511628211u;
    return (size_t)(hash >> 7) % TUNNEL_BUCKETS;
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
    tunnel->h2 = h2_new(role == TLS_SERVER, &FLOW_EVENTS, tunnel);
    if (workload->tight)
        h2_windows(tunnel->h2, QUOTA_WINDOW_TIGHT);
    link_append(&workload->tunnels, &tunnel->link);
    worker->live_tunnels++;
    workload->live_tunnels++;
    turns_spend(&workload->share, TURN_TUNNEL);
    return tunnel;
}

/* ---- beginning ---- */

/* core_start has tried it; should it be gone since, the system's own does as well. */
static void use_congestion_control(const struct tunnel *tunnel, int fd)
{
    if (tunnel->worker->options->congestion_control[0] != 0)
        (void)socket_congestion(fd, tunnel->worker->options->congestion_control);
}

static void tunnel_adopt(struct tunnel *tunnel, int fd)
{
    tunnel->poll.fd = fd;
    quota_descriptors(tunnel->workload->quota, 1);
}

static void tunnel_close(struct tunnel *tunnel)
{
    if (tunnel->poll.fd < 0)
        return;
    close(tunnel->poll.fd);
    tunnel->poll.fd = -1;
    quota_descriptors(tunnel->workload->quota, -1);
}

/* Dials, or waits to dial again. 0, or -1 with errno when no socket can be had. */
static int tunnel_dial(struct tunnel *tunnel)
{
    struct ns_address to = tunnel->peer;
    to.port = NS_HBONE_PORT;
    int fd = socket_connect(&tunnel->workload->netns, &to, NULL, NS_MARK_CORE);
    if (fd < 0)
        return -1;
    use_congestion_control(tunnel, fd);
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
    struct workload *before = tunnel->workload;
    enum ns_limit limit = quota_admit(workload->quota, tunnel->worker->now_us);
    if (limit != NS_LIMITS) {
        tunnel->doom = quota_reason(limit);
        return;
    }
    quota_leave(before->quota);
    quota_descriptors(before->quota, -1);
    quota_descriptors(workload->quota, 1);
    before->live_tunnels--;
    workload->live_tunnels++;
    link_remove(&tunnel->task.link);
    link_remove(&tunnel->dirty_link);
    link_remove(&tunnel->link);
    link_append(&workload->tunnels, &tunnel->link);
    tunnel->pending.account = tunnel->unfed.account = &workload->quota->memory;
    tunnel->workload = workload;
    if (workload->tight)
        h2_windows(tunnel->h2, QUOTA_WINDOW_TIGHT);
}

/* Without a name it is always the same one who answers, whoever accepted. */
static void tunnel_choose(struct tunnel *tunnel)
{
    struct workload *workload = workload_named(tunnel->worker, tunnel->workload, tls_wanted(&tunnel->tls));
    if (workload != NULL && workload != tunnel->workload)
        tunnel_pass_on(tunnel, workload);
    tls_present(&tunnel->tls, workload != NULL ? &tunnel->workload->credentials : NULL);
}

void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct ns_address *peer)
{
    if (workload->credentials.context == NULL) {
        quota_leave(workload->quota);
        socket_abort(fd);
        return;
    }
    struct tunnel *tunnel = tunnel_new(worker, workload, TLS_SERVER);
    tunnel_adopt(tunnel, fd);
    tunnel->state = TUNNEL_HANDSHAKE;
    tunnel->peer = *peer;
    use_congestion_control(tunnel, fd);
    if (tls_init(&tunnel->tls, TLS_SERVER, &workload->credentials, worker->options->trust_domain, NULL) !=
            0 ||
        socket_local_address(fd, &tunnel->local) != 0 || worker_watch(worker, &tunnel->poll) != 0) {
        tunnel_abort(tunnel, "the connection could not be set up");
        return;
    }
    tunnel->tls.choosing = workload->neighbours != 0;
}

/* ---- writing ---- */

/* Sends what is pending. */
static void tunnel_drain(struct tunnel *tunnel)
{
    while (tunnel->pending.length > 0 && tunnel->poll.writable) {
        struct iovec vectors[WRITE_VECTORS];
        struct msghdr message = {.msg_iov = vectors};
        message.msg_iovlen = (size_t)byte_queue_vectors(&tunnel->pending, vectors, WRITE_VECTORS);
        ssize_t sent = sendmsg(tunnel->poll.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            byte_queue_consume(&tunnel->pending, &tunnel->worker->blocks, (size_t)sent);
        } else if (errno == EAGAIN) {
            tunnel->poll.writable = 0;
        } else if (errno != EINTR) {
            tunnel->doom = "the connection to the peer broke";
            return;
        }
    }
}

/* Sends ciphertext, or keeps what cannot be sent. */
static void tunnel_send(struct tunnel *tunnel, const uint8_t *bytes, size_t length)
{
    if (tunnel->pending.length > 0)
        tunnel_drain(tunnel);
    while (length > 0 && tunnel->pending.length == 0 && tunnel->poll.writable && tunnel->doom == NULL) {
        ssize_t sent = send(tunnel->poll.fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            bytes += sent;
            length -= (size_t)sent;
        } else if (errno == EAGAIN) {
            tunnel->poll.writable = 0;
        } else if (errno != EINTR) {
            tunnel->doom = "the connection to the peer broke";
        }
    }
    if (length > 0 && tunnel->doom == NULL) {
        byte_queue_append(&tunnel->pending, &tunnel->worker->blocks, bytes, length);
        workload_look_at_memory(tunnel->workload);
    }
}

static struct tls_sink tunnel_sink(struct tunnel *tunnel)
{
    struct tls_sink sink = {.bytes = tunnel->worker->cipher,
                            .capacity = TLS_SEALED_SIZE(SCRATCH_SIZE) + 4096};
    return sink;
}

void tunnel_touch(struct tunnel *tunnel)
{
    if (tunnel->state < TUNNEL_CLOSED)
        turns_write(&tunnel->worker->turns, &tunnel->workload->share, &tunnel->dirty_link);
}

/* Seals and sends what the streams have, one buffer of it. True if the buffer ended before the frames did. */
static int tunnel_produce(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    int more = 1;
    tunnel_drain(tunnel);
    if (tunnel->pending.length > 0 || tunnel->doom != NULL)
        return 1; /* goes on when the socket is writable again */
    struct share *share = &tunnel->workload->share;
    size_t room = quota_tight(tunnel->workload->quota)
                      ? QUOTA_PRODUCE_TIGHT
                      : turns_piece(&worker->turns, share, SCRATCH_SIZE - H2_PRODUCE_MIN) + H2_PRODUCE_MIN;
    turns_spend(&tunnel->workload->share, 1);
    size_t length = h2_produce(tunnel->h2, worker->plain, room, &more);
    if (length == 0)
        return more;
    struct tls_sink sink = tunnel_sink(tunnel);
    if (length == (size_t)-1 || tls_write(&tunnel->tls, &sink, worker->plain, length) != TLS_OK)
        tunnel->doom = "the tunnel could not be written";
    else
        tunnel_send(tunnel, sink.bytes, sink.length);
    if (h2_broken(tunnel->h2) && tunnel->doom == NULL)
        tunnel->doom = "the peer broke the HTTP/2 protocol";
    return more;
}

/* Whether nobody needs it any more, and the peer has acknowledged all that was sent. Closed before, it would
 * take the rest with it: what the peer sends meanwhile (it gives windows back as a slow reader reads) meets a
 * closed socket, and is answered with a reset. */
static int tunnel_is_done(const struct tunnel *tunnel)
{
    int unacknowledged = 0;
    return tunnel->state < TUNNEL_CLOSED && tunnel->retired && link_empty(&tunnel->flows) &&
           tunnel->pending.length == 0 && tunnel->unfed.length == 0 &&
           (ioctl(tunnel->poll.fd, SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0);
}

void tunnel_flush(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    int more = 1;
    if (tunnel->state == TUNNEL_OPEN && tunnel->doom == NULL)
        more = tunnel_produce(tunnel);
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else if (tunnel->state == TUNNEL_OPEN && more && tunnel->pending.length == 0 &&
             h2_wants_produce(tunnel->h2))
        tunnel_touch(tunnel); /* its share of this turn is used up */
    else if (tunnel_is_done(tunnel))
        tunnel_abort(tunnel, "no longer needed");
}

/* ---- reading ---- */

/* It has more to do than it may do now. */
static void tunnel_defer(struct tunnel *tunnel)
{
    struct turns *turns = &tunnel->worker->turns;
    struct share *share = &tunnel->workload->share;
    if (tunnel->state == TUNNEL_OPEN)
        task_again(turns, share, &tunnel->task);
    else if (!tunnel->step.out)
        turns_step(turns, share, &tunnel->task.link);
}

/* What was read before comes first. */
static void tunnel_go_on_later(struct tunnel *tunnel)
{
    if (tunnel->unfed.length > 0)
        task_wait(&tunnel->worker->turns, &tunnel->workload->share, &tunnel->task);
    else if (tunnel->poll.readable)
        tunnel_defer(tunnel);
}

/* Sends what the session has to say, also when the tunnel is doomed: an alert is worth it. */
static void tunnel_say(struct tunnel *tunnel, const uint8_t *bytes, size_t length)
{
    const char *doom = tunnel->doom;
    if (length == 0)
        return;
    tunnel->doom = NULL;
    tunnel_send(tunnel, bytes, length);
    if (doom != NULL)
        tunnel->doom = doom;
}

/* How much to hand on before looking at what it has cost. Slices that cost nothing (a large message) grow. */
static size_t next_slice(struct tunnel *tunnel, size_t left, uint32_t cost)
{
    const struct turns *turns = &tunnel->worker->turns;
    if (!turns_contended(turns))
        return left;
    size_t least = turns_beside_light(turns, &tunnel->workload->share) ? SLICE_BESIDE_LIGHT : SLICE_LEAST;
    tunnel->slice = cost > 0 || tunnel->slice < least ? least : 2 * tunnel->slice;
    if (tunnel->slice > SLICE_MOST)
        tunnel->slice = SLICE_MOST;
    return tunnel->slice < left ? tunnel->slice : left;
}

/* Hands plaintext on, as far as a share lasts; what reading it has cost is paid already. Returns how much of
 * it. */
static size_t tunnel_feed(struct tunnel *tunnel, const uint8_t *bytes, size_t length)
{
    const struct turns *turns = &tunnel->worker->turns;
    struct share *share = &tunnel->workload->share;
    uint32_t before = share->spent;
    uint32_t cost = 1;
    size_t fed = 0;
    do {
        size_t slice = next_slice(tunnel, length - fed, cost);
        cost = share->spent;
        if (h2_feed(tunnel->h2, bytes + fed, slice) != 0)
            tunnel->doom = "the peer broke the HTTP/2 protocol";
        fed += slice;
        cost = share->spent - cost;
    } while (fed < length && tunnel->doom == NULL &&
             (!turns_contended(turns) || share->spent - before < turns_units(turns, share, TURN_SHARE)));
    relay_gathered(tunnel->worker);
    return fed;
}

/* Goes on with what could not be handed on before: a block of it. */
static void tunnel_feed_unfed(struct tunnel *tunnel)
{
    struct iovec piece;
    (void)byte_queue_vectors(&tunnel->unfed, &piece, 1);
    size_t fed = tunnel_feed(tunnel, piece.iov_base, piece.iov_len);
    byte_queue_consume(&tunnel->unfed, &tunnel->worker->blocks, fed);
    if (tunnel->unfed.length == 0 && tunnel->doom == NULL)
        tunnel->doom = tunnel->unfed_doom;
}

/* Decrypts what has been fed and hands it on, or keeps it. */
static void tunnel_digest(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct tls_sink sink = tunnel_sink(tunnel);
    enum tls_result result = TLS_OK;
    const char *doom = NULL;
    while (result == TLS_OK && tunnel->doom == NULL) {
        size_t length;
        size_t fed = 0;
        result = tls_read(&tunnel->tls, &sink, worker->plain, SCRATCH_SIZE + SCRATCH_SPARE, &length);
        if (result == TLS_OK && tunnel->unfed.length == 0)
            fed = tunnel_feed(tunnel, worker->plain, length);
        if (fed < length && tunnel->doom == NULL)
            byte_queue_append(&tunnel->unfed, &worker->blocks, worker->plain + fed, length - fed);
    }
    if (result == TLS_CLOSED)
        doom = "the peer closed the tunnel";
    if (result == TLS_FAILED)
        doom = tunnel->tls.error;
    if (tunnel->unfed.length > 0)
        tunnel->unfed_doom = doom;
    else if (tunnel->doom == NULL)
        tunnel->doom = doom;
    tunnel_say(tunnel, sink.bytes, sink.length);
}

/* Reads ciphertext into worker->incoming, up to `room` bytes. Returns how much; 0: nothing, or the tunnel is
 * doomed. */
static size_t tunnel_receive(struct tunnel *tunnel, size_t room)
{
    struct worker *worker = tunnel->worker;
    ssize_t got = recv(tunnel->poll.fd, worker->incoming, room, MSG_DONTWAIT);
    turns_moved(&tunnel->workload->share, got > 0 ? (size_t)got : 0);
    if (got > 0) {
        tunnel->heard_ms = worker->now_ms;
        if ((size_t)got < room && !tunnel->poll.ending)
            tunnel->poll.readable = 0;
        return (size_t)got;
    }
    if (got == 0)
        tunnel->doom = "the peer closed the connection";
    else if (errno == EAGAIN)
        tunnel->poll.readable = 0;
    else if (errno != EINTR)
        tunnel->doom = "the connection to the peer broke";
    return 0;
}

void tunnel_read(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    if (tunnel->unfed.length > 0 && tunnel->doom == NULL) {
        tunnel_feed_unfed(tunnel);
    } else if (tunnel->poll.readable && tunnel->doom == NULL) {
        /* The sealed and the opened bytes share no buffer: plain is written while cipher is read. */
        size_t room = turns_piece(&worker->turns, &tunnel->workload->share, SCRATCH_SIZE);
        size_t got = tunnel_receive(tunnel, room);
        if (got > 0) {
            tls_feed(&tunnel->tls, worker->incoming, got);
            tunnel_digest(tunnel);
        }
    }
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else {
        tunnel_go_on_later(tunnel);
        tunnel_touch(tunnel);
    }
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

/* A copy of what was read lasts as long as the step. */
static void step_feed(struct tunnel *tunnel, size_t length)
{
    step_dispose(&tunnel->step);
    if (length > 0) {
        tunnel->step.input = ns_alloc(length);
        memcpy(tunnel->step.input, tunnel->worker->incoming, length);
    }
    tls_feed(&tunnel->tls, tunnel->step.input, length);
}

void tunnel_handshake(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    /* What a step has left (TLS_CHOOSE) comes first. */
    if (tunnel->step.result != TLS_CHOOSE)
        step_feed(tunnel, tunnel->poll.readable ? tunnel_receive(tunnel, HANDSHAKE_READ) : 0);
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else
        handshakes_give(&tunnel->worker->handshakes, &tunnel->step);
}

static void handshake_done(struct tunnel *tunnel)
{
    tunnel->state = TUNNEL_OPEN;
    tunnel->opened = 1;
    tunnel_touch(tunnel);  /* SETTINGS, and the streams that waited */
    tunnel_digest(tunnel); /* what the peer has sent behind its Finished */
}

static void handshake_failed(struct tunnel *tunnel)
{
    tunnel->workload->stats.tls_failed++;
    tunnel->doom = tunnel->tls.error;
}

void tunnel_stepped(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    if (tunnel->state == TUNNEL_CLOSED) {
        link_append(&tunnel->worker->dead_tunnels, &tunnel->link);
        return;
    }
    enum tls_result result = tunnel->step.result;
    (void)turns_event(&tunnel->worker->turns, &tunnel->workload->share);
    tunnel_say(tunnel, tunnel->step.output, tunnel->step.output_length);
    if (result == TLS_OK)
        handshake_done(tunnel);
    else if (result == TLS_CHOOSE)
        tunnel_choose(tunnel);
    else if (result != TLS_WANT)
        handshake_failed(tunnel);
    if (result != TLS_CHOOSE)
        step_dispose(&tunnel->step);
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else if (result == TLS_CHOOSE)
        tunnel_defer(tunnel);
    else
        tunnel_go_on_later(tunnel);
}

void tunnel_event(struct tunnel *tunnel, uint32_t events)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    /* Noted in every state: an edge is told once. */
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        tunnel->poll.ending = 1;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        tunnel->poll.readable = 1;
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
    if (events & EPOLLOUT) {
        tunnel->poll.writable = 1;
        tunnel_drain(tunnel);
        tunnel_touch(tunnel);
    }
    if (tunnel->poll.readable && tunnel->state < TUNNEL_OPEN) {
        tunnel_defer(tunnel);
    } else if (tunnel->poll.readable) {
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
        tunnel_abort(tunnel, "the peer does not answer");
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

void tunnel_abort(struct tunnel *tunnel, const char *reason)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    if (tunnel->state == TUNNEL_CLOSED)
        return;
    struct worker *worker = tunnel->worker;
    if (tunnel->state == TUNNEL_WAITING)
        worker->retrying_tunnels--;
    if (!tunnel->retired)
        warm_remember(tunnel);
    tunnel->retired = 1;
    link_remove(&tunnel->pool_link);
    if (tunnel->state == TUNNEL_OPEN && tunnel->pending.length == 0 && tunnel->poll.writable) {
        struct tls_sink sink = tunnel_sink(tunnel);
        tls_close(&tunnel->tls, &sink);
        (void)!send(tunnel->poll.fd, sink.bytes, sink.length, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    tunnel->state = TUNNEL_CLOSED;
    struct link *at, *next;
    link_each(at, next, &tunnel->flows) flow_tunnel_lost(container_of(at, struct flow, tunnel_link), reason);
    tunnel_close(tunnel);
    byte_queue_clear(&tunnel->pending, &worker->blocks); /* their account may not last as long as the step */
    byte_queue_clear(&tunnel->unfed, &worker->blocks);
    link_remove(&tunnel->dirty_link);
    link_remove(&tunnel->task.link);
    link_remove(&tunnel->link);
    if (!tunnel->step.out)
        link_append(&worker->dead_tunnels, &tunnel->link);
    worker->live_tunnels--;
    tunnel->workload->live_tunnels--;
    if (tunnel->role == TLS_SERVER)
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
