/*
 * file.h: what the descriptors of the kernel in memory stand for, and what can be done with it. Functions
 * return what the system call returns, with errno.
 */
#ifndef BENCH_FILE_H
#define BENCH_FILE_H

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "kernel.h"

enum { BACKLOG = 128 };

enum file_kind { FILE_FREE = 0, FILE_SOCKET, FILE_LISTENER, FILE_EPOLL, FILE_EVENT };

/* What descriptors stand for. */
struct file {
    enum file_kind kind;
    int references; /* descriptors */
    struct sockaddr_in local, remote;

    int watched; /* registered with the epoll instance */
    uint32_t interest;
    epoll_data_t data;
    int queued; /* in the ready list */
    struct file *next_ready;

    struct file *peer; /* the connection's other end; NULL: none, or it was closed */
    uint8_t *bytes;    /* received and not read yet: a ring of BUFFER_SIZE, kept with the slot */
    size_t head, length;
    int ended;   /* nothing more will be received */
    int shut;    /* nothing more will be sent */
    int reset;   /* by the other end */
    int lingers; /* SO_LINGER with 0 seconds: close is a reset */
    int starved; /* a write found too little room: tell when there is some */

    struct file *backlog[BACKLOG]; /* listener: from `head`, `length` of them */
    uint64_t count;                /* eventfd */
};

/* The file of a descriptor; NULL: the descriptor is not of this kernel. */
struct file *file_of(int fd);
struct file *file_new(enum file_kind kind);
int descriptor_new(struct file *file);
int descriptor_close(struct file *file, int fd);

/* What epoll may tell of it now. */
uint32_t file_readiness(const struct file *file);
/* Something has changed that a watcher is to be told. */
void file_notify(struct file *file);
/* What the next epoll_wait returns; level-triggered files stay ready. */
int files_ready(struct epoll_event *events, int capacity);

int file_bind(struct file *file, const struct sockaddr *address);
int file_listen(struct file *file);
int file_accept(struct file *listener, struct sockaddr *address, socklen_t *length);
int file_connect(struct file *file, const struct sockaddr *address);
int file_shutdown(struct file *file);
ssize_t file_receive(struct file *file, uint8_t *out, size_t capacity, int flags);
ssize_t file_send(struct file *file, const uint8_t *bytes, size_t length);
ssize_t file_splice(struct file *from, struct file *to, size_t length);
ssize_t file_scatter(struct file *file, const struct iovec *vectors, size_t count, int sending, int flags);
int file_name(const struct sockaddr_in *name, struct sockaddr *out, socklen_t *length);
int file_set_option(struct file *file, int level, int name, const void *value);
int file_get_option(const struct file *file, int level, int name, void *value);
ssize_t event_read(struct file *file, void *out);
ssize_t event_write(struct file *file, const void *from);

/* -1 with errno. */
int refuse(int error);

#endif
