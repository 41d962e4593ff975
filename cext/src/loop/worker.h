/*
 * worker.h: what a worker thread has, and what it offers to the objects that live on it.
 *
 * Workers share nothing. Each has its own epoll, OpenSSL library context, tunnels, flows, decision cache and
 * counters; commands reach it through a mailbox.
 *
 * Each workload has a home worker (by its key), which alone watches its listeners and keeps what it accepts:
 * so one tunnel serves a peer, and one turn serves many connections. A second worker on the same listeners
 * costs a quarter more CPU per connection, because both wake for less. Only when the home worker has no
 * CPU time left, or holds many more connections than another, it hands new ones to the least loaded
 * (placement.h).
 *
 * The thread itself, which calls all that is above this file, is core/thread.h.
 */
#ifndef NS_WORKER_H
#define NS_WORKER_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <sys/uio.h>

#include "balance/endpoint.h"
#include "base/clock.h"
#include "base/link.h"
#include "decisions/decisions.h"
#include "decisions/questions.h"
#include "loop/answers.h"
#include "loop/closed.h"
#include "loop/events.h"
#include "loop/handshakes.h"
#include "loop/mailbox.h"
#include "loop/parking.h"
#include "loop/placement.h"
#include "loop/pollable.h"
#include "loop/published.h"
#include "loop/spin.h"
#include "loop/splice.h"
#include "loop/strangers.h"
#include "loop/turns.h"
#include "nodeseal_core.h"
#include "wire/byte_queue.h"

enum {
    SCRATCH_SIZE = 262144, /* of one read or one write; 128-256 KiB measured best */
    SCRATCH_SPARE = 32768, /* a record left incomplete by the read before */
    WORKLOAD_BUCKETS = 256,
    TUNNEL_BUCKETS = 256,
    HOLDER_BUCKETS = 1024,
    BEARING_BUCKETS = 4096,
    GATHERED_PIECES = 32,
};

struct flow;
struct h2_events;
struct stream_events;

/* What all workers of a core share; it outlives them. */
struct context {
    const struct core_options *options;
    struct published *published;
    struct revoked *revoked;
    struct questions *questions;
    /* Of each worker, by its index. */
    struct placement *places;
    struct worker *workers;
    uint32_t worker_count;
};

/* Bytes for one flow's application that lie in scratch.plain, in pieces (between them are frame headers):
 * written with one call. Only while a tunnel's plaintext is being read. */
struct gathered {
    /* NULL: nothing is gathered. */
    struct flow *flow;
    int count;
    struct iovec pieces[GATHERED_PIECES];
};

/* Buffers that hold nothing between two events. */
struct scratch {
    struct gathered gathered;
    /* SCRATCH_SIZE: ciphertext as received. */
    uint8_t *incoming;
    /* SCRATCH_SIZE and room for sealing it: ciphertext to send. */
    uint8_t *cipher;
    /* SCRATCH_SIZE + SCRATCH_SPARE: what was opened, or is to be sealed. */
    uint8_t *plain;
};

/* The workloads of the core; each worker knows all. */
struct workloads {
    struct link buckets[WORKLOAD_BUCKETS];
    /* Removed ones, whose flows and tunnels are being ended. */
    struct link leaving;
};

/* After an epoch the live flows that it concerns are asked about again, some in each turn. */
struct rechecks {
    /* Workloads with flows to be looked at. */
    struct link workloads;
    /* A reference: who of them is asked about; NULL: all. */
    struct concern *concern;
    /* Moves on with each epoch. */
    uint64_t round;
    /* A live flow could not be asked about after the last epoch. */
    int missed;
};

/* Tunnels whose peers are looked at more often than at each tick (flow/patience.h). */
struct hasty {
    struct link tunnels;
    /* When they are looked at next, if there are any. */
    uint64_t due_ms;
};

/* Client tunnels. */
struct pool {
    /* Those that take new streams, by peer. */
    struct link buckets[TUNNEL_BUCKETS];
    /* How many wait to dial again; the loop ticks faster while there are any. */
    uint32_t retrying;
    /* Peers that workloads remember, and tunnels dialled ahead of need and not used yet (preconnect.h). */
    uint32_t preconnects;
};

/* Objects that end in the middle of a turn are only marked and wait here for its end, because events that
 * name them may still be in the same batch. */
struct graveyard {
    struct link flows;
    struct link tunnels;
    struct link workloads;
};

/* What is alive. */
struct live {
    uint64_t flows;
    /* Without strangers. */
    uint64_t tunnels;
    /* Flows that are not open yet; they have deadlines. */
    struct link waiting;
    /* Of them, those that want to be woken, and some that no longer do. */
    struct link timed;
    /* When the first of these wants to be woken, at the earliest; UINT64_MAX: none does. */
    uint64_t wake_ms;
    /* The most flows and tunnels that ticks have seen since memory was last given back. */
    uint64_t most;
    uint64_t next_id;
};

struct worker {
    uint32_t index;
    const struct core_options *options;
    const struct context *context;
    /* Monotonic, read once in a turn. */
    uint64_t now_us;
    uint64_t now_ms;
    /* Another core takes what is new; tunnels are given up at the next tick. */
    int retiring;

    int epoll_fd;
    /* Given up for a moment when descriptors run out, to accept and reset a connection. */
    int spare_fd;
    OSSL_LIB_CTX *libctx;
    /* By which all workloads verify their peers. */
    struct trust trust;
    struct block_pool blocks;
    struct splice_pool pipes;
    struct scratch scratch;

    struct turns turns;
    struct handshakes handshakes;
    struct decisions *decisions;
    struct endpoints endpoints;
    struct workloads workloads;
    struct rechecks rechecks;
    struct pool pool;
    struct hasty hasty;
    /* Peers of all workloads, see windows.h. */
    struct link holders[HOLDER_BUCKETS];
    /* Flows by the ends of their near connections, see bearing.h. */
    struct link bearings[BEARING_BUCKETS];
    struct strangers strangers;
    struct parking parking;
    struct answers answers;
    /* Not watched until the next tick: no descriptor could be had. */
    struct link paused_listeners;
    struct live live;
    struct graveyard graveyard;
    struct closed closed;
    struct events events;

    /* Who is told of what tunnels' peers do with streams, and what becomes of these: set by those who are
     * above. */
    const struct h2_events *h2_events;
    const struct stream_events *stream_events;

    struct mailbox mailbox;
    /* Atomic: strangers that other workers have sent and that are not here yet. */
    uint32_t coming;
    /* Atomic: commands of what applications bear that were sent here and not run yet. */
    uint32_t bearing;
    /* eventfd: the mailbox has something, or steps of handshakes were made. */
    struct pollable wake;
    pthread_t thread;
    /* The mailbox was emptied in this turn. */
    int mailbox_taken;
    int stopping;
    uint64_t last_tick_ms;
    struct spin spin;
};

/* All but the library context, the decisions and the threads. What could not be had is -1: epoll_fd, wake.fd.
 */
void worker_init(struct worker *worker, const struct context *context, uint32_t index);
/* Nothing lives on it any more. */
void worker_dispose(struct worker *worker);
/* A turn begins: reads the clock. */
static inline void worker_look_at_clock(struct worker *worker)
{
    worker->now_us = clock_us(CLOCK_MONOTONIC);
    worker->now_ms = worker->now_us / 1000;
}
/* Registers an fd for edge-triggered input and output. 0, or -1. */
int worker_watch(struct worker *worker, struct pollable *pollable);
/* The one that watches the workload's listeners, and reads its ring. */
static inline struct worker *worker_home(const struct context *context, uint64_t workload)
{
    return &context->workers[workload % context->worker_count];
}
/* The next id of a connection, unique in the core's process. */
uint64_t worker_next_id(struct worker *worker);

#endif
