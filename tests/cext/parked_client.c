/* parked_client.c: see parked_client.h. */
#define _GNU_SOURCE
#include "parked_client.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "loop/sockets.h"

enum { RECORDS = 64, PACKETS = 256 };

static struct {
    pthread_mutex_t mutex;
    int event;
    struct parked_record records[RECORDS];
    unsigned written, read;
    struct sent packets[PACKETS];
    unsigned sent, taken;
} fake = {.mutex = PTHREAD_MUTEX_INITIALIZER, .event = -1};

/* ---- the ring ---- */

size_t __wrap_ring_size(int fd);
int __wrap_ring_open(struct ring *ring, int fd, size_t size);
void __wrap_ring_close(struct ring *ring);
const struct parked_record *__wrap_ring_next(struct ring *ring);
int __wrap_ring_done(struct ring *ring);

size_t __wrap_ring_size(int fd)
{
    (void)fd;
    return 4096;
}

int __wrap_ring_open(struct ring *ring, int fd, size_t size)
{
    (void)fd;
    ring->size = size;
    return 0;
}

void __wrap_ring_close(struct ring *ring)
{
    ring->size = 0;
}

const struct parked_record *__wrap_ring_next(struct ring *ring)
{
    const struct parked_record *record = NULL;
    CHECK(ring->size > 0);
    pthread_mutex_lock(&fake.mutex);
    if (fake.read != fake.written)
        record = &fake.records[fake.read++ % RECORDS];
    pthread_mutex_unlock(&fake.mutex);
    return record;
}

int __wrap_ring_done(struct ring *ring)
{
    uint64_t count;
    (void)ring;
    pthread_mutex_lock(&fake.mutex);
    int more = fake.read != fake.written;
    if (!more)
        (void)!read(fake.event, &count, sizeof(count));
    pthread_mutex_unlock(&fake.mutex);
    return more;
}

int parked_ring(void)
{
    pthread_mutex_lock(&fake.mutex);
    fake.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake.written = fake.read = fake.sent = fake.taken = 0;
    pthread_mutex_unlock(&fake.mutex);
    CHECK(fake.event >= 0);
    return fake.event;
}

static void ring_put(const struct parked_record *record)
{
    uint64_t one = 1;
    pthread_mutex_lock(&fake.mutex);
    CHECK(fake.written - fake.read < RECORDS);
    fake.records[fake.written++ % RECORDS] = *record;
    CHECK_EQUAL(write(fake.event, &one, sizeof(one)), sizeof(one));
    pthread_mutex_unlock(&fake.mutex);
}

/* ---- the other worker ---- */

static int elsewhere; /* atomic */

uint32_t __wrap_placement_choose(const struct placement *places, uint32_t count, uint32_t home, uint64_t held,
                                 uint64_t now_ms);
uint32_t __real_placement_choose(const struct placement *places, uint32_t count, uint32_t home, uint64_t held,
                                 uint64_t now_ms);

uint32_t __wrap_placement_choose(const struct placement *places, uint32_t count, uint32_t home, uint64_t held,
                                 uint64_t now_ms)
{
    if (__atomic_load_n(&elsewhere, __ATOMIC_RELAXED))
        return (home + 1) % count;
    return __real_placement_choose(places, count, home, held, now_ms);
}

void parked_elsewhere(void)
{
    __atomic_store_n(&elsewhere, 1, __ATOMIC_RELAXED);
}

/* ---- packets ---- */

int __wrap_socket_raw_in(const struct netns *netns, int family, uint32_t mark);
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);

int __wrap_socket_raw_in(const struct netns *netns, int family, uint32_t mark)
{
    (void)netns;
    (void)mark;
    return socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    (void)fd;
    (void)flags;
    pthread_mutex_lock(&fake.mutex);
    for (unsigned i = 0; i < count; i++) {
        const struct msghdr *message = &messages[i].msg_hdr;
        const struct cmsghdr *control = CMSG_FIRSTHDR(message);
        struct sent *sent = &fake.packets[fake.sent++ % PACKETS];
        CHECK(control != NULL && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_MARK);
        memcpy(&sent->mark, CMSG_DATA(control), sizeof(sent->mark));
        CHECK_EQUAL(message->msg_iovlen, 1);
        CHECK(message->msg_iov->iov_len <= sizeof(sent->bytes));
        sent->length = message->msg_iov->iov_len;
        memcpy(sent->bytes, message->msg_iov->iov_base, sent->length);
    }
    pthread_mutex_unlock(&fake.mutex);
    return (int)count;
}

int parked_sent_count(void)
{
    pthread_mutex_lock(&fake.mutex);
    int count = (int)(fake.sent - fake.taken);
    pthread_mutex_unlock(&fake.mutex);
    return count;
}

struct sent parked_sent(void)
{
    WAIT_UNTIL(parked_sent_count() > 0 || (usleep(1000), 0));
    pthread_mutex_lock(&fake.mutex);
    struct sent sent = fake.packets[fake.taken++ % PACKETS];
    pthread_mutex_unlock(&fake.mutex);
    return sent;
}

uint8_t parked_flags(const struct sent *sent)
{
    return sent->bytes[20 + 13];
}

/* ---- applications ---- */

int parked_client(void)
{
    struct sockaddr_in at = host(5, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQUAL(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

/* An IPv4 header and TCP's, both without options. */
static void record_syn(struct parked_record *record, struct sockaddr_in from, struct sockaddr_in to,
                       uint32_t sequence)
{
    uint8_t *ip = record->packet, *tcp = ip + 20;
    uint32_t number = htonl(sequence);
    record->length = 40;
    ip[0] = 0x45;
    ip[3] = 40;
    ip[8] = 64;
    ip[9] = IPPROTO_TCP;
    memcpy(ip + 12, &from.sin_addr, 4);
    memcpy(ip + 16, &to.sin_addr, 4);
    memcpy(tcp, &from.sin_port, 2);
    memcpy(tcp + 2, &to.sin_port, 2);
    memcpy(tcp + 4, &number, 4);
    tcp[12] = 5 << 4;
    tcp[13] = 0x02;
}

static void put_syn(struct lab *lab, int client, uint32_t sequence, uint32_t value, uint32_t mark)
{
    struct parked_record record = {.kind = PARKED_SYN, .mark = mark, .value = value};
    record_syn(&record, local_of(client), local_of(lab->outbound), sequence);
    ring_put(&record);
}

void parked_syn(struct lab *lab, int client, uint32_t sequence, uint32_t value)
{
    put_syn(lab, client, sequence, value, NS_MARK_RELEASED);
}

void parked_host_syn(struct lab *lab, int client, uint32_t sequence, uint32_t value)
{
    put_syn(lab, client, sequence, value, NS_MARK_HOST_RELEASED | 1);
}

void parked_arrival(struct lab *lab, int client, uint32_t sequence)
{
    struct parked_record record = {.kind = PARKED_ARRIVED};
    record_syn(&record, local_of(client), local_of(lab->outbound), sequence);
    ring_put(&record);
}

/* A record about the connection of `client`. */
static void put_flow(struct lab *lab, int client, struct parked_record record)
{
    struct ns_address from = mapped(local_of(client)), to = mapped(local_of(lab->outbound));
    memcpy(record.flow.source, from.ip, 16);
    memcpy(record.flow.destination, to.ip, 16);
    record.flow.source_port = htons(from.port);
    record.flow.destination_port = htons(to.port);
    ring_put(&record);
}

void parked_gone(struct lab *lab, int client)
{
    put_flow(lab, client, (struct parked_record){.kind = PARKED_GONE});
}

void parked_bears(struct lab *lab, int client, uint32_t keepalive_ms, uint32_t unacknowledged_ms)
{
    struct parked_record record = {
        .kind = PARKED_TOLERANCE, .value = keepalive_ms, .mark = unacknowledged_ms};
    put_flow(lab, client, record);
}

void parked_connect(struct lab *lab, int client)
{
    struct sockaddr_in to = local_of(lab->outbound);
    CHECK_EQUAL(connect(client, (struct sockaddr *)&to, sizeof(to)), 0);
}
