/* A plain TCP relay, the floor for every proxy that copies: `relay ADDRESS:PORT TARGET:PORT THREADS`.
 *
 * Each thread has an epoll and one buffer of BUFFER bytes. A direction reads into that buffer and sends at
 * once; only what the socket does not take is kept, in memory of its own, and until that is gone the
 * direction does not read. A FIN is passed on when everything before it has been sent; any error ends both
 * sides.
 *
 * Both ends of a pair are in the same epoll. An end that is dropped in the middle of a turn may still have an
 * event in it, so pairs are freed only when the turn is over.
 */
#define _GNU_SOURCE
#include "exchange.h"

#include <pthread.h>
#include <signal.h>

enum { BUFFER = 256 << 10 };

struct end {
    int fd;
    struct pair *pair;
    char *kept;      /* read from the other end, not yet taken by this one; NULL when there is nothing */
    size_t kept_at;  /* what of it has been sent */
    size_t kept_end; /* its size */
    int finished;    /* this end's FIN has been read */
    int connecting;
};

struct pair {
    struct end ends[2];
    int dead;
    struct pair *next_dead;
};

struct worker {
    pthread_t thread;
    int poller;
    struct pair *dead;
    char buffer[BUFFER];
};

static int listener;
static struct sockaddr_in target;

static struct end *other(struct end *end)
{
    return end == &end->pair->ends[0] ? &end->pair->ends[1] : &end->pair->ends[0];
}

static void arm(struct worker *worker, struct end *end, int operation)
{
    struct epoll_event event = {.data.ptr = end};

    if (!end->finished && !end->connecting && other(end)->kept == NULL)
        event.events |= EPOLLIN;
    if (end->kept != NULL || end->connecting)
        event.events |= EPOLLOUT;
    if (epoll_ctl(worker->poller, operation, end->fd, &event) != 0)
        die("epoll_ctl");
}

static void drop(struct worker *worker, struct pair *pair)
{
    if (pair->dead)
        return;
    pair->dead = 1;
    for (int i = 0; i < 2; i++) {
        close(pair->ends[i].fd);
        free(pair->ends[i].kept);
    }
    pair->next_dead = worker->dead;
    worker->dead = pair;
}

static int finish(struct end *from)
{
    struct end *const to = other(from);

    if (to->kept == NULL && shutdown(to->fd, SHUT_WR) != 0)
        return -1;
    return to->finished && to->kept == NULL && from->kept == NULL ? -1 : 0;
}

static int keep(struct worker *worker, struct end *to, const char *data, size_t count)
{
    to->kept = malloc(count);
    if (to->kept == NULL)
        return -1;
    memcpy(to->kept, data, count);
    to->kept_at = 0;
    to->kept_end = count;
    arm(worker, to, EPOLL_CTL_MOD);
    arm(worker, other(to), EPOLL_CTL_MOD);
    return 0;
}

/* 0, or -1 when the pair is to end. */
static int on_readable(struct worker *worker, struct end *from)
{
    struct end *const to = other(from);
    const ssize_t got = recv(from->fd, worker->buffer, sizeof worker->buffer, 0);

    if (got < 0)
        return errno == EAGAIN ? 0 : -1;
    if (got == 0) {
        from->finished = 1;
        arm(worker, from, EPOLL_CTL_MOD);
        return finish(from);
    }
    if (to->connecting)
        return keep(worker, to, worker->buffer, (size_t)got);
    ssize_t sent = send(to->fd, worker->buffer, (size_t)got, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return -1;
    sent = sent < 0 ? 0 : sent;
    return sent == got ? 0 : keep(worker, to, worker->buffer + sent, (size_t)(got - sent));
}

static int on_writable(struct worker *worker, struct end *to)
{
    struct end *const from = other(to);

    if (to->connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(to->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
            return -1;
        to->connecting = 0;
    }
    if (to->kept != NULL) {
        const ssize_t sent = send(to->fd, to->kept + to->kept_at, to->kept_end - to->kept_at, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? 0 : -1;
        to->kept_at += (size_t)sent;
        if (to->kept_at < to->kept_end)
            return 0;
        free(to->kept);
        to->kept = NULL;
    }
    arm(worker, to, EPOLL_CTL_MOD);
    arm(worker, from, EPOLL_CTL_MOD);
    return from->finished ? finish(from) : 0;
}

static void accept_all(struct worker *worker)
{
    for (int turn = 0; turn < 16; turn++) {
        const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct pair *pair = calloc(1, sizeof *pair);
        const int onward = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (pair == NULL || onward < 0)
            die("relay");
        set_nodelay(fd);
        set_nodelay(onward);
        pair->ends[0] = (struct end){.fd = fd, .pair = pair};
        pair->ends[1] = (struct end){.fd = onward, .pair = pair, .connecting = 1};
        if (connect(onward, (struct sockaddr *)&target, sizeof target) != 0 && errno != EINPROGRESS) {
            drop(worker, pair);
            continue;
        }
        arm(worker, &pair->ends[0], EPOLL_CTL_ADD);
        arm(worker, &pair->ends[1], EPOLL_CTL_ADD);
    }
}

static void on_event(struct worker *worker, struct end *end, uint32_t events)
{
    struct pair *const pair = end->pair;

    if (pair->dead)
        return;
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) && (end->connecting || end->kept != NULL) &&
        on_writable(worker, end) != 0) {
        drop(worker, pair);
        return;
    }
    if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && other(end)->kept == NULL &&
        on_readable(worker, end) != 0)
        drop(worker, pair);
}

static void *work(void *argument)
{
    struct worker *const worker = argument;
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN | EPOLLEXCLUSIVE};

    worker->poller = epoll_create1(EPOLL_CLOEXEC);
    if (worker->poller < 0 || epoll_ctl(worker->poller, EPOLL_CTL_ADD, listener, &event) != 0)
        die("epoll");
    for (;;) {
        const int ready = epoll_wait(worker->poller, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == NULL)
                accept_all(worker);
            else
                on_event(worker, events[i].data.ptr, events[i].events);
        }
        while (worker->dead != NULL) {
            struct pair *const pair = worker->dead;
            worker->dead = pair->next_dead;
            free(pair);
        }
    }
    return NULL;
}

int main(int count, char **arguments)
{
    const int threads = count == 4 ? atoi(arguments[3]) : 0;

    if (threads < 1 || threads > 64) {
        fprintf(stderr, "usage: relay ADDRESS:PORT TARGET:PORT THREADS\n");
        return 2;
    }
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    target = parse_endpoint(arguments[2]);
    listener = listen_on(arguments[1]);
    struct worker *const workers = calloc((size_t)threads, sizeof *workers);
    if (workers == NULL)
        die("calloc");
    for (int i = 0; i < threads; i++)
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            die("pthread_create");
    pthread_join(workers[0].thread, NULL);
    return 0;
}
