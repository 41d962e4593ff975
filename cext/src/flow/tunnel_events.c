/* tunnel_events.c: see tunnel_events.h. */
#include "flow/tunnel_events.h"

#include <errno.h>
#include <sys/epoll.h>

#include "flow/patience.h"
#include "flow/pool.h"
#include "flow/tunnel_bytes.h"
#include "flow/tunnel_end.h"
#include "wire/h2.h"

enum {
    NOTICE_MS = 1000, /* for streams that are on their way when the peer is told to open no more */
};

/* ---- events ---- */

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
            pool_dial_failed(tunnel, error != 0 ? error : ECONNRESET);
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
        if (turns_event(turns, &tunnel->workload->budget))
            tunnel_read(tunnel);
        else
            task_wait(turns, &tunnel->workload->budget, &tunnel->task);
    }
}

/* ---- time ---- */

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

static void tick_open(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    if (worker->retiring && !tunnel->retired)
        tick_leaving(tunnel);
    if (tunnel_is_done(tunnel)) {
        tunnel_abort(tunnel, "no longer needed");
        return;
    }
    if (patience_look(tunnel)) {
        tunnel_abort(tunnel, PEER_SILENT);
        return;
    }
    if (!tunnel->retired && link_empty(&tunnel->streams) &&
        worker->now_ms - tunnel->idle_ms > worker->options->idle_timeout_ms)
        tunnel_retire(tunnel);
}

void tunnel_tick(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    if (tunnel->state == TUNNEL_WAITING) {
        pool_dial_again(tunnel);
    } else if (tunnel->state < TUNNEL_OPEN && worker->now_ms > tunnel->deadline_ms) {
        if (tunnel->state == TUNNEL_HANDSHAKE)
            tunnel_note_failed(tunnel, tunnel->shaken > 0 ? "peer did not finish the handshake in time"
                                                          : "peer connected and sent nothing");
        tunnel->cause = CAUSE_SILENT;
        tunnel_abort(tunnel, PEER_SILENT);
    } else if (tunnel->state == TUNNEL_PARTING && worker->now_ms > tunnel->deadline_ms) {
        tunnel_abort(tunnel, PROTOCOL_BROKEN);
    } else if (tunnel->state == TUNNEL_OPEN) {
        tick_open(tunnel);
    }
}
