/*
 * concern.h: what a change of the mesh state can concern: connections from and to some addresses, to some
 * ports, and those of some workloads. Whatever else was decided stays decided.
 *
 * Made once for all workers, which only read it: immutable, and counted across threads.
 */
#ifndef NS_CONCERN_H
#define NS_CONCERN_H

#include "nodeseal_core.h"

enum {
    /* Of each sort. What concerns more is taken for everything: to ask again is cheaper then. */
    CONCERN_MAX = 4096,
};

struct concern;

/* NULL: it concerns everything. */
struct concern *concern_new(const struct ns_concern *content);
struct concern *concern_hold(struct concern *concern); /* NULL is allowed */
void concern_release(struct concern *concern);         /* same */

/* Whether the answer to the question may be another one now. With NULL it may. */
int concern_has(const struct concern *concern, const struct ns_question *question);

#endif
