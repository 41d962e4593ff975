/* warm.c: see warm.h. */
#include "flow/warm.h"

#include <string.h>

#include "flow/flow.h"
#include "wire/names.h"

enum {
    LASTING_MS = 60000, /* a tunnel dialled ahead that ends sooner, unused, counts as a failure */
    BACKOFF_MS = 1000,  /* after the first failure; doubled with each */
    BACKOFF_DOUBLINGS = 6,
};

static void warm_free(struct warm_peer *peer)
{
    decision_waiter_cancel(&peer->waiter);
    link_remove(&peer->link);
    peer->worker->warm--;
    free(peer);
}

void warm_forget(struct workload *workload)
{
    while (!link_empty(&workload->warm_peers))
        warm_free(container_of(workload->warm_peers.next, struct warm_peer, link));
}

void warm_used(struct tunnel *tunnel, const struct ns_address *destination)
{
    tunnel->destination = *destination;
    tunnel->worker->warm -= tunnel->ahead;
    tunnel->ahead = 0;
}

static struct warm_peer *warm_find(struct workload *workload, const struct tunnel *tunnel)
{
    struct link *at, *next;
    link_each(at, next, &workload->warm_peers)
    {
        struct warm_peer *peer = container_of(at, struct warm_peer, link);
        if (address_same_ip(&peer->peer, &tunnel->peer) && strcmp(peer->identity, tunnel->tls.expected) == 0)
            return peer;
    }
    return NULL;
}

static void warm_delay(struct warm_peer *peer)
{
    uint32_t doublings = peer->failures < BACKOFF_DOUBLINGS ? peer->failures : BACKOFF_DOUBLINGS;
    peer->next_ms = peer->worker->now_ms + ((uint64_t)BACKOFF_MS << doublings);
    peer->failures++;
}

void warm_remember(struct tunnel *tunnel)
{
    struct worker *worker = tunnel->worker;
    uint32_t ahead = tunnel->ahead;
    worker->warm -= ahead;
    tunnel->ahead = 0;
    if (worker->options->warm_ms == 0 || worker->retiring || tunnel->role != TLS_CLIENT ||
        (tunnel->state < TUNNEL_OPEN && !ahead))
        return;
    if (tunnel->workload->credentials.context == NULL)
        return; /* it was removed, and has forgotten its peers */
    uint64_t used_ms = link_empty(&tunnel->flows) ? tunnel->used_ms : worker->now_ms;
    if (worker->now_ms - used_ms > worker->options->warm_ms)
        return;
    struct warm_peer *peer = warm_find(tunnel->workload, tunnel);
    if (peer != NULL) {
        peer->used_ms = used_ms > peer->used_ms ? used_ms : peer->used_ms;
        return;
    }
    if (worker->warm >= WARM_MAX)
        return;
    peer = ns_alloc(sizeof(*peer));
    link_init(&peer->waiter.link);
    peer->waiter.kind = WAITER_WARM;
    peer->worker = worker;
    peer->workload = tunnel->workload;
    peer->peer = tunnel->peer;
    peer->destination = tunnel->destination;
    peer->used_ms = used_ms;
    memcpy(peer->identity, tunnel->tls.expected, sizeof(peer->identity));
    if (ahead && worker->now_ms - tunnel->first_try_ms < LASTING_MS) {
        peer->failures = tunnel->failures;
        warm_delay(peer);
    }
    link_append(&tunnel->workload->warm_peers, &peer->link);
    worker->warm++;
}

/* The endpoint of the decision that is the peer; NULL: none. */
static const struct ns_endpoint *leads_to(const struct decision *decision, const struct warm_peer *peer)
{
    for (uint32_t i = 0; decision->verdict == NS_ALLOW && i < decision->endpoint_count; i++) {
        const struct ns_endpoint *endpoint = &decision->endpoints[i];
        if (endpoint->tunnel && address_same_ip(&endpoint->address, &peer->peer) &&
            strcmp(endpoint->identity, peer->identity) == 0)
            return endpoint;
    }
    return NULL;
}

void warm_decided(struct warm_peer *peer, const struct decision *decision)
{
    struct worker *worker = peer->worker;
    const struct ns_endpoint *endpoint = leads_to(decision, peer);
    if (endpoint != NULL && tunnel_pooled(worker, peer->workload, &peer->peer, peer->identity) == NULL) {
        struct tunnel *tunnel = tunnel_to(worker, peer->workload, &peer->peer, peer->identity,
                                          endpoint->tunnel == NS_TUNNEL_BY_NAME);
        if (tunnel == NULL) {
            warm_delay(peer);
            return;
        }
        tunnel->ahead = 1;
        tunnel->used_ms = peer->used_ms;
        tunnel->failures = peer->failures;
        tunnel->destination = peer->destination;
        worker->warm++;
    }
    warm_free(peer);
}

static void warm_ask(struct warm_peer *peer)
{
    struct ns_question question;
    int waiting;
    outbound_question(peer->workload, &peer->destination, &question);
    struct decision *decision = decisions_get(peer->worker->decisions, &peer->workload->decisions, &question,
                                              &peer->waiter, &waiting);
    if (decision != NULL)
        warm_decided(peer, decision);
    else if (!waiting)
        warm_delay(peer);
}

void warm_tick(struct worker *worker, struct workload *workload, int *dials)
{
    struct link *at, *next;
    link_each(at, next, &workload->warm_peers)
    {
        struct warm_peer *peer = container_of(at, struct warm_peer, link);
        if (worker->now_ms - peer->used_ms > worker->options->warm_ms) {
            warm_free(peer);
        } else if (*dials > 0 && worker->now_ms >= peer->next_ms && link_empty(&peer->waiter.link)) {
            (*dials)--;
            warm_ask(peer);
        }
    }
}
