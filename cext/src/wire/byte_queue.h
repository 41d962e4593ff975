/*
 * byte_queue.h: bytes that could not be sent yet.
 *
 * A queue owns a chain of blocks. An idle connection holds none: blocks go back as soon as their bytes are
 * gone. The bound on a queue's length is its user's (an HTTP/2 window, or one scratch buffer of a relay). A
 * block is as large as what the queue holds already, between BLOCK_LEAST and BLOCK_SIZE: so the memory of a
 * queue is at most about twice its bytes, however small the pieces are that a peer sends.
 *
 * Blocks of BLOCK_SIZE come from their worker's pool, which has them of the system in slabs, and gives back
 * what it did not need for a while (block_pool_trim). malloc would keep what lies below anything that is
 * still in use.
 */
#ifndef NS_BYTE_QUEUE_H
#define NS_BYTE_QUEUE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/link.h"

enum {
    BLOCK_SIZE = 16384,
    BLOCK_LEAST = 1024,
    SLAB_BLOCKS = 63, /* one more, less what its header takes, are a slab */
    SLAB_SIZE = (SLAB_BLOCKS + 1) * BLOCK_SIZE,
};

/* Bytes of memory that are held for somebody, and for those whose part he is. */
struct account {
    /* Atomic. */
    uint64_t bytes;
    /* Has them too; NULL: none. */
    struct account *parent;
};

struct block {
    /* NULL: last of its queue, or of the free list of its slab. */
    struct block *next;
    /* `size` of them. */
    uint8_t *bytes;
    /* A power of two; BLOCK_SIZE: of a slab. */
    uint32_t size;
    /* First byte not consumed; start <= end. */
    uint32_t start;
    /* One past the last byte written; <= size. */
    uint32_t end;
};

struct block_pool {
    /* Slabs with free blocks, those used last first; { NULL, NULL } before the first. */
    struct link roomy;
    /* Free blocks that have memory of the system. */
    size_t touched;
    /* The fewest that `touched` was since the last block_pool_trim. */
    size_t surplus;
    /* All of them. */
    size_t slabs;
};

struct byte_queue {
    /* NULL when empty. */
    struct block *head;
    /* Undefined when empty. */
    struct block *tail;
    /* Bytes held. */
    size_t length;
    /* Of the memory in blocks; NULL: nobody counts. */
    struct account *account;
};

/* Adds to an account, or takes off, and to all above it. */
static inline void account_change(struct account *account, int64_t change)
{
    for (; account != NULL; account = account->parent)
        __atomic_add_fetch(&account->bytes, (uint64_t)change, __ATOMIC_RELAXED);
}

/* No queue has a block of it any more. */
void block_pool_dispose(struct block_pool *pool);
/* Gives the memory of `most` free blocks back to the system, of those that were not needed since the last
 * call; none has more to give back once `touched` is 0. */
void block_pool_trim(struct block_pool *pool, size_t most);

/* Copies `length` bytes to the end. */
void byte_queue_append(struct byte_queue *queue, struct block_pool *pool, const void *bytes, size_t length);
/* Fills at most `capacity` vectors with the bytes at the front; returns how many. The queue is unchanged. */
int byte_queue_vectors(const struct byte_queue *queue, struct iovec *vectors, int capacity);
/* Drops `length` bytes at the front; length must not exceed the queue's. */
void byte_queue_consume(struct byte_queue *queue, struct block_pool *pool, size_t length);
void byte_queue_clear(struct byte_queue *queue, struct block_pool *pool);
/* What it holds, and will hold, counts for another account. */
void byte_queue_charge(struct byte_queue *queue, struct account *account);

#endif
