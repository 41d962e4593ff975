/* core_calls.c: see core_calls.h. */
#define _GNU_SOURCE
#include "core_calls.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "decisions/decisions.h"
#include "flow/relay.h"
#include "wire/h2.h"
#include "wire/tls.h"
#include "loop/worker.h"

enum { RELAYS_KEYS = 8 };

struct core_calls calls;

/* Of this thread's turn. */
static _Thread_local int relays_now[RELAYS_KEYS]; /* by the workload's key */
static _Thread_local int fed_now, dials_now, answers_now;
static _Thread_local int is_worker; /* a thread that waits for events */

static void add(int *counter, int more)
{
    __atomic_add_fetch(counter, more, __ATOMIC_RELAXED);
}

static void keep_most(int *most, int now)
{
    if (now > COUNT(*most))
        __atomic_store_n(most, now, __ATOMIC_RELAXED);
}

/* ---- what needs privileges ---- */

int __wrap_setns(int fd, int kind);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t length);
int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t length);

int __wrap_setns(int fd, int kind)
{
    (void)fd;
    (void)kind;
    return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if ((level == SOL_SOCKET && name == SO_MARK) || (level == IPPROTO_IP && name == IP_TRANSPARENT))
        return 0;
    if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT)
        __atomic_store_n(&calls.user_timeout, *(const int *)value, __ATOMIC_RELAXED);
    return __real_setsockopt(fd, level, name, value, length);
}

/* ---- what is held back ---- */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct sockaddr_in address; /* port 0: none is held back */
    int held;                   /* counted */
} gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

void gate_close(const struct sockaddr_in *address)
{
    pthread_mutex_lock(&gate.mutex);
    gate.address = *address;
    pthread_mutex_unlock(&gate.mutex);
}

void gate_open(void)
{
    pthread_mutex_lock(&gate.mutex);
    gate.address.sin_port = 0;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mutex);
}

int gate_held(void)
{
    return COUNT(gate.held);
}

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length);
int __real_connect(int fd, const struct sockaddr *address, socklen_t length);

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    const struct sockaddr_in *to = (const struct sockaddr_in *)(const void *)address;
    int is_tunnel = to->sin_family == AF_INET && to->sin_port == htons(NS_HBONE_PORT);
    calls.tunnels_dialled += is_tunnel;
    dials_now += !is_tunnel;
    int result = __real_connect(fd, address, length);
    int error = errno;
    pthread_mutex_lock(&gate.mutex);
    int held = 0;
    while (gate.address.sin_port != 0 && length == sizeof(gate.address) &&
           memcmp(address, &gate.address, sizeof(gate.address)) == 0) {
        if (!held++)
            add(&gate.held, 1);
        pthread_cond_wait(&gate.changed, &gate.mutex);
    }
    if (held)
        add(&gate.held, -1);
    pthread_mutex_unlock(&gate.mutex);
    errno = error;
    return result;
}

/* ---- what is counted, or refused ---- */

ssize_t __wrap_splice(int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags);
ssize_t __real_splice(int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags);
int __wrap_ioctl(int fd, unsigned long request, void *argument);
int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_pipe2(int ends[2], int flags);
int __real_pipe2(int ends[2], int flags);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout);
int __real_epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout);
enum tls_result __wrap_tls_handshake(struct tls *tls, struct tls_sink *sink);
enum tls_result __real_tls_handshake(struct tls *tls, struct tls_sink *sink);
int __wrap_h2_feed(struct h2 *h2, const uint8_t *bytes, size_t length);
int __real_h2_feed(struct h2 *h2, const uint8_t *bytes, size_t length);
size_t __wrap_h2_produce(struct h2 *h2, uint8_t *out, size_t capacity, int *more);
size_t __real_h2_produce(struct h2 *h2, uint8_t *out, size_t capacity, int *more);
void __wrap_relay_flow(struct flow *flow);
void __real_relay_flow(struct flow *flow);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int __real_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
void __wrap_decisions_answer(struct decisions *decisions, struct decision *answer);
void __real_decisions_answer(struct decisions *decisions, struct decision *answer);

ssize_t __wrap_splice(int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags)
{
    ssize_t moved = __real_splice(from, from_at, to, to_at, length, flags);
    if (moved > 0)
        add(&calls.splices, 1);
    return moved;
}

int __wrap_pipe2(int ends[2], int flags)
{
    if (!COUNT(calls.pipes_refused))
        return __real_pipe2(ends, flags);
    errno = EMFILE;
    return -1;
}

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    int result = __real_ioctl(fd, request, argument);
    if (request == SIOCOUTQ && COUNT(calls.unacknowledged))
        *(int *)argument = 1;
    return result;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout)
{
    if (timeout == 0)
        add(&calls.looks, 1);
    is_worker = 1;
    for (int i = 0; i < RELAYS_KEYS; i++)
        keep_most(&calls.relays_most, relays_now[i]);
    keep_most(&calls.fed_most, fed_now);
    keep_most(&calls.dials_most, dials_now);
    keep_most(&calls.answers_most, answers_now);
    memset(relays_now, 0, sizeof(relays_now));
    fed_now = dials_now = answers_now = 0;
    return __real_epoll_wait(fd, events, capacity, timeout);
}

enum tls_result __wrap_tls_handshake(struct tls *tls, struct tls_sink *sink)
{
    add(&calls.steps, 1);
    if (is_worker)
        add(&calls.steps_of_workers, 1);
    while (COUNT(calls.steps_held))
        usleep(1000);
    return __real_tls_handshake(tls, sink);
}

int __wrap_h2_feed(struct h2 *h2, const uint8_t *bytes, size_t length)
{
    fed_now += (int)length;
    return __real_h2_feed(h2, bytes, length);
}

size_t __wrap_h2_produce(struct h2 *h2, uint8_t *out, size_t capacity, int *more)
{
    size_t length = __real_h2_produce(h2, out, capacity, more);
    add(&calls.produced, (int)length);
    return length;
}

void __wrap_relay_flow(struct flow *flow)
{
    relays_now[flow->workload->key % RELAYS_KEYS]++;
    __real_relay_flow(flow);
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    if (COUNT(calls.accepts_fail)) {
        add(&calls.accepts_tried, 1);
        errno = EMFILE;
        return -1;
    }
    int accepted = __real_accept4(fd, address, length, flags);
    if (accepted >= 0 || errno != EAGAIN || COUNT(calls.accepts_flood) == 0)
        return accepted;
    add(&calls.accepts_flood, -1);
    const struct sockaddr_in somebody = {.sin_family = AF_INET};
    memcpy(address, &somebody, sizeof(somebody));
    *length = sizeof(somebody);
    return socket(AF_INET, SOCK_STREAM | flags, 0);
}

void __wrap_decisions_answer(struct decisions *decisions, struct decision *answer)
{
    answers_now++;
    __real_decisions_answer(decisions, answer);
}
