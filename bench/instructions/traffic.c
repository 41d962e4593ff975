/*
 * traffic.c: the loads whose instructions are counted: `traffic LOAD UNITS`.
 *
 * One core of one worker holds both ends, as two nodes' cores would: the workload `client` with an outbound
 * listener and the workload `server` with an HBONE listener, so that each byte is read from an application,
 * framed, sealed, sent, received, opened, and written to the other application. Loads in plaintext go through
 * the client's core only. kernel.h says what it runs on.
 *
 * Connections are made and warmed up first, then UNITS units are counted, and the program ends. It prints one
 * JSON object: what was counted, the core's system calls meanwhile, and what the program was built with.
 * Without valgrind it does the same, only that nothing counts its instructions.
 */
#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <nghttp2/nghttp2.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "certificates.h"
#include "nodeseal_core.h"

#define CLIENT_IDENTITY "spiffe://example.org/ns/default/sa/client"
#define SERVER_IDENTITY "spiffe://example.org/ns/default/sa/server"

enum {
    CLIENT_KEY = 1,
    SERVER_KEY = 2,
    CLIENT_IP = 0x0a4d0102, /* 10.77.1.2 */
    SERVER_IP = 0x0a4d0202, /* 10.77.2.2 */
    PORT = 8080,            /* the application's, and of the destination that is dialled */
    REQUEST = 100,
    RESPONSE = 1024,
    MEGABYTE = 1000000,
    CHUNK = 256 << 10,
    STREAMS_MAX = 64,
    WARM_REQUESTS = 20, /* on each stream */
    WARM_MEGABYTES = 4,
    WARM_CONNECTIONS = 40,
};

enum pattern { REQUESTS, UPLOAD, DOWNLOAD, CONNECTIONS };

/* A unit is a request with its response, a megabyte, or a connection with one request. */
struct load {
    const char *name;
    enum pattern pattern;
    int streams;
    uint64_t warm;   /* units before the count begins */
    uint32_t tunnel; /* 0: in plaintext, which is one hop through the core instead of two */
    int watched;     /* somebody listens to the core's events */
};

static const struct load LOADS[] = {
    {"requests_1", REQUESTS, 1, WARM_REQUESTS, 1, 0},
    {"requests_64", REQUESTS, 64, WARM_REQUESTS * 64, 1, 0},
    {"upload_1", UPLOAD, 1, WARM_MEGABYTES, 1, 0},
    {"download_1", DOWNLOAD, 1, WARM_MEGABYTES, 1, 0},
    {"download_8", DOWNLOAD, 8, WARM_MEGABYTES, 1, 0},
    {"connections", CONNECTIONS, 1, WARM_CONNECTIONS, 1, 0},
    {"watched_connections", CONNECTIONS, 1, WARM_CONNECTIONS, 1, 1},
    {"plain_requests_1", REQUESTS, 1, WARM_REQUESTS, 0, 0},
    {"plain_download_1", DOWNLOAD, 1, WARM_MEGABYTES, 0, 0},
};

/* One side of an application's connection. */
struct end {
    int fd;            /* -1: none */
    uint64_t to_send;  /* bytes not sent yet */
    uint64_t received; /* bytes of the message that is being received */
};

static struct {
    const struct load *load;
    struct core *core;
    int listener;    /* the server application's */
    uint64_t wanted; /* units to count after the warm-up */
    uint64_t
        limit; /* units that may begin in this phase; the phase ends when they are done and all is quiet */
    uint64_t begun;
    uint64_t done;
    uint64_t bytes;  /* received in bulk */
    uint64_t events; /* that the listener got */
    uint64_t heard;  /* units that were done when it last took some */
    struct end clients[STREAMS_MAX];
    struct end servers[STREAMS_MAX];
} traffic;

static uint8_t scratch[CHUNK];

/* ---- decisions ---- */

static struct ns_address core_address(uint32_t ip, uint16_t port)
{
    struct ns_address address = {.port = port};
    address.ip[10] = address.ip[11] = 0xff;
    for (int i = 0; i < 4; i++)
        address.ip[12 + i] = (uint8_t)(ip >> (24 - 8 * i));
    return address;
}

/* Answers a question if there is one: everything is allowed. 1 if there was one.
 */
static int decide(void)
{
    static struct ns_question question;
    static struct ns_answer answer;
    if (core_next_questions(traffic.core, &question, 1, 0) == 0)
        return 0;
    memset(&answer, 0, sizeof(answer));
    answer.id = question.id;
    answer.epoch = 1;
    answer.verdict = NS_ALLOW;
    if (question.kind == NS_ASK_OUTBOUND) {
        answer.endpoint_count = 1;
        answer.endpoints[0].address = core_address(SERVER_IP, PORT);
        answer.endpoints[0].tunnel = traffic.load->tunnel;
        snprintf(answer.endpoints[0].identity, NS_IDENTITY_MAX, "%s", SERVER_IDENTITY);
    }
    core_answer(traffic.core, &answer);
    return 1;
}

/* ---- the applications; each step returns 1 if it did anything ---- */

static int listen_at(uint32_t ip, uint16_t port)
{
    struct sockaddr_in address = kernel_address(ip, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 1) == 0);
    return fd;
}

/* The outbound listener's own address is the original destination. */
static int dial(void)
{
    struct sockaddr_in to = kernel_address(CLIENT_IP, PORT);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0 || errno == EINPROGRESS);
    return fd;
}

static void end_close(struct end *end)
{
    close(end->fd);
    end->fd = -1;
}

static int end_send(struct end *end)
{
    int moved = 0;
    while (end->to_send > 0) {
        ssize_t sent = send(end->fd, scratch, end->to_send < CHUNK ? (size_t)end->to_send : CHUNK, 0);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            kernel_fail("an application's connection was cut");
        end->to_send -= (uint64_t)sent;
        moved = 1;
    }
    return moved;
}

static int end_receive(struct end *end, int *ended)
{
    int moved = 0;
    while (!*ended) {
        ssize_t got = recv(end->fd, scratch, CHUNK, 0);
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0)
            kernel_fail("an application's connection was cut");
        *ended = got == 0;
        end->received += (uint64_t)got;
        moved = 1;
    }
    return moved;
}

static int unit_begin(void)
{
    if (traffic.begun == traffic.limit)
        return 0;
    traffic.begun++;
    return 1;
}

static void bulk_received(struct end *end)
{
    traffic.bytes += end->received;
    end->received = 0;
    traffic.done = traffic.bytes / MEGABYTE;
}

static int request_begin(struct end *client)
{
    if (client->received < RESPONSE || !unit_begin())
        return 0;
    if (client->fd < 0)
        client->fd = dial();
    client->to_send = REQUEST;
    client->received = 0;
    return 1;
}

static void response_received(struct end *client)
{
    traffic.done++;
    if (traffic.load->pattern == CONNECTIONS)
        end_close(client);
}

static int client_step(struct end *client)
{
    enum pattern pattern = traffic.load->pattern;
    int moved = 0, ended = 0;
    if (pattern == REQUESTS || pattern == CONNECTIONS) {
        moved = request_begin(client);
    } else if (client->fd < 0) {
        client->fd = dial();
        moved = 1;
    }
    if (client->fd < 0)
        return 0;
    if (pattern == UPLOAD && client->to_send == 0 && unit_begin())
        client->to_send = MEGABYTE;
    moved |= end_send(client);
    int received = end_receive(client, &ended);
    if (ended)
        kernel_fail("the server's end came before the client's");
    if (pattern == DOWNLOAD)
        bulk_received(client);
    else if (received && client->received == RESPONSE)
        response_received(client);
    return moved | received;
}

static int server_step(struct end *server)
{
    int ended = 0;
    if (server->fd < 0) {
        server->fd = accept4(traffic.listener, NULL, NULL, 0);
        server->to_send = server->received = 0;
        if (server->fd < 0)
            return 0;
    }
    int moved = end_receive(server, &ended);
    if (traffic.load->pattern == UPLOAD) {
        bulk_received(server);
    } else if (traffic.load->pattern == DOWNLOAD) {
        if (server->to_send == 0 && unit_begin())
            server->to_send = MEGABYTE;
    } else if (server->received >= REQUEST) {
        server->received -= REQUEST;
        server->to_send += RESPONSE;
    }
    moved |= end_send(server);
    if (ended)
        end_close(server);
    return moved;
}

/* ---- the listener ---- */

/* Takes what the core tells, as often as 32 units are done. */
static void listen_on(void)
{
    static struct ns_event events[128];
    uint64_t lost = 0;
    if (!traffic.load->watched || traffic.done < traffic.heard + 32)
        return;
    traffic.heard = traffic.done;
    traffic.events += core_next_events(traffic.core, events, 128, &lost);
    if (lost > 0)
        kernel_fail("events were lost");
}

/* ---- phases ---- */

static _Noreturn void finish(void)
{
    printf("{\"load\": \"%s\", \"units\": %llu, \"system_calls\": ", traffic.load->name,
           (unsigned long long)traffic.wanted);
    kernel_print_calls(stdout);
    printf(", \"versions\": {\"gcc\": \"%s\", \"OpenSSL\": \"%s\", \"nghttp2\": \"%s\", \"libc\": \"%s\"}}\n",
           __VERSION__, OpenSSL_version(OPENSSL_FULL_VERSION_STRING), nghttp2_version(0)->version_str,
           gnu_get_libc_version());
    fflush(stdout);
    _exit(0); /* the core is still on the stack */
}

static int idle(void)
{
    int moved = 0;
    while (decide())
        moved = 1;
    for (int i = 0; i < traffic.load->streams; i++)
        moved |= client_step(&traffic.clients[i]) | server_step(&traffic.servers[i]);
    listen_on();
    if (moved || traffic.done < traffic.limit)
        return moved;
    if (traffic.limit > traffic.load->warm) {
        kernel_measure(0);
        if (traffic.load->watched && traffic.events < 3 * traffic.wanted)
            kernel_fail("too few events were told");
        finish();
    }
    kernel_measure(1);
    traffic.limit += traffic.wanted;
    return 1;
}

/* ---- the core ---- */

static void workload_new(const struct authority *authority, uint64_t key, uint32_t ip, const char *identity,
                         int role, uint16_t port)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&authority->intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &authority->intermediate);
    char *secret = certificate_key_pem(&leaf);
    char error[NS_REASON_MAX] = "";
    struct ns_address address = core_address(ip, 0);
    int namespace = open("/dev/null", O_RDONLY | O_CLOEXEC); /* setns is kernel.c's */
    int listener = listen_at(ip, port);
    if (core_workload_add(traffic.core, key, namespace, &address, error, sizeof(error)) != 0 ||
        core_workload_credentials(traffic.core, key, chain, secret, error, sizeof(error)) != 0 ||
        core_workload_listen(traffic.core, key, role, listener, error, sizeof(error)) != 0)
        kernel_fail(error);
    close(namespace);
    free(chain);
    free(secret);
    certificate_dispose(&leaf);
}

static void core_new(void)
{
    struct core_options options = {.workers = 1,
                                   .connect_timeout_ms = 10000,
                                   .refused_retry_ms = 2000,
                                   .idle_timeout_ms = 300000,
                                   .trust_domain = "example.org"};
    struct authority authority = authority_new();
    char error[NS_REASON_MAX] = "";
    traffic.core = core_start(&options, error, sizeof(error));
    if (traffic.core == NULL)
        kernel_fail(error);
    core_events_listen(traffic.core, traffic.load->watched);
    core_epoch(traffic.core, 1, &(struct ns_concern){.all = 1});
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    const struct ns_bundle own = {options.trust_domain, bundle};
    if (core_trust(traffic.core, &own, 1, error, sizeof(error)) != 0)
        kernel_fail(error);
    free(bundle);
    workload_new(&authority, CLIENT_KEY, CLIENT_IP, CLIENT_IDENTITY, NS_LISTEN_OUTBOUND, PORT);
    workload_new(&authority, SERVER_KEY, SERVER_IP, SERVER_IDENTITY, NS_LISTEN_HBONE, NS_HBONE_PORT);
    authority_dispose(&authority);
    traffic.listener = listen_at(SERVER_IP, PORT);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 3 && i < sizeof(LOADS) / sizeof(LOADS[0]); i++)
        if (strcmp(argv[1], LOADS[i].name) == 0)
            traffic.load = &LOADS[i];
    if (traffic.load == NULL || (traffic.wanted = strtoull(argv[2], NULL, 10)) == 0) {
        fprintf(stderr, "usage: %s LOAD UNITS\n", argv[0]);
        return 2;
    }
    traffic.limit = traffic.load->warm;
    for (int i = 0; i < STREAMS_MAX; i++) {
        traffic.clients[i] = (struct end){.fd = -1, .received = RESPONSE};
        traffic.servers[i] = (struct end){.fd = -1};
    }
    core_new();
    kernel_run(idle);
}
