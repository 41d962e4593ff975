/*
 * worker.h: a worker thread and the objects that live on it.
 *
 * Workers share nothing. Each has its own epoll, OpenSSL library context, tunnels, flows, decision cache and
 * counters; commands reach it through a mailbox.
 *
 * Each workload has a home worker (by its key), which alone watches its listeners and keeps what it accepts:
 * so one tunnel serves a peer, and one turn serves many connections. A second worker on the same listeners
 * costs a quarter more CPU per connection, because both wake for less. Only when the home worker has no
 * CPU time left, or holds many more connections than another, it hands new ones to the least loaded.
 *
 * One turn of the loop: wait; handle each event; continue flows and tunnels that used up their share in the
 * last turn, as far as their workload's lasts (turns.h says how workloads share a turn); write out
 * every tunnel that has something to send (once per turn, for all of its streams); give away steps of
 * handshakes, of each workload in turn, which another thread makes (handshakes.h); run timers once a second,
 * which also give back memory that a burst has left; free what ended. Objects that end in the middle of a
 * turn are only marked and go to the `graveyard`, because events that name them may still be in the same
 * batch.
 */
#ifndef NS_WORKER_H
#define NS_WORKER_H

#include <openssl/ssl.h>
#include <pthread.h>

#include "wire/byte_queue.h"
#include "decisions/decisions.h"
#include "loop/handshakes.h"
#include "base/link.h"
#include "loop/mailbox.h"
#include "nodeseal_core.h"
#include "loop/pollable.h"
#include "loop/published.h"
#include "flow/splice.h"
#include "loop/strangers.h"
#include "loop/turns.h"
#include "loop/workload.h"

enum {
    SCRATCH_SIZE = 262144, /* of one read or one write; 128-256 KiB measured best */
    SCRATCH_SPARE = 32768, /* a record left incomplete by the read before */
    WORKLOAD_BUCKETS = 256,
    TUNNEL_BUCKETS = 256,
    HOLDER_BUCKETS = 1024,
    GATHERED_PIECES = 32,
};

/* Bytes for one flow's application that lie in worker->plain, in pieces (between them are frame headers):
 * written with one call. Only while a tunnel's plaintext is being read. */
struct gathered {
    struct flow *flow; /* NULL: nothing gathered */
    int count;
    struct iovec pieces[GATHERED_PIECES];
};

struct worker {
    struct core *core;
    uint32_t index;
    struct worker
        *all; /* the core's workers, itself included: for their mailboxes and the two figures below */
    uint32_t all_count;
    uint64_t
        shown_load; /* atomic: CPU time used, in thousandths, and when that was measured; see balance.c */
    uint64_t shown_held;    /* atomic: live flows and tunnels */
    uint64_t load_ms;       /* of the last measurement */
    uint64_t load_cpu_us;   /* the thread's CPU time then */
    uint64_t spun_us;       /* since then: spent waiting without sleep */
    uint64_t spin_after_us; /* no spinning before */
    uint32_t vain_spins;    /* in a row */
    pthread_t thread;
    int epoll_fd;
    struct pollable wake; /* eventfd: the mailbox has something */
    int spare_fd; /* given up for a moment when descriptors run out, to accept and reset a connection */
    const struct core_options *options;
    OSSL_LIB_CTX *libctx;

    struct mailbox mailbox;
    int mailbox_taken; /* in this turn */

    uint64_t now_us; /* monotonic, read once per turn */
    uint64_t now_ms; /* same */
    uint64_t last_tick_ms;
    int stopping;
    int retiring; /* another core takes what is new; tunnels are given up at the next tick */

    struct link workloads[WORKLOAD_BUCKETS];
    struct link tunnels[TUNNEL_BUCKETS]; /* client tunnels that take new streams, by peer */
    struct link holders[HOLDER_BUCKETS]; /* peers of all workloads, see windows.h */
    struct turns turns;                  /* what goes on in this turn or the next ones */
    struct handshakes handshakes;
    struct strangers strangers;
    struct published *published; /* the core's */
    uint32_t coming; /* atomic: strangers that other workers have sent and that are not here yet */
    struct link paused_listeners;  /* not watched until the next tick: no descriptor could be had */
    struct link rechecks;          /* workloads with flows to be asked about again, after an epoch */
    uint64_t recheck_round;        /* moves on with each epoch */
    struct link leaving_workloads; /* removed; their flows and tunnels are being ended */
    struct link waiting_flows;     /* not open yet; they have deadlines */
    struct link dead_flows;        /* graveyard */
    struct link dead_tunnels;
    struct link dead_workloads;
    int recheck_missed;        /* a live flow could not be asked about after the last epoch */
    uint32_t retrying_tunnels; /* that wait to dial again; the loop ticks faster while there are any */

    uint32_t warm; /* of the workloads' warm_peers, and tunnels dialled ahead and not used yet */

    struct decisions *decisions;
    struct block_pool blocks;
    uint64_t most_objects; /* flows and tunnels that ticks have seen since memory was last given back */
    struct splice_pool pipes;
    uint64_t next_flow_id;
    uint64_t live_flows;
    uint64_t live_tunnels; /* without strangers */

    struct ns_connection
        *closed; /* ring of CLOSED_KEPT; allocated with the first; closed_ms holds the time of closing */
    uint64_t closed_next; /* number of connections ever put there */

    struct gathered gathered;
    uint8_t *incoming; /* SCRATCH_SIZE: ciphertext as received */
    uint8_t *cipher;   /* SCRATCH_SIZE and room for sealing it: ciphertext to send */
    uint8_t *plain;    /* SCRATCH_SIZE + SCRATCH_SPARE: what was opened, or is to be sealed */
};

int worker_start(struct worker *worker, struct core *core, uint32_t index, char *error, size_t error_size);
void worker_join(struct worker *worker); /* after COMMAND_STOP; frees everything */
/* Registers an fd for edge-triggered input and output. 0, or -1. */
int worker_watch(struct worker *worker, struct pollable *pollable);

/* core.c: sends a question of the quota's workload to Python's thread. 0, or -1 when too many wait. */
int core_ask(struct core *core, struct quota *quota, const struct ns_question *question);

#endif
