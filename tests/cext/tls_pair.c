/* tls_pair.c: see tls_pair.h. */
#include "tls_pair.h"

#include "check.h"

enum { ROOM = 262144 };

static void end_init(struct end *end, enum tls_role role, const struct tls_credentials *credentials,
                     const char *expected)
{
    memset(end, 0, sizeof(*end));
    end->result = TLS_WANT;
    end->sink.bytes = malloc(ROOM);
    end->sink.capacity = ROOM;
    CHECK_EQUAL(tls_init(&end->tls, role, credentials, DOMAIN, expected), 0);
}

static void end_dispose(struct end *end)
{
    tls_dispose(&end->tls);
    free(end->sink.bytes);
}

void end_deliver(struct end *from, struct end *to)
{
    uint8_t plain[64];
    size_t got;
    size_t length = from->sink.length;
    uint8_t *bytes = malloc(length + 1);
    CHECK(bytes != NULL);
    memcpy(bytes, from->sink.bytes, length);
    from->sink.length = 0;
    tls_feed(&to->tls, bytes, length);
    if (to->result == TLS_WANT)
        to->result = tls_handshake(&to->tls, &to->sink);
    else if (to->result == TLS_OK && length > 0 &&
             tls_read(&to->tls, &to->sink, plain, sizeof(plain), &got) == TLS_FAILED)
        to->result = TLS_FAILED;
    free(bytes);
}

void pair_run(struct pair *pair, const struct tls_credentials *client, const struct tls_credentials *server,
              const char *expected)
{
    end_init(&pair->client, TLS_CLIENT, client, expected);
    end_init(&pair->server, TLS_SERVER, server, NULL);
    tls_feed(&pair->client.tls, NULL, 0);
    pair->client.result = tls_handshake(&pair->client.tls, &pair->client.sink);
    while (pair->client.sink.length > 0 || pair->server.sink.length > 0) {
        end_deliver(&pair->client, &pair->server);
        end_deliver(&pair->server, &pair->client);
    }
}

void pair_dispose(struct pair *pair)
{
    end_dispose(&pair->client);
    end_dispose(&pair->server);
}
