/* head.c: see head.h. */
#include "wire/head.h"

#include <stdio.h>
#include <string.h>

static const char FOR[] = "for=\"";

static void head_add(struct head *head, const char *name, const char *value, size_t length)
{
    nghttp2_nv field = {(uint8_t *)name, (uint8_t *)value, strlen(name), length, NGHTTP2_NV_FLAG_NONE};
    head->fields[head->count++] = field;
}

void head_request(struct head *head, const struct ns_address *authority, const struct ns_address *client)
{
    size_t length = sizeof(FOR) - 1;
    memcpy(head->forwarded, FOR, length);
    length += authority_format(client, head->forwarded + length);
    head->forwarded[length++] = '"';
    head->count = 0;
    head_add(head, ":method", "CONNECT", 7);
    head_add(head, ":authority", head->target, authority_format(authority, head->target));
    head_add(head, "forwarded", head->forwarded, length);
}

void head_response(struct head *head, enum outcome outcome)
{
    head->count = 0;
    int length = snprintf(head->status, sizeof(head->status), "%d", outcome_status(outcome));
    head_add(head, ":status", head->status, (size_t)length);
    const char *why = outcome_proxy_status(outcome);
    if (why != NULL)
        head_add(head, "proxy-status", why, strlen(why));
}
