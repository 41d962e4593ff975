/*
 * The whole core, worker threads, epoll and all, over loopback addresses and without privileges: what needs a
 * capability (entering a namespace, socket marks, transparent sockets) is taken out at the linker's --wrap,
 * which tests/unit/test_cext.py asks for by the names of the __wrap_ functions here.
 *
 * One core holds both ends: the workload `shipper` with an outbound listener, and `pipeline` with an HBONE
 * listener. The original destination of a captured connection is its listener's own address, so the answer to
 * its question names where the application really listens. Addresses are of 127.0.0.0/8 and differ by
 * process.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "certificates.h"
#include "check.h"
#include "flow.h"
#include "nodeseal_core.h"
#include "noise.h"
#include "worker.h"

#define DOMAIN "example.org"
#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"
#define SIEM "spiffe://example.org/ns/default/sa/siem"

enum { SHIPPER_KEY = 1, PIPELINE_KEY = 2, SIEM_KEY = 3, WAIT_SECONDS = 20, RELAYS_KEYS = 8 };

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
    return __real_setsockopt(fd, level, name, value, length);
}

/*
 * A connection to this address is held back inside the core's connect() until the test has made the
 * application act on it: then the core learns of the connection and of what the application did in one and
 * the same event.
 */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct sockaddr_in address; /* port 0: none is held back */
    int held;                   /* atomic: how many are */
} gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length);
int __real_connect(int fd, const struct sockaddr *address, socklen_t length);

static _Atomic int tunnels_dialled; /* connections to peers' port 15008 that were begun */
static _Thread_local int dials_now; /* other ones, between two looks or waits for events */

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    const struct sockaddr_in *to = (const struct sockaddr_in *)(const void *)address;
    int is_tunnel = to->sin_family == AF_INET && to->sin_port == htons(NS_HBONE_PORT);
    tunnels_dialled += is_tunnel;
    dials_now += !is_tunnel;
    int result = __real_connect(fd, address, length);
    int error = errno;
    pthread_mutex_lock(&gate.mutex);
    int held = 0;
    while (gate.address.sin_port != 0 && length == sizeof(gate.address) &&
           memcmp(address, &gate.address, sizeof(gate.address)) == 0) {
        if (!held++)
            __atomic_add_fetch(&gate.held, 1, __ATOMIC_RELAXED);
        pthread_cond_wait(&gate.changed, &gate.mutex);
    }
    if (held)
        __atomic_sub_fetch(&gate.held, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&gate.mutex);
    errno = error;
    return result;
}

static void gate_close(const struct sockaddr_in *address)
{
    pthread_mutex_lock(&gate.mutex);
    gate.address = *address;
    pthread_mutex_unlock(&gate.mutex);
}

static void gate_open(void)
{
    pthread_mutex_lock(&gate.mutex);
    gate.address.sin_port = 0;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mutex);
}

/* ---- calls that are counted, or refused ---- */

#define COUNT_RESET(counter) __atomic_store_n(&(counter), 0, __ATOMIC_RELAXED)
#define COUNT(counter) __atomic_load_n(&(counter), __ATOMIC_RELAXED)

static int splices;        /* that moved something */
static int looks;          /* for events, without sleep */
static int pipes_refused;  /* as when descriptors have run out */
static int unacknowledged; /* what the kernel has sent is not acknowledged, whatever it says */
static int steps;          /* of handshakes */
static int steps_of_workers;
static int steps_held;              /* none ends while it is set */
static _Thread_local int is_worker; /* a thread that waits for events */
static int
    relays_most; /* of one workload's flows, that a worker made between two looks or waits for events */
static _Thread_local int relays_now[RELAYS_KEYS];
static int relays_from;  /* only of the workloads with this key and higher ones */
static int accepts_fail; /* as when descriptors have run out, not even one given up helps */
static int accepts_tried;
static int fed_most; /* bytes of plaintext that a worker handed on between two looks or waits for events */
static _Thread_local int fed_now;
static int produced;     /* bytes of frames, in all */
static int dials_most;   /* of dials_now */
static int answers_most; /* that a worker took between two looks or waits for events */
static _Thread_local int answers_now;

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
void __wrap_flow_relay(struct flow *flow);
void __real_flow_relay(struct flow *flow);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int __real_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
void __wrap_decisions_answer(struct decisions *decisions, struct decision *answer);
void __real_decisions_answer(struct decisions *decisions, struct decision *answer);

ssize_t __wrap_splice(int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags)
{
    ssize_t moved = __real_splice(from, from_at, to, to_at, length, flags);
    if (moved > 0)
        __atomic_add_fetch(&splices, 1, __ATOMIC_RELAXED);
    return moved;
}

int __wrap_pipe2(int ends[2], int flags)
{
    if (!COUNT(pipes_refused))
        return __real_pipe2(ends, flags);
    errno = EMFILE;
    return -1;
}

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    int result = __real_ioctl(fd, request, argument);
    if (request == SIOCOUTQ && COUNT(unacknowledged))
        *(int *)argument = 1;
    return result;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout)
{
    if (timeout == 0)
        __atomic_add_fetch(&looks, 1, __ATOMIC_RELAXED);
    is_worker = 1;
    if (answers_now > COUNT(answers_most))
        __atomic_store_n(&answers_most, answers_now, __ATOMIC_RELAXED);
    for (int i = COUNT(relays_from); i < RELAYS_KEYS; i++)
        if (relays_now[i] > COUNT(relays_most))
            __atomic_store_n(&relays_most, relays_now[i], __ATOMIC_RELAXED);
    memset(relays_now, 0, sizeof(relays_now));
    if (fed_now > COUNT(fed_most))
        __atomic_store_n(&fed_most, fed_now, __ATOMIC_RELAXED);
    if (dials_now > COUNT(dials_most))
        __atomic_store_n(&dials_most, dials_now, __ATOMIC_RELAXED);
    answers_now = fed_now = dials_now = 0;
    return __real_epoll_wait(fd, events, capacity, timeout);
}

enum tls_result __wrap_tls_handshake(struct tls *tls, struct tls_sink *sink)
{
    __atomic_add_fetch(&steps, 1, __ATOMIC_RELAXED);
    if (is_worker)
        __atomic_add_fetch(&steps_of_workers, 1, __ATOMIC_RELAXED);
    while (COUNT(steps_held))
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
    __atomic_add_fetch(&produced, (int)length, __ATOMIC_RELAXED);
    return length;
}

void __wrap_flow_relay(struct flow *flow)
{
    relays_now[flow->workload->key % RELAYS_KEYS]++;
    __real_flow_relay(flow);
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    if (!COUNT(accepts_fail))
        return __real_accept4(fd, address, length, flags);
    __atomic_add_fetch(&accepts_tried, 1, __ATOMIC_RELAXED);
    errno = EMFILE;
    return -1;
}

void __wrap_decisions_answer(struct decisions *decisions, struct decision *answer)
{
    answers_now++;
    __real_decisions_answer(decisions, answer);
}

/* ---- sockets of applications ---- */

static struct sockaddr_in host(int number, int port)
{
    unsigned process = (unsigned)getpid();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr =
        htonl(0x7f000000u | (64 + (process >> 8) % 128) << 16 | (process & 255) << 8 | (unsigned)number);
    return address;
}

static void limit_waiting(int fd)
{
    struct timeval limit = {.tv_sec = WAIT_SECONDS};
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)), 0);
}

static int listen_at(struct sockaddr_in address)
{
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    limit_waiting(fd);
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), 0);
    CHECK_CASE(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "%s", strerror(errno));
    CHECK_EQUAL(listen(fd, 512), 0);
    return fd;
}

static struct sockaddr_in local_of(int fd)
{
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    CHECK_EQUAL(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    return address;
}

static int dial(int listener)
{
    struct sockaddr_in address = local_of(listener);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    limit_waiting(fd);
    CHECK_EQUAL(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static int take_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK_CASE(fd >= 0, "%s", strerror(errno));
    limit_waiting(fd);
    return fd;
}

static void send_stream(int fd, uint64_t seed, uint64_t from, uint64_t length)
{
    uint8_t bytes[32768];
    while (length > 0) {
        size_t part = length < sizeof(bytes) ? (size_t)length : sizeof(bytes);
        noise_fill(seed, from, bytes, part);
        for (size_t at = 0; at < part;) {
            ssize_t sent = send(fd, bytes + at, part - at, MSG_NOSIGNAL);
            CHECK_CASE(sent > 0, "%s", strerror(errno));
            at += (size_t)sent;
        }
        from += part;
        length -= part;
    }
}

static void receive_stream(int fd, uint64_t seed, uint64_t from, uint64_t length)
{
    uint8_t bytes[32768];
    while (length > 0) {
        ssize_t got = recv(fd, bytes, length < sizeof(bytes) ? (size_t)length : sizeof(bytes), 0);
        CHECK_CASE(got > 0, "%zd %s", got, strerror(errno));
        CHECK(noise_matches(seed, from, bytes, (size_t)got));
        from += (uint64_t)got;
        length -= (uint64_t)got;
    }
}

static void expect_end(int fd)
{
    uint8_t byte;
    ssize_t got = recv(fd, &byte, 1, 0);
    CHECK_CASE(got == 0, "%zd %s", got, strerror(errno));
}

static void expect_reset(int fd)
{
    uint8_t byte;
    ssize_t got = recv(fd, &byte, 1, 0);
    CHECK_CASE(got == -1 && errno == ECONNRESET, "%zd %s", got, strerror(errno));
}

static void reset(int fd)
{
    struct linger linger = {.l_onoff = 1};
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    close(fd);
}

/* Sends a stream from a thread of its own. */
struct sender {
    int fd;
    uint64_t seed, length;
    pthread_t thread;
};

static void *sender_main(void *argument)
{
    struct sender *sender = argument;
    send_stream(sender->fd, sender->seed, 0, sender->length);
    return NULL;
}

static void sender_start(struct sender *sender, int fd, uint64_t seed, uint64_t length)
{
    sender->fd = fd;
    sender->seed = seed;
    sender->length = length;
    CHECK_EQUAL(pthread_create(&sender->thread, NULL, sender_main, sender), 0);
}

static void sender_join(struct sender *sender)
{
    CHECK_EQUAL(pthread_join(sender->thread, NULL), 0);
}

/* ---- the core and those who decide for it ---- */

struct lab {
    struct core *core;
    struct authority authority;
    int outbound, hbone; /* listeners that the core has duplicates of */
    int application;     /* pipeline's own listener */
    pthread_t decider;
    pthread_mutex_t mutex; /* over what follows */
    int stopping;
    int tunnel;                  /* outbound answers: enum ns_way */
    const char *identity;        /* expected of its peer */
    struct sockaddr_in endpoint; /* outbound answers name this */
    uint32_t outbound_verdict, tunnel_verdict, plaintext_verdict;
    uint64_t epoch;
    struct ns_question last_tunnel; /* the last question about a tunnel's stream */
    int answers;                    /* given; counted */
    int stuck;                      /* nothing is answered; `changed` is waited for */
    pthread_cond_t changed;
};

static struct ns_address mapped(struct sockaddr_in from)
{
    struct ns_address address = {.port = ntohs(from.sin_port)};
    address.ip[10] = address.ip[11] = 0xff;
    memcpy(address.ip + 12, &from.sin_addr, 4);
    return address;
}

static void lab_decide(struct lab *lab, const struct ns_question *question, struct ns_answer *answer)
{
    memset(answer, 0, sizeof(*answer));
    answer->id = question->id;
    pthread_mutex_lock(&lab->mutex);
    while (lab->stuck)
        pthread_cond_wait(&lab->changed, &lab->mutex);
    answer->epoch = lab->epoch;
    answer->verdict = question->kind == NS_ASK_OUTBOUND         ? lab->outbound_verdict
                      : question->kind == NS_ASK_INBOUND_TUNNEL ? lab->tunnel_verdict
                                                                : lab->plaintext_verdict;
    snprintf(answer->reason, sizeof(answer->reason), "%s",
             answer->verdict == NS_ALLOW ? "allowed" : "strict");
    if (question->kind == NS_ASK_OUTBOUND) {
        answer->endpoint_count = 1;
        answer->endpoints[0].address = mapped(lab->endpoint);
        answer->endpoints[0].tunnel = (uint32_t)lab->tunnel;
        snprintf(answer->endpoints[0].identity, NS_IDENTITY_MAX, "%s", lab->tunnel ? lab->identity : "");
        snprintf(answer->endpoints[0].reason, NS_REASON_MAX, "%s",
                 lab->tunnel ? "" : "destination-not-in-mesh");
    } else if (question->kind == NS_ASK_INBOUND_TUNNEL) {
        lab->last_tunnel = *question;
    }
    pthread_mutex_unlock(&lab->mutex);
}

static void *decider_main(void *argument)
{
    struct lab *lab = argument;
    struct ns_question question;
    struct ns_answer *answer = malloc(sizeof(*answer));
    for (;;) {
        pthread_mutex_lock(&lab->mutex);
        int stopping = lab->stopping;
        pthread_mutex_unlock(&lab->mutex);
        if (stopping)
            break;
        if (core_next_questions(lab->core, &question, 1, 20) == 1) {
            lab_decide(lab, &question, answer);
            core_answer(lab->core, answer);
            __atomic_add_fetch(&lab->answers, 1, __ATOMIC_RELAXED);
        }
    }
    free(answer);
    return NULL;
}

static void lab_credentials(struct lab *lab, uint64_t key, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&lab->authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &lab->authority.intermediate);
    char *secret = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&lab->authority.root, NULL);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_credentials(lab->core, key, chain, secret, bundle, error, sizeof(error)), 0);
    free(chain);
    free(secret);
    free(bundle);
    certificate_dispose(&leaf);
}

/* `netns`: stands for a network namespace, by its inode. */
static void lab_workload_in(struct lab *lab, int netns, uint64_t key, int number, const char *identity)
{
    char error[NS_REASON_MAX] = "";
    struct ns_address address = mapped(host(number, 0));
    CHECK_EQUAL(core_workload_add(lab->core, key, netns, &address, error, sizeof(error)), 0);
    lab_credentials(lab, key, identity);
}

static void lab_workload(struct lab *lab, uint64_t key, int number, const char *identity)
{
    int netns = memfd_create("netns", MFD_CLOEXEC);
    CHECK(netns >= 0);
    lab_workload_in(lab, netns, key, number, identity);
    close(netns);
}

static int lab_listen(struct lab *lab, uint64_t key, int role, int fd)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_listen(lab->core, key, role, fd, error, sizeof(error)), 0);
    return fd;
}

static struct core_options options_default(void)
{
    struct core_options options = {.workers = 2,
                                   .connect_timeout_ms = 3 * WAIT_SECONDS * 1000,
                                   .refused_retry_ms = 100,
                                   .idle_timeout_ms = 300000,
                                   .trust_domain = DOMAIN};
    return options;
}

static struct lab *lab_with(struct core_options options)
{
    struct lab *lab = calloc(1, sizeof(*lab));
    char error[NS_REASON_MAX] = "";
    CHECK(lab != NULL);
    pthread_mutex_init(&lab->mutex, NULL);
    pthread_cond_init(&lab->changed, NULL);
    lab->authority = authority_new();
    lab->core = core_start(&options, error, sizeof(error));
    CHECK_TEXT(error, "");
    CHECK(lab->core != NULL);
    lab->tunnel = 1;
    lab->identity = PIPELINE;
    lab->outbound_verdict = lab->tunnel_verdict = lab->plaintext_verdict = NS_ALLOW;
    lab->epoch = 1;
    core_epoch(lab->core, 1);
    lab->application = listen_at(host(2, 0));
    lab->endpoint = local_of(lab->application);
    lab_workload(lab, SHIPPER_KEY, 1, SHIPPER);
    lab_workload(lab, PIPELINE_KEY, 2, PIPELINE);
    lab->outbound = lab_listen(lab, SHIPPER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(1, 0)));
    lab->hbone = lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, listen_at(host(2, NS_HBONE_PORT)));
    CHECK_EQUAL(pthread_create(&lab->decider, NULL, decider_main, lab), 0);
    return lab;
}

static struct lab *lab_new(void)
{
    return lab_with(options_default());
}

/* What two workers would do twice is done once. */
static struct lab *lab_new_of_one_worker(void)
{
    struct core_options options = options_default();
    options.workers = 1;
    return lab_with(options);
}

/* Peers used in the last `warm_ms` are dialled ahead of need. */
static struct lab *lab_new_warm(uint32_t warm_ms)
{
    struct core_options options = options_default();
    options.workers = 1;
    options.warm_ms = warm_ms;
    return lab_with(options);
}

static void lab_free(struct lab *lab)
{
    pthread_mutex_lock(&lab->mutex);
    lab->stopping = 1;
    pthread_mutex_unlock(&lab->mutex);
    pthread_join(lab->decider, NULL);
    core_stop(lab->core);
    close(lab->outbound);
    close(lab->hbone);
    close(lab->application);
    authority_dispose(&lab->authority);
    pthread_cond_destroy(&lab->changed);
    pthread_mutex_destroy(&lab->mutex);
    free(lab);
}

/* Changes what is answered from now on. */
#define LAB_SET(lab, field, value)                                                                           \
    do {                                                                                                     \
        pthread_mutex_lock(&(lab)->mutex);                                                                   \
        (lab)->field = (value);                                                                              \
        pthread_cond_broadcast(&(lab)->changed);                                                             \
        pthread_mutex_unlock(&(lab)->mutex);                                                                 \
    } while (0)

/* Both ends of one relayed connection. */
struct ends {
    int client, server;
};

static struct ends lab_connect(struct lab *lab)
{
    struct ends ends;
    ends.client = dial(lab->outbound);
    ends.server = take_connection(lab->application);
    return ends;
}

static void ends_close(struct ends *ends)
{
    close(ends->client);
    close(ends->server);
}

static struct ns_workload_stats lab_stats(struct lab *lab, uint64_t key)
{
    struct ns_workload_stats stats[64];
    size_t count = core_workload_stats(lab->core, stats, 64);
    CHECK(count <= 64);
    for (size_t i = 0; i < count; i++)
        if (stats[i].workload == key)
            return stats[i];
    check_failed(__FILE__, __LINE__, "no workload has the key %d", (int)key);
}

static struct ns_core_stats lab_core_stats(struct lab *lab)
{
    struct ns_core_stats stats;
    core_stats(lab->core, &stats);
    return stats;
}

static time_t deadline(void)
{
    return time(NULL) + WAIT_SECONDS;
}

/* Asks the core again and again; each time its workers take a turn. */
#define WAIT_UNTIL(condition)                                                                                \
    do {                                                                                                     \
        time_t wait_end = deadline();                                                                        \
        while (!(condition))                                                                                 \
            CHECK_CASE(time(NULL) < wait_end, "waited %d s", (int)WAIT_SECONDS);                             \
    } while (0)

/* ---- through a tunnel ---- */

static void check_both_ways(struct lab *lab, uint64_t length)
{
    struct ends ends = lab_connect(lab);
    struct sender up, down;
    sender_start(&up, ends.client, 1, length);
    sender_start(&down, ends.server, 2, length);
    struct sender *senders[] = {&up, &down};
    for (uint64_t at = 0; at < length;) {
        uint64_t part = length - at < 100000 ? length - at : 100000;
        receive_stream(ends.server, 1, at, part);
        receive_stream(ends.client, 2, at, part);
        at += part;
    }
    for (int i = 0; i < 2; i++)
        sender_join(senders[i]);
    shutdown(ends.client, SHUT_WR);
    expect_end(ends.server);
    shutdown(ends.server, SHUT_WR);
    expect_end(ends.client);
    ends_close(&ends);
}

TEST(tunnel_carries_bytes_both_ways)
{
    struct lab *lab = lab_new();
    check_both_ways(lab, 8000000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnelled, 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnelled, 1);
    lab_free(lab);
}

/* ---- several workloads at one address ---- */

/* The pipeline and the siem live in one namespace, and both have the listener at 15008 from the start. */
static struct lab *lab_new_of_neighbours(void)
{
    struct lab *lab = lab_new();
    char error[NS_REASON_MAX] = "";
    int netns = memfd_create("node", MFD_CLOEXEC);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    lab_workload_in(lab, netns, PIPELINE_KEY, 2, PIPELINE);
    lab_workload_in(lab, netns, SIEM_KEY, 2, SIEM);
    lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, lab->hbone);
    lab_listen(lab, SIEM_KEY, NS_LISTEN_HBONE, lab->hbone);
    close(netns);
    return lab;
}

TEST(each_neighbour_is_reached_by_its_name_whoever_accepts)
{
    struct lab *lab = lab_new_of_neighbours();
    LAB_SET(lab, tunnel, NS_TUNNEL_BY_NAME);
    for (int i = 0; i < 8; i++) {
        int siem = i % 2;
        LAB_SET(lab, identity, siem ? SIEM : PIPELINE);
        lab_credentials(lab, SHIPPER_KEY, SHIPPER); /* a tunnel of its own for each connection */
        LAB_SET(lab, epoch, (uint64_t)(2 + i));
        core_epoch(lab->core, (uint64_t)(2 + i));
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        CHECK_EQUAL(lab->last_tunnel.workload, siem ? SIEM_KEY : PIPELINE_KEY);
        ends_close(&ends);
    }
    CHECK_EQUAL(lab_stats(lab, SIEM_KEY).tunnelled, 4);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnelled, 4);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tls_failed, 0);
    /* The last one waits in the shipper's pool. */
    WAIT_UNTIL(lab_stats(lab, SIEM_KEY).tunnels == 1 && lab_stats(lab, PIPELINE_KEY).tunnels == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    lab_free(lab);
}

TEST(who_asks_for_no_name_reaches_the_first_neighbour_and_no_other)
{
    struct lab *lab = lab_new_of_neighbours();
    for (int i = 0; i < 4; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        CHECK_EQUAL(lab->last_tunnel.workload, PIPELINE_KEY);
        ends_close(&ends);
    }
    LAB_SET(lab, identity, SIEM);
    LAB_SET(lab, epoch, 2);
    core_epoch(lab->core, 2);
    int refused = dial(lab->outbound);
    expect_reset(refused);
    close(refused);
    CHECK_EQUAL(lab_stats(lab, SIEM_KEY).tunnelled, 0);
    lab_free(lab);
}

static void check_server_speaks_first(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.server, 1, 0, 100);
    receive_stream(ends.client, 1, 0, 100);
    ends_close(&ends);
}

/* The application has spoken, and perhaps hung up, before the core sees that it is connected to it. */
static void check_server_speaks_at_once(struct lab *lab, int hangs_up)
{
    struct ends ends;
    gate_close(&lab->endpoint);
    ends.client = dial(lab->outbound);
    ends.server = take_connection(lab->application);
    send_stream(ends.server, 1, 0, 100);
    if (hangs_up)
        shutdown(ends.server, SHUT_WR);
    gate_open();
    receive_stream(ends.client, 1, 0, 100);
    if (hangs_up)
        expect_end(ends.client);
    send_stream(ends.client, 2, 0, 100);
    receive_stream(ends.server, 2, 0, 100);
    ends_close(&ends);
}

TEST(server_may_speak_first)
{
    struct lab *lab = lab_new();
    check_server_speaks_first(lab);
    lab_free(lab);
}

TEST(server_may_speak_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_new();
    check_server_speaks_at_once(lab, 0);
    lab_free(lab);
}

TEST(server_may_speak_and_hang_up_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_new();
    check_server_speaks_at_once(lab, 1);
    lab_free(lab);
}

static void check_client_half_close(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 300000);
    shutdown(ends.client, SHUT_WR);
    receive_stream(ends.server, 1, 0, 300000);
    expect_end(ends.server);
    struct sender down;
    sender_start(&down, ends.server, 2, 3000000);
    receive_stream(ends.client, 2, 0, 3000000);
    sender_join(&down);
    shutdown(ends.server, SHUT_WR);
    expect_end(ends.client);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

static void check_server_half_close(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.server, 1, 0, 300000);
    shutdown(ends.server, SHUT_WR);
    receive_stream(ends.client, 1, 0, 300000);
    expect_end(ends.client);
    struct sender up;
    sender_start(&up, ends.client, 2, 3000000);
    receive_stream(ends.server, 2, 0, 3000000);
    sender_join(&up);
    shutdown(ends.client, SHUT_WR);
    expect_end(ends.server);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

static void check_client_reset(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 10);
    receive_stream(ends.server, 1, 0, 10);
    reset(ends.client);
    expect_reset(ends.server);
    close(ends.server);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

static void check_server_reset(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.server, 1, 0, 10);
    receive_stream(ends.client, 1, 0, 10);
    reset(ends.server);
    expect_reset(ends.client);
    close(ends.client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

TEST(client_half_close_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_client_half_close(lab);
    lab_free(lab);
}

TEST(server_half_close_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_server_half_close(lab);
    lab_free(lab);
}

TEST(client_reset_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_client_reset(lab);
    lab_free(lab);
}

TEST(server_reset_crosses_a_tunnel)
{
    struct lab *lab = lab_new();
    check_server_reset(lab);
    lab_free(lab);
}

TEST(bytes_sent_right_before_the_end_arrive)
{
    struct lab *lab = lab_new();
    for (int i = 0; i < 40; i++) {
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 50000);
        close(ends.client);
        receive_stream(ends.server, 1, 0, 50000);
        expect_end(ends.server);
        close(ends.server);
    }
    lab_free(lab);
}

TEST(application_sees_a_low_port_of_the_peers_address)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    struct sockaddr_in peer;
    socklen_t length = sizeof(peer);
    CHECK_EQUAL(getpeername(ends.server, (struct sockaddr *)&peer, &length), 0);
    CHECK_EQUAL(ntohl(peer.sin_addr.s_addr), INADDR_LOOPBACK); /* what the tunnel dialled from */
    CHECK(ntohs(peer.sin_port) >= 1024 && ntohs(peer.sin_port) < 32768);
    ends_close(&ends);
    lab_free(lab);
}

TEST(question_about_a_tunnels_stream_names_peer_and_authority)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    struct ns_address expected = mapped(lab->endpoint);
    pthread_mutex_lock(&lab->mutex);
    struct ns_question question = lab->last_tunnel;
    pthread_mutex_unlock(&lab->mutex);
    CHECK_TEXT(question.peer, SHIPPER);
    CHECK_EQUAL(question.workload, PIPELINE_KEY);
    CHECK(memcmp(question.destination.ip, expected.ip, 16) == 0);
    CHECK_EQUAL(question.destination.port, expected.port);
    CHECK_EQUAL(question.established, 0);
    ends_close(&ends);
    lab_free(lab);
}

TEST(connections_are_listed_with_identities_and_bytes)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 1000);
    receive_stream(ends.server, 1, 0, 1000);
    send_stream(ends.server, 2, 0, 500);
    receive_stream(ends.client, 2, 0, 500);
    struct ns_connection list[8];
    CHECK_EQUAL(core_connections(lab->core, list, 8), 2);
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(list[i].state, NS_STATE_OPEN);
        CHECK_EQUAL(list[i].mtls, 1);
        CHECK_EQUAL(list[i].bytes_sent, 1000);
        CHECK_EQUAL(list[i].bytes_received, 500);
        CHECK_TEXT(list[i].tls, "TLSv1.3 TLS_AES_128_GCM_SHA256");
        CHECK_TEXT(list[i].peer, list[i].direction == NS_OUTBOUND ? PIPELINE : SHIPPER);
        CHECK_EQUAL(list[i].workload, list[i].direction == NS_OUTBOUND ? SHIPPER_KEY : PIPELINE_KEY);
    }
    CHECK_EQUAL(core_connections(lab->core, list, 1), 2);
    CHECK_EQUAL(core_connections(lab->core, NULL, 0), 2);
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_reader_that_stops_stalls_only_itself)
{
    enum { LENGTH = 20000000 };
    struct lab *lab = lab_new();
    struct ends stalled[4], quick;
    struct sender senders[4];
    for (int i = 0; i < 4; i++) {
        stalled[i] = lab_connect(lab);
        sender_start(&senders[i], stalled[i].server, 10 + (uint64_t)i, LENGTH / 4);
    }
    quick = lab_connect(lab);
    for (int i = 0; i < 100; i++) {
        send_stream(quick.client, 1, (uint64_t)i * 1000, 1000);
        receive_stream(quick.server, 1, (uint64_t)i * 1000, 1000);
        send_stream(quick.server, 2, (uint64_t)i * 1000, 1000);
        receive_stream(quick.client, 2, (uint64_t)i * 1000, 1000);
    }
    for (int i = 0; i < 4; i++) {
        receive_stream(stalled[i].client, 10 + (uint64_t)i, 0, LENGTH / 4);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&quick);
    lab_free(lab);
}

TEST(many_connections_at_once_share_few_tunnels)
{
    enum { COUNT = 150 };
    struct lab *lab = lab_new();
    struct ends ends[COUNT];
    for (int i = 0; i < COUNT; i++)
        ends[i].client = dial(lab->outbound);
    for (int i = 0; i < COUNT; i++) {
        send_stream(ends[i].client, (uint64_t)i, 0, 4);
        ends[i].server = take_connection(lab->application);
    }
    for (int i = 0; i < COUNT; i++)
        send_stream(ends[i].server, 1, 0, 20000);
    for (int i = 0; i < COUNT; i++)
        receive_stream(ends[i].client, 1, 0, 20000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, COUNT);
    CHECK(lab_stats(lab, SHIPPER_KEY).tunnels <= 4); /* two workers, a hundred streams each */
    for (int i = 0; i < COUNT; i++)
        ends_close(&ends[i]);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 0);
    lab_free(lab);
}

TEST(many_busy_connections_at_once_lose_nothing)
{
    enum { COUNT = 150, LENGTH = 300000 };
    struct lab *lab = lab_new();
    struct ends ends[COUNT];
    struct sender senders[COUNT];
    for (int i = 0; i < COUNT; i++)
        ends[i] = lab_connect(lab);
    for (int i = 0; i < COUNT; i++)
        sender_start(&senders[i], ends[i].server, (uint64_t)i, LENGTH);
    for (int i = 0; i < COUNT; i++)
        receive_stream(ends[i].client, (uint64_t)i, 0, LENGTH);
    for (int i = 0; i < COUNT; i++)
        sender_join(&senders[i]);
    for (int i = 0; i < COUNT; i++)
        ends_close(&ends[i]);
    lab_free(lab);
}

/* ---- connections that cannot be ---- */

TEST(closed_application_port_resets_the_client)
{
    struct lab *lab = lab_new();
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(closed));
    close(closed);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).failed == 1);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).failed == 1);
    lab_free(lab);
}

TEST(refused_outbound_connection_is_reset)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).refused, 1);
    lab_free(lab);
}

static void check_denied_stream(uint32_t verdict, const char *reason)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, tunnel_verdict, verdict);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).refused == 1);
    struct ns_connection list[8];
    size_t count = core_connections(lab->core, list, 8);
    int told = 0;
    for (size_t i = 0; i < count && i < 8; i++)
        told += list[i].direction == NS_OUTBOUND && strcmp(list[i].reason, reason) == 0;
    CHECK_EQUAL(told, 1);
    lab_free(lab);
}

TEST(stream_denied_by_policy_resets_the_client)
{
    check_denied_stream(NS_REFUSE, "the peer's policy denied it");
}

TEST(unavailable_stream_resets_the_client)
{
    check_denied_stream(NS_UNAVAILABLE, "the peer could not reach the application");
}

TEST(peer_with_another_identity_gets_no_byte)
{
    struct lab *lab = lab_new();
    struct sockaddr_in peer = local_of(lab->hbone);
    LAB_SET(lab, identity, "spiffe://example.org/ns/default/sa/siem");
    gate_close(&peer);
    int client = dial(lab->outbound);
    send_stream(client, 1, 0, 100); /* before the core can know */
    gate_open();
    expect_reset(client);
    close(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tls_failed >= 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).accepted, 0);
    lab_free(lab);
}

TEST(peer_that_does_not_listen_resets_the_client_after_the_retries)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 1);
    lab_free(lab);
}

TEST(peer_that_closes_in_the_handshake_resets_the_client)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    close(take_connection(silent));
    expect_reset(client);
    close(client);
    close(silent);
    lab_free(lab);
}

TEST(peer_that_hangs_up_before_the_core_sees_the_connection_resets_the_client)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    struct sockaddr_in address = local_of(silent);
    LAB_SET(lab, endpoint, host(3, 8080));
    gate_close(&address);
    int client = dial(lab->outbound);
    close(take_connection(silent));
    gate_open();
    expect_reset(client); /* at once, not when the time for the handshake is up */
    close(client);
    close(silent);
    lab_free(lab);
}

TEST(client_that_goes_away_while_the_tunnel_is_dialled_is_forgotten)
{
    struct lab *lab = lab_new();
    int silent = listen_at(host(3, NS_HBONE_PORT));
    LAB_SET(lab, endpoint, host(3, 8080));
    int client = dial(lab->outbound);
    int peer = take_connection(silent);
    reset(client);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    close(peer);
    close(silent);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels == 0);
    lab_free(lab);
}

/* ---- in plaintext ---- */

static struct lab *lab_plain(void)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, tunnel, 0);
    return lab;
}

TEST(plaintext_carries_bytes_both_ways)
{
    struct lab *lab = lab_plain();
    check_both_ways(lab, 8000000);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).plaintext, 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 0);
    lab_free(lab);
}

/* The receiver waits until the sender is stopped by all that stands between them, so that reads are large. */
static void check_bulk(struct lab *lab, uint64_t length)
{
    struct ends ends = lab_connect(lab);
    struct sender up;
    sender_start(&up, ends.client, 1, length);
    uint64_t before = 0;
    for (int calm = 0; calm < 3; calm++) { /* reads nothing until nothing moves any more */
        struct ns_connection list[2];
        CHECK(core_connections(lab->core, list, 2) >= 1);
        if (list[0].bytes_sent != before)
            calm = 0;
        before = list[0].bytes_sent;
        usleep(2000);
    }
    receive_stream(ends.server, 1, 0, length);
    sender_join(&up);
    send_stream(ends.server, 2, 0, 1000);
    receive_stream(ends.client, 2, 0, 1000);
    shutdown(ends.client, SHUT_WR);
    expect_end(ends.server);
    shutdown(ends.server, SHUT_WR);
    expect_end(ends.client);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

TEST(plaintext_bulk_is_spliced_and_small_messages_are_not)
{
    struct lab *lab = lab_plain();
    COUNT_RESET(splices);
    check_server_speaks_first(lab);
    CHECK_EQUAL(COUNT(splices), 0);
    check_bulk(lab, 48000000);
    CHECK(COUNT(splices) > 10);
    lab_free(lab);
}

TEST(plaintext_bulk_goes_on_when_no_pipe_can_be_had)
{
    struct lab *lab = lab_plain();
    COUNT_RESET(splices);
    __atomic_store_n(&pipes_refused, 1, __ATOMIC_RELAXED);
    check_bulk(lab, 16000000);
    CHECK_EQUAL(COUNT(splices), 0);
    __atomic_store_n(&pipes_refused, 0, __ATOMIC_RELAXED);
    lab_free(lab);
}

TEST(bulk_that_is_being_spliced_can_be_reset_at_either_end)
{
    struct lab *lab = lab_plain();
    for (int server = 0; server < 2; server++) {
        struct ends ends = lab_connect(lab);
        int flags = fcntl(ends.client, F_GETFL);
        CHECK_EQUAL(fcntl(ends.client, F_SETFL, flags | O_NONBLOCK), 0);
        uint8_t bytes[65536] = {0};
        for (int i = 0; i < 400; i++)
            (void)!send(ends.client, bytes, sizeof(bytes), MSG_NOSIGNAL);
        reset(server ? ends.server : ends.client);
        close(server ? ends.client : ends.server);
        WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    }
    lab_free(lab);
}

TEST(half_closes_and_resets_cross_in_plaintext)
{
    struct lab *lab = lab_plain();
    check_client_half_close(lab);
    check_server_half_close(lab);
    check_client_reset(lab);
    check_server_reset(lab);
    lab_free(lab);
}

TEST(plaintext_server_may_speak_first)
{
    struct lab *lab = lab_plain();
    check_server_speaks_first(lab);
    lab_free(lab);
}

TEST(plaintext_server_may_speak_before_the_core_sees_the_connection)
{
    struct lab *lab = lab_plain();
    check_server_speaks_at_once(lab, 0);
    check_server_speaks_at_once(lab, 1);
    lab_free(lab);
}

TEST(plaintext_endpoint_that_refuses_resets_the_client)
{
    struct lab *lab = lab_plain();
    int closed = listen_at(host(2, 0));
    LAB_SET(lab, endpoint, local_of(closed));
    close(closed);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).failed, 1);
    lab_free(lab);
}

/* ---- workers ---- */

/* How many workers have outbound connections; an id's upper bits name the worker. */
static int workers_in_use(struct lab *lab, uint64_t expected)
{
    static struct ns_connection list[1024];
    uint64_t outbound[4] = {0};
    size_t count = core_connections(lab->core, list, 1024);
    CHECK(count <= 1024);
    for (size_t i = 0; i < count; i++)
        outbound[list[i].id >> 48] += list[i].direction == NS_OUTBOUND;
    CHECK_EQUAL(outbound[0] + outbound[1] + outbound[2] + outbound[3], expected);
    return (outbound[0] > 0) + (outbound[1] > 0) + (outbound[2] > 0) + (outbound[3] > 0);
}

TEST(connections_of_a_workload_share_a_worker_until_they_are_many)
{
    enum { FEW = 20, MANY = 150 };
    struct core_options options = options_default();
    options.workers = 4;
    struct lab *lab = lab_with(options);
    struct ends ends[MANY];
    for (int i = 0; i < FEW; i++)
        ends[i] = lab_connect(lab);
    CHECK_EQUAL(workers_in_use(lab, FEW), 1);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1);
    for (int i = FEW; i < MANY; i++)
        ends[i] = lab_connect(lab);
    CHECK(workers_in_use(lab, MANY) > 1);
    for (int i = 0; i < MANY; i++) {
        send_stream(ends[i].client, (uint64_t)i, 0, 1000);
        receive_stream(ends[i].server, (uint64_t)i, 0, 1000);
        ends_close(&ends[i]);
    }
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    lab_free(lab);
}

TEST(a_worker_spins_only_while_there_is_traffic)
{
    struct core_options options = options_default();
    options.spin_us = 1000;
    struct lab *lab = lab_with(options);
    struct ends ends = lab_connect(lab);
    COUNT_RESET(looks);
    for (uint64_t i = 0; i < 1000; i++) {
        send_stream(ends.client, 1, i * 100, 100);
        receive_stream(ends.server, 1, i * 100, 100);
        send_stream(ends.server, 2, i * 100, 100);
        receive_stream(ends.client, 2, i * 100, 100);
    }
    CHECK(COUNT(looks) > 0);
    /* One that spins on for nothing would look thousands of times. */
    usleep(20000);
    COUNT_RESET(looks);
    usleep(50000);
    CHECK(COUNT(looks) < 100);
    ends_close(&ends);
    lab_free(lab);
}

TEST(an_unknown_congestion_control_is_refused_at_the_start)
{
    struct core_options options = options_default();
    char error[NS_REASON_MAX] = "";
    strcpy(options.congestion_control, "nosuchthing");
    CHECK(core_start(&options, error, sizeof(error)) == NULL);
    CHECK_TEXT(error, "congestion control nosuchthing cannot be used: No such file or directory");
    strcpy(options.congestion_control, "reno");
    struct lab *lab = lab_with(options);
    check_both_ways(lab, 100000);
    lab_free(lab);
}

/* ---- changes while connections run ---- */

TEST(new_credentials_leave_running_connections_and_serve_new_ones)
{
    struct lab *lab = lab_new();
    struct ends old = lab_connect(lab);
    for (int i = 0; i < 5; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        lab_credentials(lab, PIPELINE_KEY, PIPELINE);
        struct ends ends = lab_connect(lab);
        send_stream(ends.client, 1, 0, 1000);
        receive_stream(ends.server, 1, 0, 1000);
        send_stream(old.client, 2, (uint64_t)i * 1000, 1000);
        receive_stream(old.server, 2, (uint64_t)i * 1000, 1000);
        ends_close(&ends);
    }
    ends_close(&old);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels <= 2); /* those that retired have ended */
    lab_free(lab);
}

static void lab_move_on(struct lab *lab)
{
    pthread_mutex_lock(&lab->mutex);
    uint64_t epoch = ++lab->epoch;
    pthread_mutex_unlock(&lab->mutex);
    core_epoch(lab->core, epoch);
}

/* Closed before, it would be answered with a reset for what the peer sends meanwhile, and the peer would lose
 * what it has not received yet. */
TEST(a_retired_tunnel_stays_until_all_of_it_is_acknowledged)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends ends = lab_connect(lab);
    __atomic_store_n(&unacknowledged, 1, __ATOMIC_RELAXED);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    ends_close(&ends);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).tunnels, 1);
    __atomic_store_n(&unacknowledged, 0, __ATOMIC_RELAXED);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).tunnels == 0);
    lab_free(lab);
}

TEST(a_new_epoch_that_allows_leaves_connections_alone)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    for (int i = 0; i < 10; i++) {
        lab_move_on(lab);
        send_stream(ends.client, 1, (uint64_t)i * 100, 100);
        receive_stream(ends.server, 1, (uint64_t)i * 100, 100);
    }
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_new_epoch_that_refuses_resets_both_ends)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    LAB_SET(lab, tunnel_verdict, NS_REFUSE);
    lab_move_on(lab);
    expect_reset(ends.client);
    expect_reset(ends.server);
    ends_close(&ends);
    lab_free(lab);
}

TEST(removing_a_workload_resets_its_connections)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    expect_reset(ends.client);
    expect_reset(ends.server);
    ends_close(&ends);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), -1);
    CHECK(error[0] != 0);
    lab_free(lab);
}

TEST(closing_a_listener_leaves_its_connections_alone)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_unlisten(lab->core, SHIPPER_KEY, NS_LISTEN_OUTBOUND, error, sizeof(error)), 0);
    CHECK_EQUAL(core_workload_unlisten(lab->core, PIPELINE_KEY, NS_LISTEN_HBONE, error, sizeof(error)), 0);
    send_stream(ends.client, 1, 0, 100000);
    receive_stream(ends.server, 1, 0, 100000);
    ends_close(&ends);
    lab_free(lab);
}

TEST(a_retired_core_leaves_what_is_new_to_others_and_finishes_what_runs)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    core_retire(lab->core);
    CHECK_EQUAL(lab_core_stats(lab).live_connections, 2); /* asked behind it: all workers have retired */
    /* Whoever else holds the listener has the connection: here the test. */
    int waiting = dial(lab->outbound);
    int taken = take_connection(lab->outbound);
    send_stream(waiting, 1, 0, 100);
    receive_stream(taken, 1, 0, 100);
    send_stream(ends.client, 2, 0, 200000);
    receive_stream(ends.server, 2, 0, 200000);
    CHECK_EQUAL(lab_core_stats(lab).live_connections, 2);
    ends_close(&ends);
    close(waiting);
    close(taken);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    lab_free(lab);
}

TEST(a_retired_core_takes_streams_that_its_peer_had_begun)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    LAB_SET(lab, stuck, 1);
    int client = dial(lab->outbound);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).accepted == 2);
    core_retire(lab->core);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).connections, 2);
    LAB_SET(lab, stuck, 0);
    int server = take_connection(lab->application);
    send_stream(client, 1, 0, 100);
    receive_stream(server, 1, 0, 100);
    close(client);
    close(server);
    ends_close(&ends);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    lab_free(lab);
}

TEST(stopping_with_live_connections_resets_them)
{
    struct lab *lab = lab_new();
    struct ends ends = lab_connect(lab);
    send_stream(ends.client, 1, 0, 100000);
    lab_free(lab);
    expect_reset(ends.client);
    ends_close(&ends);
}

/* ---- all at once ---- */

struct rioter {
    struct lab *lab;
    uint64_t seed;
    int client; /* dials; otherwise accepts */
    pthread_t thread;
};

/* Does a few random things to a socket, then ends it in one of three ways. Errors are part of it. */
static void riot(int fd, struct noise *noise)
{
    uint8_t *bytes = calloc(1, 100000);
    for (size_t turns = noise_below(noise, 4); turns > 0; turns--) {
        if (noise_below(noise, 2))
            (void)!send(fd, bytes, noise_below(noise, 100000), MSG_NOSIGNAL | MSG_DONTWAIT);
        else
            (void)!recv(fd, bytes, 1 + noise_below(noise, 99999), MSG_DONTWAIT);
    }
    free(bytes);
    switch (noise_below(noise, 3)) {
    case 0:
        reset(fd);
        return;
    case 1:
        (void)shutdown(fd, SHUT_WR);
        break;
    default:
        break;
    }
    close(fd);
}

static void *rioter_main(void *argument)
{
    enum { ROUNDS = 150 };
    struct rioter *rioter = argument;
    struct noise noise = noise_new(rioter->seed);
    if (rioter->client) {
        for (int i = 0; i < ROUNDS; i++)
            riot(dial(rioter->lab->outbound), &noise);
        return NULL;
    }
    for (;;) {
        int fd = accept4(rioter->lab->application, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL; /* the listener was shut down */
        riot(fd, &noise);
    }
}

static void check_riot(struct lab *lab)
{
    struct rioter rioters[4];
    for (int i = 0; i < 4; i++) {
        rioters[i] = (struct rioter){.lab = lab, .seed = 20 + (uint64_t)i, .client = i < 2};
        CHECK_EQUAL(pthread_create(&rioters[i].thread, NULL, rioter_main, &rioters[i]), 0);
    }
    for (int i = 0; i < 10; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        lab_move_on(lab);
        (void)core_connections(lab->core, NULL, 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(rioters[i].thread, NULL);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 0);
    shutdown(lab->application, SHUT_RDWR);
    for (int i = 2; i < 4; i++)
        pthread_join(rioters[i].thread, NULL);
    lab_free(lab);
}

TEST(disorderly_applications_leave_no_connection_behind_in_tunnels)
{
    check_riot(lab_new());
}

TEST(disorderly_applications_leave_no_connection_behind_in_plaintext)
{
    check_riot(lab_plain());
}

/* ---- new flows beside others ---- */

static void exchange(struct ends *ends, uint64_t from)
{
    send_stream(ends->client, 1, from, 100);
    receive_stream(ends->server, 1, from, 100);
    send_stream(ends->server, 2, from, 100);
    receive_stream(ends->client, 2, from, 100);
}

/* A plaintext listener of pipeline: its flows are decided apart from those of the others. */
static int lab_listen_inbound(struct lab *lab)
{
    return lab_listen(lab, PIPELINE_KEY, NS_LISTEN_INBOUND, listen_at(host(2, 0)));
}

TEST(a_stuck_decider_stalls_only_those_who_wait_for_it)
{
    struct lab *lab = lab_new_of_one_worker();
    int inbound = lab_listen_inbound(lab);
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    struct ends open = lab_connect(lab);
    exchange(&open, 0);
    LAB_SET(lab, stuck, 1);
    int waiting = dial(inbound);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == 2);
    for (int i = 1; i < 20; i++)
        exchange(&open, (uint64_t)i * 100);
    struct ends cached = lab_connect(lab); /* its decisions, of both ends, are known */
    exchange(&cached, 0);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).refused, 0);
    LAB_SET(lab, stuck, 0);
    expect_reset(waiting);
    close(waiting);
    ends_close(&open);
    ends_close(&cached);
    close(inbound);
    lab_free(lab);
}

TEST(hundreds_of_waiting_flows_with_one_key_are_one_question)
{
    enum { FLOWS = 300 };
    struct lab *lab = lab_new_of_one_worker();
    int inbound = lab_listen_inbound(lab);
    int waiting[FLOWS];
    LAB_SET(lab, plaintext_verdict, NS_REFUSE);
    LAB_SET(lab, stuck, 1);
    for (int i = 0; i < FLOWS; i++)
        waiting[i] = dial(inbound);
    WAIT_UNTIL(lab_stats(lab, PIPELINE_KEY).connections == FLOWS);
    CHECK_EQUAL(lab_core_stats(lab).questions, 1);
    LAB_SET(lab, stuck, 0);
    for (int i = 0; i < FLOWS; i++) {
        expect_reset(waiting[i]);
        close(waiting[i]);
    }
    CHECK_EQUAL(lab_core_stats(lab).questions, 1);
    CHECK(lab_core_stats(lab).decision_p50_ns > 0);
    close(inbound);
    lab_free(lab);
}

TEST(handshakes_with_many_peers_at_once_are_not_made_by_the_worker)
{
    enum { PEERS = 40, FIRST_KEY = 10 };
    struct lab *lab = lab_new_of_one_worker();
    int listeners[PEERS];
    struct ends ends[PEERS];
    for (int i = 0; i < PEERS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
    }
    LAB_SET(lab, stuck, 1); /* they shall all dial in the same turn */
    for (int i = 0; i < PEERS; i++)
        ends[i].client = dial(listeners[i]);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == PEERS);
    LAB_SET(lab, stuck, 0);
    for (int i = 0; i < PEERS; i++) {
        send_stream(ends[i].client, 1, 0, 100);
        ends[i].server = take_connection(lab->application);
        receive_stream(ends[i].server, 1, 0, 100);
    }
    CHECK(COUNT(steps) >= 3 * PEERS); /* a client makes two steps, a server too */
    CHECK_EQUAL(COUNT(steps_of_workers), 0);
    for (int i = 0; i < PEERS; i++) {
        ends_close(&ends[i]);
        close(listeners[i]);
    }
    lab_free(lab);
}

TEST(open_connections_go_on_while_a_handshake_is_made)
{
    enum { OTHER_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    exchange(&open, 0);
    lab_workload(lab, OTHER_KEY, 3, SHIPPER);
    int listener = lab_listen(lab, OTHER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    __atomic_store_n(&steps_held, 1, __ATOMIC_RELAXED);
    COUNT_RESET(steps);
    struct ends new = {.client = dial(listener)};
    send_stream(new.client, 1, 0, 100);
    WAIT_UNTIL(COUNT(steps) == 1);
    for (int i = 1; i < 20; i++)
        exchange(&open, (uint64_t)i * 100);
    CHECK_EQUAL(COUNT(steps), 1);
    __atomic_store_n(&steps_held, 0, __ATOMIC_RELAXED);
    new.server = take_connection(lab->application);
    receive_stream(new.server, 1, 0, 100);
    ends_close(&new);
    ends_close(&open);
    close(listener);
    lab_free(lab);
}

TEST(a_workload_is_removed_while_its_handshake_is_made)
{
    char error[NS_REASON_MAX] = "";
    struct lab *lab = lab_new_of_one_worker();
    __atomic_store_n(&steps_held, 1, __ATOMIC_RELAXED);
    int client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(steps) == 1);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    expect_reset(client);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    __atomic_store_n(&steps_held, 0, __ATOMIC_RELAXED);
    close(client);
    close(lab->outbound);
    lab_workload(lab, SHIPPER_KEY, 1, SHIPPER);
    lab->outbound = lab_listen(lab, SHIPPER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(1, 0)));
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    ends_close(&ends);
    lab_free(lab);
}

static void *release_steps(void *unused)
{
    (void)unused;
    usleep(50000);
    __atomic_store_n(&steps_held, 0, __ATOMIC_RELAXED);
    return NULL;
}

TEST(a_core_stops_while_handshakes_are_made)
{
    enum { CLIENTS = 3, FIRST_KEY = 10 }; /* one is made, one is given, one waits to be given */
    struct lab *lab = lab_new_of_one_worker();
    int clients[CLIENTS], listeners[CLIENTS];
    pthread_t thread;
    __atomic_store_n(&steps_held, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < CLIENTS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
        clients[i] = dial(listeners[i]);
    }
    WAIT_UNTIL(COUNT(steps) == 1 && lab_core_stats(lab).live_tunnels >= CLIENTS);
    CHECK_EQUAL(pthread_create(&thread, NULL, release_steps, NULL), 0);
    lab_free(lab);
    pthread_join(thread, NULL);
    for (int i = 0; i < CLIENTS; i++) {
        expect_reset(clients[i]);
        close(clients[i]);
        close(listeners[i]);
    }
}

TEST(answers_that_come_all_at_once_are_spread_over_turns)
{
    enum { FLOWS = 60, FIRST_KEY = 10 };
    struct lab *lab = lab_new_of_one_worker();
    int listeners[FLOWS], clients[FLOWS];
    struct sockaddr_in application = lab->endpoint;
    LAB_SET(lab, tunnel, 0);
    for (int i = 0; i < FLOWS; i++) {
        lab_workload(lab, (uint64_t)(FIRST_KEY + i), 10 + i, SHIPPER);
        listeners[i] =
            lab_listen(lab, (uint64_t)(FIRST_KEY + i), NS_LISTEN_OUTBOUND, listen_at(host(10 + i, 0)));
    }
    LAB_SET(lab, stuck, 1);
    for (int i = 0; i < FLOWS; i++)
        clients[i] = dial(listeners[i]);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == FLOWS);
    gate_close(&application); /* the worker is held in the first one's connect() */
    LAB_SET(lab, stuck, 0);
    WAIT_UNTIL(COUNT(lab->answers) == FLOWS);
    gate_open();
    for (int i = 0; i < FLOWS; i++) {
        int server = take_connection(lab->application);
        close(server);
    }
    CHECK_CASE(COUNT(answers_most) > 1 && COUNT(answers_most) <= TURN_COMMANDS, "%d", COUNT(answers_most));
    for (int i = 0; i < FLOWS; i++) {
        close(clients[i]);
        close(listeners[i]);
    }
    lab_free(lab);
}

/* ---- limits ---- */

static void lab_limit(struct lab *lab, uint64_t key, struct ns_limits limits)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_limits(lab->core, key, &limits, error, sizeof(error)), 0);
}

static uint64_t lab_refused(struct lab *lab, uint64_t key, enum ns_limit limit)
{
    return lab_stats(lab, key).limited[limit].refused;
}

/* How many connections are shown with this reason. */
static int shown_with(struct lab *lab, uint64_t key, const char *reason)
{
    static struct ns_connection list[256];
    size_t count = core_connections(lab->core, list, 256);
    int shown = 0;
    for (size_t i = 0; i < count && i < 256; i++)
        shown += list[i].workload == key && list[i].state == NS_STATE_CLOSED &&
                 strcmp(list[i].reason, reason) == 0;
    return shown;
}

TEST(captured_connections_beyond_the_limit_are_reset_and_counted)
{
    enum { LIMIT = 3, MORE = 4 };
    struct lab *lab = lab_new();
    struct ends ends[LIMIT];
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.connections = LIMIT});
    for (int i = 0; i < LIMIT; i++)
        ends[i] = lab_connect(lab);
    for (int i = 0; i < MORE; i++) {
        int client = dial(lab->outbound);
        expect_reset(client);
        close(client);
    }
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_CONNECTIONS), MORE);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).accepted, LIMIT);
    CHECK(shown_with(lab, SHIPPER_KEY, "limit-connections") >= 1);
    struct ns_limit_notice notice;
    WAIT_UNTIL(core_limit_notices(lab->core, &notice, 1) == 1);
    CHECK_EQUAL(notice.workload, SHIPPER_KEY);
    CHECK_EQUAL(notice.limit, NS_LIMIT_CONNECTIONS);
    CHECK_EQUAL(notice.value, LIMIT);
    CHECK_EQUAL(notice.refused, MORE);
    for (int i = 0; i < LIMIT; i++)
        exchange(&ends[i], 0); /* those that run feel nothing */
    ends_close(&ends[0]);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == LIMIT - 1);
    ends[0] = lab_connect(lab);
    exchange(&ends[0], 0);
    for (int i = 0; i < LIMIT; i++)
        ends_close(&ends[i]);
    lab_free(lab);
}

TEST(streams_beyond_the_limit_are_answered_503_and_others_of_the_tunnel_run_on)
{
    struct lab *lab = lab_new();
    struct ends ends[2];
    /* The tunnel that the peer opened counts as well. */
    lab_limit(lab, PIPELINE_KEY, (struct ns_limits){.connections = 3});
    for (int i = 0; i < 2; i++)
        ends[i] = lab_connect(lab);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, PIPELINE_KEY, NS_LIMIT_CONNECTIONS), 1);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_CONNECTIONS), 0);
    CHECK_EQUAL(shown_with(lab, PIPELINE_KEY, "limit-connections"), 1);
    for (int i = 0; i < 2; i++) {
        exchange(&ends[i], 0);
        ends_close(&ends[i]);
    }
    lab_free(lab);
}

TEST(a_tunnel_beyond_the_limit_is_reset_before_its_handshake)
{
    enum { OTHER_KEY = 3 };
    struct lab *lab = lab_new();
    lab_workload(lab, OTHER_KEY, 3, SHIPPER);
    int listener = lab_listen(lab, OTHER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    struct ends ends = lab_connect(lab); /* a tunnel and a stream */
    lab_limit(lab, PIPELINE_KEY, (struct ns_limits){.connections = 2});
    int client = dial(listener); /* of another workload, which needs a tunnel of its own */
    expect_reset(client);
    CHECK_EQUAL(lab_refused(lab, PIPELINE_KEY, NS_LIMIT_CONNECTIONS), 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tunnels, 1);
    CHECK_EQUAL(lab_stats(lab, PIPELINE_KEY).tls_failed, 0);
    exchange(&ends, 0);
    ends_close(&ends);
    close(client);
    close(listener);
    lab_free(lab);
}

TEST(connections_that_come_too_fast_are_reset)
{
    enum { TRIES = 10 };
    struct lab *lab = lab_new();
    int reset_ones = 0;
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.new_connections = 1});
    for (int i = 0; i < TRIES; i++) {
        int client = dial(lab->outbound);
        uint8_t byte;
        shutdown(client, SHUT_WR);
        struct pollfd poll_one = {.fd = client, .events = POLLIN};
        struct pollfd polls[2] = {poll_one, {.fd = lab->application, .events = POLLIN}};
        CHECK(poll(polls, 2, WAIT_SECONDS * 1000) > 0);
        if (polls[1].revents != 0)
            close(take_connection(lab->application));
        else
            reset_ones += recv(client, &byte, 1, 0) < 0 && errno == ECONNRESET;
        close(client);
    }
    CHECK(reset_ones >= 1);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_RATE), reset_ones);
    CHECK(shown_with(lab, SHIPPER_KEY, "limit-rate") >= 1);
    lab_free(lab);
}

/* Connections whose clients read nothing hold what the server sends, until the workload may hold no more:
 * then new ones are refused, those that run are slowed down, and nothing is lost. */
static void check_memory(struct lab *lab, uint64_t slack)
{
    enum { COUNT_OF = 40, LENGTH = 6000000 };
    const uint64_t limit = 8 << 20;
    struct ends stalled[COUNT_OF], quick;
    struct sender senders[COUNT_OF];
    lab_limit(lab, SHIPPER_KEY, (struct ns_limits){.memory = limit});
    quick = lab_connect(lab);
    for (int i = 0; i < COUNT_OF; i++)
        stalled[i] = lab_connect(lab);
    for (int i = 0; i < COUNT_OF; i++)
        sender_start(&senders[i], stalled[i].server, (uint64_t)i, LENGTH);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory >= limit / 2);
    for (int i = 0; i < 300; i++) { /* another stream of the same tunnel, while they press */
        exchange(&quick, (uint64_t)i * 100);
        uint64_t held = lab_stats(lab, SHIPPER_KEY).memory;
        CHECK_CASE(held <= limit + slack, "%llu bytes held", (unsigned long long)held);
    }
    struct ns_limits tiny = {.memory = 1 << 20};
    lab_limit(lab, SHIPPER_KEY, tiny);
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_MEMORY), 1);
    CHECK_EQUAL(shown_with(lab, SHIPPER_KEY, "limit-memory"), 1);
    for (int i = 0; i < COUNT_OF; i++) {
        receive_stream(stalled[i].client, (uint64_t)i, 0, LENGTH);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&quick);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory == 0);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
    CHECK_EQUAL(lab_stats(lab, SHIPPER_KEY).descriptors, lab_stats(lab, SHIPPER_KEY).tunnels);
    struct ends ends = lab_connect(lab); /* and windows are wide again */
    struct sender sender;
    sender_start(&sender, ends.server, 1, LENGTH);
    receive_stream(ends.client, 1, 0, LENGTH);
    sender_join(&sender);
    ends_close(&ends);
}

TEST(a_workload_holds_no_more_memory_than_its_limit_in_tunnels)
{
    struct lab *lab = lab_new();
    /* What was on its way when the peer was asked for small windows: what sockets hold, some megabytes. */
    check_memory(lab, 16 << 20);
    lab_free(lab);
}

TEST(a_workload_holds_no_more_memory_than_its_limit_in_plaintext)
{
    struct lab *lab = lab_plain();
    check_memory(lab, 4 << 20);
    lab_free(lab);
}

TEST(descriptors_that_run_out_refuse_new_connections_only)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends ends = lab_connect(lab);
    struct rlimit before, low;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 40;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &low), 0);
    WAIT_UNTIL(lab_core_stats(lab).descriptor_limit == 40); /* it is looked at once a second */
    int client = dial(lab->outbound);
    expect_reset(client);
    close(client);
    CHECK_EQUAL(lab_refused(lab, SHIPPER_KEY, NS_LIMIT_DESCRIPTORS), 1);
    CHECK_EQUAL(shown_with(lab, SHIPPER_KEY, "limit-descriptors"), 1);
    exchange(&ends, 0);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &before), 0);
    WAIT_UNTIL(lab_core_stats(lab).descriptor_limit == before.rlim_cur);
    struct ends after = lab_connect(lab);
    exchange(&after, 0);
    ends_close(&after);
    ends_close(&ends);
    lab_free(lab);
}

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

TEST(a_connection_that_cannot_even_be_refused_waits_and_wakes_nobody)
{
    enum { TICKS = 8, TICK_MS = 50 };
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    __atomic_store_n(&accepts_fail, 1, __ATOMIC_RELAXED);
    int client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(accepts_tried) >= 2); /* the second gives a descriptor up first */
    uint64_t begun = monotonic_ms();
    WAIT_UNTIL(COUNT(accepts_tried) >= 2 + 2 * TICKS);
    CHECK(monotonic_ms() - begun >= (TICKS - 2) * TICK_MS); /* one that does not wait is done in no time */
    __atomic_store_n(&accepts_fail, 0, __ATOMIC_RELAXED);
    struct ends late = {.client = client, .server = take_connection(lab->application)};
    exchange(&open, 0);
    exchange(&late, 0);
    ends_close(&open);
    ends_close(&late);
    lab_free(lab);
}

/* ---- sharing a worker ---- */

/* The workload beside the loud one: its listener, and an open connection. */
struct quiet {
    int listener;
    struct ends ends;
};

static struct quiet quiet_begin(struct lab *lab, uint64_t key)
{
    struct quiet quiet;
    lab_workload(lab, key, (int)key, SHIPPER);
    quiet.listener = lab_listen(lab, key, NS_LISTEN_OUTBOUND, listen_at(host((int)key, 0)));
    quiet.ends.client = dial(quiet.listener);
    quiet.ends.server = take_connection(lab->application);
    exchange(&quiet.ends, 0);
    return quiet;
}

static void quiet_end(struct quiet *quiet)
{
    ends_close(&quiet->ends);
    close(quiet->listener);
}

/* Holds the worker that dials the application for the quiet one, in connect(), until gate_open. Returns the
 * connection that it dials for. */
static int quiet_hold(struct lab *lab, struct quiet *quiet)
{
    gate_close(&lab->endpoint);
    int held = dial(quiet->listener);
    WAIT_UNTIL(COUNT(gate.held) == 1);
    return held;
}

/* Shipper's worker has nobody else, and writes as much as it can; the quiet one (of an even key) is beside
 * pipeline. */
static struct lab *lab_new_of_two_workers(void)
{
    struct core_options options = options_default();
    options.workers = 2;
    return lab_with(options);
}

TEST(a_thousand_busy_flows_leave_each_turn_to_others_as_well)
{
    enum { BUSY = 200, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    LAB_SET(lab, tunnel, 0);
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends busy[BUSY];
    for (int i = 0; i < BUSY; i++)
        busy[i] = lab_connect(lab);
    for (int i = 0; i < BUSY; i++)
        exchange(&busy[i], 0);
    /* The worker is held in a connect() while all of them speak. */
    int held = quiet_hold(lab, &quiet);
    for (int i = 0; i < BUSY; i++)
        send_stream(busy[i].client, 1, 100, 100);
    send_stream(quiet.ends.client, 1, 100, 100);
    COUNT_RESET(relays_most);
    gate_open();
    receive_stream(quiet.ends.server, 1, 100, 100);
    for (int i = 0; i < BUSY; i++)
        receive_stream(busy[i].server, 1, 100, 100);
    (void)lab_core_stats(lab); /* the turn has ended */
    CHECK_CASE(COUNT(relays_most) > 1 && COUNT(relays_most) <= TURN_SHARE + 1, "%d", COUNT(relays_most));
    close(held);
    for (int i = 0; i < BUSY; i++)
        ends_close(&busy[i]);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(plaintext_bulk_is_spliced_in_the_small_pieces_beside_a_light_workload_too)
{
    enum { ONCE = 40000, LENGTH = 2000000, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    LAB_SET(lab, tunnel, 0);
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends loud = lab_connect(lab);
    send_stream(loud.client, 1, 0, ONCE); /* enough to be heavy, and not to be spliced */
    receive_stream(loud.server, 1, 0, ONCE);
    /* The worker is held in a connect(), the quiet one's, until there is much to read. */
    int held = quiet_hold(lab, &quiet);
    struct sender up;
    sender_start(&up, loud.client, 2, LENGTH);
    int waiting = 0;
    WAIT_UNTIL(ioctl(loud.client, SIOCOUTQNSD, &waiting) == 0 && waiting > 0);
    COUNT_RESET(splices);
    gate_open();
    receive_stream(loud.server, 2, 0, LENGTH);
    sender_join(&up);
    CHECK_CASE(COUNT(splices) > 4, "%d", COUNT(splices));
    close(held);
    ends_close(&loud);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(messages_of_many_streams_in_one_read_leave_each_turn_to_others_as_well)
{
    enum { BUSY = 90, ROUNDS = 6, LENGTH = 100, QUIET_KEY = 4 };
    struct lab *lab = lab_new_of_two_workers();
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends busy[BUSY];
    for (int i = 0; i < BUSY; i++) {
        busy[i] = lab_connect(lab);
        exchange(&busy[i], 0);
    }
    exchange(&quiet.ends, LENGTH);
    /* Pipeline's worker is held in a connect() while all of them speak. */
    int held = quiet_hold(lab, &quiet);
    COUNT_RESET(produced);
    for (int round = 1; round <= ROUNDS; round++) {
        for (int i = 0; i < BUSY; i++)
            send_stream(busy[i].client, 1, (uint64_t)round * LENGTH, LENGTH);
        WAIT_UNTIL(COUNT(produced) >= round * BUSY * LENGTH); /* each in a frame of its own */
    }
    COUNT_RESET(fed_most);
    gate_open();
    for (int i = 0; i < BUSY; i++)
        receive_stream(busy[i].server, 1, LENGTH, ROUNDS * LENGTH);
    (void)lab_core_stats(lab); /* the turn has ended */
    /* A turn goes on twice with a tunnel: with its event, and with what that has left. */
    int most = 2 * (TURN_SHARE * (LENGTH + 16) + 2 * SLICE_LEAST);
    CHECK_CASE(COUNT(fed_most) >= LENGTH && COUNT(fed_most) <= most, "%d", COUNT(fed_most));
    close(held);
    for (int i = 0; i < BUSY; i++)
        ends_close(&busy[i]);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(requests_that_come_at_once_are_dialled_in_several_turns)
{
    enum { MANY = 60, QUIET_KEY = 4, REQUEST_LEAST = 9 };
    struct lab *lab = lab_new_of_two_workers();
    struct quiet quiet = quiet_begin(lab, QUIET_KEY);
    struct ends first = lab_connect(lab), many[MANY];
    exchange(&first, 0);
    /* Pipeline's worker is held in a connect() while all of them dial. */
    int held = quiet_hold(lab, &quiet);
    COUNT_RESET(produced);
    for (int i = 0; i < MANY; i++)
        many[i].client = dial(lab->outbound);
    WAIT_UNTIL(COUNT(produced) > MANY * REQUEST_LEAST);
    COUNT_RESET(dials_most);
    gate_open();
    close(take_connection(lab->application)); /* the one that was held */
    for (int i = 0; i < MANY; i++)
        many[i].server = take_connection(lab->application);
    (void)lab_core_stats(lab); /* the turn has ended */
    CHECK_CASE(COUNT(dials_most) > 1 && COUNT(dials_most) <= 2 * (TURN_SHARE / TURN_DIAL + 1), "%d",
               COUNT(dials_most));
    close(held);
    for (int i = 0; i < MANY; i++)
        ends_close(&many[i]);
    ends_close(&first);
    quiet_end(&quiet);
    lab_free(lab);
}

TEST(a_workload_that_reads_nothing_in_many_streams_slows_nobody)
{
    enum { STALLED = 30, LENGTH = 6000000, QUIET_KEY = 3 };
    struct lab *lab = lab_new_of_one_worker();
    lab_workload(lab, QUIET_KEY, 3, SHIPPER);
    int quiet_listener = lab_listen(lab, QUIET_KEY, NS_LISTEN_OUTBOUND, listen_at(host(3, 0)));
    struct ends stalled[STALLED], same = lab_connect(lab), other = {.client = dial(quiet_listener)};
    struct sender senders[STALLED];
    other.server = take_connection(lab->application);
    for (int i = 0; i < STALLED; i++)
        stalled[i] = lab_connect(lab);
    for (int i = 0; i < STALLED; i++)
        sender_start(&senders[i], stalled[i].server, (uint64_t)i, LENGTH);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).memory >= 8 * H2_STREAM_WINDOW);
    for (int i = 0; i < 200; i++) {
        exchange(&same, (uint64_t)i * 100);
        exchange(&other, (uint64_t)i * 100);
    }
    for (int i = 0; i < STALLED; i++) {
        receive_stream(stalled[i].client, (uint64_t)i, 0, LENGTH);
        sender_join(&senders[i]);
        ends_close(&stalled[i]);
    }
    ends_close(&same);
    ends_close(&other);
    close(quiet_listener);
    lab_free(lab);
}

static struct ns_question question_of(uint64_t workload, uint32_t number)
{
    struct ns_question question;
    memset(&question, 0, sizeof(question));
    question.id = workload * 1000 + number;
    question.workload = workload;
    return question;
}

TEST(questions_are_taken_from_each_workload_in_turn)
{
    enum { LOUD = 100, ROUND = 8 };
    struct core_options options = options_default();
    char error[NS_REASON_MAX] = "";
    struct descriptors process = {0};
    uint32_t notices = 0;
    struct core *core = core_start(&options, error, sizeof(error));
    struct quota *loud = quota_new(1, &process, &notices), *quiet = quota_new(2, &process, &notices);
    struct ns_question taken[2 * ROUND];
    for (uint32_t i = 0; i < LOUD; i++) {
        struct ns_question question = question_of(1, i);
        CHECK_EQUAL(core_ask(core, loud, &question), 0);
    }
    struct ns_question question = question_of(2, 0);
    CHECK_EQUAL(core_ask(core, quiet, &question), 0);
    CHECK_EQUAL(core_next_questions(core, taken, 2 * ROUND, 0), 2 * ROUND);
    for (uint32_t i = 0; i < ROUND; i++)
        CHECK_EQUAL(taken[i].id, 1000 + i);
    CHECK_EQUAL(taken[ROUND].id, 2000);
    CHECK_EQUAL(taken[ROUND + 1].id, 1000 + ROUND);
    quota_release(quiet);
    quota_release(loud); /* its questions hold it */
    core_stop(core);
}

/* The peer of this address takes connections, as the kernel does for it, and says nothing. */
TEST(a_peer_that_does_not_answer_delays_no_other)
{
    struct lab *lab = lab_new_of_one_worker();
    struct ends open = lab_connect(lab);
    int silent = listen_at(host(3, NS_HBONE_PORT));
    struct sockaddr_in known = lab->endpoint;
    lab_workload(lab, 3, 4, SHIPPER);
    int other = lab_listen(lab, 3, NS_LISTEN_OUTBOUND, listen_at(host(4, 0)));
    LAB_SET(lab, endpoint, host(3, 80));
    int waiting = dial(other);
    int peer = take_connection(silent);
    LAB_SET(lab, endpoint, known);
    exchange(&open, 0);
    lab_workload(lab, 4, 5, SHIPPER);
    int third = lab_listen(lab, 4, NS_LISTEN_OUTBOUND, listen_at(host(5, 0)));
    struct ends fresh = {.client = dial(third), .server = take_connection(lab->application)};
    exchange(&fresh, 0); /* through a tunnel of its own, made meanwhile */
    struct ns_connection list[8];
    CHECK_EQUAL(core_connections(lab->core, list, 8), 5);
    int connecting = 0;
    for (int i = 0; i < 5; i++)
        connecting += list[i].state == NS_STATE_CONNECTING;
    CHECK_EQUAL(connecting, 1);
    int fds[] = {waiting, peer, silent, other, third};
    for (int i = 0; i < 5; i++)
        close(fds[i]);
    ends_close(&open);
    ends_close(&fresh);
    lab_free(lab);
}

/* ---- warm tunnels ---- */

enum { WARM_MS = 600000 };

/* One flow from beginning to end; afterwards the tunnel is idle. */
static void lab_use(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    exchange(&ends, 0);
    ends_close(&ends);
    WAIT_UNTIL(lab_core_stats(lab).live_connections == 0);
}

TEST(a_used_peer_is_dialled_ahead_of_need_after_new_credentials)
{
    struct lab *lab = lab_new_warm(WARM_MS);
    lab_use(lab);
    CHECK_EQUAL(tunnels_dialled, 1);
    for (int i = 2; i < 4; i++) {
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        WAIT_UNTIL(tunnels_dialled == i && lab_core_stats(lab).live_tunnels == 2);
        lab_use(lab); /* through the tunnel that is there */
        CHECK_EQUAL(tunnels_dialled, i);
    }
    lab_free(lab);
}

TEST(a_peer_used_too_long_ago_is_left_alone)
{
    struct lab *lab = lab_new_warm(1);
    lab_use(lab);
    usleep(5000);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    CHECK_EQUAL(tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_peer_that_is_no_longer_allowed_is_not_dialled_ahead)
{
    struct lab *lab = lab_new_warm(WARM_MS);
    lab_use(lab);
    uint64_t questions = lab_core_stats(lab).questions;
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    LAB_SET(lab, epoch, 2);
    core_epoch(lab->core, 2);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).questions == questions + 1); /* nobody but the peer's place asks */
    int refused = dial(lab->outbound);
    expect_reset(refused); /* the same question: now it is answered */
    close(refused);
    CHECK_EQUAL(lab_core_stats(lab).questions, questions + 1);
    CHECK_EQUAL(lab_core_stats(lab).live_tunnels, 0);
    CHECK_EQUAL(tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_peer_with_another_identity_than_before_is_not_dialled_ahead)
{
    struct lab *lab = lab_new_warm(WARM_MS);
    lab_use(lab);
    uint64_t questions = lab_core_stats(lab).questions;
    LAB_SET(lab, identity, SHIPPER);
    LAB_SET(lab, epoch, 2);
    core_epoch(lab->core, 2);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    WAIT_UNTIL(lab_core_stats(lab).questions == questions + 1);
    LAB_SET(lab, outbound_verdict, NS_REFUSE);
    LAB_SET(lab, epoch, 3);
    core_epoch(lab->core, 3);
    int refused = dial(lab->outbound);
    expect_reset(refused); /* the question before it is answered, too */
    close(refused);
    CHECK_EQUAL(tunnels_dialled, 1);
    lab_free(lab);
}

TEST(a_warm_peer_that_is_away_is_dialled_again_when_it_is_back)
{
    struct lab *lab = lab_new_warm(WARM_MS);
    char error[NS_REASON_MAX] = "";
    lab_use(lab);
    CHECK_EQUAL(core_workload_remove(lab->core, PIPELINE_KEY, error, sizeof(error)), 0);
    close(lab->hbone);
    WAIT_UNTIL(tunnels_dialled >= 2 && lab_core_stats(lab).live_tunnels == 0);
    lab_workload(lab, PIPELINE_KEY, 2, PIPELINE);
    lab->hbone = lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, listen_at(host(2, NS_HBONE_PORT)));
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 2);
    lab_free(lab);
}

TEST(an_idle_tunnel_that_was_used_lately_is_made_anew)
{
    struct core_options options = options_default();
    options.workers = 1;
    options.warm_ms = WARM_MS;
    options.idle_timeout_ms = 1;
    struct lab *lab = lab_with(options);
    lab_use(lab);
    WAIT_UNTIL(tunnels_dialled >= 3);
    lab_free(lab);
}

TEST(a_removed_workload_dials_nobody_ahead)
{
    struct lab *lab = lab_new_warm(WARM_MS);
    char error[NS_REASON_MAX] = "";
    lab_use(lab);
    lab_credentials(lab, SHIPPER_KEY, SHIPPER);
    CHECK_EQUAL(core_workload_remove(lab->core, SHIPPER_KEY, error, sizeof(error)), 0);
    WAIT_UNTIL(lab_core_stats(lab).live_tunnels == 0);
    CHECK(tunnels_dialled <= 2); /* a tick may have come in between */
    lab_free(lab);
}

CHECK_MAIN
