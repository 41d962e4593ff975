/* tunnel_bytes.c: see tunnel_bytes.h. */
#include "flow/tunnel_bytes.h"

#include <errno.h>
#include <sys/socket.h>

#include "flow/stream_events.h"
#include "flow/tunnel_end.h"
#include "flow/windows.h"
#include "wire/h2.h"

enum { WRITE_VECTORS = 64 };

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

void tunnel_writable(struct tunnel *tunnel)
{
    tunnel->poll.writable = 1;
    tunnel_drain(tunnel);
    /* A stranger's readiness is none of the workload's business: there may be hundreds. */
    if (!stranger_is(&tunnel->stranger) || tunnel->doom != NULL)
        tunnel_touch(tunnel);
}

/* Seals and sends what the streams have, one buffer of it. True if the buffer ended before the frames did. */
static int tunnel_produce(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    int more = 1;
    tunnel_drain(tunnel);
    if (tunnel->last_alert != 0)
        return 0; /* it comes behind what was sealed already */
    if (tunnel->pending.length > 0 || tunnel->doom != NULL)
        return 1; /* goes on when the socket is writable again */
    struct budget *budget = &tunnel->workload->budget;
    size_t room = quota_tight(tunnel->workload->quota)
                      ? QUOTA_PRODUCE_TIGHT
                      : turns_piece(&worker->turns, budget, SCRATCH_SIZE - H2_PRODUCE_MIN) + H2_PRODUCE_MIN;
    turns_spend(&tunnel->workload->budget, 1);
    size_t length = h2_produce(tunnel->h2, worker->scratch.plain, room, &more);
    if (length == 0)
        return more;
    struct tls_sink sink = tunnel_sink(tunnel);
    if (length == (size_t)-1)
        tunnel->doom = "the tunnel could not be written";
    else if (tls_write(&tunnel->tls, &sink, worker->scratch.plain, length) != TLS_OK)
        tunnel->doom = tunnel->tls.error;
    else
        tunnel_send(tunnel, sink.bytes, sink.length);
    return more;
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

/* ---- reading ---- */

void tunnel_go_on_later(struct tunnel *tunnel)
{
    if (tunnel->unfed.length > 0)
        task_wait(&tunnel->worker->turns, &tunnel->workload->budget, &tunnel->task);
    else if (tunnel->poll.readable)
        tunnel_defer(tunnel);
}

void tunnel_say(struct tunnel *tunnel, const uint8_t *bytes, size_t length)
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
    size_t least = turns_beside_light(turns, &tunnel->workload->budget) ? SLICE_BESIDE_LIGHT : SLICE_LEAST;
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
    struct budget *budget = &tunnel->workload->budget;
    uint32_t before = budget->spent;
    uint32_t cost = 1;
    size_t fed = 0;
    windows_look(tunnel);
    do {
        size_t slice = next_slice(tunnel, length - fed, cost);
        cost = budget->spent;
        if (h2_feed(tunnel->h2, bytes + fed, slice) != 0)
            tunnel->doom = PROTOCOL_BROKEN;
        fed += slice;
        cost = budget->spent - cost;
    } while (fed < length && tunnel->doom == NULL && !h2_broken(tunnel->h2) &&
             (!turns_contended(turns) || budget->spent - before < turns_units(turns, budget, TURN_BUDGET)));
    tunnel->worker->stream_events->read(tunnel->worker);
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

void tunnel_digest(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct tls_sink sink = tunnel_sink(tunnel);
    enum tls_result result = TLS_OK;
    const char *doom = NULL;
    while (result == TLS_OK && tunnel->doom == NULL) {
        size_t length;
        size_t fed = 0;
        result = tls_read(&tunnel->tls, &sink, worker->scratch.plain, SCRATCH_SIZE + SCRATCH_SPARE, &length);
        if (result == TLS_OK && tunnel->unfed.length == 0)
            fed = tunnel_feed(tunnel, worker->scratch.plain, length);
        if (fed < length && tunnel->doom == NULL)
            byte_queue_append(&tunnel->unfed, &worker->blocks, worker->scratch.plain + fed, length - fed);
    }
    if (result == TLS_CLOSED)
        doom = "the peer closed the tunnel";
    if (result == TLS_FAILED) {
        doom = tunnel->tls.error;
        tunnel->cause = CAUSE_REFUSED;
        /* A server looks at our certificate when our handshake is done: its alert is the first that it says.
         * What is revoked is refused later, too. */
        if ((tunnel->role == TLS_CLIENT && !tls_has_heard(&tunnel->tls)) || tls_was_refused(&tunnel->tls))
            tunnel_note_failed(tunnel, doom);
    }
    if (tunnel->unfed.length > 0)
        tunnel->unfed_doom = doom;
    else if (tunnel->doom == NULL)
        tunnel->doom = doom;
    tunnel_say(tunnel, sink.bytes, sink.length);
}

size_t tunnel_receive(struct tunnel *tunnel, size_t room)
{
    struct worker *worker = tunnel->worker;
    ssize_t got = recv(tunnel->poll.fd, worker->scratch.incoming, room, MSG_DONTWAIT);
    if (!stranger_is(&tunnel->stranger))
        turns_moved(&tunnel->workload->budget, got > 0 ? (size_t)got : 0);
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
        size_t room = turns_piece(&worker->turns, &tunnel->workload->budget, SCRATCH_SIZE);
        if (quota_tight(tunnel->workload->quota) && room > QUOTA_READ_TIGHT)
            room = QUOTA_READ_TIGHT; /* frames that no window bounds may have to be kept as well */
        size_t got = tunnel_receive(tunnel, room);
        if (got > 0) {
            tls_feed(&tunnel->tls, worker->scratch.incoming, got);
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
