/*
 * splice.h: pipes through which plaintext goes from one socket to another without being copied (splice(2)).
 *
 * A pipe holds bytes only while their direction is under way; then it goes back to its worker, so that idle
 * connections have none.
 */
#ifndef NS_SPLICE_H
#define NS_SPLICE_H

#include <stddef.h>
#include <sys/types.h>

enum { SPLICE_PIPE_SIZE = 1 << 20, SPLICE_PIPES_KEPT = 8 };

struct splice_pipe {
    /* In the pool. */
    struct splice_pipe *next;
    /* Bytes in it. */
    size_t held;
    /* Of them, for the workload; the user's. */
    size_t counted;
    int input;
    int output;
};

struct splice_pool {
    /* Empty ones, at most SPLICE_PIPES_KEPT. */
    struct splice_pipe *free;
    size_t free_count;
};

void splice_pool_dispose(struct splice_pool *pool);
/* An empty pipe, or NULL when none can be had: the bytes are to be copied then. */
struct splice_pipe *splice_take(struct splice_pool *pool);
/* Gives it back; bytes still in it are lost. NULL is allowed. */
void splice_give(struct splice_pool *pool, struct splice_pipe *pipe);

/* Moves bytes, `most` at most, from a socket into an empty pipe, or from the pipe to a socket, without
 * waiting. Returns how many; 0 is the socket's end; -1 with errno. */
ssize_t splice_in(struct splice_pipe *pipe, int socket, size_t most);
ssize_t splice_out(struct splice_pipe *pipe, int socket);

#endif
