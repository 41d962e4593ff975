/* The server of the load generator: `serve ADDRESS:PORT`, one thread, until it is ended. See exchange.h for
 * what it answers. */
#define _GNU_SOURCE
#include "exchange.h"

#include <signal.h>

enum mode { REQUESTS, DOWNLOAD, UPLOAD };

struct connection {
    int fd;
    enum mode mode;
    uint64_t received; /* upload: payload bytes so far */
    uint64_t reported; /* upload: the number in the last report */
    size_t held;       /* requests: bytes in `request`, less than a whole request */
    size_t unsent;     /* requests: the end of the response that the socket has not taken yet */
    int closing;       /* requests: close when nothing is unsent */
    char request[512];
};

static char response[RESPONSE_SIZE];
static char chunk[CHUNK];
static int poller;

static void watch(struct connection *connection, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};

    if (epoll_ctl(poller, operation, connection->fd, &event) != 0)
        die("epoll_ctl");
}

static void drop(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

/* Sends what is left of the response; 0, or -1 when the connection is gone. Arms EPOLLOUT while the socket is
 * full. */
static int send_response(struct connection *connection)
{
    const size_t before = connection->unsent;

    while (connection->unsent > 0) {
        const ssize_t sent = send(connection->fd, response + RESPONSE_SIZE - connection->unsent,
                                  connection->unsent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(connection, EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        if (sent < 0)
            return -1;
        connection->unsent -= (size_t)sent;
    }
    if (connection->closing)
        return -1;
    if (before != RESPONSE_SIZE)
        watch(connection, EPOLLIN, EPOLL_CTL_MOD);
    return 0;
}

static int take_upload(struct connection *connection, size_t count)
{
    connection->received += count;
    if (connection->received - connection->reported < REPORT_EVERY)
        return 0;
    connection->reported = connection->received;
    return send(connection->fd, &connection->reported, sizeof connection->reported, MSG_NOSIGNAL) ==
                   (ssize_t)sizeof connection->reported
               ? 0
               : -1;
}

/* Acts on a whole request in `request`; 0, or -1 to end the connection. `rest`: bytes that came behind it. */
static int act(struct connection *connection, size_t rest)
{
    switch (connection->request[5]) {
    case 'k':
    case 'c':
        connection->closing = connection->request[5] == 'c';
        connection->unsent = RESPONSE_SIZE;
        connection->held = 0;
        return send_response(connection);
    case 'd':
        connection->mode = DOWNLOAD;
        watch(connection, EPOLLOUT, EPOLL_CTL_MOD);
        return 0;
    case 'u':
        connection->mode = UPLOAD;
        return take_upload(connection, rest);
    default:
        return -1;
    }
}

static int read_request(struct connection *connection)
{
    char *const request = connection->request;
    const ssize_t got = recv(connection->fd, request + connection->held,
                             sizeof connection->request - 1 - connection->held, 0);

    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0)
        return -1;
    connection->held += (size_t)got;
    request[connection->held] = '\0';
    char *const end = strstr(request, "\r\n\r\n");
    if (end != NULL)
        return act(connection, connection->held - (size_t)(end + 4 - request));
    return connection->held == sizeof connection->request - 1 ? -1 : 0;
}

/* One event on a connection; 0, or -1 to end it. At most one chunk a turn, so that all connections get
 * theirs. */
static int serve(struct connection *connection)
{
    ssize_t count;

    switch (connection->mode) {
    case DOWNLOAD:
        count = send(connection->fd, chunk, sizeof chunk, MSG_NOSIGNAL);
        return count < 0 && errno != EAGAIN ? -1 : 0;
    case UPLOAD:
        count = recv(connection->fd, chunk, sizeof chunk, 0);
        if (count < 0 && errno == EAGAIN)
            return 0;
        return count <= 0 ? -1 : take_upload(connection, (size_t)count);
    case REQUESTS:
        break;
    }
    return connection->unsent > 0 ? send_response(connection) : read_request(connection);
}

static void accept_all(int listener)
{
    for (int turn = 0; turn < 64; turn++) {
        const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct connection *connection = calloc(1, sizeof *connection);
        if (connection == NULL)
            die("calloc");
        set_nodelay(fd);
        connection->fd = fd;
        watch(connection, EPOLLIN, EPOLL_CTL_ADD);
    }
}

int main(int count, char **arguments)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};

    if (count != 2) {
        fprintf(stderr, "usage: serve ADDRESS:PORT\n");
        return 2;
    }
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    memset(response, 'x', sizeof response);
    memcpy(response, RESPONSE_HEAD, sizeof(RESPONSE_HEAD) - 1);
    memcpy(response + sizeof(RESPONSE_HEAD) - 1, MARKER, sizeof(MARKER) - 1);
    memset(chunk, 'x', sizeof chunk);

    const int listener = listen_on(arguments[1]);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) != 0)
        die("epoll");
    for (;;) {
        const int ready = epoll_wait(poller, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct connection *const connection = events[i].data.ptr;
            if (connection == NULL)
                accept_all(listener);
            else if (serve(connection) != 0)
                drop(connection);
        }
    }
}
