/*
 * relay.c: see relay.h.
 *
 * Backpressure in plaintext: a side is read only while the other side has nothing pending, so at most one
 * scratch buffer per direction is held, or one pipe: bulk is spliced and never seen by us. In a tunnel:
 * towards the wire nothing is read that cannot be produced (relay_source is the read); from the wire
 * at most the stream's window is pending. A workload that holds half of its memory limit reads little at once
 * and splices nothing: each of its connections goes on, and holds 16 KiB a direction when it cannot.
 *
 * Edge-triggered readiness: `readable` stays set until a read finds nothing. A short read also clears it,
 * unless the end was announced (`ending`): then only the read that returns 0 or an error is the last. Once
 * urgent data was announced only a read that finds nothing clears it, because reads stop short of that.
 *
 * Once the FIN itself was announced (`finished`), everything that will ever arrive is there, so a short read
 * is the last and its bytes and the end leave in one frame. Only urgent data makes a read stop short of what
 * is there.
 *
 * Urgent data stays in its place in the stream (SO_OOBINLINE); that it is urgent is not told to the other
 * side, which HTTP/2 has no means for. splice() makes no step beyond it, so it is not used after that.
 *
 * A socket that failed (EPOLLERR) may still hold bytes that arrived before the failure; they are relayed
 * first. If they cannot be, because the other side does not take them, the reset overtakes them, as it does
 * in TCP.
 */
#include "flow/relay.h"

#include <errno.h>
#include <sys/socket.h>

enum {
    WRITE_VECTORS = 16,
    SPLICE_FROM = 65536, /* bytes in one read: below, a copy costs less than a pipe */
    SPLICE_CHEAPER = 4,  /* than a copy */
};

/* Results of an attempt on a socket. */
enum progress { PROGRESS_DONE, PROGRESS_BLOCKED, PROGRESS_BROKEN };

/* Writes what is pending for `side`; gives back the stream's window for it. */
static enum progress side_drain(struct flow *flow, struct pollable *side, struct half *half)
{
    while (half->pending.length > 0) {
        if (!side->writable)
            return PROGRESS_BLOCKED;
        struct iovec vectors[WRITE_VECTORS];
        struct msghdr message = {.msg_iov = vectors};
        message.msg_iovlen = (size_t)byte_queue_vectors(&half->pending, vectors, WRITE_VECTORS);
        ssize_t sent = sendmsg(side->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            byte_queue_consume(&half->pending, &flow->worker->blocks, (size_t)sent);
            if (flow->stream.tunnel != NULL && half == &flow->to_near) {
                stream_taken(&flow->stream, (size_t)sent, 0);
                tunnel_touch(flow->stream.tunnel);
            }
        } else if (errno == EAGAIN) {
            side->writable = 0;
        } else if (errno != EINTR) {
            side->failed = errno;
            return PROGRESS_BROKEN;
        }
    }
    return PROGRESS_DONE;
}

/* Takes `length` bytes off the front of the pieces. */
static void pieces_consume(struct msghdr *pieces, size_t length)
{
    while (pieces->msg_iovlen > 0 && length >= pieces->msg_iov->iov_len) {
        length -= pieces->msg_iov->iov_len;
        pieces->msg_iov++;
        pieces->msg_iovlen--;
    }
    if (length > 0) {
        pieces->msg_iov->iov_base = (uint8_t *)pieces->msg_iov->iov_base + length;
        pieces->msg_iov->iov_len -= length;
    }
}

/* Writes the pieces to `side`, or keeps what it does not take. */
static enum progress side_write(struct flow *flow, struct pollable *side, struct half *half,
                                struct iovec *pieces, int count, size_t *written)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    /* The last bytes: the end, which follows at once, goes in the same segment and wakes the application
     * once. */
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (half->state == HALF_ENDING ? MSG_MORE : 0);
    *written = 0;
    while (message.msg_iovlen > 0 && half->pending.length == 0 && side->writable) {
        /* One piece is the rule, and send() costs less than sendmsg(). */
        ssize_t sent = message.msg_iovlen == 1
                           ? send(side->fd, message.msg_iov->iov_base, message.msg_iov->iov_len, flags)
                           : sendmsg(side->fd, &message, flags);
        if (sent >= 0) {
            *written += (size_t)sent;
            pieces_consume(&message, (size_t)sent);
        } else if (errno == EAGAIN) {
            side->writable = 0;
        } else if (errno != EINTR) {
            side->failed = errno;
            return PROGRESS_BROKEN;
        }
    }
    if (message.msg_iovlen == 0)
        return PROGRESS_DONE;
    for (; message.msg_iovlen > 0; message.msg_iov++, message.msg_iovlen--)
        byte_queue_append(&half->pending, &flow->worker->blocks, message.msg_iov->iov_base,
                          message.msg_iov->iov_len);
    return PROGRESS_BLOCKED;
}

/* Passes the end on once nothing is pending. When the opposite direction has ended too, the close that
 * follows at once says the same to the peer. */
static void half_end_if_due(struct half *half, const struct half *opposite, const struct pollable *side)
{
    if (half->state == HALF_ENDING && half->pending.length == 0) {
        if (opposite->state != HALF_ENDED)
            (void)shutdown(side->fd,
                           SHUT_WR); /* fails only on a socket that is gone, which its events tell */
        half->state = HALF_ENDED;
    }
}

/* One read and its write. DONE: there may be more; BLOCKED: either side has to wait; BROKEN. */
static enum progress pump_copy(struct flow *flow, struct pollable *from, struct pollable *to,
                               struct half *half)
{
    struct worker *worker = flow->worker;
    size_t room = quota_tight(flow->workload->quota)
                      ? QUOTA_READ_TIGHT
                      : turns_piece(&worker->turns, &flow->workload->budget, SCRATCH_SIZE);
    ssize_t got = recv(from->fd, worker->scratch.plain, room, MSG_DONTWAIT);
    turns_moved(&flow->workload->budget, got > 0 ? (size_t)got : 0);
    if (got > 0) {
        struct iovec piece = {worker->scratch.plain, (size_t)got};
        size_t written;
        half->bytes += (uint64_t)got;
        /* All that may be read at once is bulk too, also where that is little: it goes on spliced. */
        half->bulk = (size_t)got == room || got >= SPLICE_FROM;
        if ((size_t)got < room && !from->ending && !from->urgent)
            from->readable = 0;
        return side_write(flow, to, half, &piece, 1, &written);
    }
    if (got == 0 && !from->failed) {
        from->readable = 0;
        half->state = HALF_ENDING;
    } else if (got < 0 && errno == EAGAIN) {
        from->readable = 0;
    } else if (got == 0 || errno != EINTR) {
        return PROGRESS_BROKEN;
    }
    return PROGRESS_DONE;
}

/* Writes what is in the pipe, and gives it back. */
static enum progress pipe_drain(struct flow *flow, struct pollable *to, struct half *half)
{
    while (half->pipe != NULL && half->pipe->held > 0) {
        if (!to->writable) {
            flow_count_pipe(flow, half->pipe);
            return PROGRESS_BLOCKED;
        }
        ssize_t moved = splice_out(half->pipe, to->fd);
        if (moved < 0 && errno == EAGAIN) {
            to->writable = 0;
        } else if (moved < 0 && errno != EINTR) {
            to->failed = errno;
            return PROGRESS_BROKEN;
        }
    }
    flow_give_pipe(flow, half);
    return PROGRESS_DONE;
}

/* The same without copies. A short splice does not tell that there is no more: a pipe has so many slots, not
 * so many bytes. */
static enum progress pump_splice(struct flow *flow, struct pollable *from, struct pollable *to,
                                 struct half *half)
{
    half->pipe = quota_tight(flow->workload->quota) ? NULL : splice_take(&flow->worker->pipes);
    if (half->pipe == NULL)
        return pump_copy(flow, from, to, half);
    size_t most =
        turns_piece(&flow->worker->turns, &flow->workload->budget, SPLICE_PIPE_SIZE / SPLICE_CHEAPER);
    ssize_t moved = splice_in(half->pipe, from->fd, most * SPLICE_CHEAPER);
    int error = errno;
    turns_moved(&flow->workload->budget, moved > 0 ? (size_t)moved / SPLICE_CHEAPER : 0);
    half->bulk = moved >= SPLICE_FROM;
    if (moved > 0) {
        half->bytes += (uint64_t)moved;
        return pipe_drain(flow, to, half);
    }
    (void)pipe_drain(flow, to, half);
    if (moved < 0 && error == EAGAIN)
        from->readable = 0;
    /* The end, or an error: told again by the read that copies. */
    return PROGRESS_DONE;
}

/* Relays from one socket to another. BROKEN: the flow must be reset. */
static enum progress pump(struct flow *flow, struct pollable *from, struct pollable *to, struct half *half,
                          const struct half *opposite)
{
    enum progress progress = side_drain(flow, to, half);
    if (progress == PROGRESS_DONE)
        progress = pipe_drain(flow, to, half);
    if (progress == PROGRESS_DONE && from->readable && half->state == HALF_OPEN)
        progress =
            half->bulk && !from->urgent ? pump_splice(flow, from, to, half) : pump_copy(flow, from, to, half);
    if (progress == PROGRESS_DONE && from->readable && half->state == HALF_OPEN)
        task_again(&flow->worker->turns, &flow->workload->budget, &flow->task);
    if (half->pipe == NULL)
        half_end_if_due(half, opposite, to);
    if (progress == PROGRESS_BROKEN ||
        (from->failed && (progress == PROGRESS_BLOCKED || half->state != HALF_OPEN)))
        return PROGRESS_BROKEN;
    return progress;
}

static void relay_plain(struct flow *flow)
{
    if (pump(flow, &flow->near, &flow->far, &flow->to_far, &flow->to_near) == PROGRESS_BROKEN ||
        pump(flow, &flow->far, &flow->near, &flow->to_near, &flow->to_far) == PROGRESS_BROKEN)
        flow_abort(flow, flow->near.failed ? "the application reset the connection"
                                           : "the far side reset the connection");
}

/* Reads what nobody takes any more (MSG_TRUNC: tcp(7), the bytes are not even copied). BROKEN also where it
 * matters to the application that nobody does. */
static enum progress side_discard(struct flow *flow, struct pollable *side, struct half *half)
{
    while (side->readable && half->state == HALF_DISCARDING) {
        ssize_t got = recv(side->fd, flow->worker->scratch.plain, SCRATCH_SIZE, MSG_DONTWAIT | MSG_TRUNC);
        if (got == 0 && !side->failed)
            half->state = HALF_ENDED;
        else if (got < 0 && errno == EAGAIN)
            side->readable = 0;
        else if (got == 0 || (got < 0 && errno != EINTR) || (got > 0 && flow->direction == NS_INBOUND))
            return PROGRESS_BROKEN;
    }
    return PROGRESS_DONE;
}

static void relay_tunnel(struct flow *flow)
{
    struct pollable *near = &flow->near;
    turns_spend(&flow->workload->budget, 1);
    if (side_drain(flow, near, &flow->to_near) == PROGRESS_BROKEN) {
        flow_abort(flow, "the application reset the connection");
        return;
    }
    half_end_if_due(&flow->to_near, &flow->to_far, near);
    /* A reset would destroy what is still to be written. */
    if ((flow->direction == NS_OUTBOUND || flow->to_near.pending.length == 0) &&
        side_discard(flow, near, &flow->to_far) == PROGRESS_BROKEN) {
        flow_abort(flow, near->failed ? "the application reset the connection" : "the peer reset the stream");
        return;
    }
    if (flow->stream.tunnel == NULL)
        return;
    if (near->readable && flow->to_far.state == HALF_OPEN)
        stream_ready(&flow->stream);
    if (near->failed && (flow->to_far.state != HALF_OPEN || stream_is_blocked(&flow->stream)))
        flow_abort(flow, "the application reset the connection");
}

/* What the application sends is dropped for as long as a connection may take to end. */
static void relay_bound_discarding(struct flow *flow)
{
    flow->deadline_ms = flow->worker->now_ms + flow->worker->options->connect_timeout_ms;
    link_remove(&flow->waiting_link);
    link_append(&flow->worker->live.waiting, &flow->waiting_link);
}

void relay_begin(struct flow *flow)
{
    if (flow->to_far.state == HALF_DISCARDING)
        relay_bound_discarding(flow);
    relay_flow(flow);
}

void relay_flow(struct flow *flow)
{
    if (flow->state != FLOW_OPEN)
        return;
    if (flow->mtls)
        relay_tunnel(flow);
    else
        relay_plain(flow);
    if (flow->state == FLOW_OPEN && flow->to_far.state == HALF_ENDED && flow->to_near.state == HALF_ENDED &&
        flow->stream.tunnel == NULL)
        flow_finish(flow);
}

/* ---- a tunnel's stream ---- */

void relay_gathered(struct worker *worker)
{
    struct gathered *gathered = &worker->scratch.gathered;
    struct flow *flow = gathered->flow;
    if (flow == NULL)
        return;
    gathered->flow = NULL;
    size_t written;
    enum progress progress =
        side_write(flow, &flow->near, &flow->to_near, gathered->pieces, gathered->count, &written);
    turns_spend(&flow->workload->budget, 1);
    if (flow->stream.tunnel != NULL)
        stream_taken(&flow->stream, written, progress == PROGRESS_DONE ? flow->to_near.bytes : 0);
    if (progress == PROGRESS_BROKEN)
        flow_abort(flow, "the application reset the connection");
}

void relay_data(struct tunnel *tunnel, struct stream *stream, const uint8_t *bytes, size_t length)
{
    (void)tunnel;
    struct flow *flow = container_of(stream, struct flow, stream);
    struct gathered *gathered = &flow->worker->scratch.gathered;
    if (gathered->flow != NULL && (gathered->flow != flow || gathered->count == GATHERED_PIECES))
        relay_gathered(flow->worker);
    if (flow->state == FLOW_CLOSED)
        return; /* by the write just made */
    if (gathered->flow == NULL) {
        gathered->flow = flow;
        gathered->count = 0;
    }
    flow->to_near.bytes += length;
    struct iovec *last = gathered->count > 0 ? &gathered->pieces[gathered->count - 1] : NULL;
    if (last != NULL && (const uint8_t *)last->iov_base + last->iov_len == bytes)
        last->iov_len += length; /* the rest of a frame that was handed on in slices */
    else
        gathered->pieces[gathered->count++] = (struct iovec){(void *)(uintptr_t)bytes, length};
}

void relay_end(struct stream *stream)
{
    struct flow *flow = container_of(stream, struct flow, stream);
    if (flow->to_near.state == HALF_OPEN)
        flow->to_near.state = HALF_ENDING;
    relay_gathered(flow->worker);
    if (flow->state == FLOW_OPEN)
        half_end_if_due(&flow->to_near, &flow->to_far, &flow->near);
}

/* Drops, or inbound refuses, what the application still sends, for as long as a connection may take to end.
 */
static void flow_discard(struct flow *flow)
{
    flow->to_far.state = HALF_DISCARDING;
    if (flow->state == FLOW_OPEN)
        relay_bound_discarding(flow);
}

void relay_closed(struct stream *stream, int clean)
{
    struct flow *flow = container_of(stream, struct flow, stream);
    if (clean && (flow->state == FLOW_OPEN || flow->state == FLOW_RELEASED) &&
        flow->to_near.state >= HALF_ENDING) {
        /* Complete: the application is to have all of it, also when the peer takes no more of ours (RFC 9113
         * section 8.1; Envoy resets so when its application ends first). Closing while it still sends would
         * reset it and destroy what it has not received yet. Only a server may so decline the rest of what it
         * answers. A client that does is one that has closed its socket: what is sent to it meets a reset,
         * once the application has what came before. */
        if (flow->to_far.state < HALF_ENDED)
            flow_discard(flow);
        relay_flow(flow); /* finishes once the application has taken what is pending */
    } else
        flow_cut(flow,
                 flow->near.failed ? "the application reset the connection" : "the peer reset the stream");
}

ssize_t relay_source(struct tunnel *tunnel, struct stream *stream, uint8_t *out, size_t capacity, int *end)
{
    (void)tunnel;
    struct flow *flow = container_of(stream, struct flow, stream);
    struct pollable *near = &flow->near;
    while (flow->state == FLOW_OPEN && near->readable) {
        ssize_t got = recv(near->fd, out, capacity, MSG_DONTWAIT);
        if (got > 0) {
            turns_moved(&flow->workload->budget, (size_t)got);
            flow->to_far.bytes += (uint64_t)got;
            if ((size_t)got < capacity && near->finished) {
                near->readable = 0;
                flow->to_far.state = HALF_ENDED;
                *end = 1;
            } else if ((size_t)got < capacity && !near->ending && !near->urgent) {
                near->readable = 0;
            }
            return got;
        }
        if (got == 0 && !near->failed) {
            near->readable = 0;
            flow->to_far.state = HALF_ENDED;
            *end = 1;
            return 0;
        }
        if (got < 0 && errno == EAGAIN) {
            near->readable = 0;
        } else if (got == 0 || errno != EINTR) {
            if (!near->failed)
                near->failed = ECONNRESET;
            return STREAM_FAILED;
        }
    }
    return STREAM_LATER;
}
