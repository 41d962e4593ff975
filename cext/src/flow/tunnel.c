/* tunnel.c: see tunnel.h. */
#include "flow/tunnel.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "wire/h2.h"

enum {
    UNSENT_MOST = 131072, /* bytes in the socket: they go before a new stream's */
};

/* ---- life ---- */

struct tunnel *tunnel_new(struct worker *worker, struct workload *workload, enum tls_role role)
{
    struct tunnel *tunnel = ns_alloc(sizeof(*tunnel));
    tunnel->magic = TUNNEL_MAGIC;
    tunnel->role = role;
    tunnel->state = TUNNEL_CONNECTING;
    tunnel->cause = CAUSE_PASSING;
    tunnel->worker = worker;
    tunnel->workload = workload;
    link_init(&tunnel->pool_link);
    link_init(&tunnel->dirty_link);
    link_init(&tunnel->holder_link);
    link_init(&tunnel->hasty_link);
    tunnel->patience_ms = PATIENCE_MS;
    link_init(&tunnel->task.link);
    step_init(&tunnel->step, &tunnel->tls);
    tunnel->task.kind = TASK_TUNNEL;
    tunnel->pending.account = tunnel->unfed.account = &workload->quota->memory;
    link_init(&tunnel->streams);
    tunnel->poll.fd = -1;
    tunnel->poll.kind = POLL_TUNNEL;
    tunnel->heard_ms = worker->now_ms;
    tunnel->idle_ms = worker->now_ms;
    tunnel->deadline_ms = worker->now_ms + worker->options->connect_timeout_ms;
    tunnel->h2 = h2_new(role == TLS_SERVER, worker->h2_events, tunnel);
    link_append(&workload->tunnels, &tunnel->link);
    return tunnel;
}

void tunnel_free(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    link_remove(&tunnel->link);
    link_remove(&tunnel->hasty_link);
    h2_free(tunnel->h2);
    tls_dispose(&tunnel->tls);
    step_dispose(&tunnel->step);
    tunnel->magic = 0;
    free(tunnel);
}

/* ---- its socket ---- */

void tunnel_prepare_socket(const struct tunnel *tunnel, int fd)
{
    socket_limit_unsent(fd, UNSENT_MOST);
    /* core_start has tried it; should it be gone since, the system's own does as well. */
    if (tunnel->worker->options->congestion_control[0] != 0)
        (void)socket_congestion(fd, tunnel->worker->options->congestion_control);
}

void tunnel_count_descriptor(struct tunnel *tunnel, int change)
{
    if (stranger_is(&tunnel->stranger))
        descriptors_strangers(tunnel->workload->quota->process, change);
    else
        quota_descriptors(tunnel->workload->quota, change);
}

void tunnel_adopt(struct tunnel *tunnel, int fd)
{
    tunnel->poll.fd = fd;
    tunnel_count_descriptor(tunnel, 1);
}

void tunnel_close(struct tunnel *tunnel)
{
    if (tunnel->poll.fd < 0)
        return;
    close(tunnel->poll.fd);
    tunnel->poll.fd = -1;
    tunnel_count_descriptor(tunnel, -1);
}

void tunnel_count(struct tunnel *tunnel, int change)
{
    tunnel->worker->live.tunnels += (uint64_t)(int64_t)change;
    tunnel->workload->live_tunnels += (uint64_t)(int64_t)change;
}

/* ---- its turn ---- */

void tunnel_touch(struct tunnel *tunnel)
{
    if (tunnel->state < TUNNEL_CLOSED)
        turns_write(&tunnel->worker->turns, &tunnel->workload->budget, &tunnel->dirty_link);
}

static void tunnel_wait_for_step(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct stranger *stranger = &tunnel->stranger;
    if (!stranger_is(stranger))
        turns_step(&worker->turns, &tunnel->workload->budget, STEP_DIALLED, &tunnel->task.link);
    else if (!link_empty(&tunnel->task.link) || !link_empty(&stranger->step_link))
        return;
    else if (strangers_trusts(stranger, worker->now_us))
        turns_step(&worker->turns, &tunnel->workload->budget, STEP_PUBLISHED, &tunnel->task.link);
    else
        strangers_wait(&worker->strangers, stranger, worker->now_us);
}

void tunnel_defer(struct tunnel *tunnel)
{
    struct turns *turns = &tunnel->worker->turns;
    struct budget *budget = &tunnel->workload->budget;
    if (tunnel->state == TUNNEL_OPEN)
        task_again(turns, budget, &tunnel->task);
    else if (!tunnel->step.out)
        tunnel_wait_for_step(tunnel);
}

/* ---- whether it is needed ---- */

void tunnel_note_patience(struct tunnel *tunnel, uint32_t patience_ms)
{
    if (patience_ms >= tunnel->patience_ms)
        return;
    struct hasty *hasty = &tunnel->worker->hasty;
    tunnel->patience_ms = patience_ms;
    hasty->due_ms = 0;
    if (link_empty(&tunnel->hasty_link))
        link_append(&hasty->tunnels, &tunnel->hasty_link);
}

int tunnel_peer_is_gone(const struct tunnel *tunnel, uint64_t now_ms)
{
    return tunnel->ping_ms != 0 && now_ms - tunnel->heard_ms > PATIENCE_MS &&
           now_ms - tunnel->ping_ms > PATIENCE_MS - PATIENCE_MS / 3;
}

/* Closed before, it would take the rest with it: what the peer sends meanwhile (it gives windows back as a
 * slow reader reads) meets a closed socket, and is answered with a reset. */
int tunnel_is_done(const struct tunnel *tunnel)
{
    int unacknowledged = 0;
    return tunnel->state <= TUNNEL_OPEN && tunnel->retired && link_empty(&tunnel->streams) &&
           tunnel->pending.length == 0 && tunnel->unfed.length == 0 &&
           (ioctl(tunnel->poll.fd, SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0);
}

void tunnel_stream_left(struct tunnel *tunnel)
{
    if (!link_empty(&tunnel->streams))
        return;
    tunnel->idle_ms = tunnel->use.used_ms = tunnel->worker->now_ms;
    if (tunnel->retired)
        tunnel_touch(tunnel);
}

void tunnel_leave_pool(struct tunnel *tunnel)
{
    if (tunnel->retired)
        return;
    tunnel->retired = 1;
    link_remove(&tunnel->pool_link);
    if (tunnel->role == TLS_CLIENT)
        preconnect_remember(tunnel->worker, tunnel->workload, &tunnel->peer, tunnel->tls.expected,
                            &tunnel->use, tunnel->state >= TUNNEL_OPEN, !link_empty(&tunnel->streams));
}

void tunnel_retire(struct tunnel *tunnel)
{
    if (tunnel->retired)
        return;
    tunnel_leave_pool(tunnel);
    h2_goaway(tunnel->h2);
    tunnel_touch(tunnel);
}

/* ---- refusals ---- */

void tunnel_note_failed(const struct tunnel *tunnel, const char *reason)
{
    const struct tls *tls = &tunnel->tls;
    int is_server = tunnel->role == TLS_SERVER;
    struct refusal refusal = {
        .kind = NS_REFUSED_HANDSHAKE,
        .direction = is_server ? NS_INBOUND : NS_OUTBOUND,
        .source = is_server ? tunnel->peer : tunnel->workload->address,
        .destination = is_server ? tunnel->local : tunnel->peer,
        .reason = reason,
        .presented = tls->presented,
    };
    if (tls->presented != NULL)
        refusal.expected = is_server ? tls->trust_domain : tls->expected;
    else if (tls_was_refused(tls))
        refusal.presented = tunnel->workload->credentials.presented;
    refusal.destination.port = NS_HBONE_PORT;
    workload_note_refused(tunnel->worker, tunnel->workload, &refusal);
}

void tunnel_note_refused(const struct tunnel *tunnel, enum outcome outcome,
                         const struct ns_address *destination, const char *reason)
{
    const struct refusal refusal = {
        .kind = NS_REFUSED_STREAM,
        .direction = NS_INBOUND,
        .status = outcome_status(outcome),
        .source = tunnel->peer,
        .destination = *destination,
        .peer = tunnel->tls.peer,
        .reason = reason,
    };
    workload_note_refused(tunnel->worker, tunnel->workload, &refusal);
}
