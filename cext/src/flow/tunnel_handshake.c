/* tunnel_handshake.c: see tunnel_handshake.h. */
#include "flow/tunnel_handshake.h"

#include <string.h>

#include "flow/tunnel_bytes.h"
#include "flow/tunnel_end.h"
#include "flow/tunnel_server.h"
#include "flow/windows.h"
#include "wire/tls_bounds.h"

enum { HANDSHAKE_READ = 32768 }; /* what one step of a handshake gets */

/* A copy of what was read lasts as long as the step. */
static void step_feed(struct tunnel *tunnel, size_t length)
{
    step_dispose(&tunnel->step);
    if (length > 0) {
        tunnel->step.input = ns_alloc(length);
        memcpy(tunnel->step.input, tunnel->worker->scratch.incoming, length);
    }
    tls_feed(&tunnel->tls, tunnel->step.input, length);
}

/* Reads what the next step is to work on. 0: a peer has sent nothing yet, and there is none to make. */
static int handshake_receive(struct tunnel *tunnel)
{
    static const char TOO_MUCH[] = "peer sent more than a handshake takes";
    size_t length = 0;
    if (tunnel->shaken > TLS_HANDSHAKE_MOST) {
        tunnel_note_failed(tunnel, TOO_MUCH);
        tunnel->doom = TOO_MUCH;
        return 1;
    }
    if (tunnel->poll.readable)
        length = tunnel_receive(tunnel, HANDSHAKE_READ);
    if (tunnel->doom != NULL) {
        if (tunnel->shaken > 0 || tunnel->role == TLS_CLIENT)
            tunnel_note_failed(tunnel, "peer closed the connection in the handshake");
        return 1;
    }
    if (tunnel->tls.ssl == NULL) {
        if (length == 0)
            return 0;
        if (tunnel_answer(tunnel) != 0) {
            tunnel->doom = "the connection could not be set up";
            return 1;
        }
    }
    tunnel->shaken += length;
    step_feed(tunnel, length);
    return 1;
}

void tunnel_handshake(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    /* What a step has left (TLS_CHOOSE) comes first. */
    if (tunnel->step.result != TLS_CHOOSE && !handshake_receive(tunnel))
        return;
    if (tunnel->doom != NULL) {
        tunnel_abort(tunnel, tunnel->doom);
        return;
    }
    strangers_give(&worker->strangers, &tunnel->stranger);
    handshakes_give(&worker->handshakes, &tunnel->step);
}

static void handshake_done(struct tunnel *tunnel)
{
    if (tunnel->role == TLS_SERVER)
        tunnel_proven(tunnel);
    if (tunnel->doom != NULL)
        return;
    enum ns_limit limit = windows_open(tunnel);
    if (limit != NS_LIMITS) {
        quota_refused(tunnel->workload->quota, limit, tunnel->worker->now_ms);
        tunnel_refuse(tunnel, limit);
        return;
    }
    tunnel->state = TUNNEL_OPEN;
    tunnel->opened = 1;
    tunnel_touch(tunnel);  /* SETTINGS, and the streams that waited */
    tunnel_digest(tunnel); /* what the peer has sent behind its Finished */
}

static void handshake_failed(struct tunnel *tunnel)
{
    tunnel->workload->stats.tls_failed++;
    tunnel_note_failed(tunnel, tunnel->tls.error);
    tunnel->cause = CAUSE_REFUSED;
    tunnel->doom = tunnel->tls.error;
}

/* What was revoked while the last step was out. */
static int revocation_came(struct tunnel *tunnel)
{
    uint8_t alert;
    const char *revoked = tls_revoked(&tunnel->tls, &alert);
    if (revoked != NULL)
        snprintf(tunnel->tls.error, sizeof(tunnel->tls.error), "%s", revoked);
    return revoked != NULL;
}

void tunnel_stepped(struct tunnel *tunnel)
{
    NS_CHECK(tunnel, TUNNEL_MAGIC);
    struct worker *worker = tunnel->worker;
    enum tls_result result = tunnel->step.result;
    turns_step_made(&worker->turns, tunnel->step_kind, tunnel->step.cost_us);
    strangers_pay(&worker->strangers, &tunnel->stranger, tunnel->step.cost_us, worker->now_us);
    if (tunnel->state == TUNNEL_CLOSED) {
        link_append(&worker->graveyard.tunnels, &tunnel->link);
        return;
    }
    if (result == TLS_OK || !stranger_is(&tunnel->stranger))
        (void)turns_event(&worker->turns, &tunnel->workload->budget);
    tunnel_say(tunnel, tunnel->step.output, tunnel->step.output_length);
    if (result == TLS_OK && revocation_came(tunnel))
        handshake_failed(tunnel);
    else if (result == TLS_OK)
        handshake_done(tunnel);
    else if (result == TLS_CHOOSE)
        tunnel_choose(tunnel);
    else if (result != TLS_WANT)
        handshake_failed(tunnel);
    if (result != TLS_CHOOSE)
        step_dispose(&tunnel->step);
    if (tunnel->doom != NULL)
        tunnel_abort(tunnel, tunnel->doom);
    else if (result == TLS_CHOOSE)
        tunnel_defer(tunnel);
    else
        tunnel_go_on_later(tunnel);
}
