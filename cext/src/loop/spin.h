/*
 * spin.h: waiting for events, at the price of CPU time if that is wanted (core_options.spin_us).
 *
 * To sleep and to be woken costs more than the work for a small request. A worker that spins looks for events
 * again and again for up to spin_us before it sleeps. That pays only while events come at short intervals and
 * the CPU has nothing else to do: after some spins in vain, or when another thread took the CPU in the middle
 * of one, it goes back to sleeping at once for a while.
 */
#ifndef NS_SPIN_H
#define NS_SPIN_H

#include <sys/epoll.h>

#include "loop/worker.h"

/* As epoll_wait on the worker's descriptor. */
int spin_wait(struct worker *worker, struct epoll_event *events, int capacity, int timeout_ms);

#endif
