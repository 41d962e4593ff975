/* questions.c: see questions.h. */
#include "decisions/questions.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum {
    QUESTIONS_MAX = 65536,
    QUESTIONS_EACH = 8, /* of one workload before the next one's */
};

struct queued_question {
    struct link link; /* in its quota's questions */
    struct ns_question question;
};

void questions_init(struct questions *questions)
{
    link_init(&questions->asking);
    pthread_mutex_init(&questions->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&questions->ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    questions->count = 0;
    questions->asked = 0;
    questions->stopping = 0;
}

int questions_put(struct questions *questions, struct quota *quota, const struct ns_question *question)
{
    struct queued_question *queued = ns_alloc(sizeof(*queued));
    queued->question = *question;
    link_init(&queued->link);
    pthread_mutex_lock(&questions->mutex);
    int full = questions->count >= QUESTIONS_MAX;
    if (!full) {
        link_append(&quota->questions, &queued->link);
        if (link_empty(&quota->question_link)) {
            link_append(&questions->asking, &quota->question_link);
            quota_hold(quota);
        }
        questions->count++;
        questions->asked++;
        pthread_cond_signal(&questions->ready);
    }
    pthread_mutex_unlock(&questions->mutex);
    if (full)
        free(queued);
    return full ? -1 : 0;
}

/* Takes up to `capacity` questions off the queue into the list, some of each workload in turn; the mutex is
 * held. */
static void questions_take(struct questions *questions, struct link *taken, size_t capacity)
{
    while (capacity > 0 && !link_empty(&questions->asking)) {
        struct quota *quota = container_of(questions->asking.next, struct quota, question_link);
        for (int i = 0; i < QUESTIONS_EACH && capacity > 0 && !link_empty(&quota->questions);
             i++, capacity--) {
            struct link *first = quota->questions.next;
            link_remove(first);
            link_append(taken, first);
            questions->count--;
        }
        link_remove(&quota->question_link);
        if (link_empty(&quota->questions))
            quota_release(quota);
        else
            link_append(&questions->asking, &quota->question_link);
    }
}

size_t questions_next(struct questions *questions, struct ns_question *out, size_t capacity,
                      uint32_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    struct link taken;
    link_init(&taken);
    pthread_mutex_lock(&questions->mutex);
    while (link_empty(&questions->asking) && !questions->stopping)
        if (pthread_cond_timedwait(&questions->ready, &questions->mutex, &until) == ETIMEDOUT)
            break;
    if (!questions->stopping)
        questions_take(questions, &taken, capacity);
    pthread_mutex_unlock(&questions->mutex);
    size_t count = 0;
    while (!link_empty(&taken)) {
        struct queued_question *queued = container_of(taken.next, struct queued_question, link);
        link_remove(&queued->link);
        out[count++] = queued->question;
        free(queued);
    }
    return count;
}

void questions_stop(struct questions *questions)
{
    pthread_mutex_lock(&questions->mutex);
    questions->stopping = 1;
    pthread_cond_broadcast(&questions->ready);
    pthread_mutex_unlock(&questions->mutex);
}

uint64_t questions_asked(struct questions *questions)
{
    pthread_mutex_lock(&questions->mutex);
    uint64_t asked = questions->asked;
    pthread_mutex_unlock(&questions->mutex);
    return asked;
}

void questions_dispose(struct questions *questions)
{
    struct link left;
    link_init(&left);
    questions_take(questions, &left, SIZE_MAX);
    while (!link_empty(&left)) {
        struct queued_question *queued = container_of(left.next, struct queued_question, link);
        link_remove(&queued->link);
        free(queued);
    }
    pthread_cond_destroy(&questions->ready);
    pthread_mutex_destroy(&questions->mutex);
}
