/*
 * workload.h: what a worker holds of a workload.
 *
 * Every worker knows every workload; only the home worker has its listeners. One that is removed leaves at
 * once the table in which it is found, and lasts until its flows and tunnels have been ended, some in each
 * turn (core/commands.h).
 */
#ifndef NS_WORKLOAD_H
#define NS_WORKLOAD_H

#include "base/link.h"
#include "decisions/decisions.h"
#include "limits/quota.h"
#include "loop/pollable.h"
#include "loop/ring.h"
#include "loop/sockets.h"
#include "loop/strangers.h"
#include "loop/turns.h"
#include "nodeseal_core.h"
#include "wire/tls.h"

enum {
    WORKLOAD_MAGIC = 0x6e73776c,
    LISTENER_ROLES = 5,
    WORKLOAD_DESCRIPTORS = 2, /* of each worker: `netns` and `asking`, counted also before that is needed */
};

struct worker;
struct workload;

/* A socket on which its home worker accepts connections (core/listener.h). All but `poll.fd` and
 * `paused_link` holds only while it is open. */
struct listener {
    /* fd -1: not open. */
    struct pollable poll;
    struct workload *workload;
    /* enum ns_listener_role */
    int role;
    /* What is accepted now stays with this worker. */
    int closing;
    /* Who is in the queue as it closes. */
    uint32_t waiting;
    /* In worker->paused_listeners while nothing can be accepted. */
    struct link paused_link;
};

struct workload {
    uint32_t magic;
    /* In its worker's bucket, in `leaving`, or in the graveyard. */
    struct link link;
    uint64_t key;
    /* Own duplicate of the descriptor. */
    struct netns netns;
    /* Inode of the namespace. */
    uint64_t place;
    /* Others were added for the same namespace and address: they share port 15008. */
    int neighbours;
    struct ns_address address;
    /* Context NULL until the first ones arrive. */
    struct tls_credentials credentials;
    struct listener listeners[LISTENER_ROLES];
    /* Reader of the ring in which its SYNs are parked, while that listener is open. */
    struct ring ring;
    /* Raw sockets of this worker in its namespace, IPv4 and IPv6; -1: not needed yet. */
    int raw[2];
    /* The same of a process of the node, for what workload_raw_native says. */
    int native[2];
    /* The same of UDP, by which the MTU of a path is asked. */
    int path[2];
    /* In worker->answers.released. */
    struct link released_link;
    /* This worker's, by which occupants are asked for in its namespace (occupant.h); -1: not needed yet. */
    int asking;

    struct link flows;
    struct link tunnels;
    /* Its peers, see flow/windows.h. */
    struct link holders;
    /* Peers to be dialled ahead of need, see flow/preconnect.h. */
    struct link preconnects;
    /* Of `tunnels`, those that have not proven who they are. */
    struct party strangers;
    /* In `flows`. */
    uint64_t live_flows;
    /* In `tunnels`, without strangers. */
    uint64_t live_tunnels;

    /* Held; shared with the other workers. */
    struct quota *quota;
    /* Of this worker's turns. */
    struct budget budget;
    /* Of this worker's cache. */
    struct decision_share decisions;
    /* In worker->rechecks while a flow may have been asked about before the round. */
    struct link recheck_link;

    /* When one that was refused was last put among the closed connections. */
    uint64_t refusal_shown_ms[NS_LIMITS];
    /* When an event last told of each limit, and how many were refused since. */
    uint64_t limit_told_ms[NS_LIMITS];
    uint64_t limit_untold[NS_LIMITS];
    /* Counters only; the rest is filled in when asked for. */
    struct ns_workload_stats stats;
};

/* One that nobody can find yet, with the namespace's descriptor taken over and without a quota. */
struct workload *workload_new(uint64_t key, int netns_fd, uint64_t netns_serial,
                              const struct ns_address *address);
/* Its flows and tunnels have ended, and nothing else names it. */
void workload_free(struct workload *workload);

/* From now on it is found. */
void workload_enter(struct worker *worker, struct workload *workload);
/* The one with this key; NULL: there is none. */
struct workload *workload_find(struct worker *worker, uint64_t key);
typedef void workload_visit(struct worker *worker, struct workload *workload, void *argument);
/* Visits each workload; the visitor may remove it. */
void workloads_each(struct worker *worker, workload_visit *visit, void *argument);
/* Of the workloads in the namespace of `like` the first that was added whose credentials have this name, or
 * any if `name` is NULL; NULL: there is none. */
struct workload *workload_named(struct worker *worker, const struct workload *like, const char *name);

/* A raw socket in its namespace; -1: none can be had. `mark`: what is to be sent. That of a process of the
 * node is the socket's own too, by which it is restored where rules of the node take it away (bpf/). */
int workload_raw(struct workload *workload, int is_v4, uint32_t mark);
/* Another one, of a process of the node, which has the mark NS_MARK_NATIVE: for SYNs that the node's rules
 * are to find without one, and the notice of them (bpf/lib/let_out.h). */
int workload_raw_native(struct workload *workload, int is_v4);
/* Whether it is that of SYNs of a process of the node, NS_MARK_HOST_RELEASED and its number. */
int mark_is_host_released(uint32_t mark);
/* The largest segment (TCP's MSS) that a connection from its namespace to `to` can send at first; 0 with
 * errno: there is no way (ENETUNREACH, EHOSTUNREACH). `mark`: of what is sent there, always the same of one
 * workload. */
uint16_t workload_path_mss(struct workload *workload, const struct ns_address *to, uint32_t mark);
/* What socket_asking_in gives, made once; -1: none can be had. */
int workload_asking(struct workload *workload);

/* What is asked for a new connection of the workload to `destination`; the id is left 0. */
void workload_question(const struct workload *workload, const struct ns_address *destination,
                       struct ns_question *question);
/* Keeps a refusal of one of its peers, and tells it. */
void workload_note_refused(struct worker *worker, struct workload *workload, const struct refusal *refusal);
/* Shows a connection that a limit refused: of the workload's own, one in a second for each limit among the
 * closed ones; one that came from elsewhere is a refusal (refusals.h). */
void workload_show_refused(struct worker *worker, struct workload *workload, enum ns_direction direction,
                           const struct ns_address *source, const struct ns_address *destination,
                           enum ns_limit limit);

#endif
