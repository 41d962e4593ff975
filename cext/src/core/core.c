/*
 * core.c: see core.h. Turns public calls into commands for the workers. What is told to the caller is in
 * reports.c, what concerns certificates in identity.c.
 */
#define _GNU_SOURCE
#include "core/core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/snapshot.h"
#include "core/thread.h"
#include "loop/packet_queue.h"
#include "loop/workload.h"

enum {
    PIPES_POOLED = 2 * SPLICE_PIPES_KEPT, /* descriptors of a worker that belong to no workload */
};

/* ---- questions ---- */

size_t core_next_questions(struct core *core, struct ns_question *questions, size_t capacity,
                           uint32_t timeout_ms)
{
    NS_CHECK(core, CORE_MAGIC);
    return questions_next(&core->questions, questions, capacity, timeout_ms);
}

void core_answer(struct core *core, const struct ns_answer *answer)
{
    NS_CHECK(core, CORE_MAGIC);
    uint64_t index = answer->id >> 56;
    if (index >= core->worker_count)
        return;
    struct command *command = command_new(COMMAND_ANSWER, 0);
    command->decision = decision_new(answer); /* without the room for endpoints that it does not name */
    mailbox_post(&core->workers[index].mailbox, command);
}

/* ---- the register ---- */

struct registered *registered_find(struct core *core, uint64_t key)
{
    struct link *at, *next;
    link_each(at, next, &core->registered)
    {
        struct registered *registered = container_of(at, struct registered, link);
        if (registered->key == key)
            return registered;
    }
    return NULL;
}

/* The roles that it listens in from now on. The copies of the others' descriptors are given up. */
static void registered_listens(struct core *core, struct registered *registered, uint32_t roles)
{
    descriptors_change(&core->descriptors,
                       __builtin_popcount(roles) - __builtin_popcount(registered->listens));
    registered->listens = roles;
}

static void registered_free(struct registered *registered)
{
    link_remove(&registered->link);
    quota_release(registered->quota);
    free(registered);
}

int core_fail(char *error, size_t error_size, const char *what, int number)
{
    snprintf(error, error_size, number == 0 ? "%s" : "%s: %s", what, strerror(number));
    return -1;
}

/* Common to calls for a role: the workload must be known and the role be one. NULL with error. */
static struct registered *registered_for(struct core *core, uint64_t workload, int role, char *error,
                                         size_t error_size)
{
    struct registered *registered = registered_find(core, workload);
    if (registered == NULL)
        core_fail(error, error_size, "no workload has this key", 0);
    else if (role < 0 || role >= LISTENER_ROLES) {
        core_fail(error, error_size, "no such listener role", 0);
        registered = NULL;
    }
    return registered;
}

/* ---- commands ---- */

/* Posts one command to each worker, with its own duplicate of fd if there is one, and its own references to
 * the quota and the concern if there are any. All or none. */
static int post_all(struct core *core, const struct command *like, int fd, char *error, size_t error_size)
{
    struct command *commands[WORKERS_MAX];
    for (uint32_t i = 0; i < core->worker_count; i++) {
        commands[i] = command_new(like->kind, like->workload);
        *commands[i] = *like;
        commands[i]->fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (fd >= 0 && commands[i]->fd < 0) {
            int number = errno;
            for (uint32_t j = 0; j <= i; j++) {
                if (commands[j]->fd >= 0)
                    close(commands[j]->fd);
                free(commands[j]);
            }
            return core_fail(error, error_size, "the descriptor cannot be duplicated", number);
        }
    }
    for (uint32_t i = 0; i < core->worker_count; i++) {
        if (like->quota != NULL)
            quota_hold(like->quota);
        (void)concern_hold(like->concern);
        mailbox_post(&core->workers[i].mailbox, commands[i]);
    }
    return 0;
}

int core_workload_add(struct core *core, uint64_t workload, int netns_fd, const struct ns_address *address,
                      char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    struct quota *quota = quota_new(workload, &core->descriptors, &core->limits_due);
    quota->refusals = refusals_new(workload, &core->refusals_due);
    if (registered_find(core, workload) != NULL) {
        core_fail(error, error_size, "a workload with this key exists", 0);
    } else {
        struct command like = {
            .kind = COMMAND_ADD, .workload = workload, .address = *address, .quota = quota};
        like.serial = ++core->next_serial;
        like.address.port = 0;
        result = post_all(core, &like, netns_fd, error, error_size);
    }
    if (result == 0) {
        struct registered *registered = ns_alloc(sizeof(*registered));
        registered->key = workload;
        registered->quota = quota;
        link_append(&core->registered, &registered->link);
        descriptors_change(&core->descriptors, core->worker_count * WORKLOAD_DESCRIPTORS);
    } else {
        quota_release(quota);
    }
    pthread_mutex_unlock(&core->mutex);
    return result;
}

int core_workload_limits(struct core *core, uint64_t workload, const struct ns_limits *limits, char *error,
                         size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    struct registered *registered = registered_find(core, workload);
    if (registered != NULL)
        quota_set_limits(registered->quota, limits);
    pthread_mutex_unlock(&core->mutex);
    return registered != NULL ? 0 : core_fail(error, error_size, "no workload has this key", 0);
}

/* Whether SYNs can be read from it: the caller is told, for nobody would answer what is parked there. */
static int parks(int fd)
{
    struct ring ring = {0};
    if (packet_queue_is(fd))
        return 1;
    if (ring_open(&ring, fd, ring_size(fd)) != 0)
        return 0;
    ring_close(&ring);
    return 1;
}

int core_workload_listen(struct core *core, uint64_t workload, int role, int fd, char *error,
                         size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    struct registered *registered = registered_for(core, workload, role, error, error_size);
    if (registered != NULL) {
        int usable = (role != NS_LISTEN_PARKED || parks(fd)) && socket_set_nonblocking(fd) == 0;
        int own = usable ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
        if (own < 0) {
            core_fail(error, error_size, "the listener is no usable descriptor", errno);
        } else {
            struct command *command = command_new(COMMAND_LISTEN, workload);
            command->role = role;
            command->fd = own;
            mailbox_post(&core->workers[workload % core->worker_count].mailbox, command);
            registered_listens(core, registered, registered->listens | 1u << role);
            result = 0;
        }
    }
    pthread_mutex_unlock(&core->mutex);
    return result;
}

/* Until the workers have done all that was asked of them so far. */
static void core_wait(struct core *core)
{
    struct snapshot snapshot;
    snapshot_begin(&snapshot, core->workers, core->worker_count, SNAPSHOT_NO_MORE);
    snapshot_end(&snapshot);
}

int core_workload_unlisten(struct core *core, uint64_t workload, int role, char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    struct registered *registered = registered_for(core, workload, role, error, error_size);
    if (registered != NULL) {
        registered_listens(core, registered, registered->listens & ~(1u << role));
        struct command like = {.kind = COMMAND_UNLISTEN, .workload = workload, .role = role};
        result = post_all(core, &like, -1, error, error_size);
    }
    pthread_mutex_unlock(&core->mutex);
    if (result == 0 && role == NS_LISTEN_PARKED)
        core_wait(core);
    return result;
}

int core_workload_remove(struct core *core, uint64_t workload, char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    struct registered *registered = registered_for(core, workload, 0, error, error_size);
    if (registered != NULL) {
        struct command like = {.kind = COMMAND_REMOVE, .workload = workload};
        result = post_all(core, &like, -1, error, error_size);
        registered_listens(core, registered, 0);
        registered_free(registered);
    }
    pthread_mutex_unlock(&core->mutex);
    return result;
}

void core_retire(struct core *core)
{
    NS_CHECK(core, CORE_MAGIC);
    char error[NS_REASON_MAX];
    struct command like = {.kind = COMMAND_RETIRE};
    struct link *at, *next;
    pthread_mutex_lock(&core->mutex);
    link_each(at, next, &core->registered)
        registered_listens(core, container_of(at, struct registered, link), 0);
    (void)post_all(core, &like, -1, error, sizeof(error));
    pthread_mutex_unlock(&core->mutex);
}

void core_epoch(struct core *core, uint64_t epoch, const struct ns_concern *concern)
{
    NS_CHECK(core, CORE_MAGIC);
    char error[NS_REASON_MAX];
    struct concern *shared = concern_new(concern);
    pthread_mutex_lock(&core->mutex);
    if (epoch > core->epoch) {
        core->epoch = epoch;
        struct command like = {.kind = COMMAND_EPOCH, .epoch = epoch, .concern = shared};
        (void)post_all(core, &like, -1, error, sizeof(error));
    }
    pthread_mutex_unlock(&core->mutex);
    concern_release(shared);
}

void core_publish(struct core *core, const uint8_t *addresses, size_t count)
{
    NS_CHECK(core, CORE_MAGIC);
    published_add(&core->published, addresses, count);
}

void core_withdraw(struct core *core, const uint8_t *addresses, size_t count)
{
    NS_CHECK(core, CORE_MAGIC);
    published_remove(&core->published, addresses, count);
}

/* ---- life ---- */

static struct placement *places_new(uint32_t count)
{
    struct placement *places = aligned_alloc(_Alignof(struct placement), count * sizeof(places[0]));
    if (places == NULL)
        abort();
    memset(places, 0, count * sizeof(places[0]));
    return places;
}

struct core *core_start(const struct core_options *options, char *error, size_t error_size)
{
    if (options->workers < 1 || options->workers > WORKERS_MAX) {
        core_fail(error, error_size, "the number of workers must be 1 to 64", 0);
        return NULL;
    }
    /* What the kernel lacks is told now and not by each connection. */
    if (options->congestion_control[0] != 0 && socket_try_congestion(options->congestion_control) != 0) {
        snprintf(error, error_size, "congestion control %s cannot be used: %s", options->congestion_control,
                 strerror(errno));
        return NULL;
    }
    struct core *core = ns_alloc(sizeof(*core));
    core->magic = CORE_MAGIC;
    core->options = *options;
    core->options.congestion_control[sizeof(core->options.congestion_control) - 1] = 0;
    core->options.trust_domain[sizeof(core->options.trust_domain) - 1] = 0;
    link_init(&core->registered);
    pthread_mutex_init(&core->mutex, NULL);
    questions_init(&core->questions);
    published_init(&core->published);
    revoked_init(&core->revoked);
    descriptors_init(&core->descriptors, (uint64_t)options->workers * STRANGERS_OF_WORKER_IN_ALL);
    core->workers = ns_alloc(options->workers * sizeof(core->workers[0]));
    core->context = (struct context){
        .options = &core->options,
        .published = &core->published,
        .revoked = &core->revoked,
        .questions = &core->questions,
        .places = places_new(options->workers),
        .workers = core->workers,
        .worker_count = options->workers,
    };
    for (uint32_t i = 0; i < options->workers; i++) {
        if (thread_start(&core->workers[i], &core->context, i, error, error_size) != 0) {
            core_stop(core);
            return NULL;
        }
        core->worker_count = i + 1;
    }
    descriptors_change(&core->descriptors, descriptors_open() + core->worker_count * PIPES_POOLED);
    return core;
}

void core_stop(struct core *core)
{
    NS_CHECK(core, CORE_MAGIC);
    questions_stop(&core->questions);
    for (uint32_t i = 0; i < core->worker_count; i++)
        mailbox_post(&core->workers[i].mailbox, command_new(COMMAND_STOP, 0));
    for (uint32_t i = 0; i < core->worker_count; i++)
        thread_join(&core->workers[i]);
    questions_dispose(&core->questions);
    published_dispose(&core->published);
    revoked_dispose(&core->revoked);
    while (!link_empty(&core->registered))
        registered_free(container_of(core->registered.next, struct registered, link));
    pthread_mutex_destroy(&core->mutex);
    core->magic = 0;
    free(core->context.places);
    free(core->workers);
    free(core);
}
