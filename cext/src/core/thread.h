/*
 * thread.h: a worker's thread: how its loop turns.
 *
 * One turn: wait; handle each event; continue flows and tunnels that used up their budget in the last turn,
 * as far as their workload's lasts (turns.h says how workloads share a turn); write out every tunnel that has
 * something to send (once per turn, for all of its streams); give away steps of handshakes, of each workload
 * in turn, which another thread makes (handshakes.h); run timers once a second, which also give back memory
 * that a burst has left; free what ended.
 */
#ifndef NS_THREAD_H
#define NS_THREAD_H

#include "loop/worker.h"

/* Makes the worker's threads, of the core that `context` is of. 0, or -1 with a line in error. */
int thread_start(struct worker *worker, const struct context *context, uint32_t index, char *error,
                 size_t error_size);
/* After COMMAND_STOP; frees everything. */
void thread_join(struct worker *worker);

#endif
