/* What the load generator (load.c) and its server (serve.c) say to each other, and what both need to say it.
 *
 * A connection begins with a request in the form of HTTP/1.1; the first letter of its path says what follows:
 *
 *   /keep      the server answers with RESPONSE_SIZE bytes and waits for the next request
 *   /close     the server answers and closes. The server closes first on purpose: the state TIME_WAIT then
 * stays with the accepting side of every hop, and no hop runs out of ports for its outgoing connections
 *   /download  the server sends until the connection ends
 *   /upload    the server discards what follows, and reports after every REPORT_EVERY bytes how many have
 * arrived in all (8 bytes, in the machine's order: both run on the same one)
 */
#ifndef BENCH_EXCHANGE_H
#define BENCH_EXCHANGE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Stands in every request and every response: who sees it on a wire sees plaintext. bench/wire.py looks for
 * it. */
#define MARKER "nodeseal-bench-marker"

#define REQUEST(path) "GET " path " HTTP/1.1\r\nHost: bench\r\nX-Marker: " MARKER "\r\n\r\n"
#define RESPONSE_HEAD                                                                                        \
    "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\n\r\n"

enum {
    RESPONSE_BODY = 1024,
    RESPONSE_SIZE = sizeof(RESPONSE_HEAD) - 1 + RESPONSE_BODY,
    REQUEST_MAX = 4096,
    REPORT_EVERY = 4 << 20,
    CHUNK = 256 << 10,
    EVENTS = 256,
};

static inline _Noreturn void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* "10.0.0.1:80". Ends the program when it is none. */
static inline struct sockaddr_in parse_endpoint(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[INET_ADDRSTRLEN];
    const char *colon = strrchr(text, ':');
    const size_t length = colon ? (size_t)(colon - text) : 0;
    const int port = colon ? atoi(colon + 1) : 0;

    if (length > 0 && length < sizeof host && port > 0 && port < 65536) {
        memcpy(host, text, length);
        host[length] = '\0';
        address.sin_port = htons((uint16_t)port);
        if (inet_pton(AF_INET, host, &address.sin_addr) == 1)
            return address;
    }
    fprintf(stderr, "%s: expected an IPv4 address and a port, such as 10.0.0.1:80\n", text);
    exit(2);
}

static inline void set_nodelay(int fd)
{
    const int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* A listening, non-blocking socket. Ends the program when it cannot be had. */
static inline int listen_on(const char *endpoint)
{
    const struct sockaddr_in address = parse_endpoint(endpoint);
    const int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        die(endpoint);
    return fd;
}

#endif
