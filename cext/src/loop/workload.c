/* workload.c: see workload.h. */
#include "loop/workload.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loop/worker.h"
#include "wire/names.h"

enum {
    REFUSALS_APART_MS = 1000,
    PATH_MTU_USUAL = 1500, /* where it cannot be asked */
};

/* ---- life ---- */

struct workload *workload_new(uint64_t key, int netns_fd, uint64_t netns_serial,
                              const struct ns_address *address)
{
    struct stat status;
    struct workload *workload = ns_alloc(sizeof(*workload));
    workload->magic = WORKLOAD_MAGIC;
    workload->key = workload->stats.workload = key;
    workload->netns.fd = netns_fd;
    workload->netns.serial = netns_serial;
    workload->place = fstat(netns_fd, &status) == 0 ? (uint64_t)status.st_ino : 0;
    workload->address = *address;
    for (int role = 0; role < LISTENER_ROLES; role++) {
        workload->listeners[role].poll.fd = -1;
        link_init(&workload->listeners[role].paused_link);
    }
    for (int i = 0; i < 2; i++)
        workload->raw[i] = workload->native[i] = workload->path[i] = -1;
    workload->asking = -1;
    budget_init(&workload->budget);
    decision_share_init(&workload->decisions);
    party_init(&workload->strangers);
    struct link *links[] = {&workload->link,         &workload->recheck_link, &workload->flows,
                            &workload->tunnels,      &workload->holders,      &workload->preconnects,
                            &workload->released_link};
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
        link_init(links[i]);
    return workload;
}

/* A socket that is kept until the workload goes. */
static int kept(struct workload *workload, int *fd, int made)
{
    if (made >= 0) {
        *fd = made;
        descriptors_change(workload->quota->process, 1);
    }
    return made;
}

static void kept_close(struct workload *workload, int *fd)
{
    if (*fd < 0)
        return;
    close(*fd);
    *fd = -1;
    descriptors_change(workload->quota->process, -1);
}

void workload_free(struct workload *workload)
{
    NS_CHECK(workload, WORKLOAD_MAGIC);
    link_remove(&workload->link);
    close(workload->netns.fd);
    for (int i = 0; i < 2; i++) {
        kept_close(workload, &workload->raw[i]);
        kept_close(workload, &workload->native[i]);
        kept_close(workload, &workload->path[i]);
    }
    link_remove(&workload->released_link);
    if (workload->asking >= 0)
        close(workload->asking);
    descriptors_change(workload->quota->process, -WORKLOAD_DESCRIPTORS);
    quota_release(workload->quota);
    workload->magic = 0;
    free(workload);
}

/* ---- the table ---- */

static struct link *workload_bucket(struct worker *worker, uint64_t key)
{
    return &worker->workloads.buckets[key % WORKLOAD_BUCKETS];
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
        link_each(at, next, &worker->workloads.buckets[i])
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

void workload_enter(struct worker *worker, struct workload *workload)
{
    link_append(workload_bucket(worker, workload->key), &workload->link);
    workloads_each(worker, workload_note_neighbour, workload);
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

/* ---- its connections ---- */

int mark_is_host_released(uint32_t mark)
{
    return (mark & 0xffffff00u) == NS_MARK_HOST_RELEASED;
}

int workload_raw(struct workload *workload, int is_v4, uint32_t mark)
{
    int *fd = &workload->raw[is_v4 ? 0 : 1];
    int family = is_v4 ? AF_INET : AF_INET6;
    uint32_t own = mark_is_host_released(mark) ? mark : 0;
    return *fd >= 0 ? *fd : kept(workload, fd, socket_raw_in(&workload->netns, family, own));
}

int workload_raw_native(struct workload *workload, int is_v4)
{
    int *fd = &workload->native[is_v4 ? 0 : 1];
    int family = is_v4 ? AF_INET : AF_INET6;
    return *fd >= 0 ? *fd : kept(workload, fd, socket_raw_in(&workload->netns, family, NS_MARK_NATIVE));
}

uint16_t workload_path_mss(struct workload *workload, const struct ns_address *to, uint32_t mark)
{
    int is_v4 = address_is_v4(to);
    int *fd = &workload->path[is_v4 ? 0 : 1];
    if (*fd < 0)
        (void)kept(workload, fd, socket_path_in(&workload->netns, is_v4 ? AF_INET : AF_INET6, mark));
    uint32_t headers = is_v4 ? 40 : 60;
    uint32_t mtu = *fd >= 0 ? socket_path_mtu(*fd, to) : 0;
    if (*fd >= 0 && mtu == 0 && (errno == ENETUNREACH || errno == EHOSTUNREACH))
        return 0;
    return (uint16_t)(mtu == 0 ? PATH_MTU_USUAL - headers : mtu - headers);
}

int workload_asking(struct workload *workload)
{
    if (workload->asking < 0)
        workload->asking = socket_asking_in(&workload->netns);
    return workload->asking;
}

void workload_question(const struct workload *workload, const struct ns_address *destination,
                       struct ns_question *question)
{
    memset(question, 0, sizeof(*question));
    question->workload = workload->key;
    question->kind = NS_ASK_OUTBOUND;
    question->source = workload->address;
    question->destination = *destination;
}

void workload_note_refused(struct worker *worker, struct workload *workload, const struct refusal *refusal)
{
    refusals_note(workload->quota->refusals, refusal, worker->now_ms);
    struct ns_event *event = events_room(&worker->events, NS_EVENT_REFUSED);
    if (event == NULL)
        return;
    event->ago_ms = worker->now_ms;
    refusal_describe(refusal, workload->key, &event->refusal);
    events_put(&worker->events);
}

/* One event in a second for each limit. */
static void tell_limit(struct worker *worker, struct workload *workload, enum ns_limit limit)
{
    workload->limit_untold[limit]++;
    if (workload->limit_told_ms[limit] != 0 &&
        worker->now_ms - workload->limit_told_ms[limit] < REFUSALS_APART_MS)
        return;
    struct ns_event *event = events_room(&worker->events, NS_EVENT_LIMIT);
    if (event == NULL)
        return;
    event->ago_ms = worker->now_ms;
    event->limit.workload = workload->key;
    event->limit.limit = limit;
    event->limit.value = quota_refused_at(workload->quota, limit);
    event->limit.refused = workload->limit_untold[limit];
    events_put(&worker->events);
    workload->limit_told_ms[limit] = worker->now_ms;
    workload->limit_untold[limit] = 0;
}

void workload_show_refused(struct worker *worker, struct workload *workload, enum ns_direction direction,
                           const struct ns_address *source, const struct ns_address *destination,
                           enum ns_limit limit)
{
    tell_limit(worker, workload, limit);
    if (direction == NS_INBOUND) {
        const struct refusal refusal = {
            .kind = destination->port == NS_HBONE_PORT ? NS_REFUSED_HANDSHAKE : NS_REFUSED_PLAINTEXT,
            .direction = NS_INBOUND,
            .source = *source,
            .destination = *destination,
            .reason = quota_reason(limit),
        };
        workload_note_refused(worker, workload, &refusal);
        return;
    }
    if (workload->refusal_shown_ms[limit] != 0 &&
        worker->now_ms - workload->refusal_shown_ms[limit] < REFUSALS_APART_MS)
        return;
    workload->refusal_shown_ms[limit] = worker->now_ms;
    struct ns_connection *row = closed_add(&worker->closed, worker->now_ms);
    row->id = worker_next_id(worker);
    row->workload = workload->key;
    row->direction = direction;
    row->source = *source;
    row->destination = row->endpoint = *destination;
    snprintf(row->reason, sizeof(row->reason), "%s", quota_reason(limit));
    events_connection(&worker->events, NS_EVENT_FAILED, row, worker->now_ms);
}
