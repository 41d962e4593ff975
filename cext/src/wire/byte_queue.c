/*
 * byte_queue.c: see byte_queue.h.
 *
 * A slab is SLAB_SIZE bytes at a multiple of that, so that a block's slab is found by its address. Its first
 * part has the headers of its blocks; the bytes of block i lie at (i + 1) * BLOCK_SIZE. A slab whose blocks
 * are all in use is in no list. Free blocks are `touched` until their memory was given back: the kernel gives
 * them zeroes when they are written next.
 */
#define _GNU_SOURCE
#include "wire/byte_queue.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

struct slab {
    struct link link;   /* in pool->roomy while it has a free block */
    struct block *free; /* those used last first */
    uint32_t used;
    uint64_t touched; /* bit i: block i is free and has memory of the system */
    struct block blocks[SLAB_BLOCKS];
};

_Static_assert(sizeof(struct slab) <= BLOCK_SIZE, "the headers are in a slab's first part");

/* ---- slabs ---- */

static _Noreturn void out_of_memory(void)
{
    fprintf(stderr, "nodeseal core: out of memory (block)\n");
    abort();
}

/* Memory at a multiple of its size: twice as much, less what lies around it. */
static void *map_aligned(void)
{
    uint8_t *at =
        mmap(NULL, 2 * (size_t)SLAB_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        out_of_memory();
    size_t before = (SLAB_SIZE - (uintptr_t)at % SLAB_SIZE) % SLAB_SIZE;
    if (before > 0)
        munmap(at, before);
    munmap(at + before + SLAB_SIZE, SLAB_SIZE - before);
    return at + before;
}

static struct slab *slab_new(struct block_pool *pool)
{
    struct slab *slab = map_aligned();
    for (int i = SLAB_BLOCKS - 1; i >= 0; i--) {
        slab->blocks[i].bytes = (uint8_t *)slab + (size_t)(i + 1) * BLOCK_SIZE;
        slab->blocks[i].size = BLOCK_SIZE;
        slab->blocks[i].next = slab->free;
        slab->free = &slab->blocks[i];
    }
    link_init(&slab->link);
    pool->slabs++;
    return slab;
}

static void slab_free(struct block_pool *pool, struct slab *slab)
{
    pool->touched -= (size_t)__builtin_popcountll(slab->touched);
    pool->slabs--;
    link_remove(&slab->link);
    ASAN_UNPOISON_MEMORY_REGION(slab, SLAB_SIZE);
    munmap(slab, SLAB_SIZE);
}

static struct slab *slab_of(const struct block *block)
{
    return (struct slab *)((uintptr_t)block / SLAB_SIZE * SLAB_SIZE);
}

static void slabs_init(struct block_pool *pool)
{
    if (pool->roomy.next == NULL)
        link_init(&pool->roomy);
}

static struct block *slab_take(struct block_pool *pool)
{
    slabs_init(pool);
    if (link_empty(&pool->roomy))
        link_append(&pool->roomy, &slab_new(pool)->link);
    struct slab *slab = container_of(pool->roomy.next, struct slab, link);
    struct block *block = slab->free;
    uint64_t bit = 1ull << (block - slab->blocks);
    slab->free = block->next;
    slab->used++;
    if (slab->free == NULL)
        link_remove(&slab->link);
    if (slab->touched & bit) {
        slab->touched &= ~bit;
        pool->touched--;
        if (pool->surplus > pool->touched)
            pool->surplus = pool->touched;
    }
    ASAN_UNPOISON_MEMORY_REGION(block->bytes, BLOCK_SIZE);
    return block;
}

static void slab_give(struct block_pool *pool, struct block *block)
{
    struct slab *slab = slab_of(block);
    if (slab->free == NULL)
        link_append(pool->roomy.next, &slab->link);
    block->next = slab->free;
    slab->free = block;
    slab->used--;
    slab->touched |= 1ull << (block - slab->blocks);
    pool->touched++;
    ASAN_POISON_MEMORY_REGION(block->bytes, BLOCK_SIZE);
}

/* Gives the memory of `most` of the slab's free blocks back. How many. */
static size_t slab_trim(struct block_pool *pool, struct slab *slab, size_t most)
{
    size_t given = 0;
    for (int i = 0; i < SLAB_BLOCKS && given < most; i++) {
        if (!(slab->touched & 1ull << i))
            continue;
        (void)madvise(slab->blocks[i].bytes, BLOCK_SIZE, MADV_DONTNEED); /* cannot fail on memory of ours */
        slab->touched &= ~(1ull << i);
        given++;
    }
    pool->touched -= given;
    return given;
}

void block_pool_trim(struct block_pool *pool, size_t most)
{
    size_t surplus = pool->surplus < most ? pool->surplus : most;
    struct link *at, *before;
    slabs_init(pool);
    for (at = pool->roomy.prev; surplus > 0 && at != &pool->roomy; at = before) {
        struct slab *slab = container_of(at, struct slab, link);
        size_t touched = (size_t)__builtin_popcountll(slab->touched);
        before = at->prev;
        if (slab->used > 0 || touched > surplus) {
            surplus -= slab_trim(pool, slab, surplus);
        } else {
            surplus -= touched;
            slab_free(pool, slab);
        }
    }
    pool->surplus = pool->touched;
}

void block_pool_dispose(struct block_pool *pool)
{
    slabs_init(pool);
    while (!link_empty(&pool->roomy))
        slab_free(pool, container_of(pool->roomy.next, struct slab, link));
}

/* ---- blocks ---- */

static struct block *block_take(struct byte_queue *queue, struct block_pool *pool, size_t wanted)
{
    uint32_t size = BLOCK_LEAST;
    struct block *block;
    while (size < wanted && size < BLOCK_SIZE)
        size *= 2;
    account_change(queue->account, size);
    if (size == BLOCK_SIZE) {
        block = slab_take(pool);
    } else {
        block = malloc(sizeof(*block) + size);
        if (block == NULL)
            out_of_memory();
        block->bytes = (uint8_t *)(block + 1);
        block->size = size;
    }
    block->next = NULL;
    block->start = 0;
    block->end = 0;
    return block;
}

static void block_give(struct byte_queue *queue, struct block_pool *pool, struct block *block)
{
    account_change(queue->account, -(int64_t)block->size);
    if (block->size == BLOCK_SIZE)
        slab_give(pool, block);
    else
        free(block);
}

/* ---- queues ---- */

void byte_queue_append(struct byte_queue *queue, struct block_pool *pool, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
    while (length > 0) {
        size_t wanted = queue->length > length ? queue->length : length;
        if (queue->head == NULL) {
            queue->head = queue->tail = block_take(queue, pool, wanted);
        } else if (queue->tail->end == queue->tail->size) {
            queue->tail->next = block_take(queue, pool, wanted);
            queue->tail = queue->tail->next;
        }
        struct block *tail = queue->tail;
        size_t room = tail->size - tail->end;
        size_t part = length < room ? length : room;
        memcpy(tail->bytes + tail->end, from, part);
        tail->end += (uint32_t)part;
        queue->length += part;
        from += part;
        length -= part;
    }
}

int byte_queue_vectors(const struct byte_queue *queue, struct iovec *vectors, int capacity)
{
    int count = 0;
    for (struct block *block = queue->head; block != NULL && count < capacity; block = block->next) {
        vectors[count].iov_base = block->bytes + block->start;
        vectors[count].iov_len = block->end - block->start;
        count++;
    }
    return count;
}

void byte_queue_consume(struct byte_queue *queue, struct block_pool *pool, size_t length)
{
    queue->length -= length;
    while (length > 0) {
        struct block *head = queue->head;
        size_t part = head->end - head->start;
        if (length < part) {
            head->start += (uint32_t)length;
            return;
        }
        length -= part;
        queue->head = head->next;
        block_give(queue, pool, head);
    }
}

void byte_queue_clear(struct byte_queue *queue, struct block_pool *pool)
{
    byte_queue_consume(queue, pool, queue->length);
}

void byte_queue_charge(struct byte_queue *queue, struct account *account)
{
    if (queue->account == account)
        return;
    int64_t held = 0;
    for (const struct block *block = queue->head; block != NULL; block = block->next)
        held += block->size;
    account_change(queue->account, -held);
    account_change(account, held);
    queue->account = account;
}
