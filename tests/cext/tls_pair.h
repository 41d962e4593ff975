/*
 * tls_pair.h: a handshake in memory between two ends that show what they are given.
 */
#ifndef NS_TLS_PAIR_H
#define NS_TLS_PAIR_H

#include "wire/tls.h"

#define DOMAIN "example.org"

struct end {
    struct tls tls;
    struct tls_sink sink;
    enum tls_result result;
};

struct pair {
    struct end client, server;
};

/* Until neither has anything more to say: `expected` of the server. Both ends are of the trust domain DOMAIN.
 */
void pair_run(struct pair *pair, const struct tls_credentials *client, const struct tls_credentials *server,
              const char *expected);
/* Hands what `from` has written over. One that is done only has an alert to read. */
void end_deliver(struct end *from, struct end *to);
void pair_dispose(struct pair *pair);

#endif
