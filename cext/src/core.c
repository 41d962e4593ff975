/*
 * core.c: the public interface (include/nodeseal_core.h): turns calls into commands for the workers, keeps
 * the register of workloads that validates them, and holds the queue of questions for Python.
 *
 * Every call is made under `mutex`, except waiting for questions (questions.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "loop/published.h"
#include "decisions/questions.h"
#include "snapshot.h"
#include "loop/worker.h"

enum {
    CORE_MAGIC = 0x6e736372,
    WORKERS_MAX = 64,
    NOTICES_APART_MS = 500,               /* between two looks for notices */
    PIPES_POOLED = 2 * SPLICE_PIPES_KEPT, /* descriptors of a worker that belong to no workload */
};

struct registered {
    struct link link;
    uint64_t key;
    struct quota *quota; /* held */
    uint32_t listens;    /* bit r: in role r, and the process keeps a copy of that listener's descriptor */
};

struct core {
    uint32_t magic;
    struct core_options options;
    struct worker *workers;
    uint32_t worker_count;

    pthread_mutex_t mutex;
    struct link registered;
    uint64_t next_serial; /* of network namespaces; 0 is the process's own */
    uint64_t epoch;
    uint64_t noticed_ms; /* when notices were last looked for */
    struct descriptors descriptors;
    uint32_t notices;     /* atomic: 1 when there may be some */
    uint32_t refusal_due; /* same, of refusals */
    uint64_t refusal_ms;  /* when those were last looked for */

    struct questions questions;
    struct published published;
};

/* ---- questions ---- */

int core_ask(struct core *core, struct quota *quota, const struct ns_question *question)
{
    return questions_put(&core->questions, quota, question);
}

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

/* ---- commands ---- */

static struct registered *registered_find(struct core *core, uint64_t key)
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

static int fail(char *error, size_t error_size, const char *what, int number)
{
    snprintf(error, error_size, number == 0 ? "%s" : "%s: %s", what, strerror(number));
    return -1;
}

/* Posts one command to each worker, with its own duplicate of fd if there is one, and its own reference to
 * the quota if there is one. All or none. */
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
            return fail(error, error_size, "the descriptor cannot be duplicated", number);
        }
    }
    for (uint32_t i = 0; i < core->worker_count; i++) {
        if (like->quota != NULL)
            quota_hold(like->quota);
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
    struct quota *quota = quota_new(workload, &core->descriptors, &core->notices);
    quota->refusals = refusals_new(workload, &core->refusal_due);
    if (registered_find(core, workload) != NULL) {
        fail(error, error_size, "a workload with this key exists", 0);
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
        descriptors_change(&core->descriptors, core->worker_count);
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
    return registered != NULL ? 0 : fail(error, error_size, "no workload has this key", 0);
}

size_t core_limit_notices(struct core *core, struct ns_limit_notice *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    if (__atomic_load_n(&core->notices, __ATOMIC_ACQUIRE) == 0)
        return 0;
    size_t count = 0;
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    pthread_mutex_lock(&core->mutex);
    if (now_ms - core->noticed_ms >= NOTICES_APART_MS) {
        core->noticed_ms = now_ms;
        __atomic_store_n(&core->notices, 0, __ATOMIC_RELEASE);
        struct link *at, *next;
        link_each(at, next, &core->registered)
        {
            struct quota *quota = container_of(at, struct registered, link)->quota;
            while (count < capacity && quota_notice(quota, now_ms, &out[count]))
                count++;
        }
    }
    pthread_mutex_unlock(&core->mutex);
    return count;
}

size_t core_refusal_notices(struct core *core, struct ns_refusal *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    if (__atomic_load_n(&core->refusal_due, __ATOMIC_ACQUIRE) == 0)
        return 0;
    size_t count = 0;
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    pthread_mutex_lock(&core->mutex);
    if (now_ms - core->refusal_ms >= NOTICES_APART_MS) {
        core->refusal_ms = now_ms;
        __atomic_store_n(&core->refusal_due, 0, __ATOMIC_RELEASE);
        struct link *at, *next;
        link_each(at, next, &core->registered)
        {
            struct quota *quota = container_of(at, struct registered, link)->quota;
            while (count < capacity && refusals_notice(quota->refusals, now_ms, &out[count]))
                count++;
        }
        if (count == capacity)
            __atomic_store_n(&core->refusal_due, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&core->mutex);
    return count;
}

size_t core_refusals(struct core *core, struct ns_refusal *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    size_t total = 0;
    uint64_t now_ms = clock_us(CLOCK_MONOTONIC) / 1000;
    struct link *at, *next;
    pthread_mutex_lock(&core->mutex);
    link_each(at, next, &core->registered)
    {
        struct quota *quota = container_of(at, struct registered, link)->quota;
        size_t written = total < capacity ? total : capacity;
        total += refusals_list(quota->refusals, now_ms, out + written, capacity - written);
    }
    pthread_mutex_unlock(&core->mutex);
    return total;
}

int core_workload_credentials(struct core *core, uint64_t workload, const char *chain_pem,
                              const char *key_pem, const char *bundle_pem, char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    struct tls_credentials made[WORKERS_MAX];
    /* Made here, each in its worker's library context, so that no worker spends time on parsing. */
    for (uint32_t i = 0; i < core->worker_count; i++) {
        if (tls_credentials_init(&made[i], core->workers[i].libctx, chain_pem, key_pem, bundle_pem, error,
                                 error_size) != 0) {
            while (i-- > 0)
                tls_credentials_dispose(&made[i]);
            return -1;
        }
    }
    pthread_mutex_lock(&core->mutex);
    int known = registered_find(core, workload) != NULL;
    for (uint32_t i = 0; i < core->worker_count; i++) {
        if (!known) {
            tls_credentials_dispose(&made[i]);
            continue;
        }
        struct command *command = command_new(COMMAND_CREDENTIALS, workload);
        command->credentials = made[i];
        mailbox_post(&core->workers[i].mailbox, command);
    }
    pthread_mutex_unlock(&core->mutex);
    return known ? 0 : fail(error, error_size, "no workload has this key", 0);
}

/* Common to the calls below: the workload must be known and the role one of the three. NULL with error. */
static struct registered *registered_for(struct core *core, uint64_t workload, int role, char *error,
                                         size_t error_size)
{
    struct registered *registered = registered_find(core, workload);
    if (registered == NULL)
        fail(error, error_size, "no workload has this key", 0);
    else if (role < 0 || role >= LISTENER_ROLES) {
        fail(error, error_size, "no such listener role", 0);
        registered = NULL;
    }
    return registered;
}

int core_workload_listen(struct core *core, uint64_t workload, int role, int fd, char *error,
                         size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    struct registered *registered = registered_for(core, workload, role, error, error_size);
    if (registered != NULL) {
        int own = socket_set_nonblocking(fd) == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
        if (own < 0) {
            fail(error, error_size, "the listener is no usable descriptor", errno);
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

void core_epoch(struct core *core, uint64_t epoch)
{
    NS_CHECK(core, CORE_MAGIC);
    char error[NS_REASON_MAX];
    pthread_mutex_lock(&core->mutex);
    if (epoch > core->epoch) {
        core->epoch = epoch;
        struct command like = {.kind = COMMAND_EPOCH, .epoch = epoch};
        (void)post_all(core, &like, -1, error, sizeof(error));
    }
    pthread_mutex_unlock(&core->mutex);
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

/* ---- snapshots ---- */

size_t core_connections(struct core *core, struct ns_connection *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    size_t total = 0;
    snapshot_begin(&snapshot, core->workers, core->worker_count, 1);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        const struct snapshot_part *part = &snapshot.parts[i];
        for (size_t j = 0; j < part->connection_count; j++, total++)
            if (total < capacity)
                out[total] = part->connections[j];
    }
    snapshot_end(&snapshot);
    return total;
}

/* The workloads are the same on every worker, in an order of their own: sums by key. What the quota tells is
 * of all workers already. */
static void stats_add(struct ns_workload_stats *sum, const struct ns_workload_stats *part)
{
    sum->connections += part->connections;
    sum->tunnels += part->tunnels;
    sum->accepted += part->accepted;
    sum->tunnelled += part->tunnelled;
    sum->plaintext += part->plaintext;
    sum->refused += part->refused;
    sum->failed += part->failed;
    sum->tls_failed += part->tls_failed;
}

size_t core_workload_stats(struct core *core, struct ns_workload_stats *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    snapshot_begin(&snapshot, core->workers, core->worker_count, 0);
    const struct snapshot_part *first = &snapshot.parts[0];
    size_t total = first->workload_count;
    for (size_t i = 0; i < total && i < capacity; i++) {
        out[i] = first->workloads[i];
        for (uint32_t w = 1; w < core->worker_count; w++)
            for (size_t j = 0; j < snapshot.parts[w].workload_count; j++)
                if (snapshot.parts[w].workloads[j].workload == out[i].workload)
                    stats_add(&out[i], &snapshot.parts[w].workloads[j]);
    }
    snapshot_end(&snapshot);
    return total;
}

void core_stats(struct core *core, struct ns_core_stats *out)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    struct latencies decisions = {{0}};
    memset(out, 0, sizeof(*out));
    snapshot_begin(&snapshot, core->workers, core->worker_count, 0);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        out->live_connections += snapshot.parts[i].live_connections;
        out->live_tunnels += snapshot.parts[i].live_tunnels;
        out->cache_hits += snapshot.parts[i].cache_hits;
        out->strangers += snapshot.parts[i].strangers;
        out->strangers_ended += snapshot.parts[i].strangers_ended;
        out->strangers_slowed += snapshot.parts[i].strangers_slowed;
        latencies_merge(&decisions, &snapshot.parts[i].decisions);
    }
    out->decision_p50_ns = latencies_percentile(&decisions, 50);
    out->decision_p99_ns = latencies_percentile(&decisions, 99);
    snapshot_end(&snapshot);
    pthread_mutex_lock(&core->mutex);
    out->epoch = core->epoch;
    pthread_mutex_unlock(&core->mutex);
    out->workers = core->worker_count;
    out->descriptors = __atomic_load_n(&core->descriptors.used, __ATOMIC_RELAXED) +
                       __atomic_load_n(&core->descriptors.strangers, __ATOMIC_RELAXED);
    (void)descriptors_left(&core->descriptors, clock_us(CLOCK_MONOTONIC) / 1000);
    out->descriptor_limit = __atomic_load_n(&core->descriptors.limit, __ATOMIC_RELAXED);
    out->questions = questions_asked(&core->questions);
}

/* ---- life ---- */

struct core *core_start(const struct core_options *options, char *error, size_t error_size)
{
    if (options->workers < 1 || options->workers > WORKERS_MAX) {
        fail(error, error_size, "the number of workers must be 1 to 64", 0);
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
    descriptors_init(&core->descriptors, (uint64_t)options->workers * STRANGERS_OF_WORKER_IN_ALL);
    core->workers = ns_alloc(options->workers * sizeof(core->workers[0]));
    for (uint32_t i = 0; i < options->workers; i++) {
        core->workers[i].options = &core->options;
        core->workers[i].all = core->workers;
        core->workers[i].all_count = options->workers;
        core->workers[i].published = &core->published;
        if (worker_start(&core->workers[i], core, i, error, error_size) != 0) {
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
        worker_join(&core->workers[i]);
    questions_dispose(&core->questions);
    published_dispose(&core->published);
    while (!link_empty(&core->registered))
        registered_free(container_of(core->registered.next, struct registered, link));
    pthread_mutex_destroy(&core->mutex);
    core->magic = 0;
    free(core->workers);
    free(core);
}
