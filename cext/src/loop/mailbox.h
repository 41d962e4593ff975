/*
 * mailbox.h: commands for a worker, and the mailbox through which they reach it from other threads.
 *
 * A worker carries commands out in the order in which they were posted, some in each turn. What a command
 * hands over is its own until then: who carries it out clears what he takes over, and the rest is freed with
 * it.
 */
#ifndef NS_MAILBOX_H
#define NS_MAILBOX_H

#include <pthread.h>
#include <stdint.h>

#include "decisions/concern.h"
#include "decisions/decisions.h"
#include "nodeseal_core.h"
#include "limits/quota.h"
#include "loop/sockets.h"
#include "loop/tuple.h"
#include "wire/syn.h"
#include "wire/tls.h"

enum { TURN_COMMANDS = 16 }; /* taken at once */

struct snapshot;

/* Each kind uses some of the fields. The mailbox owns a command until it is taken. */
enum command_kind {
    COMMAND_ADD,
    COMMAND_CREDENTIALS,
    COMMAND_TRUST,
    COMMAND_REVOKED, /* the set of what is revoked has changed */
    COMMAND_LISTEN,  /* to the home worker only */
    COMMAND_UNLISTEN,
    COMMAND_ACCEPTED,  /* from the home worker: a connection for another one */
    COMMAND_PARKED,    /* the same of a SYN; it may be one that came before */
    COMMAND_GAVE_UP,   /* and of an application that waits no longer for an answer to one */
    COMMAND_TOLERANCE, /* and of what its application bears */
    COMMAND_ANSWERED,  /* to the home worker: a SYN need not be remembered any more */
    COMMAND_REMOVE,
    COMMAND_RETIRE,
    COMMAND_EPOCH,
    COMMAND_ANSWER,
    COMMAND_SNAPSHOT,
    COMMAND_STOP,
};

struct command {
    struct command *next;
    enum command_kind kind;
    uint64_t workload;
    uint64_t epoch;
    /* ADD: network namespace; LISTEN, ACCEPTED: socket; handed over. */
    int fd;
    int role;
    /* ADD: of the namespace. */
    uint64_t serial;
    /* ADD, ACCEPTED (counted in): a reference, handed over. */
    struct quota *quota;
    /* ADD: the workload's; ACCEPTED: who connected. */
    struct ns_address address;
    /* PARKED: handed over. */
    struct syn *syn;
    /* PARKED: what it carries when it is released. */
    uint32_t mark;
    /* GAVE_UP, ANSWERED, TOLERANCE. */
    struct tuple tuple;
    /* TOLERANCE. */
    struct tolerance tolerance;
    uint32_t sequence;
    /* ACCEPTED: a flow waits for it, and it was counted in before. */
    int paired;
    /* PARKED: it may go on as it is. */
    int native;
    /* EPOCH: a reference. */
    struct concern *concern;
    /* Handed over. */
    struct tls_credentials credentials;
    /* TRUST: handed over. */
    struct bundles *bundles;
    /* ANSWER: handed over. */
    struct decision *decision;
    /* Borrowed from the caller, who waits. */
    struct snapshot *snapshot;
};

struct mailbox {
    /* Held for a few instructions only. */
    pthread_mutex_t mutex;
    /* NULL when empty. */
    struct command *head;
    /* Where the next one is put. */
    struct command **tail;
    /* The worker's eventfd, raised while there is some. */
    int wake_fd;
};

void mailbox_init(struct mailbox *mailbox, int wake_fd);
/* Frees what was not taken; nobody posts any more. */
void mailbox_dispose(struct mailbox *mailbox);
/* Takes the command over. */
void mailbox_post(struct mailbox *mailbox, struct command *command);
/* What lies in it, or the first TURN_COMMANDS, in a list that is the caller's to free; NULL: nothing. An
 * answer may dial a tunnel, and a thousand of them would be felt by every open stream. The eventfd stays
 * raised until all are taken. */
struct command *mailbox_take(struct mailbox *mailbox);

/* A command with nothing handed over yet: fd is -1. */
struct command *command_new(enum command_kind kind, uint64_t workload);
void command_free(struct command *command);

#endif
