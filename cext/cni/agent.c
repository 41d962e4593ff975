#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char MAGIC[4] = {'N', 'S', 'C', '1'};

enum { QUESTION_HEAD = 12, ANSWER_HEAD = 8 };
/* Between two tries to connect; and how long before the deadline the agent is to answer. */
enum { RETRY_MS = 50, SPARE_MS = 500 };

long long clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void number_write(char out[4], long long number)
{
    for (int i = 0; i < 4; i++)
        out[i] = (char)(number >> (24 - 8 * i) & 0xff);
}

/* False if the head is none of ours. */
static bool answer_head_read(const char head[ANSWER_HEAD], size_t *size)
{
    *size = 0;
    for (int i = 0; i < 4; i++)
        *size = *size << 8 | (unsigned char)head[4 + i];
    return memcmp(head, MAGIC, sizeof(MAGIC)) == 0;
}

/* Waits until the socket can do what is asked of it. False at the deadline. */
static bool wait_for(int fd, short events, long long deadline)
{
    for (;;) {
        long long left = deadline - clock_ms();
        struct pollfd one = {.fd = fd, .events = events};
        if (left <= 0)
            return false;
        int ready = poll(&one, 1, left < 60000 ? (int)left : 60000);
        if (ready > 0)
            return true;
        if (ready < 0 && errno != EINTR)
            return false;
    }
}

static void pause_until(long long deadline)
{
    long long left = deadline - clock_ms();
    if (left > RETRY_MS)
        left = RETRY_MS;
    if (left > 0)
        poll(NULL, 0, (int)left);
}

/* A connection to an agent that runs as root; -1: nobody is there, or it has too many waiting. */
static int agent_connect(const char *path, const char **why)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof(address.sun_path)) {
        *why = "the path of its socket is too long";
        return -1;
    }
    memcpy(address.sun_path, path, length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        *why = "no socket can be made";
        return -1;
    }
    struct ucred peer;
    socklen_t size = sizeof(peer);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        *why = errno == EAGAIN ? "it has too many to answer" : "no agent listens there";
    else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ||
             (peer.uid != 0 && peer.uid != geteuid()))
        *why = "who listens there is not root";
    else
        return fd;
    close(fd);
    return -1;
}

static bool send_all(int fd, const char *bytes, size_t size, long long deadline)
{
    while (size > 0) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (sent < 0 && !wait_for(fd, POLLOUT, deadline))
            return false;
        if (sent > 0) {
            bytes += sent;
            size -= (size_t)sent;
        }
    }
    return true;
}

static bool receive_all(int fd, char *bytes, size_t size, long long deadline)
{
    while (size > 0) {
        ssize_t received = recv(fd, bytes, size, 0);
        if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        if (received < 0 && !wait_for(fd, POLLIN, deadline))
            return false;
        if (received > 0) {
            bytes += received;
            size -= (size_t)received;
        }
    }
    return true;
}

static size_t exchange(int fd, const char *question, size_t question_size, long long deadline, char *answer,
                       size_t answer_max, const char **why)
{
    char head[QUESTION_HEAD];
    size_t size;
    long long patience = deadline - clock_ms() - SPARE_MS;
    memcpy(head, MAGIC, sizeof(MAGIC));
    number_write(head + 4, (long long)question_size);
    number_write(head + 8, patience > 0 ? patience : 0);
    *why = "it went, or did not answer in time";
    if (!send_all(fd, head, sizeof(head), deadline) || !send_all(fd, question, question_size, deadline) ||
        !receive_all(fd, head, ANSWER_HEAD, deadline))
        return 0;
    if (!answer_head_read(head, &size) || size == 0 || size > answer_max) {
        *why = "it does not speak this plugin's protocol";
        return 0;
    }
    return receive_all(fd, answer, size, deadline) ? size : 0;
}

size_t agent_ask(const char *path, const char *question, size_t question_size, long long deadline, bool once,
                 char *answer, size_t answer_max, const char **why)
{
    for (;;) {
        size_t size = 0;
        int fd = agent_connect(path, why);
        if (fd >= 0) {
            size = exchange(fd, question, question_size, deadline, answer, answer_max, why);
            close(fd);
        }
        if (size > 0 || once || clock_ms() >= deadline)
            return size;
        pause_until(deadline);
    }
}
