/* turns.c: see turns.h. */
#include "loop/turns.h"

void turns_init(struct turns *turns)
{
    link_init(&turns->tasks);
    link_init(&turns->writes);
    for (int kind = 0; kind < STEP_LISTS; kind++)
        link_init(&turns->steps[kind]);
}

void budget_init(struct budget *budget)
{
    struct link *links[] = {&budget->tasks_link, &budget->waiting, &budget->again, &budget->writes_link,
                            &budget->writes};
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
        link_init(links[i]);
    for (int kind = 0; kind < STEP_LISTS; kind++) {
        link_init(&budget->steps_link[kind]);
        link_init(&budget->steps[kind]);
    }
}

void budget_dispose(struct turns *turns, struct budget *budget)
{
    link_remove(&budget->tasks_link);
    link_remove(&budget->writes_link);
    for (int kind = 0; kind < STEP_LISTS; kind++)
        link_remove(&budget->steps_link[kind]);
    if (turns->last == budget)
        turns->last = NULL;
    if (turns->light == budget)
        turns->light = NULL;
}

void turns_weigh(struct turns *turns, struct budget *budget)
{
    budget_renew(turns, budget);
    if (budget->heavy) {
        budget->heavy = 0;
        budget->heavy_ms = turns->now_ms;
    }
    if (budget->heavy_ms != 0 && turns->now_ms - budget->heavy_ms < HEAVY_MS) {
        if (turns->light == budget)
            turns->light_until_ms = 0;
        return;
    }
    turns->light = budget;
    turns->light_until_ms = turns->now_ms + CONTENDED_MS;
}

/* ---- what waits ---- */

static void list(struct link *budgets, struct link *budget_link)
{
    if (link_empty(budget_link))
        link_append(budgets, budget_link);
}

void task_wait(struct turns *turns, struct budget *budget, struct task *task)
{
    link_remove(&task->link);
    link_append(&budget->waiting, &task->link);
    list(&turns->tasks, &budget->tasks_link);
}

void task_again(struct turns *turns, struct budget *budget, struct task *task)
{
    if (!link_empty(&task->link))
        return;
    link_append(&budget->again, &task->link);
    list(&turns->tasks, &budget->tasks_link);
}

void turns_step(struct turns *turns, struct budget *budget, enum step_kind kind, struct link *link)
{
    if (!link_empty(link))
        return;
    link_append(&budget->steps[kind], link);
    list(&turns->steps[kind], &budget->steps_link[kind]);
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

/* Runs the members that the list has now, as far as the budget lasts, one at least. What they add, or become
 * again, is for the next turn, and comes behind what is left. */
static inline void run_list(struct turns *turns, struct budget *budget, struct link *links, link_run *run,
                            void *owner)
{
    struct link now;
    budget_renew(turns, budget);
    struct link *only = take_only(links);
    if (only != NULL) {
        run(owner, only);
        return;
    }
    link_init(&now);
    link_splice(&now, links);
    for (int least = 1; !link_empty(&now) && (least > 0 || turns_left(turns, budget, TURN_BUDGET)); least--)
        run(owner, take(&now));
    if (!link_empty(&now)) {
        link_splice(&now, links);
        link_splice(links, &now);
    }
}

static void run_tasks(struct turns *turns, struct link *tasks_link, link_run *run, void *owner)
{
    struct budget *budget = container_of(tasks_link, struct budget, tasks_link);
    if (!link_empty(&budget->waiting))
        run_list(turns, budget, &budget->waiting, run, owner);
    if (!link_empty(&budget->again))
        run_list(turns, budget, &budget->again, run, owner);
    if (!link_empty(&budget->waiting) || !link_empty(&budget->again))
        list(&turns->tasks, &budget->tasks_link);
}

static void run_writes(struct turns *turns, struct link *writes_link, link_run *run, void *owner)
{
    struct budget *budget = container_of(writes_link, struct budget, writes_link);
    run_list(turns, budget, &budget->writes, run, owner);
    if (!link_empty(&budget->writes))
        list(&turns->writes, &budget->writes_link);
}

typedef void budget_run(struct turns *turns, struct link *budget_link, link_run *run, void *owner);

static inline void run_budgets(struct turns *turns, struct link *listed, budget_run *run_budget,
                               link_run *run, void *owner)
{
    struct link budgets;
    struct link *only = take_only(listed);
    if (only != NULL) {
        run_budget(turns, only, run, owner);
        return;
    }
    link_init(&budgets);
    link_splice(&budgets, listed);
    while (!link_empty(&budgets))
        run_budget(turns, take(&budgets), run, owner);
}

void turns_run_tasks(struct turns *turns, link_run *run, void *owner)
{
    run_budgets(turns, &turns->tasks, run_tasks, run, owner);
}

void turns_run_writes(struct turns *turns, link_run *run, void *owner)
{
    run_budgets(turns, &turns->writes, run_writes, run, owner);
}

/* The budget that a member of turns->steps[kind] is of. */
static struct budget *budget_of_steps(struct link *steps_link, enum step_kind kind)
{
    struct link(*links)[STEP_LISTS] = (struct link(*)[STEP_LISTS])(void *)(steps_link - kind);
    return container_of(links, struct budget, steps_link);
}

struct link *turns_next_step(struct turns *turns, enum step_kind kind)
{
    while (!link_empty(&turns->steps[kind])) {
        struct budget *budget = budget_of_steps(take(&turns->steps[kind]), kind);
        if (link_empty(&budget->steps[kind]))
            continue; /* those that waited have ended */
        struct link *step = take(&budget->steps[kind]);
        if (!link_empty(&budget->steps[kind]))
            link_append(&turns->steps[kind], &budget->steps_link[kind]);
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
