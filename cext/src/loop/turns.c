/* turns.c: see turns.h. */
#include "loop/turns.h"

void turns_init(struct turns *turns)
{
    link_init(&turns->tasks);
    link_init(&turns->writes);
    for (int kind = 0; kind < STEP_LISTS; kind++)
        link_init(&turns->steps[kind]);
}

void share_init(struct share *share)
{
    struct link *links[] = {&share->tasks_link, &share->waiting, &share->again, &share->writes_link,
                            &share->writes};
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
        link_init(links[i]);
    for (int kind = 0; kind < STEP_LISTS; kind++) {
        link_init(&share->steps_link[kind]);
        link_init(&share->steps[kind]);
    }
}

void share_dispose(struct turns *turns, struct share *share)
{
    link_remove(&share->tasks_link);
    link_remove(&share->writes_link);
    for (int kind = 0; kind < STEP_LISTS; kind++)
        link_remove(&share->steps_link[kind]);
    if (turns->last == share)
        turns->last = NULL;
    if (turns->light == share)
        turns->light = NULL;
}

void turns_weigh(struct turns *turns, struct share *share)
{
    share_renew(turns, share);
    if (share->heavy) {
        share->heavy = 0;
        share->heavy_ms = turns->now_ms;
    }
    if (share->heavy_ms != 0 && turns->now_ms - share->heavy_ms < HEAVY_MS) {
        if (turns->light == share)
            turns->light_until_ms = 0;
        return;
    }
    turns->light = share;
    turns->light_until_ms = turns->now_ms + CONTENDED_MS;
}

/* ---- what waits ---- */

static void list(struct link *shares, struct link *share_link)
{
    if (link_empty(share_link))
        link_append(shares, share_link);
}

void task_wait(struct turns *turns, struct share *share, struct task *task)
{
    link_remove(&task->link);
    link_append(&share->waiting, &task->link);
    list(&turns->tasks, &share->tasks_link);
}

void task_again(struct turns *turns, struct share *share, struct task *task)
{
    if (!link_empty(&task->link))
        return;
    link_append(&share->again, &task->link);
    list(&turns->tasks, &share->tasks_link);
}

void turns_step(struct turns *turns, struct share *share, enum step_kind kind, struct link *link)
{
    if (!link_empty(link))
        return;
    link_append(&share->steps[kind], link);
    list(&turns->steps[kind], &share->steps_link[kind]);
}

/* ---- what goes on ---- */

static struct link *take(struct link *links)
{
    struct link *first = links->next;
    link_remove(first);
    return first;
}

/* Takes the only member of a list; NULL when it has none, or more. */
static inline struct link *take_only(struct link *links)
{
    struct link *first = links->next;
    if (first == links || first->next != links)
        return NULL;
    link_init(links);
    link_init(first);
    return first;
}

/* Runs the members that the list has now, as far as the share lasts, one at least. What they add, or become
 * again, is for the next turn, and comes behind what is left. */
static inline void run_list(struct turns *turns, struct share *share, struct link *links, link_run *run,
                            void *owner)
{
    struct link now;
    share_renew(turns, share);
    struct link *only = take_only(links);
    if (only != NULL) {
        run(owner, only);
        return;
    }
    link_init(&now);
    link_splice(&now, links);
    for (int least = 1; !link_empty(&now) && (least > 0 || turns_left(turns, share, TURN_SHARE)); least--)
        run(owner, take(&now));
    if (!link_empty(&now)) {
        link_splice(&now, links);
        link_splice(links, &now);
    }
}

static void run_tasks(struct turns *turns, struct link *tasks_link, link_run *run, void *owner)
{
    struct share *share = container_of(tasks_link, struct share, tasks_link);
    if (!link_empty(&share->waiting))
        run_list(turns, share, &share->waiting, run, owner);
    if (!link_empty(&share->again))
        run_list(turns, share, &share->again, run, owner);
    if (!link_empty(&share->waiting) || !link_empty(&share->again))
        list(&turns->tasks, &share->tasks_link);
}

static void run_writes(struct turns *turns, struct link *writes_link, link_run *run, void *owner)
{
    struct share *share = container_of(writes_link, struct share, writes_link);
    run_list(turns, share, &share->writes, run, owner);
    if (!link_empty(&share->writes))
        list(&turns->writes, &share->writes_link);
}

typedef void share_run(struct turns *turns, struct link *share_link, link_run *run, void *owner);

static inline void run_shares(struct turns *turns, struct link *listed, share_run *run_share, link_run *run,
                              void *owner)
{
    struct link shares;
    struct link *only = take_only(listed);
    if (only != NULL) {
        run_share(turns, only, run, owner);
        return;
    }
    link_init(&shares);
    link_splice(&shares, listed);
    while (!link_empty(&shares))
        run_share(turns, take(&shares), run, owner);
}

void turns_run_tasks(struct turns *turns, link_run *run, void *owner)
{
    run_shares(turns, &turns->tasks, run_tasks, run, owner);
}

void turns_run_writes(struct turns *turns, link_run *run, void *owner)
{
    run_shares(turns, &turns->writes, run_writes, run, owner);
}

/* The share that a member of turns->steps[kind] is of. */
static struct share *share_of_steps(struct link *steps_link, enum step_kind kind)
{
    struct link(*links)[STEP_LISTS] = (struct link(*)[STEP_LISTS])(void *)(steps_link - kind);
    return container_of(links, struct share, steps_link);
}

struct link *turns_next_step(struct turns *turns, enum step_kind kind)
{
    while (!link_empty(&turns->steps[kind])) {
        struct share *share = share_of_steps(take(&turns->steps[kind]), kind);
        if (link_empty(&share->steps[kind]))
            continue; /* those that waited have ended */
        struct link *step = take(&share->steps[kind]);
        if (!link_empty(&share->steps[kind]))
            link_append(&turns->steps[kind], &share->steps_link[kind]);
        return step;
    }
    return NULL;
}

enum step_kind turns_step_kind(struct turns *turns, const int has[STEP_KINDS])
{
    enum step_kind next = STEP_KINDS;
    for (enum step_kind kind = 0; kind < STEP_KINDS; kind++) {
        uint64_t late_us = kind == STEP_STRANGE ? 0 : STEPS_LATE_US;
        if (!has[kind])
            continue;
        if (turns->steps_us[kind] + late_us < turns->steps_now_us)
            turns->steps_us[kind] = turns->steps_now_us - late_us;
        if (next == STEP_KINDS || turns->steps_us[kind] < turns->steps_us[next])
            next = kind;
    }
    if (next != STEP_KINDS && turns->steps_us[next] > turns->steps_now_us)
        turns->steps_now_us = turns->steps_us[next];
    return next;
}

void turns_step_made(struct turns *turns, enum step_kind kind, uint64_t cost_us)
{
    turns->steps_us[kind] += cost_us * (kind == STEP_STRANGE ? STEP_STRANGE_COSTS : 1);
}
