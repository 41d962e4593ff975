/*
 * The whole core: what is counted for workloads and for strangers is nothing again when everybody has left,
 * whatever way each went.
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <unistd.h>

#include "core_calls.h"
#include "core_ends.h"
#include "limits/descriptors.h"
#include "hostile_peer.h"
#include "noise.h"

enum { PEERS = 8, IDENTITIES = 4, STREAMS = 6, ROUNDS = 1500 };

/* Of the process, as the core has told them. */
static int64_t descriptors_used, descriptors_strange;

void __wrap_descriptors_change(struct descriptors *process, int64_t change);
void __real_descriptors_change(struct descriptors *process, int64_t change);
void __wrap_descriptors_strangers(struct descriptors *process, int64_t change);
void __real_descriptors_strangers(struct descriptors *process, int64_t change);

void __wrap_descriptors_change(struct descriptors *process, int64_t change)
{
    __atomic_add_fetch(&descriptors_used, change, __ATOMIC_RELAXED);
    __real_descriptors_change(process, change);
}

void __wrap_descriptors_strangers(struct descriptors *process, int64_t change)
{
    __atomic_add_fetch(&descriptors_strange, change, __ATOMIC_RELAXED);
    __real_descriptors_strangers(process, change);
}

/* ---- those who come and go ---- */

struct rioter {
    struct lab *lab;
    uint64_t seed;
    int client;   /* dials; otherwise accepts */
    int stopping; /* atomic: no new ones are dialled */
    pthread_t thread;
};

static void riot(int fd, struct noise *noise)
{
    static const uint8_t BYTES[100000];
    uint8_t taken[4096];
    for (size_t turns = noise_below(noise, 6); turns > 0; turns--) {
        if (noise_below(noise, 2))
            (void)!send(fd, BYTES, noise_below(noise, sizeof(BYTES)), MSG_NOSIGNAL | MSG_DONTWAIT);
        else
            (void)!recv(fd, taken, sizeof(taken), MSG_DONTWAIT);
        usleep((useconds_t)noise_below(noise, 3000));
    }
    if (noise_below(noise, 2))
        reset(fd);
    else
        close(fd);
}

static void *rioter_main(void *argument)
{
    struct rioter *rioter = argument;
    struct noise noise = noise_new(rioter->seed);
    for (;;) {
        int fd = rioter->client ? dial(rioter->lab->outbound)
                                : accept4(rioter->lab->application, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL; /* the listener was shut down */
        riot(fd, &noise);
        if (rioter->client && COUNT(rioter->stopping))
            return NULL;
    }
}

/* Peers with certificates, of which some keep no rules. */
struct guests {
    struct hostile_peer *peers[PEERS]; /* NULL: none */
    int32_t streams[PEERS][STREAMS];
};

static void guest_leave(struct guests *guests, size_t which)
{
    if (guests->peers[which] != NULL)
        hostile_peer_free(guests->peers[which]);
    guests->peers[which] = NULL;
}

static void guest_come(struct guests *guests, size_t which, struct lab *lab, struct noise *noise)
{
    char identity[NS_IDENTITY_MAX];
    snprintf(identity, sizeof(identity), "spiffe://example.org/ns/default/sa/guest-%d",
             (int)noise_below(noise, IDENTITIES));
    guests->peers[which] = hostile_peer_new(lab, 7, identity);
    for (int i = 0; i < STREAMS; i++)
        guests->streams[which][i] = hostile_peer_open(guests->peers[which], local_of(lab->application));
}

/* Ends the stream in one of several ways, or begins another. */
static void stream_change(struct hostile_peer *peer, int32_t *stream, struct lab *lab, struct noise *noise)
{
    enum { DATA = 0, RST_STREAM = 3, GOAWAY = 7, WINDOW_UPDATE = 8, ANY = 11, END_STREAM = 1 };
    static const uint8_t GONE[8] = {0}, MORE[4] = {0, 1, 0, 0};
    if (*stream == 0)
        *stream = hostile_peer_open(peer, local_of(lab->application));
    else if (noise_below(noise, 2))
        hostile_peer_frame(peer, WINDOW_UPDATE, 0, *stream, MORE, sizeof(MORE));
    else if (noise_below(noise, 20) == 0)
        hostile_peer_frame(peer, GOAWAY, 0, 0, GONE, sizeof(GONE));
    else if (noise_below(noise, 40) == 0)
        hostile_peer_frame(peer, (uint8_t)noise_below(noise, ANY), (uint8_t)noise_next(noise), *stream, NULL,
                           noise_below(noise, 20));
    else {
        if (noise_below(noise, 2))
            hostile_peer_frame(peer, DATA, END_STREAM, *stream, NULL, 0);
        else
            hostile_peer_frame(peer, RST_STREAM, 0, *stream, MORE, sizeof(MORE));
        *stream = 0;
    }
}

static void guest_do(struct guests *guests, size_t which, struct lab *lab, struct noise *noise)
{
    struct hostile_peer *peer = guests->peers[which];
    if (peer == NULL) {
        guest_come(guests, which, lab, noise);
        return;
    }
    hostile_peer_listen(peer);
    if (peer->ended || noise_below(noise, 12) == 0) {
        guest_leave(guests, which);
        return;
    }
    for (size_t pieces = noise_below(noise, 8); pieces > 0; pieces--) {
        size_t length = 1 + noise_below(noise, 16384);
        int32_t *stream = &guests->streams[which][noise_below(noise, STREAMS)];
        if (*stream != 0 && (peer->credit >= (int64_t)length || noise_below(noise, 200) == 0))
            hostile_peer_send(peer, *stream, length); /* the stream may have been reset meanwhile */
        if (noise_below(noise, 6) == 0)
            stream_change(peer, stream, lab, noise);
    }
}

static void stranger_do(struct lab *lab, struct noise *noise)
{
    static const uint8_t HELLO[] = "\x16\x03\x01\x00\xff\x01\x00\x00\xfbGET / HTTP/1.1\r\n\r\n";
    int fd = dial(lab->hbone);
    (void)!send(fd, HELLO, noise_below(noise, sizeof(HELLO)), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (noise_below(noise, 2))
        usleep(1000);
    if (noise_below(noise, 2))
        reset(fd);
    else
        close(fd);
}

/* ---- what the agent does meanwhile ---- */

static void limits_do(struct lab *lab, struct noise *noise)
{
    static const uint64_t MEMORY[] = {0, 1 << 20, 4 << 20, 64 << 20};
    static const uint64_t CONNECTIONS[] = {0, 0, 20, 200};
    static const uint64_t RATES[] = {0, 0, 0, 100};
    struct ns_limits limits = {.memory = MEMORY[noise_below(noise, 4)],
                               .connections = CONNECTIONS[noise_below(noise, 4)],
                               .new_connections = RATES[noise_below(noise, 4)]};
    char error[NS_REASON_MAX] = "";
    uint64_t key = noise_below(noise, 2) ? PIPELINE_KEY : SHIPPER_KEY;
    CHECK_EQUAL(core_workload_limits(lab->core, key, &limits, error, sizeof(error)), 0);
}

static void state_do(struct lab *lab, struct noise *noise)
{
    switch (noise_below(noise, 5)) {
    case 0:
        LAB_SET(lab, outbound_verdict, noise_below(noise, 3) ? NS_ALLOW : NS_REFUSE);
        break;
    case 1:
        LAB_SET(lab, tunnel_verdict, noise_below(noise, 3) ? NS_ALLOW : NS_REFUSE);
        break;
    case 2:
        lab_credentials(lab, SHIPPER_KEY, SHIPPER);
        break;
    case 3:
        LAB_SET(lab, tunnel, noise_below(noise, 3) ? NS_TUNNEL : NS_PLAINTEXT);
        break;
    default:
        break;
    }
    lab_move_on(lab);
}

/* A workload comes and goes with whoever is connected to it. */
static void neighbour_do(struct lab *lab, struct noise *noise, int *fd)
{
    char error[NS_REASON_MAX] = "";
    if (*fd < 0) {
        lab_workload(lab, SIEM_KEY, 3, SIEM);
        *fd = lab_listen(lab, SIEM_KEY, NS_LISTEN_HBONE, listen_at(host(3, 0)));
        return;
    }
    for (size_t i = noise_below(noise, 8); i > 0; i--)
        close(dial(*fd));
    CHECK_EQUAL(core_workload_remove(lab->core, SIEM_KEY, error, sizeof(error)), 0);
    close(*fd);
    *fd = -1;
}

/* ---- nothing is left ---- */

static int nothing_is_counted(struct lab *lab, uint64_t key)
{
    struct ns_workload_stats stats = lab_stats(lab, key);
    return stats.connections == 0 && stats.tunnels == 0 && stats.memory == 0 && stats.promised == 0 &&
           stats.descriptors == 0;
}

static void check_counts(uint64_t seed)
{
    struct core_options options = options_default();
    options.idle_timeout_ms = 1;
    struct lab *lab = lab_with(options);
    struct noise noise = noise_new(seed);
    struct guests guests = {{NULL}, {{0}}};
    struct rioter rioters[3];
    int neighbour = -1;
    (void)lab_core_stats(lab); /* its workers have taken their commands */
    int64_t used = COUNT(descriptors_used);
    for (int i = 0; i < 3; i++) {
        rioters[i] = (struct rioter){.lab = lab, .seed = seed + (uint64_t)i, .client = i < 2};
        CHECK_EQUAL(pthread_create(&rioters[i].thread, NULL, rioter_main, &rioters[i]), 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        size_t what = noise_below(&noise, 40);
        if (what == 0)
            limits_do(lab, &noise);
        else if (what == 1)
            state_do(lab, &noise);
        else if (what == 2)
            neighbour_do(lab, &noise, &neighbour);
        else if (what < 10)
            stranger_do(lab, &noise);
        else
            guest_do(&guests, noise_below(&noise, PEERS), lab, &noise);
    }
    for (size_t i = 0; i < PEERS; i++)
        guest_leave(&guests, i);
    if (neighbour >= 0)
        neighbour_do(lab, &noise, &neighbour);
    for (int i = 0; i < 2; i++)
        __atomic_store_n(&rioters[i].stopping, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        pthread_join(rioters[i].thread, NULL);
    WAIT_UNTIL(nothing_is_counted(lab, SHIPPER_KEY) && nothing_is_counted(lab, PIPELINE_KEY));
    WAIT_UNTIL(lab_core_stats(lab).strangers == 0 && COUNT(descriptors_strange) == 0);
    WAIT_UNTIL(COUNT(descriptors_used) == used);
    shutdown(lab->application, SHUT_RDWR);
    pthread_join(rioters[2].thread, NULL);
    lab_free(lab);
}

TEST(nothing_is_counted_any_more_when_everybody_has_left)
{
    check_counts(61);
}

TEST(nothing_is_counted_any_more_after_another_riot)
{
    check_counts(67);
}

CHECK_MAIN
