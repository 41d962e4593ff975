/* head.h: the header fields that we send: what asks for a tunnel, and what answers (message.h reads them). */
#ifndef NS_HEAD_H
#define NS_HEAD_H

#include <nghttp2/nghttp2.h>
#include <stddef.h>

#include "nodeseal_core.h"
#include "wire/outcome.h"
#include "wire/names.h"

/* Not to be copied: `fields` point into its texts. */
struct head {
    nghttp2_nv fields[3];
    size_t count;
    char target[AUTHORITY_MAX];
    char forwarded[AUTHORITY_MAX + 8];
    char status[16];
};

/* CONNECT to `authority`, forwarded (RFC 7239) for `client`. */
void head_request(struct head *head, const struct ns_address *authority, const struct ns_address *client);
void head_response(struct head *head, enum outcome outcome);

#endif
