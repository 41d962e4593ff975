/* applications.c: see applications.h. */
#define _GNU_SOURCE
#include "applications.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "check.h"
#include "noise.h"

struct sockaddr_in host(int number, int port)
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

int listen_at(struct sockaddr_in address)
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

struct sockaddr_in local_of(int fd)
{
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    CHECK_EQUAL(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    return address;
}

int dial(int listener)
{
    struct sockaddr_in address = local_of(listener);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    limit_waiting(fd);
    CHECK_CASE(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "%s", strerror(errno));
    return fd;
}

int take_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK_CASE(fd >= 0, "%s", strerror(errno));
    limit_waiting(fd);
    return fd;
}

void send_stream(int fd, uint64_t seed, uint64_t from, uint64_t length)
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

void receive_stream(int fd, uint64_t seed, uint64_t from, uint64_t length)
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

void expect_end(int fd)
{
    uint8_t byte;
    ssize_t got = recv(fd, &byte, 1, 0);
    CHECK_CASE(got == 0, "%zd %s", got, strerror(errno));
}

void expect_reset(int fd)
{
    uint8_t byte;
    ssize_t got = recv(fd, &byte, 1, 0);
    CHECK_CASE(got == -1 && errno == ECONNRESET, "%zd %s", got, strerror(errno));
}

void reset(int fd)
{
    struct linger linger = {.l_onoff = 1};
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    close(fd);
}

static void *sender_main(void *argument)
{
    struct sender *sender = argument;
    send_stream(sender->fd, sender->seed, 0, sender->length);
    return NULL;
}

void sender_start(struct sender *sender, int fd, uint64_t seed, uint64_t length)
{
    sender->fd = fd;
    sender->seed = seed;
    sender->length = length;
    CHECK_EQUAL(pthread_create(&sender->thread, NULL, sender_main, sender), 0);
}

void sender_join(struct sender *sender)
{
    CHECK_EQUAL(pthread_join(sender->thread, NULL), 0);
}
