/* tunnel_bytes.c: see tunnel_bytes.h. */
#include "flow/tunnel_bytes.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "flow/relay.h"
#include "wire/tls_bounds.h"

enum {
    WRITE_VECTORS = 64,
    PARTING_MS = 2000,      /* for a peer to read our last words, and to close */
    HANDSHAKE_READ = 32768, /* what one step of a handshake gets */
};

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
    }
}

static struct tls_sink tunnel_sink(struct tunnel *tunnel)
{
    struct tls_sink sink = {.bytes = tunnel->worker->cipher,
                            .capacity = TLS_SEALED_SIZE(SCRATCH_SIZE) + 4096};
    return sink;
}

void tunnel_writable(struct tunnel *tunnel)
{
    tunnel->poll.writable = 1;
    tunnel_drain(tunnel);
    /* A stranger's readiness is none of the workload's business: there may be hundreds. */
    if (!stranger_is(&tunnel->stranger) || tunnel->doom != NULL)
        tunnel_touch(tunnel);
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
    return more;
}

/* The peer broke the protocol, and gets the time to read so. Closed at once, with bytes of its own that
 * nobody has read, TCP would send a reset, which may overtake what we say. */
static void tunnel_part(struct tunnel *tunnel)
{
    tunnel_lose_flows(tunnel, TUNNEL_PARTING, PROTOCOL_BROKEN);
    tunnel->deadline_ms = tunnel->worker->now_ms + PARTING_MS;
    byte_queue_clear(&tunnel->unfed, &tunnel->worker->blocks);
    link_remove(&tunnel->task.link);
    tunnel_touch(tunnel);
}

/* Our last words are followed by the end of what we send, once the socket has taken them all. */
static void tunnel_conclude(struct tunnel *tunnel)
{
    if (tunnel->parted || tunnel->pending.length > 0 || !tunnel->poll.writable)
        return;
    if (h2_wants_produce(tunnel->h2)) {
        tunnel_touch(tunnel);
        return;
    }
    tunnel_farewell(tunnel);
    tunnel->parted = 1;
    (void)shutdown(tunnel->poll.fd, SHUT_WR); /* fails only on a socket that is gone, which its events tell */
}

void tunnel_flush(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    int more = 1;
    if (tunnel->state >= TUNNEL_OPEN && tunnel->doom == NULL)
        more = tunnel_produce(tunnel);
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else if (tunnel->state == TUNNEL_PARTING)
        tunnel_conclude(tunnel);
    else if (h2_broken(tunnel->h2))
        tunnel_part(tunnel);
    else if (tunnel->state == TUNNEL_OPEN && more && tunnel->pending.length == 0 &&
             h2_wants_produce(tunnel->h2))
        tunnel_touch(tunnel); /* its share of this turn is used up */
    else if (tunnel_is_done(tunnel))
        tunnel_abort(tunnel, "no longer needed");
}

void tunnel_farewell(struct tunnel *tunnel)
{
    if (tunnel->state < TUNNEL_OPEN || tunnel->parted || tunnel->pending.length > 0 || !tunnel->poll.writable)
        return;
    struct tls_sink sink = tunnel_sink(tunnel);
    tls_close(&tunnel->tls, &sink);
    (void)!send(tunnel->poll.fd, sink.bytes, sink.length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- reading ---- */

static void tunnel_wait_for_step(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct stranger *stranger = &tunnel->stranger;
    if (!stranger_is(stranger))
        turns_step(&worker->turns, &tunnel->workload->share, STEP_DIALLED, &tunnel->task.link);
    else if (!link_empty(&tunnel->task.link) || !link_empty(&stranger->step_link))
        return;
    else if (strangers_trusts(stranger, worker->now_us))
        turns_step(&worker->turns, &tunnel->workload->share, STEP_PUBLISHED, &tunnel->task.link);
    else
        strangers_wait(&worker->strangers, stranger, worker->now_us);
}

void tunnel_defer(struct tunnel *tunnel)
{
    struct turns *turns = &tunnel->worker->turns;
    struct share *share = &tunnel->workload->share;
    if (tunnel->state == TUNNEL_OPEN)
        task_again(turns, share, &tunnel->task);
    else if (!tunnel->step.out)
        tunnel_wait_for_step(tunnel);
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
    windows_look(tunnel);
    do {
        size_t slice = next_slice(tunnel, length - fed, cost);
        cost = share->spent;
        if (h2_feed(tunnel->h2, bytes + fed, slice) != 0)
            tunnel->doom = PROTOCOL_BROKEN;
        fed += slice;
        cost = share->spent - cost;
    } while (fed < length && tunnel->doom == NULL && !h2_broken(tunnel->h2) &&
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
    if (result == TLS_FAILED) {
        doom = tunnel->tls.error;
        /* A server looks at our certificate when our handshake is done: its alert is the first that it says.
         */
        if (tunnel->role == TLS_CLIENT && tunnel->tls.record.opening.sequence <= 1)
            tunnel_note_failed(tunnel, doom);
    }
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
    if (!stranger_is(&tunnel->stranger))
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
        if (quota_tight(tunnel->workload->quota) && room > QUOTA_READ_TIGHT)
            room = QUOTA_READ_TIGHT; /* frames that no window bounds may have to be kept as well */
        size_t got = tunnel_receive(tunnel, room);
        if (got > 0) {
            tls_feed(&tunnel->tls, worker->incoming, got);
            tunnel_digest(tunnel);
        }
    }
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else if (h2_broken(tunnel->h2))
        tunnel_part(tunnel);
    else {
        tunnel_go_on_later(tunnel);
        tunnel_touch(tunnel);
    }
}

/* ---- the handshake ---- */

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

/* Reads what the next step is to work on. 0: a peer has sent nothing yet, and there is none to make. */
static int handshake_receive(struct tunnel *tunnel)
{
    static const char TOO_MUCH[] = "peer sent more than a handshake takes";
    size_t length = 0;
    if (tunnel->shaken > TLS_HANDSHAKE_MOST) {
        tunnel_note_failed(tunnel, TOO_MUCH);
        tunnel->doom = TOO_MUCH;
        return 1;
    }
    if (tunnel->poll.readable)
        length = tunnel_receive(tunnel, HANDSHAKE_READ);
    if (tunnel->doom != NULL) {
        if (tunnel->shaken > 0 || tunnel->role == TLS_CLIENT)
            tunnel_note_failed(tunnel, "peer closed the connection in the handshake");
        return 1;
    }
    if (tunnel->tls.ssl == NULL) {
        if (length == 0)
            return 0;
        if (tunnel_answer(tunnel) != 0) {
            tunnel->doom = "the connection could not be set up";
            return 1;
        }
    }
    tunnel->shaken += length;
    step_feed(tunnel, length);
    return 1;
}

void tunnel_handshake(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    /* What a step has left (TLS_CHOOSE) comes first. */
    if (tunnel->step.result != TLS_CHOOSE && !handshake_receive(tunnel))
        return;
    if (tunnel->doom != NULL) {
        tunnel_abort(tunnel, tunnel->doom);
        return;
    }
    strangers_give(&worker->strangers, &tunnel->stranger);
    handshakes_give(&worker->handshakes, &tunnel->step);
}

static void handshake_done(struct tunnel *tunnel)
{
    if (tunnel->role == TLS_SERVER)
        tunnel_proven(tunnel);
    if (tunnel->doom != NULL)
        return;
    enum ns_limit limit = windows_open(tunnel);
    if (limit != NS_LIMITS) {
        quota_refused(tunnel->workload->quota, limit, tunnel->worker->now_ms);
        tunnel_refuse(tunnel, limit);
        return;
    }
    tunnel->state = TUNNEL_OPEN;
    tunnel->opened = 1;
    tunnel_touch(tunnel);  /* SETTINGS, and the streams that waited */
    tunnel_digest(tunnel); /* what the peer has sent behind its Finished */
}

static void handshake_failed(struct tunnel *tunnel)
{
    tunnel->workload->stats.tls_failed++;
    tunnel_note_failed(tunnel, tunnel->tls.error);
    tunnel->doom = tunnel->tls.error;
}

void tunnel_stepped(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    enum tls_result result = tunnel->step.result;
    turns_step_made(&worker->turns, tunnel->step_kind, tunnel->step.cost_us);
    strangers_pay(&worker->strangers, &tunnel->stranger, tunnel->step.cost_us, worker->now_us);
    if (tunnel->state == TUNNEL_CLOSED) {
        link_append(&worker->dead_tunnels, &tunnel->link);
        return;
    }
    if (result == TLS_OK || !stranger_is(&tunnel->stranger))
        (void)turns_event(&worker->turns, &tunnel->workload->share);
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
