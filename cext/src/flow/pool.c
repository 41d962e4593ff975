/* pool.c: see pool.h. */
#include "flow/pool.h"

#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "flow/stream_events.h"
#include "flow/tunnel_end.h"
#include "wire/h2.h"
#include "wire/names.h"

#define PORT_REFUSES "the peer's port 15008 refuses connections"

enum { RETRY_MS = 50 };

/* ---- dialling ---- */

static size_t bucket_of(const struct workload *workload, const struct ns_address *address)
{
    return hash_place(hash_bytes(workload->key, address->ip, sizeof(address->ip)), TUNNEL_BUCKETS);
}

/* Dials, or waits to dial again. 0, or -1 with errno when no socket can be had. */
static int tunnel_dial(struct tunnel *tunnel)
{
    struct ns_address to = tunnel->peer;
    to.port = NS_HBONE_PORT;
    int known = tunnel->from.port > 0;
    int fd = socket_connect(&tunnel->workload->netns, known ? &tunnel->from : NULL, &to, NS_MARK_CORE);
    if (fd < 0)
        return -1;
    if (!known)
        (void)socket_local_address(fd, &tunnel->from);
    tunnel_prepare_socket(tunnel, fd);
    tunnel_adopt(tunnel, fd);
    tunnel->poll.readable = tunnel->poll.writable = tunnel->poll.ending = 0;
    if (worker_watch(tunnel->worker, &tunnel->poll) != 0) {
        tunnel_close(tunnel);
        return -1;
    }
    return 0;
}

void pool_dial_again(struct tunnel *tunnel)
{
    tunnel->worker->pool.retrying--;
    tunnel->state = TUNNEL_CONNECTING;
    if (tunnel_dial(tunnel) != 0)
        tunnel_abort(tunnel, "no socket for a tunnel");
}

/* Its streams may go elsewhere meanwhile. */
static void tunnel_tell_delay(struct tunnel *tunnel, const char *reason)
{
    struct link *at, *next;
    link_each(at, next, &tunnel->streams)
        tunnel->worker->stream_events->delayed(container_of(at, struct stream, link), reason);
}

void pool_dial_failed(struct tunnel *tunnel, int error)
{
    struct worker *worker = tunnel->worker;
    tunnel_close(tunnel);
    /* A peer that is just being enrolled is announced a moment before, or after, its core listens. */
    if (error == ECONNREFUSED &&
        worker->now_ms + RETRY_MS < tunnel->use.begun_ms + worker->options->refused_retry_ms) {
        worker->pool.retrying++;
        tunnel->state = TUNNEL_WAITING;
        tunnel_tell_delay(tunnel, PORT_REFUSES);
        return;
    }
    /* Where its port is closed a core starts, or ends. */
    enum cause cause = cause_of_errno(error);
    tunnel->cause = cause == CAUSE_REFUSED ? CAUSE_PASSING : cause;
    tunnel_abort(tunnel, error == ECONNREFUSED ? PORT_REFUSES : "the peer cannot be reached");
}

/* ---- for a flow ---- */

/* NULL: it cannot be dialled from there, or that does not matter. */
static const struct ns_address *from_of(const struct ns_address *client, const struct ns_address *peer)
{
    return client != NULL && address_is_v4(client) == address_is_v4(peer) ? client : NULL;
}

/* The one from that address (NULL: any) with room for a stream; NULL: there is none. */
static struct tunnel *pool_find(struct worker *worker, struct workload *workload,
                                const struct ns_address *from, const struct ns_address *address,
                                const char *identity)
{
    struct link *bucket = &worker->pool.buckets[bucket_of(workload, address)];
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, pool_link);
        if (tunnel->workload == workload && !tunnel->retired && address_same_ip(&tunnel->peer, address) &&
            (from == NULL || address_same_ip(&tunnel->from, from)) &&
            strcmp(tunnel->tls.expected, identity) == 0 && h2_room(tunnel->h2) > 0)
            return tunnel;
    }
    return NULL;
}

struct tunnel *pool_tunnel(struct worker *worker, struct workload *workload, const struct ns_address *client,
                           const struct ns_address *address, const char *identity, int by_name)
{
    const struct ns_address *from = from_of(client, address);
    struct tunnel *tunnel = pool_find(worker, workload, from, address, identity);
    errno = EAGAIN;
    if (tunnel != NULL || workload->credentials.context == NULL)
        return tunnel;
    tunnel = tunnel_new(worker, workload, TLS_CLIENT);
    tunnel_count(tunnel, 1);
    turns_spend(&workload->budget, TURN_TUNNEL);
    tunnel->peer = *address;
    if (from != NULL)
        tunnel->from = *from;
    tunnel->use.begun_ms = worker->now_ms;
    errno = ENOMEM;
    if (tls_init(&tunnel->tls, TLS_CLIENT, &workload->credentials, worker->options->trust_domain, identity) !=
            0 ||
        (by_name && tls_ask_by_name(&tunnel->tls) != 0) || tunnel_dial(tunnel) != 0) {
        int error = errno;
        tunnel_abort(tunnel, "no socket for a tunnel");
        errno = error;
        return NULL;
    }
    link_append(&worker->pool.buckets[bucket_of(workload, address)], &tunnel->pool_link);
    return tunnel;
}

/* ---- ahead of need ---- */

/* The endpoint of the decision that is the peer; NULL: none. */
static const struct ns_endpoint *leads_to(const struct decision *decision,
                                          const struct preconnect *preconnect)
{
    for (uint32_t i = 0; decision->verdict == NS_ALLOW && i < decision->endpoint_count; i++) {
        const struct ns_endpoint *endpoint = &decision->endpoints[i];
        if (endpoint->tunnel && address_same_ip(&endpoint->address, &preconnect->peer) &&
            strcmp(endpoint->identity, preconnect->identity) == 0)
            return endpoint;
    }
    return NULL;
}

void pool_preconnect_decided(struct preconnect *preconnect, const struct decision *decision)
{
    struct worker *worker = preconnect->worker;
    struct workload *workload = preconnect->workload;
    const struct ns_endpoint *endpoint = leads_to(decision, preconnect);
    if (endpoint != NULL &&
        pool_find(worker, workload, NULL, &preconnect->peer, preconnect->identity) == NULL) {
        struct tunnel *tunnel = pool_tunnel(worker, workload, NULL, &preconnect->peer, preconnect->identity,
                                            endpoint->tunnel == NS_TUNNEL_BY_NAME);
        if (tunnel == NULL) {
            preconnect_delay(preconnect);
            return;
        }
        tunnel->use.ahead = 1;
        tunnel->use.used_ms = preconnect->used_ms;
        tunnel->use.destination = preconnect->destination;
        worker->pool.preconnects++;
    }
    preconnect_free(preconnect);
}

static void preconnect_ask(struct preconnect *preconnect)
{
    struct workload *workload = preconnect->workload;
    struct ns_question question;
    int waiting;
    workload_question(workload, &preconnect->destination, &question);
    struct decision *decision = decisions_get(preconnect->worker->decisions, &workload->decisions, &question,
                                              &preconnect->waiter, &waiting);
    if (decision != NULL)
        pool_preconnect_decided(preconnect, decision);
    else if (!waiting)
        preconnect_delay(preconnect);
}

void pool_preconnect(struct worker *worker, struct workload *workload, int *dials)
{
    struct link *at, *next;
    link_each(at, next, &workload->preconnects)
    {
        struct preconnect *preconnect = container_of(at, struct preconnect, link);
        if (worker->now_ms - preconnect->used_ms > worker->options->preconnect_ms) {
            preconnect_free(preconnect);
        } else if (*dials > 0 && preconnect_is_due(preconnect) && link_empty(&preconnect->waiter.link)) {
            (*dials)--;
            preconnect_ask(preconnect);
        }
    }
}
