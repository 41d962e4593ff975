/*
 * kernel.h: the part of Linux that the core stands on, in memory: sockets, pipes, epoll, eventfd, a clock.
 *
 * bench/guard.py links the core's sources with `-Wl,--wrap=NAME` for every __wrap_NAME of kernel.c, so that
 * the core's calls (and those of the applications in traffic.c) come here instead of to the C library.
 * Descriptors of this kernel begin at FD_FIRST; calls with others are passed on. A call that kernel.c does
 * not have fails with EBADF.
 *
 * Everything is deterministic: one thread, a clock that moves by a fixed step per epoll_wait, port numbers
 * counted up. The core's only worker runs on the main thread: kernel_run calls what it asked pthread_create
 * for. Steps of handshakes are made there too, when they are given away. When the core has nothing to do,
 * epoll_wait lets the applications act.
 *
 * Under callgrind nothing in here is counted: collection is off from the entry of a call until its return,
 * and off altogether before kernel_measure(1).
 */
#ifndef BENCH_KERNEL_H
#define BENCH_KERNEL_H

#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>

enum {
    FD_FIRST = 100000,
    BUFFER_SIZE = 1 << 18, /* of a socket, per direction */
};

/* Lets the applications act once; 0 when none of them could do anything. */
typedef int kernel_idle(void);

/* Runs the core's worker on this thread; `idle` ends the program when the load is done. */
_Noreturn void kernel_run(kernel_idle *idle);
/* 1: from now on what the core does is counted; 0: no longer. To be called by kernel_idle. */
void kernel_measure(int on);
/* The core's calls while it was measured: a JSON object, {"recv": 10, ...}. */
void kernel_print_calls(FILE *out);
/* Ends the program with one line: what the load was, or could not be, doing. */
_Noreturn void kernel_fail(const char *what);

struct sockaddr_in kernel_address(uint32_t ip, uint16_t port);

#endif
