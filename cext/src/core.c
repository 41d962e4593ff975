/*
 * core.c: the public interface (include/nodeseal_core.h): turns calls into commands for the workers, keeps
 * the register of workloads that validates them, and holds the queue of questions for Python.
 *
 * Every call is made under `mutex`, except waiting for questions. Workers take only the question queue's
 * mutex, for the time it takes to link one element.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

enum { CORE_MAGIC = 0x6e736372, WORKERS_MAX = 64, QUESTIONS_MAX = 65536 };

struct queued_question {
    struct queued_question *next;
    struct ns_question question;
};

struct registered {
    struct link link;
    uint64_t key;
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

    pthread_mutex_t questions_mutex;
    pthread_cond_t questions_ready;
    struct queued_question *questions_head;
    struct queued_question **questions_tail;
    uint32_t questions_count;
    uint64_t questions_asked;
    int stopping;
};

/* ---- questions ---- */

int core_ask(struct core *core, const struct ns_question *question)
{
    struct queued_question *queued = ns_alloc(sizeof(*queued));
    queued->question = *question;
    pthread_mutex_lock(&core->questions_mutex);
    int full = core->questions_count >= QUESTIONS_MAX;
    if (!full) {
        *core->questions_tail = queued;
        core->questions_tail = &queued->next;
        core->questions_count++;
        core->questions_asked++;
        pthread_cond_signal(&core->questions_ready);
    }
    pthread_mutex_unlock(&core->questions_mutex);
    if (full)
        free(queued);
    return full ? -1 : 0;
}

/* Takes up to `capacity` elements off the queue, linked; the mutex is held. */
static struct queued_question *questions_take(struct core *core, size_t capacity)
{
    struct queued_question *first = core->questions_head;
    struct queued_question **at = &core->questions_head;
    for (; capacity > 0 && *at != NULL; capacity--) {
        at = &(*at)->next;
        core->questions_count--;
    }
    struct queued_question *rest = *at;
    *at = NULL;
    core->questions_head = rest;
    if (rest == NULL)
        core->questions_tail = &core->questions_head;
    return first;
}

size_t core_next_questions(struct core *core, struct ns_question *questions, size_t capacity,
                           uint32_t timeout_ms)
{
    NS_CHECK(core, CORE_MAGIC);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    struct queued_question *queued = NULL;
    pthread_mutex_lock(&core->questions_mutex);
    while (core->questions_head == NULL && !core->stopping)
        if (pthread_cond_timedwait(&core->questions_ready, &core->questions_mutex, &until) == ETIMEDOUT)
            break;
    if (!core->stopping && core->questions_head != NULL)
        queued = questions_take(core, capacity);
    pthread_mutex_unlock(&core->questions_mutex);
    size_t count = 0;
    while (queued != NULL) {
        struct queued_question *next = queued->next;
        questions[count++] = queued->question;
        free(queued);
        queued = next;
    }
    return count;
}

void core_answer(struct core *core, const struct ns_answer *answer)
{
    NS_CHECK(core, CORE_MAGIC);
    uint64_t index = answer->id >> 56;
    if (index >= core->worker_count)
        return;
    struct command *command = command_new(COMMAND_ANSWER, 0);
    command->decision = decision_new(answer); /* without the room for endpoints that it does not name */
    worker_post(&core->workers[index], command);
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

static int fail(char *error, size_t error_size, const char *what, int number)
{
    snprintf(error, error_size, number == 0 ? "%s" : "%s: %s", what, strerror(number));
    return -1;
}

/* Posts one command to each worker, with its own duplicate of fd if there is one. All or none. */
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
    for (uint32_t i = 0; i < core->worker_count; i++)
        worker_post(&core->workers[i], commands[i]);
    return 0;
}

int core_workload_add(struct core *core, uint64_t workload, int netns_fd, const struct ns_address *address,
                      char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    if (registered_find(core, workload) != NULL) {
        fail(error, error_size, "a workload with this key exists", 0);
    } else {
        struct command like = {.kind = COMMAND_ADD, .workload = workload, .address = *address};
        like.serial = ++core->next_serial;
        like.address.port = 0;
        result = post_all(core, &like, netns_fd, error, error_size);
    }
    if (result == 0) {
        struct registered *registered = ns_alloc(sizeof(*registered));
        registered->key = workload;
        link_append(&core->registered, &registered->link);
    }
    pthread_mutex_unlock(&core->mutex);
    return result;
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
        worker_post(&core->workers[i], command);
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

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ? -1 : 0;
}

int core_workload_listen(struct core *core, uint64_t workload, int role, int fd, char *error,
                         size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->mutex);
    int result = -1;
    if (registered_for(core, workload, role, error, error_size) != NULL) {
        int own = set_nonblocking(fd) == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
        if (own < 0) {
            fail(error, error_size, "the listener is no usable descriptor", errno);
        } else {
            struct command *command = command_new(COMMAND_LISTEN, workload);
            command->role = role;
            command->fd = own;
            worker_post(&core->workers[workload % core->worker_count], command);
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
    if (registered_for(core, workload, role, error, error_size) != NULL) {
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
        link_remove(&registered->link);
        free(registered);
    }
    pthread_mutex_unlock(&core->mutex);
    return result;
}

void core_retire(struct core *core)
{
    NS_CHECK(core, CORE_MAGIC);
    char error[NS_REASON_MAX];
    struct command like = {.kind = COMMAND_RETIRE};
    pthread_mutex_lock(&core->mutex);
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

/* ---- snapshots ---- */

static void snapshot_begin(struct core *core, struct snapshot *snapshot, int want_connections)
{
    memset(snapshot, 0, sizeof(*snapshot));
    pthread_mutex_init(&snapshot->mutex, NULL);
    pthread_cond_init(&snapshot->done, NULL);
    snapshot->missing = core->worker_count;
    snapshot->want_connections = want_connections;
    snapshot->parts = ns_alloc(core->worker_count * sizeof(snapshot->parts[0]));
    for (uint32_t i = 0; i < core->worker_count; i++) {
        struct command *command = command_new(COMMAND_SNAPSHOT, 0);
        command->snapshot = snapshot;
        worker_post(&core->workers[i], command);
    }
    pthread_mutex_lock(&snapshot->mutex);
    while (snapshot->missing > 0)
        pthread_cond_wait(&snapshot->done, &snapshot->mutex);
    pthread_mutex_unlock(&snapshot->mutex);
}

static void snapshot_end(struct core *core, struct snapshot *snapshot)
{
    for (uint32_t i = 0; i < core->worker_count; i++) {
        free(snapshot->parts[i].connections);
        free(snapshot->parts[i].workloads);
    }
    free(snapshot->parts);
    pthread_cond_destroy(&snapshot->done);
    pthread_mutex_destroy(&snapshot->mutex);
}

size_t core_connections(struct core *core, struct ns_connection *out, size_t capacity)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    size_t total = 0;
    snapshot_begin(core, &snapshot, 1);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        const struct snapshot_part *part = &snapshot.parts[i];
        for (size_t j = 0; j < part->connection_count; j++, total++)
            if (total < capacity)
                out[total] = part->connections[j];
    }
    snapshot_end(core, &snapshot);
    return total;
}

/* The workloads are the same on every worker, in an order of their own: sums by key. */
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
    snapshot_begin(core, &snapshot, 0);
    const struct snapshot_part *first = &snapshot.parts[0];
    size_t total = first->workload_count;
    for (size_t i = 0; i < total && i < capacity; i++) {
        out[i] = first->workloads[i];
        for (uint32_t w = 1; w < core->worker_count; w++)
            for (size_t j = 0; j < snapshot.parts[w].workload_count; j++)
                if (snapshot.parts[w].workloads[j].workload == out[i].workload)
                    stats_add(&out[i], &snapshot.parts[w].workloads[j]);
    }
    snapshot_end(core, &snapshot);
    return total;
}

void core_stats(struct core *core, struct ns_core_stats *out)
{
    NS_CHECK(core, CORE_MAGIC);
    struct snapshot snapshot;
    struct latencies decisions = {{0}};
    memset(out, 0, sizeof(*out));
    snapshot_begin(core, &snapshot, 0);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        out->live_connections += snapshot.parts[i].live_connections;
        out->live_tunnels += snapshot.parts[i].live_tunnels;
        out->cache_hits += snapshot.parts[i].cache_hits;
        latencies_merge(&decisions, &snapshot.parts[i].decisions);
    }
    out->decision_p50_ns = latencies_percentile(&decisions, 50);
    out->decision_p99_ns = latencies_percentile(&decisions, 99);
    snapshot_end(core, &snapshot);
    pthread_mutex_lock(&core->mutex);
    out->epoch = core->epoch;
    pthread_mutex_unlock(&core->mutex);
    out->workers = core->worker_count;
    pthread_mutex_lock(&core->questions_mutex);
    out->questions = core->questions_asked;
    pthread_mutex_unlock(&core->questions_mutex);
}

/* ---- life ---- */

/* 0, or -1 with error: what the kernel lacks is told now and not by each connection. */
static int try_congestion_control(const char *name, char *error, size_t error_size)
{
    if (name[0] == 0)
        return 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int failed = fd < 0 || socket_congestion(fd, name) != 0;
    int number = errno;
    if (fd >= 0)
        close(fd);
    if (failed)
        snprintf(error, error_size, "congestion control %s cannot be used: %s", name, strerror(number));
    return failed ? -1 : 0;
}

struct core *core_start(const struct core_options *options, char *error, size_t error_size)
{
    if (options->workers < 1 || options->workers > WORKERS_MAX) {
        fail(error, error_size, "the number of workers must be 1 to 64", 0);
        return NULL;
    }
    if (try_congestion_control(options->congestion_control, error, error_size) != 0)
        return NULL;
    struct core *core = ns_alloc(sizeof(*core));
    core->magic = CORE_MAGIC;
    core->options = *options;
    core->options.congestion_control[sizeof(core->options.congestion_control) - 1] = 0;
    core->options.trust_domain[sizeof(core->options.trust_domain) - 1] = 0;
    core->questions_tail = &core->questions_head;
    link_init(&core->registered);
    pthread_mutex_init(&core->mutex, NULL);
    pthread_mutex_init(&core->questions_mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&core->questions_ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    core->workers = ns_alloc(options->workers * sizeof(core->workers[0]));
    for (uint32_t i = 0; i < options->workers; i++) {
        core->workers[i].options = &core->options;
        core->workers[i].all = core->workers;
        core->workers[i].all_count = options->workers;
        if (worker_start(&core->workers[i], core, i, error, error_size) != 0) {
            core_stop(core);
            return NULL;
        }
        core->worker_count = i + 1;
    }
    return core;
}

void core_stop(struct core *core)
{
    NS_CHECK(core, CORE_MAGIC);
    pthread_mutex_lock(&core->questions_mutex);
    core->stopping = 1;
    pthread_cond_broadcast(&core->questions_ready);
    pthread_mutex_unlock(&core->questions_mutex);
    for (uint32_t i = 0; i < core->worker_count; i++)
        worker_post(&core->workers[i], command_new(COMMAND_STOP, 0));
    for (uint32_t i = 0; i < core->worker_count; i++)
        worker_join(&core->workers[i]);
    while (core->questions_head != NULL) {
        struct queued_question *next = core->questions_head->next;
        free(core->questions_head);
        core->questions_head = next;
    }
    while (!link_empty(&core->registered)) {
        struct registered *registered = container_of(core->registered.next, struct registered, link);
        link_remove(&registered->link);
        free(registered);
    }
    pthread_cond_destroy(&core->questions_ready);
    pthread_mutex_destroy(&core->questions_mutex);
    pthread_mutex_destroy(&core->mutex);
    core->magic = 0;
    free(core->workers);
    free(core);
}
