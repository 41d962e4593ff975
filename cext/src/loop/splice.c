/* splice.c: see splice.h. */
#define _GNU_SOURCE
#include "loop/splice.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/link.h"

static void pipe_free(struct splice_pipe *pipe)
{
    close(pipe->input);
    close(pipe->output);
    free(pipe);
}

void splice_pool_dispose(struct splice_pool *pool)
{
    while (pool->free != NULL) {
        struct splice_pipe *pipe = pool->free;
        pool->free = pipe->next;
        pipe_free(pipe);
    }
    pool->free_count = 0;
}

struct splice_pipe *splice_take(struct splice_pool *pool)
{
    struct splice_pipe *pipe = pool->free;
    if (pipe != NULL) {
        pool->free = pipe->next;
        pool->free_count--;
        return pipe;
    }
    int ends[2];
    if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0)
        return NULL;
    (void)fcntl(ends[1], F_SETPIPE_SZ,
                SPLICE_PIPE_SIZE); /* refused above a user's limit: a smaller one also does */
    pipe = ns_alloc(sizeof(*pipe));
    pipe->output = ends[0];
    pipe->input = ends[1];
    return pipe;
}

void splice_give(struct splice_pool *pool, struct splice_pipe *pipe)
{
    if (pipe == NULL)
        return;
    if (pipe->held > 0 || pool->free_count >= SPLICE_PIPES_KEPT) {
        pipe_free(pipe);
        return;
    }
    pipe->next = pool->free;
    pool->free = pipe;
    pool->free_count++;
}

ssize_t splice_in(struct splice_pipe *pipe, int socket, size_t most)
{
    ssize_t moved = splice(socket, NULL, pipe->input, NULL, most, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (moved > 0)
        pipe->held += (size_t)moved;
    return moved;
}

ssize_t splice_out(struct splice_pipe *pipe, int socket)
{
    ssize_t moved = splice(pipe->output, NULL, socket, NULL, pipe->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (moved > 0)
        pipe->held -= (size_t)moved;
    return moved;
}
