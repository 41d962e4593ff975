/*
 * questions.h: the queue of questions on their way from the workers to Python's thread.
 *
 * Those of each workload stand in a line of their own, at its quota, and some are taken from each line in
 * turn. A worker holds the mutex for the time it takes to link one element.
 */
#ifndef NS_QUESTIONS_H
#define NS_QUESTIONS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/link.h"
#include "nodeseal_core.h"
#include "limits/quota.h"

struct questions {
    pthread_mutex_t mutex;
    /* There are some, or stopping. */
    pthread_cond_t ready;
    /* Quotas with questions, each held; whose turn it is comes first. */
    struct link asking;
    /* In all lines. */
    uint32_t count;
    /* Ever put here. */
    uint64_t asked;
    int stopping;
};

void questions_init(struct questions *questions);
/* Nobody puts or waits any more; what was not taken is dropped. */
void questions_dispose(struct questions *questions);

/* Puts one into the line of its workload's quota. 0, or -1 when too many wait. */
int questions_put(struct questions *questions, struct quota *quota, const struct ns_question *question);
/* Waits for questions and takes up to `capacity` of them, some of each workload in turn. Returns how many: 0
 * when none came within the time, or after questions_stop. */
size_t questions_next(struct questions *questions, struct ns_question *out, size_t capacity,
                      uint32_t timeout_ms);
/* Wakes those who wait: none are to be had from now on. */
void questions_stop(struct questions *questions);
uint64_t questions_asked(struct questions *questions);

#endif
