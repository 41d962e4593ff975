/* handshakes.c: see handshakes.h. */
#define _GNU_SOURCE
#include "loop/handshakes.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/wipe.h"

enum { OUTPUT_SIZE = 131072 }; /* a flight: OpenSSL takes certificate chains of 100 KiB at most */

void step_init(struct step *step, struct tls *tls)
{
    memset(step, 0, sizeof(*step));
    link_init(&step->link);
    step->tls = tls;
}

void step_dispose(struct step *step)
{
    free(step->input);
    free(step->output);
    step->input = step->output = NULL;
    step->output_length = 0;
}

/* ---- the thread ---- */

static void step_make(struct step *step, uint8_t *room)
{
    struct tls_sink sink = {.bytes = room, .capacity = OUTPUT_SIZE};
    uint64_t begun_us = clock_us(CLOCK_THREAD_CPUTIME_ID);
    step->result = tls_handshake(step->tls, &sink);
    wipe_behind(); /* whoever knows the number of one signature, which is there, knows the key */
    step->cost_us = clock_us(CLOCK_THREAD_CPUTIME_ID) - begun_us;
    if (sink.length > 0) {
        step->output = ns_alloc(sink.length);
        memcpy(step->output, room, sink.length);
        step->output_length = sink.length;
    }
}

static struct step *next_waiting(struct handshakes *handshakes)
{
    struct step *step = NULL;
    pthread_mutex_lock(&handshakes->mutex);
    if (!link_empty(&handshakes->waiting)) {
        step = container_of(handshakes->waiting.next, struct step, link);
        link_remove(&step->link);
    }
    pthread_mutex_unlock(&handshakes->mutex);
    return step;
}

static void give_back(struct handshakes *handshakes, struct step *step)
{
    uint64_t one = 1;
    pthread_mutex_lock(&handshakes->mutex);
    int first = link_empty(&handshakes->made);
    link_append(&handshakes->made, &step->link);
    pthread_mutex_unlock(&handshakes->mutex);
    if (first)
        (void)!write(handshakes->wake_fd, &one, sizeof(one)); /* fails only when raised to the brim already */
}

void handshakes_make(struct handshakes *handshakes)
{
    struct step *step;
    while ((step = next_waiting(handshakes)) != NULL) {
        step_make(step, handshakes->output);
        give_back(handshakes, step);
    }
}

/* 0: the thread is to end. */
static int wait_until_given(struct handshakes *handshakes)
{
    pthread_mutex_lock(&handshakes->mutex);
    while (link_empty(&handshakes->waiting) && !handshakes->stopping)
        pthread_cond_wait(&handshakes->given, &handshakes->mutex);
    int stopping = handshakes->stopping;
    pthread_mutex_unlock(&handshakes->mutex);
    return !stopping;
}

void *handshakes_main(void *argument)
{
    struct handshakes *handshakes = argument;
    const struct sched_param unused = {0};
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &unused);
    while (wait_until_given(handshakes))
        handshakes_make(handshakes);
    return NULL;
}

/* ---- the worker's side ---- */

void handshakes_init(struct handshakes *handshakes, int wake_fd)
{
    link_init(&handshakes->waiting);
    link_init(&handshakes->made);
    pthread_mutex_init(&handshakes->mutex, NULL);
    pthread_cond_init(&handshakes->given, NULL);
    handshakes->wake_fd = wake_fd;
    handshakes->output = ns_alloc(OUTPUT_SIZE);
}

void handshakes_give(struct handshakes *handshakes, struct step *step)
{
    step->out = 1;
    handshakes->out++;
    pthread_mutex_lock(&handshakes->mutex);
    link_append(&handshakes->waiting, &step->link);
    pthread_cond_signal(&handshakes->given);
    pthread_mutex_unlock(&handshakes->mutex);
}

void handshakes_take(struct handshakes *handshakes, struct link *made)
{
    struct link taken, *at, *next;
    if (handshakes->out == 0)
        return;
    link_init(&taken);
    pthread_mutex_lock(&handshakes->mutex);
    link_splice(&taken, &handshakes->made);
    pthread_mutex_unlock(&handshakes->mutex);
    link_each(at, next, &taken)
    {
        container_of(at, struct step, link)->out = 0;
        handshakes->out--;
    }
    link_splice(made, &taken);
}

void handshakes_stop(struct handshakes *handshakes)
{
    struct link *at, *next;
    pthread_mutex_lock(&handshakes->mutex);
    handshakes->stopping = 1;
    pthread_cond_signal(&handshakes->given);
    pthread_mutex_unlock(&handshakes->mutex);
    pthread_join(handshakes->thread, NULL);
    link_each(at, next, &handshakes->waiting) container_of(at, struct step, link)->result = TLS_WANT;
    link_splice(&handshakes->made, &handshakes->waiting);
}

void handshakes_dispose(struct handshakes *handshakes)
{
    pthread_cond_destroy(&handshakes->given);
    pthread_mutex_destroy(&handshakes->mutex);
    free(handshakes->output);
}
