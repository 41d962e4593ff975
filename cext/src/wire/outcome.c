/* outcome.c: see outcome.h. */
#include "wire/outcome.h"

#include <string.h>

#define BY "nodeseal; error="

/* The error types of RFC 9209 section 2.3, with the status that it recommends for each; but denied is 401, as
 * HBONE has it. */
static const struct {
    int status;
    /* The whole value; behind BY comes the error type. */
    const char *proxy_status;
    enum cause cause;
} KNOWN[OUTCOMES] = {
    [OUTCOME_OPEN] = {200, NULL, CAUSE_REFUSED},
    [OUTCOME_REFUSED] = {502, BY "connection_refused", CAUSE_REFUSED},
    [OUTCOME_UNROUTABLE] = {502, BY "destination_ip_unroutable", CAUSE_NO_HOST},
    [OUTCOME_TIMEOUT] = {504, BY "connection_timeout", CAUSE_SILENT},
    [OUTCOME_UNAVAILABLE] = {503, BY "destination_unavailable", CAUSE_PASSING},
    [OUTCOME_LIMIT] = {503, BY "connection_limit_reached", CAUSE_REFUSED},
    [OUTCOME_PROHIBITED] = {502, BY "destination_ip_prohibited", CAUSE_REFUSED},
    [OUTCOME_DENIED] = {401, BY "http_request_denied", CAUSE_REFUSED},
    [OUTCOME_MALFORMED] = {400, BY "http_request_error", CAUSE_REFUSED},
    [OUTCOME_TOO_LARGE] = {431, BY "http_request_error", CAUSE_REFUSED},
    [OUTCOME_FAILED] = {503, NULL, CAUSE_REFUSED},
    [OUTCOME_OTHER] = {400, NULL, CAUSE_REFUSED},
};

int outcome_status(enum outcome outcome)
{
    return KNOWN[outcome].status;
}

const char *outcome_proxy_status(enum outcome outcome)
{
    return KNOWN[outcome].proxy_status;
}

enum cause outcome_cause(enum outcome outcome)
{
    return KNOWN[outcome].cause;
}

enum outcome outcome_for(enum cause cause)
{
    static const enum outcome OF[] = {
        [CAUSE_REFUSED] = OUTCOME_REFUSED,       [CAUSE_NO_HOST] = OUTCOME_UNROUTABLE,
        [CAUSE_NO_NETWORK] = OUTCOME_UNROUTABLE, [CAUSE_SILENT] = OUTCOME_TIMEOUT,
        [CAUSE_PASSING] = OUTCOME_UNAVAILABLE,
    };
    return OF[cause];
}

enum outcome outcome_of(enum outcome said, int status)
{
    if (said != OUTCOME_OPEN)
        return said;
    switch (status) {
    case 401:
        return OUTCOME_DENIED;
    case 502:
    case 503:
        return OUTCOME_FAILED;
    case 504:
        return OUTCOME_TIMEOUT;
    default:
        return OUTCOME_OTHER;
    }
}

/* ---- structured fields, RFC 8941 ---- */

/* What is left of the value. */
struct text {
    const uint8_t *at;
    const uint8_t *end;
};

static int is_alpha(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static int is_in(uint8_t c, const char *set)
{
    return c != 0 && strchr(set, c) != NULL;
}

/* Takes `c`; true if it was next. */
static int take(struct text *text, uint8_t c)
{
    if (text->at == text->end || *text->at != c)
        return 0;
    text->at++;
    return 1;
}

static void skip(struct text *text, const char *set)
{
    while (text->at < text->end && is_in(*text->at, set))
        text->at++;
}

/* Takes what lies before `end`, up to and with it. -1: it does not come. */
static int take_until(struct text *text, uint8_t end, int escapes)
{
    while (text->at < text->end) {
        uint8_t c = *text->at++;
        if (c == end)
            return 0;
        if (escapes && c == '\\' && !take(text, '\\') && !take(text, '"'))
            return -1;
        if (c < 0x20 || c > 0x7e)
            return -1;
    }
    return -1;
}

/* Section 3.3: tokens (with `*token` set to it), strings, byte sequences, Booleans and numbers. 0, or -1. */
static int take_bare_item(struct text *text, struct text *token)
{
    const uint8_t *begin = text->at;
    if (take(text, '"'))
        return take_until(text, '"', 1);
    if (take(text, ':'))
        return take_until(text, ':', 0);
    if (take(text, '?'))
        return take(text, '0') || take(text, '1') ? 0 : -1;
    if (begin < text->end && (is_alpha(*begin) || *begin == '*')) {
        while (text->at < text->end &&
               (is_alpha(*text->at) || is_digit(*text->at) || is_in(*text->at, "!#$%&'*+-.^_`|~:/")))
            text->at++;
        *token = (struct text){begin, text->at};
        return 0;
    }
    (void)take(text, '-');
    begin = text->at;
    while (text->at < text->end && (is_digit(*text->at) || (*text->at == '.' && text->at > begin)))
        text->at++;
    return text->at > begin ? 0 : -1;
}

/* Section 3.1.2: one parameter behind its semicolon. */
static int take_parameter(struct text *text, struct text *key, struct text *token)
{
    skip(text, " ");
    const uint8_t *begin = text->at;
    while (text->at < text->end && ((*text->at >= 'a' && *text->at <= 'z') || *text->at == '*' ||
                                    (text->at > begin && (is_digit(*text->at) || is_in(*text->at, "_-.")))))
        text->at++;
    *key = (struct text){begin, text->at};
    if (text->at == begin)
        return -1;
    return take(text, '=') ? take_bare_item(text, token) : 0;
}

static int is(const struct text *text, const char *literal)
{
    size_t length = (size_t)(text->end - text->at);
    return length == strlen(literal) && memcmp(text->at, literal, length) == 0;
}

static enum outcome outcome_of_error(const struct text *error)
{
    for (int i = 0; i < OUTCOMES; i++)
        if (KNOWN[i].proxy_status != NULL && is(error, KNOWN[i].proxy_status + sizeof(BY) - 1))
            return (enum outcome)i;
    return OUTCOME_OPEN;
}

/* A member of the list, an item with its parameters: `error` is set to its error, if it has one. */
static int take_member(struct text *text, struct text *error)
{
    struct text token;
    if (take_bare_item(text, &token) != 0)
        return -1;
    while (take(text, ';')) {
        struct text key, value = {NULL, NULL};
        if (take_parameter(text, &key, &value) != 0)
            return -1;
        if (is(&key, "error") && value.at != NULL)
            *error = value; /* the last of a name counts (section 3.1.2) */
    }
    return 0;
}

enum outcome outcome_read(const uint8_t *value, size_t length)
{
    struct text text = {value, value + length};
    struct text first = {NULL, NULL};
    skip(&text, " ");
    for (;;) {
        struct text error = {NULL, NULL};
        if (take_member(&text, &error) != 0)
            return OUTCOME_OPEN;
        if (first.at == NULL)
            first = error;
        skip(&text, " \t");
        if (text.at == text.end)
            return first.at == NULL ? OUTCOME_OPEN : outcome_of_error(&first);
        if (!take(&text, ','))
            return OUTCOME_OPEN;
        skip(&text, " \t");
    }
}
