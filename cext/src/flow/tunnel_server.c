/* tunnel_server.c: see tunnel_server.h. */
#include "flow/tunnel_server.h"

#include "flow/tunnel_end.h"

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
    workload_show_refused(tunnel->worker, tunnel->workload, NS_INBOUND, &tunnel->peer, &tunnel->local, limit);
    socket_reset_at_death(tunnel->poll.fd);
}

/* For one more stranger others have to go. */
static void tunnel_make_room(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    struct stranger *excess;
    strangers_room(&worker->strangers,
                   descriptors_for_strangers(tunnel->workload->quota->process, worker->now_ms) /
                       worker->context->worker_count);
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
                    published_has(worker->context->published, peer->ip) ? STRANGER_PUBLISHED : STRANGER_OTHER,
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
    tunnel_prepare_socket(tunnel, tunnel->poll.fd);
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
    turns_spend(&tunnel->workload->budget, TURN_TUNNEL);
    tunnel->admitted = limit == NS_LIMITS;
    if (limit != NS_LIMITS)
        tunnel_refuse(tunnel, limit);
}

void tunnel_refuse(struct tunnel *tunnel, enum ns_limit limit)
{
    if (tunnel->role == TLS_SERVER) /* else its flows are shown */
        tunnel_show_refused(tunnel, limit);
    tunnel->cause = CAUSE_REFUSED;
    tunnel->doom = quota_reason(limit);
}
