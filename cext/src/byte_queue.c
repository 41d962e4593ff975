/* byte_queue.c: see byte_queue.h. */
#include "byte_queue.h"

#include <stdlib.h>
#include <string.h>

#include "link.h"

static void account(const struct byte_queue *queue, int64_t change)
{
    if (queue->account != NULL)
        __atomic_add_fetch(queue->account, (uint64_t)change, __ATOMIC_RELAXED);
}

static struct block *block_take(struct byte_queue *queue, struct block_pool *pool)
{
    account(queue, BLOCK_SIZE);
    struct block *block = pool->free;
    if (block == NULL) {
        block = malloc(sizeof(*block));
        if (block == NULL) {
            fprintf(stderr, "nodeseal core: out of memory (block)\n");
            abort();
        }
    } else {
        pool->free = block->next;
        pool->free_count--;
    }
    block->next = NULL;
    block->start = 0;
    block->end = 0;
    return block;
}

static void block_give(struct byte_queue *queue, struct block_pool *pool, struct block *block)
{
    account(queue, -BLOCK_SIZE);
    if (pool->free_count >= BLOCK_POOL_KEEP) {
        free(block);
        return;
    }
    block->next = pool->free;
    pool->free = block;
    pool->free_count++;
}

void block_pool_dispose(struct block_pool *pool)
{
    while (pool->free != NULL) {
        struct block *block = pool->free;
        pool->free = block->next;
        free(block);
    }
    pool->free_count = 0;
}

void byte_queue_append(struct byte_queue *queue, struct block_pool *pool, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
    while (length > 0) {
        if (queue->head == NULL) {
            queue->head = queue->tail = block_take(queue, pool);
        } else if (queue->tail->end == BLOCK_SIZE) {
            queue->tail->next = block_take(queue, pool);
            queue->tail = queue->tail->next;
        }
        struct block *tail = queue->tail;
        size_t room = BLOCK_SIZE - tail->end;
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
