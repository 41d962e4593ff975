/* preconnect.c: see preconnect.h. */
#include "flow/preconnect.h"

#include <string.h>

#include "balance/endpoint.h"
#include "wire/names.h"

enum {
    LASTING_MS = 60000, /* a tunnel dialled ahead that ends sooner, unused, counts as a failure */
    BACKOFF_MS = 1000,  /* after the first failure; doubled with each */
    BACKOFF_DOUBLINGS = 6,
};

void preconnect_free(struct preconnect *preconnect)
{
    decision_waiter_cancel(&preconnect->waiter);
    link_remove(&preconnect->link);
    preconnect->worker->pool.preconnects--;
    free(preconnect);
}

void preconnects_forget(struct workload *workload)
{
    while (!link_empty(&workload->preconnects))
        preconnect_free(container_of(workload->preconnects.next, struct preconnect, link));
}

/* ---- what is remembered of the peer ---- */

static struct ns_address tunnel_end_of(const struct ns_address *peer)
{
    struct ns_address end = *peer;
    end.port = NS_HBONE_PORT;
    return end;
}

int preconnect_is_due(const struct preconnect *preconnect)
{
    struct ns_address end = tunnel_end_of(&preconnect->peer);
    const struct endpoint *known =
        endpoint_find(&preconnect->worker->endpoints, preconnect->workload->key, &end, preconnect->identity);
    return known == NULL || preconnect->worker->now_ms >= known->retry_ms;
}

void preconnect_delay(const struct preconnect *preconnect)
{
    struct ns_address end = tunnel_end_of(&preconnect->peer);
    struct endpoint *known =
        endpoint_note(&preconnect->worker->endpoints, preconnect->workload->key, &end, preconnect->identity);
    uint32_t doublings = known->failures < BACKOFF_DOUBLINGS ? known->failures : BACKOFF_DOUBLINGS;
    known->retry_ms = preconnect->worker->now_ms + ((uint64_t)BACKOFF_MS << doublings);
    known->failures++;
}

/* A tunnel to it was of use. */
static void preconnect_lasted(const struct preconnect *preconnect)
{
    struct ns_address end = tunnel_end_of(&preconnect->peer);
    struct endpoint *known =
        endpoint_find(&preconnect->worker->endpoints, preconnect->workload->key, &end, preconnect->identity);
    if (known != NULL)
        known->retry_ms = known->failures = 0;
}

/* ---- the list ---- */

void preconnect_used(struct worker *worker, struct preconnect_use *use, const struct ns_address *destination)
{
    use->destination = *destination;
    worker->pool.preconnects -= use->ahead;
    use->ahead = 0;
}

static struct preconnect *preconnect_find(struct workload *workload, const struct ns_address *peer,
                                          const char *identity)
{
    struct link *at, *next;
    link_each(at, next, &workload->preconnects)
    {
        struct preconnect *preconnect = container_of(at, struct preconnect, link);
        if (address_same_ip(&preconnect->peer, peer) && strcmp(preconnect->identity, identity) == 0)
            return preconnect;
    }
    return NULL;
}

void preconnect_remember(struct worker *worker, struct workload *workload, const struct ns_address *peer,
                         const char *identity, struct preconnect_use *use, int opened, int in_use)
{
    uint32_t ahead = use->ahead;
    uint64_t used_ms = in_use ? worker->now_ms : use->used_ms;
    worker->pool.preconnects -= ahead;
    use->ahead = 0;
    if (worker->options->preconnect_ms == 0 || worker->retiring || (!opened && !ahead))
        return;
    if (workload->credentials.context == NULL)
        return; /* it was removed, and has forgotten its peers */
    if (worker->now_ms - used_ms > worker->options->preconnect_ms)
        return;
    struct preconnect *preconnect = preconnect_find(workload, peer, identity);
    if (preconnect != NULL) {
        preconnect->used_ms = used_ms > preconnect->used_ms ? used_ms : preconnect->used_ms;
        return;
    }
    if (worker->pool.preconnects >= PRECONNECTS_MOST)
        return;
    preconnect = ns_alloc(sizeof(*preconnect));
    link_init(&preconnect->waiter.link);
    preconnect->waiter.kind = WAITER_PRECONNECT;
    preconnect->worker = worker;
    preconnect->workload = workload;
    preconnect->peer = *peer;
    preconnect->destination = use->destination;
    preconnect->used_ms = used_ms;
    snprintf(preconnect->identity, sizeof(preconnect->identity), "%s", identity);
    if (ahead && worker->now_ms - use->begun_ms < LASTING_MS)
        preconnect_delay(preconnect);
    else
        preconnect_lasted(preconnect);
    link_append(&workload->preconnects, &preconnect->link);
    worker->pool.preconnects++;
}
