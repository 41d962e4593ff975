/* revocation.c: see revocation.h. */
#include "flow/revocation.h"

#include "flow/tunnel.h"
#include "flow/tunnel_end.h"

static void look_at(struct worker *worker, struct workload *workload, void *unused)
{
    (void)worker;
    (void)unused;
    struct link *at, *next;
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        uint8_t alert;
        const char *reason = tunnel->state == TUNNEL_OPEN ? tls_revoked(&tunnel->tls, &alert) : NULL;
        if (reason != NULL)
            tunnel_cut(tunnel, alert, reason);
    }
}

void revocation_enforce(struct worker *worker)
{
    workloads_each(worker, look_at, NULL);
}
