/*
 * link.h: intrusive doubly linked lists, and the magic-number check that every object makes at entry.
 *
 * A `struct link` is either a list's head or embedded in a member. An unlinked member points at itself, so
 * that link_remove is harmless when called twice.
 */
#ifndef NS_LINK_H
#define NS_LINK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct link {
    /* Itself when unlinked or an empty head. */
    struct link *prev;
    /* Same. */
    struct link *next;
};

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* Walks a list whose current member may be removed by the body. */
#define link_each(pos, tmp, head)                                                                            \
    for ((pos) = (head)->next, (tmp) = (pos)->next; (pos) != (head); (pos) = (tmp), (tmp) = (pos)->next)

static inline void link_init(struct link *link)
{
    link->prev = link;
    link->next = link;
}

static inline int link_empty(const struct link *head)
{
    return head->next == head;
}

static inline void link_append(struct link *head, struct link *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void link_remove(struct link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link_init(link);
}

/* Moves all members of `from` to the end of `to`. */
static inline void link_splice(struct link *to, struct link *from)
{
    if (link_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    link_init(from);
}

/* A freed or foreign object reached a function: memory can no longer be trusted, so the process ends at once.
 */
#define NS_CHECK(object, expected)                                                                           \
    do {                                                                                                     \
        if ((object)->magic != (expected)) {                                                                 \
            fprintf(stderr, "nodeseal core: broken object (%s) at %s:%d\n", #expected, __FILE__, __LINE__);  \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* Out of memory has no safe continuation for a process that carries other people's connections half way. */
static inline void *ns_alloc(size_t size)
{
    void *memory = calloc(1, size);
    if (memory == NULL) {
        fprintf(stderr, "nodeseal core: out of memory (%zu bytes)\n", size);
        abort();
    }
    return memory;
}

#endif
