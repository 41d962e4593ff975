/*
 * core.h: what is behind the public interface (nodeseal_core.h): the workers, and the register of workloads
 * that validates calls about them.
 */
#ifndef NS_CORE_H
#define NS_CORE_H

#include <pthread.h>

#include "decisions/questions.h"
#include "limits/descriptors.h"
#include "limits/quota.h"
#include "loop/published.h"
#include "loop/worker.h"

enum { CORE_MAGIC = 0x6e736372, WORKERS_MAX = 64 };

/* A workload. */
struct registered {
    struct link link;
    uint64_t key;
    /* Held. */
    struct quota *quota;
    /* Bit r: in role r, and the process keeps a copy of that listener's descriptor. */
    uint32_t listens;
};

struct core {
    uint32_t magic;
    struct core_options options;
    struct context context;
    struct worker *workers;
    /* Of them, those that run. */
    uint32_t worker_count;

    /* Every call is made under it, except waiting for questions (questions.h). */
    pthread_mutex_t mutex;
    struct link registered;
    /* Of network namespaces; 0 is the process's own. */
    uint64_t next_serial;
    uint64_t epoch;
    struct notices limits_due;
    struct notices refusals_due;
    /* Whose events are taken first, modulo the workers. */
    uint32_t next_heard;

    struct descriptors descriptors;
    struct questions questions;
    struct published published;
    struct revoked revoked;
};

/* Under the mutex: the workload with this key; NULL: there is none. */
struct registered *registered_find(struct core *core, uint64_t key);
/* -1, with a line in `error`: what went wrong, and the errno, if it is not 0. */
int core_fail(char *error, size_t error_size, const char *what, int number);

#endif
