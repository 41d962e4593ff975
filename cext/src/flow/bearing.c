/* bearing.c: see bearing.h. */
#include "flow/bearing.h"

#include <string.h>

#include "base/hash.h"
#include "wire/names.h"

/* The ports tell connections apart; whoever has chosen them has chosen them for one workload. */
static struct link *bucket_of(struct worker *worker, uint64_t workload, uint16_t own, uint16_t other)
{
    const uint16_t ports[] = {own, other};
    return &worker->bearings[hash_place(hash_bytes(HASH_SEED ^ workload, ports, sizeof(ports)),
                                        BEARING_BUCKETS)];
}

void bearing_enter(struct flow *flow)
{
    uint16_t own = flow->source.port, other = flow->destination.port;
    if (flow->direction == NS_INBOUND) {
        struct ns_address near;
        if (socket_local_address(flow->near.fd, &near) != 0)
            return;
        own = flow->destination.port;
        other = near.port;
    }
    flow->near_port = other;
    link_remove(&flow->bearing_link);
    link_append(bucket_of(flow->worker, flow->workload->key, own, other), &flow->bearing_link);
}

static int is_meant(const struct flow *flow, const struct tuple *ends)
{
    int outbound = flow->direction == NS_OUTBOUND;
    const struct ns_address *own = outbound ? &flow->source : &flow->destination;
    const struct ns_address *other = outbound ? &flow->destination : &flow->source;
    return flow->workload->key == ends->workload && own->port == ends->source.port &&
           flow->near_port == ends->destination.port && address_same_ip(own, &ends->source) &&
           address_same_ip(other, &ends->destination);
}

/* The least of what was said; 0: nothing was. */
static uint32_t least_of(const struct tolerance *tolerance)
{
    uint32_t keepalive = tolerance->keepalive_ms, unacknowledged = tolerance->unacknowledged_ms;
    return keepalive == 0 || (unacknowledged != 0 && unacknowledged < keepalive) ? unacknowledged : keepalive;
}

void bearing_renew(struct flow *flow)
{
    if (least_of(&flow->tolerance) != 0)
        socket_tolerate(flow->far.fd, &flow->tolerance);
}

struct flow *bearing_find(struct worker *worker, const struct tuple *ends)
{
    struct link *at, *next;
    struct link *bucket = bucket_of(worker, ends->workload, ends->source.port, ends->destination.port);
    link_each(at, next, bucket)
    {
        struct flow *flow = container_of(at, struct flow, bearing_link);
        if (is_meant(flow, ends))
            return flow;
    }
    return NULL;
}

int bearing_tell(struct worker *worker, const struct tuple *ends, const struct tolerance *tolerance)
{
    struct flow *flow = bearing_find(worker, ends);
    if (flow == NULL)
        return 0;
    flow->tolerance = *tolerance;
    stream_bear(&flow->stream, least_of(tolerance));
    if (flow->far.fd >= 0)
        socket_tolerate(flow->far.fd, tolerance);
    return 1;
}
