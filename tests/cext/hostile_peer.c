/* hostile_peer.c: see hostile_peer.h. */
#include "hostile_peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

enum {
    HEADER = 9,
    PIECE = 16384,
    DATA = 0,
    HEADERS = 1,
    SETTINGS = 4,
    PING = 6,
    GOAWAY = 7,
    WINDOW_UPDATE = 8
};

static void wait_for(struct hostile_peer *peer, int error)
{
    struct pollfd one = {.fd = peer->fd, .events = error == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN};
    CHECK(poll(&one, 1, WAIT_SECONDS * 1000) > 0);
}

static void write_all(struct hostile_peer *peer, const uint8_t *bytes, size_t length)
{
    while (length > 0 && !peer->ended) {
        int written = SSL_write(peer->ssl, bytes, (int)length);
        int error = SSL_get_error(peer->ssl, written);
        if (written > 0) {
            bytes += written;
            length -= (size_t)written;
        } else if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
            wait_for(peer, error);
        } else {
            peer->ended = 1;
        }
    }
}

void hostile_peer_frame(struct hostile_peer *peer, uint8_t kind, uint8_t flags, int32_t stream,
                        const void *payload, size_t length)
{
    static uint8_t frame[HEADER + PIECE];
    CHECK(length <= PIECE);
    uint32_t id = htonl((uint32_t)stream);
    frame[0] = (uint8_t)(length >> 16);
    frame[1] = (uint8_t)(length >> 8);
    frame[2] = (uint8_t)length;
    frame[3] = kind;
    frame[4] = flags;
    memcpy(frame + 5, &id, 4);
    if (payload != NULL)
        memcpy(frame + HEADER, payload, length);
    else
        memset(frame + HEADER, 0, length);
    write_all(peer, frame, HEADER + length);
}

static SSL_CTX *context_of(struct lab *lab, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&lab->authority.intermediate, &wish);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    static const uint8_t ALPN[] = "\2h2";
    CHECK(SSL_CTX_use_certificate(context, leaf.x509) == 1);
    CHECK(SSL_CTX_add1_chain_cert(context, lab->authority.intermediate.x509) == 1);
    CHECK(SSL_CTX_use_PrivateKey(context, leaf.key) == 1);
    CHECK_EQUAL(SSL_CTX_set_alpn_protos(context, ALPN, 3), 0);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    certificate_dispose(&leaf);
    return context;
}

struct hostile_peer *hostile_peer_new(struct lab *lab, int number, const char *identity)
{
    static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    struct hostile_peer *peer = calloc(1, sizeof(*peer));
    struct sockaddr_in from = host(number, 0), to = local_of(lab->hbone);
    CHECK(peer != NULL);
    (void)signal(SIGPIPE, SIG_IGN); /* OpenSSL writes to what the core has closed */
    peer->next = 1;
    peer->credit = 65535;
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQUAL(bind(peer->fd, (struct sockaddr *)&from, sizeof(from)), 0);
    CHECK_EQUAL(connect(peer->fd, (struct sockaddr *)&to, sizeof(to)), 0);
    peer->context = context_of(lab, identity);
    peer->ssl = SSL_new(peer->context);
    SSL_set_fd(peer->ssl, peer->fd);
    CHECK_EQUAL(SSL_connect(peer->ssl), 1);
    CHECK_EQUAL(fcntl(peer->fd, F_SETFL, O_NONBLOCK), 0);
    write_all(peer, (const uint8_t *)PREFACE, sizeof(PREFACE) - 1);
    hostile_peer_frame(peer, SETTINGS, 0, 0, NULL, 0);
    return peer;
}

void hostile_peer_free(struct hostile_peer *peer)
{
    close(peer->fd);
    SSL_free(peer->ssl);
    SSL_CTX_free(peer->context);
    free(peer);
}

int32_t hostile_peer_open(struct hostile_peer *peer, struct sockaddr_in application)
{
    enum { METHOD = 2, AUTHORITY = 1, END_HEADERS = 4 }; /* names in the static table, RFC 7541 appendix A */
    char text[64], address[INET_ADDRSTRLEN], authority[40];
    int32_t stream = peer->next;
    peer->next += 2;
    inet_ntop(AF_INET, &application.sin_addr, address, sizeof(address));
    int length = snprintf(authority, sizeof(authority), "%s:%d", address, ntohs(application.sin_port));
    length = snprintf(text, sizeof(text), "%c%cCONNECT%c%c%s", METHOD, 7, AUTHORITY, length, authority);
    hostile_peer_frame(peer, HEADERS, END_HEADERS, stream, text, (size_t)length);
    return stream;
}

void hostile_peer_send(struct hostile_peer *peer, int32_t stream, size_t length)
{
    static const uint8_t ZEROES[PIECE];
    peer->credit -= (int64_t)length;
    hostile_peer_frame(peer, DATA, 0, stream, ZEROES, length);
}

static void take_frame(struct hostile_peer *peer, const uint8_t *frame, size_t length)
{
    uint32_t stream, number;
    memcpy(&stream, frame + 5, 4);
    if (frame[3] == WINDOW_UPDATE && stream == 0) {
        memcpy(&number, frame + HEADER, 4);
        peer->credit += ntohl(number);
    } else if (frame[3] == SETTINGS && frame[4] == 0) {
        if (!peer->acknowledged)
            hostile_peer_frame(peer, SETTINGS, 1, 0, NULL, 0);
        peer->acknowledged = 1;
    } else if (frame[3] == GOAWAY) {
        memcpy(&number, frame + HEADER + 4, 4);
        peer->code = ntohl(number);
    } else if (frame[3] == PING && frame[4] == 0) {
        hostile_peer_frame(peer, PING, 1, 0, frame + HEADER, length);
    }
}

static size_t take_frames(struct hostile_peer *peer)
{
    size_t at = 0;
    while (peer->input_length - at >= HEADER) {
        const uint8_t *frame = peer->input + at;
        size_t length = (size_t)frame[0] << 16 | (size_t)frame[1] << 8 | frame[2];
        CHECK(length < sizeof(peer->input) - HEADER);
        if (peer->input_length - at < HEADER + length)
            break;
        take_frame(peer, frame, length);
        at += HEADER + length;
    }
    return at;
}

void hostile_peer_listen(struct hostile_peer *peer)
{
    while (!peer->ended) {
        size_t room = sizeof(peer->input) - peer->input_length;
        int got = SSL_read(peer->ssl, peer->input + peer->input_length, (int)room);
        if (got <= 0) {
            peer->ended = SSL_get_error(peer->ssl, got) != SSL_ERROR_WANT_READ;
            return;
        }
        peer->input_length += (size_t)got;
        size_t taken = take_frames(peer);
        peer->input_length -= taken;
        memmove(peer->input, peer->input + taken, peer->input_length);
    }
}
