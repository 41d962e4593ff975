/*
 * turns.h: how the workloads of a worker share its turns.
 *
 * While only one workload has anything to do, nothing here limits it. As soon as events of two were seen
 * within CONTENDED_MS, each has a budget of TURN_BUDGET units in each half of a turn: one for events and what
 * goes on from before, one for writing tunnels. What exceeds a workload's budget waits in its own lists, and
 * each workload that has something there is visited once a turn. So what an event waits for is bounded by the
 * number of busy workloads, not by the number of their connections. A budget is exceeded by one task at most.
 *
 * A tunnel's one read may be messages of hundreds of streams, so what was read is handed on in slices while
 * the budget lasts; and one write takes no more frames than it pays for.
 *
 * Large budgets, and reads of a whole scratch buffer, are best for those who move much. Beside a light
 * workload they are smaller: BESIDE_LIGHT parts of 8, and PIECE_BESIDE_LIGHT at once. A workload is light if
 * it has an event and, in the last HEAVY_MS, neither used up its budget nor moved HEAVY_BYTES at once; it
 * counts as light for CONTENDED_MS.
 *
 * An event that may not be handled yet is no event lost: the object has noted what it said and becomes a
 * task. Within a workload events keep their order. Connections that move much (`again`) come behind those
 * that wait for their first byte of this turn (`wait`); of both at least one goes on in each turn.
 *
 * A unit is about the cost of a small message, 5 microseconds; moved bytes cost one for each TURN_UNIT_BYTES.
 */
#ifndef NS_TURNS_H
#define NS_TURNS_H

#include <stddef.h>
#include <stdint.h>

#include "base/link.h"

enum {
    TURN_BUDGET = 32,
    TURN_UNIT_BYTES = 8192,
    TURN_ACCEPT = 3,  /* units of accepting a connection */
    TURN_DIAL = 4,    /* of a socket that is made and connected */
    TURN_TUNNEL = 16, /* of a tunnel that is made or accepted, without its handshake */
    CONTENDED_MS = 1000,
    HEAVY_MS = 100,
    BESIDE_LIGHT = 2,
    PIECE_BESIDE_LIGHT = 16384,
    HEAVY_BYTES = PIECE_BESIDE_LIGHT, /* at once: who may move no more must not seem light */
    SLICE_BESIDE_LIGHT = 256,         /* of plaintext: a dozen requests, or answers */
    SLICE_LEAST = 2048,
    SLICE_MOST = 16384,
    STEP_STRANGE_COSTS = 8, /* times what it costs others */
    STEPS_LATE_US = 10000,
};

enum task_kind { TASK_FLOW, TASK_TUNNEL };

/* Steps of handshakes, by who asks for them: what workloads dial themselves; peers at addresses that nodes
 * have published; everybody else, who wait elsewhere (strangers.h). */
enum step_kind { STEP_DIALLED, STEP_PUBLISHED, STEP_STRANGE, STEP_KINDS };
enum { STEP_LISTS = STEP_STRANGE };

/* Embedded in what can wait for a turn; unlinked while it does not. */
struct task {
    struct link link;
    enum task_kind kind;
};

/* One workload's part in its worker's turns; embedded in it. */
struct budget {
    /* In turns->tasks while one of the next two is not empty. */
    struct link tasks_link;
    /* Tasks with events that were noted only, oldest first. */
    struct link waiting;
    /* Tasks that used up what one may move in a turn. */
    struct link again;
    /* In turns->writes while the next is not empty. */
    struct link writes_link;
    /* Tunnels to be written at the end of the turn. */
    struct link writes;
    /* In turns->steps while the next is not empty. */
    struct link steps_link[STEP_LISTS];
    /* Tunnels with a step to make of their handshake, oldest first. */
    struct link steps[STEP_LISTS];
    /* It has been heavy since it was last weighed. */
    int heavy;
    /* When it was last found to have been; 0: never. */
    uint64_t heavy_ms;
    /* The half turn for which `spent` holds. */
    uint64_t turn;
    /* Units. */
    uint32_t spent;
};

struct turns {
    /* Number of the present half turn. */
    uint64_t turn;
    /* Budgets that have some. */
    struct link tasks, writes;
    struct link steps[STEP_LISTS];
    /* CPU time that each kind's steps have had; see turns_step_kind. */
    uint64_t steps_us[STEP_KINDS];
    /* Where the kind stood whose turn it was last. */
    uint64_t steps_now_us;
    /* Whose event came last. */
    const struct budget *last;
    uint64_t now_ms;
    uint64_t contended_until_ms;
    /* Whose event came last of those that are light; NULL: none. */
    const struct budget *light;
    uint64_t light_until_ms;
};

void turns_init(struct turns *turns);
void budget_init(struct budget *budget);
/* Nothing of its workload is linked any more. */
void budget_dispose(struct turns *turns, struct budget *budget);

/* What is called for each event and message is inline. */

/* A half turn begins. */
static inline void turns_begin(struct turns *turns, uint64_t now_ms)
{
    turns->turn++;
    turns->now_ms = now_ms;
}

/* True if more than one workload has something to do. */
static inline int turns_contended(const struct turns *turns)
{
    return turns->now_ms < turns->contended_until_ms;
}

static inline int turns_beside_light(const struct turns *turns, const struct budget *budget)
{
    return turns->now_ms < turns->light_until_ms && turns->light != budget;
}

/* How much the workload should move at once, `most` at most. */
static inline size_t turns_piece(const struct turns *turns, const struct budget *budget, size_t most)
{
    return turns_beside_light(turns, budget) && most > PIECE_BESIDE_LIGHT ? PIECE_BESIDE_LIGHT : most;
}

static inline void budget_renew(const struct turns *turns, struct budget *budget)
{
    if (budget->turn != turns->turn) {
        budget->heavy |= budget->spent >= TURN_BUDGET;
        budget->turn = turns->turn;
        budget->spent = 0;
    }
}

/* How many of the units a workload may spend that shares the turn. */
static inline uint32_t turns_units(const struct turns *turns, const struct budget *budget, uint32_t units)
{
    return turns_beside_light(turns, budget) ? units * BESIDE_LIGHT / 8 : units;
}

/* True while the workload has spent less in this half turn. */
static inline int turns_left(const struct turns *turns, struct budget *budget, uint32_t units)
{
    if (!turns_contended(turns))
        return 1;
    budget_renew(turns, budget);
    return budget->spent < turns_units(turns, budget, units);
}

/* To be called behind turns_event or turns_left. */
static inline void turns_spend(struct budget *budget, size_t units)
{
    budget->spent += (uint32_t)units;
}

static inline void turns_moved(struct budget *budget, size_t bytes)
{
    budget->heavy |= bytes >= HEAVY_BYTES;
    turns_spend(budget, 1 + bytes / TURN_UNIT_BYTES);
}

/* Another workload than before has an event: is it a light one? */
void turns_weigh(struct turns *turns, struct budget *budget);

/* An event of the workload came. True if it may be handled now; otherwise it is only to be noted, and
 * task_wait.
 */
static inline int turns_event(struct turns *turns, struct budget *budget)
{
    if (turns->last != budget) {
        if (turns->last != NULL)
            turns->contended_until_ms = turns->now_ms + CONTENDED_MS;
        turns->last = budget;
        turns_weigh(turns, budget);
    }
    return turns_left(turns, budget, TURN_BUDGET) &&
           (link_empty(&budget->waiting) || !turns_contended(turns));
}

/* The task has an event to handle, and waits for its turn. */
void task_wait(struct turns *turns, struct budget *budget, struct task *task);
/* The task could go on, but has had its part of this turn. */
void task_again(struct turns *turns, struct budget *budget, struct task *task);

/* To be written at the end of the turn. `link` is unlinked or there already. */
static inline void turns_write(struct turns *turns, struct budget *budget, struct link *link)
{
    if (!link_empty(link))
        return;
    link_append(&budget->writes, link);
    if (link_empty(&budget->writes_link))
        link_append(&turns->writes, &budget->writes_link);
}

/* To make a step of a handshake; same. Not for STEP_STRANGE. */
void turns_step(struct turns *turns, struct budget *budget, enum step_kind kind, struct link *link);

typedef void link_run(void *owner, struct link *link);
/* Runs the tasks that are there now, as far as the budgets last; the link is a task's. */
void turns_run_tasks(struct turns *turns, link_run *run, void *owner);
/* Same for what is to be written. */
void turns_run_writes(struct turns *turns, link_run *run, void *owner);
/* The next step of a handshake of that kind, of each workload in turn; NULL: there is none. Unlinked. */
struct link *turns_next_step(struct turns *turns, enum step_kind kind);
/* Which of the kinds that have steps to make is next; STEP_KINDS: none has. Each gets as much CPU time as the
 * others, the strange an eighth. One that had less because it had nothing to do is owed STEPS_LATE_US at
 * most, the strange nothing: they are never ahead. */
enum step_kind turns_step_kind(struct turns *turns, const int has[STEP_KINDS]);
/* A step was made. */
void turns_step_made(struct turns *turns, enum step_kind kind, uint64_t cost_us);

/* True while anything is left for the next turn, whatever happens; steps wait for one of them to end. */
static inline int turns_busy(const struct turns *turns)
{
    return !link_empty(&turns->tasks) || !link_empty(&turns->writes);
}

#endif
