/* message.c: see message.h. */
#include "wire/message.h"

#include <nghttp2/nghttp2.h>
#include <string.h>

#include "wire/names.h"

static int equals(const uint8_t *text, size_t length, const char *literal)
{
    return length == strlen(literal) && memcmp(text, literal, length) == 0;
}

/* Counts the field. True if there is still room for it. */
static int message_room(struct message *message, size_t name_length, size_t value_length)
{
    message->bytes += name_length + value_length + 32; /* RFC 9113 section 6.5.2 */
    return message->bytes <= MESSAGE_BYTES_MAX;
}

/* Reads the address of a header `forwarded: for="10.0.0.1:80"` (RFC 7239); anything else leaves `client` as
 * it is. */
static void read_forwarded(const uint8_t *value, size_t length, struct ns_address *client)
{
    static const char PREFIX[] = "for=\"";
    size_t prefix = sizeof(PREFIX) - 1;
    if (length <= prefix || memcmp(value, PREFIX, prefix) != 0)
        return;
    const uint8_t *end = memchr(value + prefix, '"', length - prefix);
    if (end != NULL)
        (void)authority_parse((const char *)value + prefix, (size_t)(end - value) - prefix, client);
}

void message_request_field(struct message *message, const uint8_t *name, size_t name_length,
                           const uint8_t *value, size_t value_length)
{
    if (!message_room(message, name_length, value_length))
        return;
    if (equals(name, name_length, ":method"))
        message->is_connect = equals(value, value_length, "CONNECT");
    else if (equals(name, name_length, ":authority"))
        message->has_authority = authority_parse((const char *)value, value_length, &message->authority) == 0;
    else if (equals(name, name_length, ":protocol"))
        message->malformed = 1; /* extended CONNECT is not a tunnel */
    else if (equals(name, name_length, "forwarded"))
        read_forwarded(value, value_length, &message->client);
}

enum outcome message_refusal(const struct message *message)
{
    if (message->bytes > MESSAGE_BYTES_MAX)
        return OUTCOME_TOO_LARGE;
    return message->malformed || !message->is_connect || !message->has_authority ? OUTCOME_MALFORMED
                                                                                 : OUTCOME_OPEN;
}

/* RFC 9113 section 8.2.2. Transfer-Encoding is one too, but "a client MUST ignore" it in an answer to CONNECT
 * (RFC 9110 section 9.3.6), as Content-Length. */
static int is_of_the_connection(const uint8_t *name, size_t length)
{
    return equals(name, length, "connection") || equals(name, length, "keep-alive") ||
           equals(name, length, "proxy-connection") || equals(name, length, "upgrade");
}

static int status_parse(const uint8_t *value, size_t length)
{
    int status = 0;
    if (length != 3)
        return 0;
    for (size_t i = 0; i < 3; i++) {
        if (value[i] < '0' || value[i] > '9')
            return 0;
        status = status * 10 + value[i] - '0';
    }
    return status >= 100 ? status : 0;
}

void message_response_field(struct message *message, const uint8_t *name, size_t name_length,
                            const uint8_t *value, size_t value_length)
{
    if (!message_room(message, name_length, value_length)) {
        message->malformed = 1;
    } else if (name_length > 0 && name[0] == ':') {
        int again = message->status != 0;
        message->status = equals(name, name_length, ":status") ? status_parse(value, value_length) : 0;
        if (again || message->regular_seen || message->status == 0)
            message->malformed = 1;
    } else {
        message->regular_seen = 1;
        if (!nghttp2_check_header_name(name, name_length) ||
            !nghttp2_check_header_value(value, value_length) || is_of_the_connection(name, name_length))
            message->malformed = 1;
        else if (message->said == OUTCOME_OPEN && equals(name, name_length, "proxy-status"))
            message->said = outcome_read(value, value_length);
    }
}

int message_status(const struct message *message)
{
    return message->malformed ? 0 : message->status;
}
