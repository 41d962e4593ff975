/*
 * applications.h: the sockets of applications, and the streams of noise that they send and receive.
 *
 * What a socket of these waits for comes within WAIT_SECONDS, or the test fails. Descriptors that are
 * returned are the caller's to close. Addresses are of 127.0.0.0/8 and differ by process.
 */
#ifndef NS_APPLICATIONS_H
#define NS_APPLICATIONS_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>

enum { WAIT_SECONDS = 20 };

/* The address of a host of this process; `number`: 0-255. */
struct sockaddr_in host(int number, int port);
struct sockaddr_in local_of(int fd);

int listen_at(struct sockaddr_in address);
/* Connects to where `listener` listens. */
int dial(int listener);
int take_connection(int listener);
/* Closes so that the other end is reset. */
void reset(int fd);

/* The bytes [from, from + length) of the noise stream `seed`. */
void send_stream(int fd, uint64_t seed, uint64_t from, uint64_t length);
void receive_stream(int fd, uint64_t seed, uint64_t from, uint64_t length);
void expect_end(int fd);
void expect_reset(int fd);

/* Sends a stream from a thread of its own, from sender_start until sender_join. */
struct sender {
    int fd; /* the caller's */
    uint64_t seed, length;
    pthread_t thread;
};

void sender_start(struct sender *sender, int fd, uint64_t seed, uint64_t length);
void sender_join(struct sender *sender);

#endif
