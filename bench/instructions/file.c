/* file.c: see file.h. */
#define _GNU_SOURCE
#include "file.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { FILES = 512, PORT_FIRST = 40000 };

static struct file files[FILES];
static struct file *descriptors[FILES]; /* NULL: free */
static struct file *ready_head, **ready_tail = &ready_head;
static uint16_t next_port = PORT_FIRST;

struct sockaddr_in kernel_address(uint32_t ip, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(ip);
    return address;
}

/* ---- descriptors ---- */

struct file *file_of(int fd)
{
    return fd >= FD_FIRST && fd < FD_FIRST + FILES ? descriptors[fd - FD_FIRST] : NULL;
}

int descriptor_new(struct file *file)
{
    for (int i = 0; i < FILES; i++)
        if (descriptors[i] == NULL) {
            descriptors[i] = file;
            file->references++;
            return FD_FIRST + i;
        }
    kernel_fail("file.c has too few descriptors for this load: raise FILES");
}

struct file *file_new(enum file_kind kind)
{
    for (int i = 0; i < FILES; i++) {
        struct file *file = &files[i];
        if (file->kind != FILE_FREE || file->queued)
            continue;
        uint8_t *bytes = file->bytes;
        if (bytes == NULL && kind == FILE_SOCKET)
            bytes = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bytes == MAP_FAILED)
            kernel_fail("no memory for a socket");
        memset(file, 0, sizeof(*file));
        file->kind = kind;
        file->bytes = bytes;
        return file;
    }
    kernel_fail("file.c has too few files for this load: raise FILES");
}

int refuse(int error)
{
    errno = error;
    return -1;
}

/* ---- file_readiness ---- */

uint32_t file_readiness(const struct file *file)
{
    switch (file->kind) {
    case FILE_SOCKET: {
        uint32_t events = 0;
        if (file->length > 0 || file->ended || file->reset)
            events |= EPOLLIN;
        if (file->peer == NULL || file->peer->length < BUFFER_SIZE)
            events |= EPOLLOUT;
        if (file->ended || file->reset)
            events |= EPOLLRDHUP;
        if ((file->ended && file->shut) || file->reset)
            events |= EPOLLHUP;
        return file->reset ? events | EPOLLERR : events;
    }
    case FILE_LISTENER:
        return file->length > 0 ? EPOLLIN : 0;
    case FILE_EVENT:
        return file->count > 0 ? EPOLLIN : 0;
    default:
        return 0;
    }
}

void file_notify(struct file *file)
{
    if (!file->watched || file->queued)
        return;
    file->queued = 1;
    file->next_ready = NULL;
    *ready_tail = file;
    ready_tail = &file->next_ready;
}

int files_ready(struct epoll_event *events, int capacity)
{
    int count = 0;
    struct file *last = NULL; /* level-triggered files stay in the list; they are looked at once */
    while (ready_head != NULL && ready_head != last && count < capacity) {
        struct file *file = ready_head;
        ready_head = file->next_ready;
        if (ready_head == NULL)
            ready_tail = &ready_head;
        file->queued = 0;
        uint32_t present = file_readiness(file) & (file->interest | EPOLLERR | EPOLLHUP);
        if (present == 0 || !file->watched)
            continue;
        events[count].events = present;
        events[count].data = file->data;
        count++;
        if (!(file->interest & EPOLLET)) {
            file_notify(file);
            last = last == NULL ? file : last;
        }
    }
    return count;
}

/* ---- connections ---- */

static void tell_end(struct file *file, int reset)
{
    struct file *peer = file->peer;
    if (peer == NULL)
        return;
    if (reset) {
        peer->reset = 1;
        peer->length = 0;
    }
    peer->ended = 1;
    file_notify(peer);
}

static void file_release(struct file *file)
{
    if (--file->references > 0)
        return;
    if (file->kind == FILE_SOCKET) {
        tell_end(file, file->lingers || file->length > 0);
        if (file->peer != NULL)
            file->peer->peer = NULL;
    }
    file->watched = 0;
    file->kind = FILE_FREE;
}

static struct file *listener_at(const struct sockaddr_in *address)
{
    for (int i = 0; i < FILES; i++) {
        struct file *file = &files[i];
        if (file->kind == FILE_LISTENER && file->local.sin_port == address->sin_port &&
            file->local.sin_addr.s_addr == address->sin_addr.s_addr)
            return file;
    }
    return NULL;
}

int file_connect(struct file *file, const struct sockaddr *to)
{
    const struct sockaddr_in *address = (const struct sockaddr_in *)(const void *)to;
    struct file *listener = listener_at(address);
    if (listener == NULL || listener->length == BACKLOG)
        return refuse(ECONNREFUSED);
    struct file *peer = file_new(FILE_SOCKET);
    if (file->local.sin_port == 0)
        file->local = kernel_address(INADDR_LOOPBACK, next_port++);
    file->remote = peer->local = *address;
    peer->remote = file->local;
    peer->peer = file;
    file->peer = peer;
    listener->backlog[(listener->head + listener->length++) % BACKLOG] = peer;
    file_notify(listener);
    file_notify(file);
    return refuse(EINPROGRESS); /* as a non-blocking socket says; it is connected at once */
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

ssize_t file_receive(struct file *file, uint8_t *out, size_t capacity, int flags)
{
    if (file->reset)
        return refuse(ECONNRESET);
    if (file->length == 0)
        return file->ended ? 0 : refuse(EAGAIN);
    size_t part = least(capacity, file->length);
    size_t until_wrap = least(part, BUFFER_SIZE - file->head);
    if (!(flags & MSG_TRUNC)) {
        memcpy(out, file->bytes + file->head, until_wrap);
        memcpy(out + until_wrap, file->bytes, part - until_wrap);
    }
    file->head = (file->head + part) % BUFFER_SIZE;
    file->length -= part;
    /* Linux tells a writer that was refused when a third of its buffer is free (sk_stream_write_space). */
    if (file->peer != NULL && file->peer->starved && BUFFER_SIZE - file->length >= BUFFER_SIZE / 3) {
        file->peer->starved = 0;
        file_notify(file->peer);
    }
    return (ssize_t)part;
}

ssize_t file_send(struct file *file, const uint8_t *bytes, size_t length)
{
    struct file *peer = file->peer;
    if (file->reset)
        return refuse(ECONNRESET);
    if (peer == NULL || file->shut)
        return refuse(EPIPE);
    size_t part = least(length, BUFFER_SIZE - peer->length);
    if (part < length)
        file->starved = 1;
    if (part == 0)
        return refuse(EAGAIN);
    size_t tail = (peer->head + peer->length) % BUFFER_SIZE;
    size_t until_wrap = least(part, BUFFER_SIZE - tail);
    memcpy(peer->bytes + tail, bytes, until_wrap);
    memcpy(peer->bytes, bytes + until_wrap, part - until_wrap);
    peer->length += part;
    file_notify(peer);
    return (ssize_t)part;
}

ssize_t file_splice(struct file *from, struct file *to, size_t length)
{
    static uint8_t bytes[BUFFER_SIZE];
    if (to->peer == NULL)
        return refuse(EPIPE);
    size_t part = least(length, BUFFER_SIZE - to->peer->length);
    if (part == 0) {
        to->starved = 1;
        return refuse(EAGAIN);
    }
    ssize_t got = file_receive(from, bytes, part, 0);
    return got > 0 ? file_send(to, bytes, (size_t)got) : got;
}

ssize_t file_scatter(struct file *file, const struct iovec *vectors, size_t count, int sending, int flags)
{
    ssize_t total = 0;
    for (size_t i = 0; i < count; i++) {
        ssize_t part = sending ? file_send(file, vectors[i].iov_base, vectors[i].iov_len)
                               : file_receive(file, vectors[i].iov_base, vectors[i].iov_len, flags);
        if (part < 0)
            return total > 0 ? total : part;
        total += part;
        if ((size_t)part < vectors[i].iov_len)
            break;
    }
    return total;
}

/* ---- what else is asked of a file ---- */

int file_name(const struct sockaddr_in *name, struct sockaddr *out, socklen_t *length)
{
    if (out != NULL) {
        memcpy(out, name, least(*length, sizeof(*name)));
        *length = sizeof(*name);
    }
    return 0;
}

int file_accept(struct file *listener, struct sockaddr *address, socklen_t *length)
{
    if (listener->length == 0)
        return refuse(EAGAIN);
    struct file *file = listener->backlog[listener->head];
    listener->head = (listener->head + 1) % BACKLOG;
    listener->length--;
    file_name(&file->remote, address, length);
    return descriptor_new(file);
}

int file_bind(struct file *file, const struct sockaddr *address)
{
    memcpy(&file->local, address, sizeof(file->local));
    return 0;
}

int file_listen(struct file *file)
{
    file->kind = FILE_LISTENER;
    return 0;
}

int file_shutdown(struct file *file)
{
    file->shut = 1;
    tell_end(file, 0);
    return 0;
}

int file_set_option(struct file *file, int level, int name, const void *value)
{
    if (level == SOL_SOCKET && name == SO_LINGER) {
        const struct linger *linger = value;
        file->lingers = linger->l_onoff && linger->l_linger == 0;
    }
    return 0;
}

int file_get_option(const struct file *file, int level, int name, void *value)
{
    if (level != SOL_SOCKET || name != SO_ERROR)
        return refuse(ENOPROTOOPT);
    *(int *)value = file->reset ? ECONNRESET : 0;
    return 0;
}

int descriptor_close(struct file *file, int fd)
{
    descriptors[fd - FD_FIRST] = NULL;
    file_release(file);
    return 0;
}

ssize_t event_read(struct file *file, void *out)
{
    if (file->count == 0)
        return refuse(EAGAIN);
    memcpy(out, &file->count, sizeof(file->count));
    file->count = 0;
    return sizeof(file->count);
}

ssize_t event_write(struct file *file, const void *from)
{
    uint64_t more;
    memcpy(&more, from, sizeof(more));
    file->count += more;
    file_notify(file);
    return sizeof(more);
}
