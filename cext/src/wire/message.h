/*
 * message.h: the header fields of one HTTP/2 message as they arrive: what a request asks for, or what a
 * response says. Sans-I/O; the fields are the peer's.
 *
 * A request's fields were checked by nghttp2 (RFC 9113 section 8.2 and 8.3). It cannot check those of a
 * response to CONNECT: it takes a 204 for one without a content, and would reset the tunnel's first byte. So
 * a client does that itself.
 */
#ifndef NS_MESSAGE_H
#define NS_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"
#include "wire/outcome.h"

enum {
    MESSAGE_BYTES_MAX = 65536, /* as SETTINGS_MAX_HEADER_LIST_SIZE counts; ztunnel's server limit */
    MESSAGE_BYTES_ABUSE = 4 * MESSAGE_BYTES_MAX, /* worth no answer any more */
};

/* A zeroed one has no field yet. */
struct message {
    /* Of all fields; what exceeds MESSAGE_BYTES_MAX is not looked at. */
    size_t bytes;
    /* A response that breaks the rules, a request that is no tunnel's. */
    int malformed;
    /* Response: a field that is no pseudo-header; none of those may follow. */
    int regular_seen;
    /* Request. */
    int is_connect;
    /* Request: `authority` is one. */
    int has_authority;
    /* Response; 0: none. */
    int status;
    /* Response: what its Proxy-Status says; OUTCOME_OPEN: nothing. */
    enum outcome said;
    struct ns_address authority;
    /* Request: from the forwarded header; all zero unless that could be read. */
    struct ns_address client;
};

void message_request_field(struct message *message, const uint8_t *name, size_t name_length,
                           const uint8_t *value, size_t value_length);
void message_response_field(struct message *message, const uint8_t *name, size_t name_length,
                            const uint8_t *value, size_t value_length);

/* Of a request: what refuses it, OUTCOME_OPEN if it asks for a tunnel. */
enum outcome message_refusal(const struct message *message);
/* Of a response: its status, 0 if it is malformed or has none (as trailers). */
int message_status(const struct message *message);

#endif
