/* workload.c: see workload.h. */
#include "loop/workload.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flow/flow.h"
#include "wire/names.h"
#include "flow/tunnel.h"
#include "flow/warm.h"
#include "loop/worker.h"

enum {
    WORKLOAD_MAGIC = 0x6e73776c,
    RECHECKS_PER_TURN = 64, /* flows asked about again after an epoch */
};

static struct link *workload_bucket(struct worker *worker, uint64_t key)
{
    return &worker->workloads[key % WORKLOAD_BUCKETS];
}

struct workload *workload_find(struct worker *worker, uint64_t key)
{
    struct link *bucket = workload_bucket(worker, key);
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct workload *workload = container_of(at, struct workload, link);
        NS_CHECK(workload, WORKLOAD_MAGIC);
        if (workload->key == key)
            return workload;
    }
    return NULL;
}

void workloads_each(struct worker *worker, workload_visit *visit, void *argument)
{
    for (int i = 0; i < WORKLOAD_BUCKETS; i++) {
        struct link *at, *next;
        link_each(at, next, &worker->workloads[i])
            visit(worker, container_of(at, struct workload, link), argument);
    }
}

static int same_place(const struct workload *a, const struct workload *b)
{
    return a->place == b->place && address_same_ip(&a->address, &b->address);
}

/* Those of the node's own namespace, where several workloads live. */
static void workload_note_neighbour(struct worker *worker, struct workload *other, void *argument)
{
    struct workload *workload = argument;
    (void)worker;
    if (other != workload && same_place(other, workload))
        other->neighbours = workload->neighbours = 1;
}

struct search {
    const struct workload *like;
    const char *name;
    struct workload *found;
};

static void workload_compare(struct worker *worker, struct workload *workload, void *argument)
{
    struct search *search = argument;
    (void)worker;
    if (!same_place(workload, search->like) || workload->credentials.context == NULL ||
        (search->name != NULL && strcmp(workload->credentials.name, search->name) != 0))
        return;
    if (search->found == NULL || workload->key < search->found->key)
        search->found = workload;
}

struct workload *workload_named(struct worker *worker, const struct workload *like, const char *name)
{
    struct search search = {.like = like, .name = name};
    workloads_each(worker, workload_compare, &search);
    return search.found;
}

void workload_add(struct worker *worker, struct command *command)
{
    struct stat status;
    struct workload *workload = ns_alloc(sizeof(*workload));
    workload->magic = WORKLOAD_MAGIC;
    workload->key = command->workload;
    workload->netns.fd = command->fd;
    workload->netns.serial = command->serial;
    workload->place = fstat(command->fd, &status) == 0 ? (uint64_t)status.st_ino : 0;
    command->fd = -1;
    workload->address = command->address;
    workload->stats.workload = command->workload;
    workload->quota = command->quota;
    command->quota = NULL;
    for (int role = 0; role < LISTENER_ROLES; role++) {
        workload->listeners[role].poll.fd = -1;
        link_init(&workload->listeners[role].paused_link);
    }
    share_init(&workload->share);
    decision_share_init(&workload->decisions);
    link_init(&workload->recheck_link);
    link_init(&workload->flows);
    link_init(&workload->tunnels);
    party_init(&workload->strangers);
    link_init(&workload->holders);
    link_init(&workload->warm_peers);
    link_append(workload_bucket(worker, workload->key), &workload->link);
    workloads_each(worker, workload_note_neighbour, workload);
}

void workload_credentials(struct workload *workload, struct command *command)
{
    tls_credentials_dispose(&workload->credentials);
    workload->credentials = command->credentials;
    memset(&command->credentials, 0, sizeof(command->credentials));
    struct link *at, *next;
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        if (tunnel->role == TLS_CLIENT)
            tunnel_retire(tunnel);
    }
}

/* ---- ending ---- */

void workload_remove(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_close(worker, &workload->listeners[role]);
    warm_forget(workload);
    tls_credentials_dispose(&workload->credentials);
    link_remove(&workload->recheck_link);
    link_remove(&workload->link);
    link_append(&worker->leaving_workloads, &workload->link);
}

void workloads_end(struct worker *worker, int most)
{
    static const char REASON[] = "the workload was removed";
    while (!link_empty(&worker->leaving_workloads)) {
        struct workload *workload = container_of(worker->leaving_workloads.next, struct workload, link);
        for (; most > 0 && !link_empty(&workload->flows); most--)
            flow_abort(container_of(workload->flows.next, struct flow, link), REASON);
        for (; most > 0 && !link_empty(&workload->tunnels); most--)
            tunnel_abort(container_of(workload->tunnels.next, struct tunnel, link), REASON);
        if (most <= 0)
            return;
        decisions_forget(worker->decisions, &workload->decisions);
        share_dispose(&worker->turns, &workload->share);
        link_remove(&workload->link);
        link_append(&worker->dead_workloads, &workload->link);
    }
}

void workload_retire(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    for (int role = 0; role < LISTENER_ROLES; role++)
        listener_leave(worker, &workload->listeners[role]);
    warm_forget(workload);
}

void workload_free(struct workload *workload)
{
    NS_CHECK(workload, WORKLOAD_MAGIC);
    windows_forget(workload);
    link_remove(&workload->link);
    close(workload->netns.fd);
    descriptors_change(workload->quota->process, -1);
    quota_release(workload->quota);
    workload->magic = 0;
    free(workload);
}

/* ---- rechecks ---- */

static void recheck_later(struct worker *worker, struct workload *workload, void *unused)
{
    (void)unused;
    if (!link_empty(&workload->flows) && link_empty(&workload->recheck_link))
        link_append(&worker->rechecks, &workload->recheck_link);
}

void workloads_recheck(struct worker *worker)
{
    worker->recheck_round++;
    workloads_each(worker, recheck_later, NULL);
}

/* The next flow of the workload that is due; 0 if there is none. Flows lie in the order of their rounds. */
static int recheck_next(struct worker *worker, struct workload *workload)
{
    struct flow *flow = container_of(workload->flows.next, struct flow, link);
    if (link_empty(&workload->flows) || flow->recheck_round == worker->recheck_round)
        return 0;
    flow->recheck_round = worker->recheck_round;
    link_remove(&flow->link);
    link_append(&workload->flows, &flow->link);
    flow_recheck(flow);
    return 1;
}

void workloads_continue_rechecks(struct worker *worker)
{
    for (int i = 0; i < RECHECKS_PER_TURN && !link_empty(&worker->rechecks); i++) {
        struct workload *workload = container_of(worker->rechecks.next, struct workload, recheck_link);
        link_remove(&workload->recheck_link);
        if (recheck_next(worker, workload))
            link_append(&worker->rechecks, &workload->recheck_link);
    }
}
