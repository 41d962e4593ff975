/* commands.c: see commands.h. */
#include "core/commands.h"

#include <string.h>

#include "core/listener.h"
#include "core/recheck.h"
#include "core/ring_reader.h"
#include "core/snapshot.h"
#include "flow/bearing.h"
#include "flow/flow.h"
#include "flow/preconnect.h"
#include "flow/revocation.h"
#include "flow/route.h"
#include "flow/tunnel_end.h"

/* ---- workloads ---- */

/* Takes the namespace and the quota of a COMMAND_ADD over. */
static void add(struct worker *worker, struct command *command)
{
    struct workload *workload =
        workload_new(command->workload, command->fd, command->serial, &command->address);
    command->fd = -1;
    workload->quota = command->quota;
    command->quota = NULL;
    workload_enter(worker, workload);
}

/* What is presented, or trusted, is another from now on: new streams use new tunnels. */
static void renew_tunnels(struct worker *worker, struct workload *workload, void *unused)
{
    (void)worker;
    (void)unused;
    struct link *at, *next;
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        if (tunnel->role == TLS_CLIENT)
            tunnel_retire(tunnel);
    }
}

/* Takes the credentials of a COMMAND_CREDENTIALS over. */
static void take_credentials(struct worker *worker, struct workload *workload, struct command *command)
{
    tls_credentials_dispose(&workload->credentials);
    workload->credentials = command->credentials;
    memset(&command->credentials, 0, sizeof(command->credentials));
    renew_tunnels(worker, workload, NULL);
}

/* Takes the anchors of a COMMAND_TRUST over. */
static void take_trust(struct worker *worker, struct command *command)
{
    trust_set(&worker->trust, command->bundles);
    command->bundles = NULL;
    workloads_each(worker, renew_tunnels, NULL);
}

void commands_remove(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_close(worker, &workload->listeners[role]);
    preconnects_forget(workload);
    tls_credentials_dispose(&workload->credentials);
    link_remove(&workload->recheck_link);
    link_remove(&workload->link);
    link_append(&worker->workloads.leaving, &workload->link);
}

void commands_end_workloads(struct worker *worker, int most)
{
    static const char REASON[] = "the workload was removed";
    while (!link_empty(&worker->workloads.leaving)) {
        struct workload *workload = container_of(worker->workloads.leaving.next, struct workload, link);
        for (; most > 0 && !link_empty(&workload->flows); most--) {
            struct flow *flow = container_of(workload->flows.next, struct flow, link);
            flow->cause = CAUSE_PASSING; /* an application that waits still may find another core */
            flow_abort(flow, REASON);
        }
        for (; most > 0 && !link_empty(&workload->tunnels); most--)
            tunnel_abort(container_of(workload->tunnels.next, struct tunnel, link), REASON);
        if (most <= 0)
            return;
        endpoints_forget(&worker->endpoints, workload->key);
        decisions_forget(worker->decisions, &workload->decisions);
        budget_dispose(&worker->turns, &workload->budget);
        link_remove(&workload->link);
        link_append(&worker->graveyard.workloads, &workload->link);
    }
}

/* Another core takes what is new. */
static void retire(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_leave(worker, &workload->listeners[role]);
    preconnects_forget(workload);
}

/* ---- the mailbox ---- */

static void command_run(struct worker *worker, struct command *command)
{
    struct workload *workload = workload_find(worker, command->workload);
    switch (command->kind) {
    case COMMAND_ADD:
        add(worker, command);
        break;
    case COMMAND_CREDENTIALS:
        if (workload != NULL)
            take_credentials(worker, workload, command);
        break;
    case COMMAND_TRUST:
        take_trust(worker, command);
        break;
    case COMMAND_REVOKED:
        revocation_enforce(worker);
        break;
    case COMMAND_LISTEN:
        if (workload != NULL)
            listener_open(worker, workload, command);
        break;
    case COMMAND_UNLISTEN:
        if (workload != NULL)
            listener_close(worker, &workload->listeners[command->role]);
        break;
    case COMMAND_ACCEPTED:
        connection_taken(worker, workload, command);
        break;
    case COMMAND_PARKED:
        ring_reader_parked(worker, workload, command);
        break;
    case COMMAND_GAVE_UP:
        route_gave_up(worker, &command->tuple, command->sequence);
        break;
    case COMMAND_TOLERANCE:
        __atomic_sub_fetch(&worker->bearing, 1, __ATOMIC_RELAXED);
        (void)bearing_tell(worker, &command->tuple, &command->tolerance);
        break;
    case COMMAND_ANSWERED:
        parked_answered(&worker->parking, &command->tuple, command->sequence);
        break;
    case COMMAND_REMOVE:
        if (workload != NULL)
            commands_remove(worker, workload, NULL);
        break;
    case COMMAND_RETIRE:
        worker->retiring = 1;
        workloads_each(worker, retire, NULL);
        break;
    case COMMAND_EPOCH:
        decisions_epoch(worker->decisions, command->epoch, command->concern);
        recheck_begin(worker, command->concern);
        break;
    case COMMAND_ANSWER:
        decisions_answer(worker->decisions, command->decision);
        command->decision = NULL;
        break;
    case COMMAND_SNAPSHOT:
        snapshot_take(worker, command->snapshot);
        break;
    case COMMAND_STOP:
        worker->stopping = 1;
        break;
    }
}

void commands_run(struct worker *worker)
{
    if (worker->mailbox_taken)
        return;
    worker->mailbox_taken = 1;
    struct command *command = mailbox_take(&worker->mailbox);
    while (command != NULL) {
        struct command *next = command->next;
        command_run(worker, command);
        command_free(command);
        command = next;
    }
}
