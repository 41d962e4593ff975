/*
 * workload.h: what a worker holds of a workload.
 *
 * Every worker knows every workload; only the home worker has its listeners. One that is removed leaves at
 * once the table in which it is found, and lasts until its flows and tunnels have been ended, some in each
 * turn.
 */
#ifndef NS_WORKLOAD_H
#define NS_WORKLOAD_H

#include "decisions/decisions.h"
#include "base/link.h"
#include "loop/listener.h"
#include "nodeseal_core.h"
#include "limits/quota.h"
#include "loop/sockets.h"
#include "loop/strangers.h"
#include "wire/tls.h"
#include "loop/turns.h"

struct command;
struct worker;

struct workload {
    uint32_t magic;
    struct link link; /* in its worker's bucket */
    uint64_t key;
    struct netns netns; /* own duplicate of the descriptor */
    uint64_t place;     /* inode of the namespace */
    int neighbours;     /* others were added for the same namespace and address: they share port 15008 */
    struct ns_address address;
    struct tls_credentials credentials; /* context NULL until the first ones arrive */
    struct listener listeners[LISTENER_ROLES];
    struct link flows;
    struct link tunnels;
    struct link holders;             /* its peers, see windows.h */
    uint64_t live_flows;             /* in `flows` */
    struct party strangers;          /* of `tunnels`, those that have not proven who they are */
    uint64_t live_tunnels;           /* in `tunnels`, without strangers */
    struct link warm_peers;          /* to be dialled ahead of need, see warm.h */
    struct quota *quota;             /* held; shared with the other workers */
    struct share share;              /* of this worker's turns */
    struct decision_share decisions; /* of this worker's cache */
    struct link
        recheck_link; /* in worker->rechecks while a flow may have been asked about before the round */
    uint64_t
        refusal_shown_ms[NS_LIMITS]; /* when one that was refused was last put into the ring of closed ones */
    struct ns_workload_stats stats;  /* counters only; the rest is filled in when asked for */
};

/* The one with this key; NULL: there is none. */
struct workload *workload_find(struct worker *worker, uint64_t key);
typedef void workload_visit(struct worker *worker, struct workload *workload, void *argument);
/* Visits each workload; the visitor may remove it. */
void workloads_each(struct worker *worker, workload_visit *visit, void *argument);
/* Of the workloads in the namespace of `like` the first that was added whose credentials have this name, or
 * any if `name` is NULL; NULL: there is none. */
struct workload *workload_named(struct worker *worker, const struct workload *like, const char *name);

/* Takes the namespace and the quota of a COMMAND_ADD over. */
void workload_add(struct worker *worker, struct command *command);
/* Takes the credentials of a COMMAND_CREDENTIALS over. New streams use new tunnels. */
void workload_credentials(struct workload *workload, struct command *command);

/* Every live flow is to be asked about again, by workloads_continue_rechecks. */
void workloads_recheck(struct worker *worker);
/* Asks about a turn's worth of them, of each workload in turn; none are left once worker->rechecks is empty.
 */
void workloads_continue_rechecks(struct worker *worker);

/* Another core takes what is new. A workload_visit; so is the next. */
void workload_retire(struct worker *worker, struct workload *workload, void *unused);
/* Its listeners are closed, its flows and tunnels left to workloads_end. */
void workload_remove(struct worker *worker, struct workload *workload, void *unused);
/* Ends `most` flows and tunnels at most of removed workloads: ten thousand connections take as long to close
 * as to open. A workload that has none left is dead. */
void workloads_end(struct worker *worker, int most);
void workload_free(struct workload *workload);

#endif
