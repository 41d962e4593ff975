/* kernel.c: see kernel.h. */
#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "file.h"
#include "loop/handshakes.h"

enum {
    STEP_NS = 10000,      /* the clock's per epoll_wait */
    SILENT_TURNS = 10000, /* epoll_waits that may time out in a row; more mean that the load is stuck */
};

/* What is counted; recvmsg and readv count as recv, and so on. */
/* clang-format off */
#define CALLS(X)                                                                                             \
    X(accept) X(bind) X(clock_gettime) X(close) X(connect) X(epoll_ctl) X(epoll_wait) X(fcntl)               \
    X(getpeername) X(getrandom) X(getsockname) X(getsockopt) X(listen) X(pipe) X(read) X(recv) X(send)       \
    X(setns) X(setsockopt) X(shutdown) X(socket) X(splice) X(write)
/* clang-format on */
#define AS_ENUM(name) CALL_##name,
#define AS_TEXT(name) #name,
enum call { CALLS(AS_ENUM) CALL_COUNT };
static const char *const NAMES[CALL_COUNT] = {CALLS(AS_TEXT)};

static uint64_t now_ns = 1000000000;
static kernel_idle *applications;
static void *(*worker_main)(void *);
static void *worker_argument;

static int depth; /* calls of this kernel on the stack; those below the first are the applications' */
static int measuring;
static uint64_t calls[CALL_COUNT];

_Noreturn void kernel_fail(const char *what)
{
    fprintf(stderr, "instructions: %s\n", what);
    _exit(1);
}

/* ---- what is counted ---- */

static void enter(enum call call)
{
    if (depth++ == 0 && measuring) {
        CALLGRIND_TOGGLE_COLLECT;
        calls[call]++;
    }
}

static void leave(void)
{
    if (--depth == 0 && measuring)
        CALLGRIND_TOGGLE_COLLECT;
}

/* Collection is off (--collect-atstart=no) and stays so until the call that is running now returns. */
void kernel_measure(int on)
{
    measuring = on;
    if (on)
        CALLGRIND_START_INSTRUMENTATION;
    else
        CALLGRIND_STOP_INSTRUMENTATION;
}

void kernel_print_calls(FILE *out)
{
    const char *comma = "";
    fputc('{', out);
    for (int i = 0; i < CALL_COUNT; i++) {
        if (calls[i] == 0)
            continue;
        fprintf(out, "%s\"%s\": %llu", comma, NAMES[i], (unsigned long long)calls[i]);
        comma = ", ";
    }
    fputc('}', out);
}

/* ---- calls: sockets ---- */

/* A call of the core or of an application; with a descriptor of another kernel it is the C library's. */
#define CALL(type, counted, name, parameters, arguments, body)                                               \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters;                                                                           \
    type __wrap_##name parameters                                                                            \
    {                                                                                                        \
        struct file *file = file_of(fd);                                                                     \
        if (file == NULL)                                                                                    \
            return __real_##name arguments;                                                                  \
        enter(CALL_##counted);                                                                               \
        type result = body;                                                                                  \
        leave();                                                                                             \
        return result;                                                                                       \
    }

CALL(int, accept, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags),
     (fd, address, length, flags), file_accept(file, address, length))
CALL(int, bind, bind, (int fd, const struct sockaddr *address, socklen_t length), (fd, address, length),
     file_bind(file, address))
CALL(int, listen, listen, (int fd, int backlog), (fd, backlog), file_listen(file))
CALL(int, connect, connect, (int fd, const struct sockaddr *address, socklen_t length), (fd, address, length),
     file_connect(file, address))
CALL(int, close, close, (int fd), (fd), descriptor_close(file, fd))
CALL(int, shutdown, shutdown, (int fd, int how), (fd, how), file_shutdown(file))
CALL(int, getsockname, getsockname, (int fd, struct sockaddr *address, socklen_t *length),
     (fd, address, length), file_name(&file->local, address, length))
CALL(int, getpeername, getpeername, (int fd, struct sockaddr *address, socklen_t *length),
     (fd, address, length), file_name(&file->remote, address, length))
CALL(int, setsockopt, setsockopt, (int fd, int level, int name, const void *value, socklen_t length),
     (fd, level, name, value, length), file_set_option(file, level, name, value))
CALL(int, getsockopt, getsockopt, (int fd, int level, int name, void *value, socklen_t *length),
     (fd, level, name, value, length), file_get_option(file, level, name, value))
CALL(ssize_t, recv, recv, (int fd, void *out, size_t capacity, int flags), (fd, out, capacity, flags),
     file_receive(file, out, capacity, flags))
CALL(ssize_t, recv, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags),
     file_scatter(file, message->msg_iov, message->msg_iovlen, 0, flags))
CALL(ssize_t, recv, readv, (int fd, const struct iovec *vectors, int count), (fd, vectors, count),
     file_scatter(file, vectors, (size_t)count, 0, 0))
CALL(ssize_t, read, read, (int fd, void *out, size_t capacity), (fd, out, capacity),
     file->kind == FILE_EVENT ? event_read(file, out) : file_receive(file, out, capacity, 0))
CALL(ssize_t, send, send, (int fd, const void *bytes, size_t length, int flags), (fd, bytes, length, flags),
     file_send(file, bytes, length))
CALL(ssize_t, send, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags),
     file_scatter(file, message->msg_iov, message->msg_iovlen, 1, flags))
CALL(ssize_t, send, writev, (int fd, const struct iovec *vectors, int count), (fd, vectors, count),
     file_scatter(file, vectors, (size_t)count, 1, 0))
CALL(ssize_t, write, write, (int fd, const void *bytes, size_t length), (fd, bytes, length),
     file->kind == FILE_EVENT ? event_write(file, bytes) : file_send(file, bytes, length))

/* ---- calls: new descriptors ---- */

#define DECLARE(type, name, parameters)                                                                      \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters

DECLARE(int, socket, (int family, int type, int protocol));
DECLARE(int, pipe2, (int fds[2], int flags));
DECLARE(ssize_t, splice, (int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned int flags));
DECLARE(int, fcntl, (int fd, int command, ...));
DECLARE(int, eventfd, (unsigned int initial, int flags));
DECLARE(int, epoll_create1, (int flags));
DECLARE(int, epoll_ctl, (int fd, int operation, int watched_fd, struct epoll_event *event));
DECLARE(int, epoll_wait, (int fd, struct epoll_event *events, int capacity, int timeout));
DECLARE(int, setns, (int fd, int kind));
DECLARE(ssize_t, getrandom, (void *out, size_t length, unsigned int flags));
DECLARE(int, clock_gettime, (clockid_t clock, struct timespec *out));
DECLARE(int, pthread_create,
        (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument));
DECLARE(int, pthread_setname_np, (pthread_t thread, const char *name));
DECLARE(void, handshakes_give, (struct handshakes * handshakes, struct step *step));

int __wrap_socket(int family, int type, int protocol)
{
    if (family != AF_INET)
        return __real_socket(family, type, protocol);
    enter(CALL_socket);
    int fd = descriptor_new(file_new(FILE_SOCKET));
    leave();
    return fd;
}

int __wrap_fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    long value = va_arg(arguments, long);
    va_end(arguments);
    struct file *file = file_of(fd);
    if (file == NULL)
        return __real_fcntl(fd, command, value);
    enter(CALL_fcntl);
    int result = command == F_DUPFD || command == F_DUPFD_CLOEXEC ? descriptor_new(file) : 0;
    leave();
    return result;
}

/* A pipe is a connection of which one direction is used. */
int __wrap_pipe2(int fds[2], int flags)
{
    (void)flags;
    enter(CALL_pipe);
    struct file *output = file_new(FILE_SOCKET);
    fds[0] = descriptor_new(output);
    struct file *input = file_new(FILE_SOCKET);
    fds[1] = descriptor_new(input);
    input->peer = output;
    output->peer = input;
    leave();
    return 0;
}

ssize_t __wrap_splice(int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned int flags)
{
    struct file *from = file_of(in), *to = file_of(out);
    if (from == NULL || to == NULL)
        return __real_splice(in, in_at, out, out_at, length, flags);
    enter(CALL_splice);
    ssize_t result = file_splice(from, to, length);
    leave();
    return result;
}

int __wrap_eventfd(unsigned int initial, int flags)
{
    (void)flags;
    struct file *file = file_new(FILE_EVENT);
    file->count = initial;
    return descriptor_new(file);
}

/* ---- calls: epoll; there is one instance, since there is one worker ---- */

int __wrap_epoll_create1(int flags)
{
    static int made;
    (void)flags;
    if (made++)
        kernel_fail("the core made a second epoll instance: kernel.c knows one");
    return descriptor_new(file_new(FILE_EPOLL));
}

int __wrap_epoll_ctl(int fd, int operation, int watched_fd, struct epoll_event *event)
{
    struct file *file = file_of(watched_fd);
    (void)fd;
    if (file == NULL)
        return refuse(EBADF);
    enter(CALL_epoll_ctl);
    file->watched = operation != EPOLL_CTL_DEL;
    if (file->watched) {
        file->interest = event->events;
        file->data = event->data;
        if (file_readiness(file) & file->interest)
            file_notify(file);
    }
    leave();
    return 0;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout)
{
    static int silent;
    (void)fd;
    enter(CALL_epoll_wait);
    now_ns += STEP_NS;
    int count = files_ready(events, capacity);
    /* The applications act when the core is idle, all in one go: the order of events never changes. */
    while (count == 0 && applications())
        count = files_ready(events, capacity);
    if (count == 0 && timeout > 0)
        now_ns += (uint64_t)timeout * 1000000;
    silent = count == 0 ? silent + 1 : 0;
    if (silent > SILENT_TURNS)
        kernel_fail("nothing moves any more; does the core use a system call that kernel.c does not have?");
    leave();
    return count;
}

/* ---- calls: the rest ---- */

int __wrap_setns(int fd, int kind)
{
    (void)fd;
    (void)kind;
    enter(CALL_setns);
    leave();
    return 0;
}

ssize_t __wrap_getrandom(void *out, size_t length, unsigned int flags)
{
    static uint8_t next;
    (void)flags;
    enter(CALL_getrandom);
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)out)[i] = next++;
    leave();
    return (ssize_t)length;
}

static int clock_read(struct timespec *out)
{
    out->tv_sec = (time_t)(now_ns / 1000000000);
    out->tv_nsec = (long)(now_ns % 1000000000);
    return 0;
}

/* The clocks of the world are read without a system call (vdso(7)), those of processes and threads with one.
 */
int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
    if (clock != CLOCK_PROCESS_CPUTIME_ID && clock != CLOCK_THREAD_CPUTIME_ID)
        return clock_read(out);
    enter(CALL_clock_gettime);
    clock_read(out);
    leave();
    return 0;
}

/* ---- the worker ---- */

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *argument)
{
    (void)attributes;
    if (run == handshakes_main) /* see __wrap_handshakes_give */
        return 0;
    if (worker_main != NULL)
        kernel_fail("the core started a second thread: kernel.c runs one");
    *thread = pthread_self();
    worker_main = run;
    worker_argument = argument;
    return 0;
}

int __wrap_pthread_setname_np(pthread_t thread, const char *name)
{
    (void)thread;
    (void)name;
    return 0;
}

void __wrap_handshakes_give(struct handshakes *handshakes, struct step *step)
{
    __real_handshakes_give(handshakes, step);
    handshakes_make(handshakes);
}

_Noreturn void kernel_run(kernel_idle *idle)
{
    applications = idle;
    worker_main(worker_argument);
    kernel_fail("the core's worker ended before the load did");
}
