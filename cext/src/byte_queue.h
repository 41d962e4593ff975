/*
 * byte_queue.h: bytes that could not be sent yet.
 *
 * A queue owns a chain of fixed blocks taken from its worker's pool. An idle connection holds none: blocks go
 * back to the pool as soon as their bytes are gone. The bound on a queue's length is its user's (an HTTP/2
 * stream window, or one scratch buffer of a relay).
 */
#ifndef NS_BYTE_QUEUE_H
#define NS_BYTE_QUEUE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { BLOCK_SIZE = 16384, BLOCK_POOL_KEEP = 128 };

struct block {
    struct block *next; /* NULL: last of its queue, or of the free list */
    uint32_t start;     /* first byte not consumed; start <= end */
    uint32_t end;       /* one past the last byte written; <= BLOCK_SIZE */
    uint8_t bytes[BLOCK_SIZE];
};

struct block_pool {
    struct block *free; /* at most BLOCK_POOL_KEEP blocks kept for reuse */
    size_t free_count;
};

struct byte_queue {
    struct block *head; /* NULL when empty */
    struct block *tail; /* undefined when empty */
    size_t length;      /* bytes held */
    uint64_t *account;  /* atomic, shared with others: bytes of memory in blocks; NULL: nobody counts */
};

void block_pool_dispose(struct block_pool *pool);

/* Copies `length` bytes to the end. */
void byte_queue_append(struct byte_queue *queue, struct block_pool *pool, const void *bytes, size_t length);
/* Fills at most `capacity` vectors with the bytes at the front; returns how many. The queue is unchanged. */
int byte_queue_vectors(const struct byte_queue *queue, struct iovec *vectors, int capacity);
/* Drops `length` bytes at the front; length must not exceed the queue's. */
void byte_queue_consume(struct byte_queue *queue, struct block_pool *pool, size_t length);
void byte_queue_clear(struct byte_queue *queue, struct block_pool *pool);

#endif
