/*
 * hostile_peer.h: a peer with a proper certificate that makes its HTTP/2 frames by hand, and keeps to as many
 * rules as its test wants. It acknowledges the first settings, which grant it large windows, and no others.
 *
 * What it waits for comes within WAIT_SECONDS, or the test fails.
 */
#ifndef NS_HOSTILE_PEER_H
#define NS_HOSTILE_PEER_H

#include "core_lab.h"

struct hostile_peer {
    int fd;
    SSL_CTX *context;
    SSL *ssl;
    int64_t credit; /* bytes that it may send, by its connection's window */
    int32_t next;   /* stream */
    int acknowledged;
    int ended;     /* by the core */
    uint32_t code; /* of the core's GOAWAY; 0: none came */
    uint8_t input[1 << 16];
    size_t input_length;
};

/* A tunnel of `identity` from host `number` to pipeline. */
struct hostile_peer *hostile_peer_new(struct lab *lab, int number, const char *identity);
void hostile_peer_free(struct hostile_peer *peer);
/* A new stream to an application. */
int32_t hostile_peer_open(struct hostile_peer *peer, struct sockaddr_in application);
/* Sends that many bytes, 16 KiB at most, whatever its windows are; nothing once it was ended. */
void hostile_peer_send(struct hostile_peer *peer, int32_t stream, size_t length);
/* Any frame; its payload, of 16 KiB at most, is zeroes where that is NULL. */
void hostile_peer_frame(struct hostile_peer *peer, uint8_t kind, uint8_t flags, int32_t stream,
                        const void *payload, size_t length);
/* Takes what has come. */
void hostile_peer_listen(struct hostile_peer *peer);

#endif
