/* tunnel_end.c: see tunnel_end.h. */
#include "flow/tunnel_end.h"

#include <sys/socket.h>

#include "flow/stream_events.h"
#include "flow/windows.h"
#include "wire/h2.h"

enum { PARTING_MS = 2000 }; /* for a peer to read our last words, and to close */

/* Writes close_notify, if the socket takes it at once. */
static void tunnel_farewell(struct tunnel *tunnel)
{
    if (tunnel->state < TUNNEL_OPEN || tunnel->parted || tunnel->pending.length > 0 || !tunnel->poll.writable)
        return;
    struct tls_sink sink = tunnel_sink(tunnel);
    if (tunnel->last_alert != 0)
        tls_refuse(&tunnel->tls, &sink, tunnel->last_alert);
    else
        tls_close(&tunnel->tls, &sink);
    (void)!send(tunnel->poll.fd, sink.bytes, sink.length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* It is in this state from now on: no new streams, and those that it has are gone. A pooled tunnel may have
 * died unnoticed: then another one may do. One that never opened is told. */
static void tunnel_lose_streams(struct tunnel *tunnel, enum tunnel_state state, const char *reason)
{
    int again = tunnel->opened && tunnel->tls.error[0] == 0;
    tunnel_leave_pool(tunnel);
    tunnel->state = state;
    struct link *at, *next;
    link_each(at, next, &tunnel->streams)
    {
        struct stream *stream = container_of(at, struct stream, link);
        h2_stream_set(tunnel->h2, stream->id, NULL);
        stream->id = 0;
        tunnel->worker->stream_events->lost(stream, again, tunnel->cause, reason);
    }
}

/* Closed at once, with bytes of the peer's that nobody has read, TCP would send a reset, which may overtake
 * what we say. */
static void part(struct tunnel *tunnel, const char *reason)
{
    tunnel->cause = CAUSE_REFUSED;
    tunnel_lose_streams(tunnel, TUNNEL_PARTING, reason);
    tunnel->deadline_ms = tunnel->worker->now_ms + PARTING_MS;
    byte_queue_clear(&tunnel->unfed, &tunnel->worker->blocks);
    link_remove(&tunnel->task.link);
    tunnel_touch(tunnel);
}

void tunnel_part(struct tunnel *tunnel)
{
    part(tunnel, PROTOCOL_BROKEN);
}

void tunnel_cut(struct tunnel *tunnel, uint8_t alert, const char *reason)
{
    snprintf(tunnel->tls.error, sizeof(tunnel->tls.error), "%s", reason);
    tunnel->last_alert = alert;
    tunnel_note_failed(tunnel, reason);
    part(tunnel, reason);
}

void tunnel_conclude(struct tunnel *tunnel)
{
    if (tunnel->parted || tunnel->pending.length > 0 || !tunnel->poll.writable)
        return;
    if (tunnel->last_alert == 0 && h2_wants_produce(tunnel->h2)) {
        tunnel_touch(tunnel);
        return;
    }
    tunnel_farewell(tunnel);
    tunnel->parted = 1;
    (void)shutdown(tunnel->poll.fd, SHUT_WR); /* fails only on a socket that is gone, which its events tell */
}

void tunnel_abort(struct tunnel *tunnel, const char *reason)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    if (tunnel->state == TUNNEL_CLOSED)
        return;
    struct worker *worker = tunnel->worker;
    if (tunnel->state == TUNNEL_WAITING)
        worker->pool.retrying--;
    tunnel_farewell(tunnel);
    tunnel_lose_streams(tunnel, TUNNEL_CLOSED, reason);
    windows_close(tunnel);
    tunnel_close(tunnel);
    byte_queue_clear(&tunnel->pending, &worker->blocks); /* their account may not last as long as the step */
    byte_queue_clear(&tunnel->unfed, &worker->blocks);
    link_remove(&tunnel->dirty_link);
    link_remove(&tunnel->task.link);
    link_remove(&tunnel->link);
    if (!tunnel->step.out)
        link_append(&worker->graveyard.tunnels, &tunnel->link);
    if (!stranger_is(&tunnel->stranger))
        tunnel_count(tunnel, -1);
    strangers_end(&worker->strangers, &tunnel->stranger, 0, worker->now_us);
    if (tunnel->admitted)
        quota_leave(tunnel->workload->quota);
}
