/* names.c: see names.h. */
#include "wire/names.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static const char SCHEME[] = "spiffe://";
static const uint8_t V4_MAPPED[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static int is_lower_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Length of the path segment at text, 0 if it is not an allowed one. */
static size_t segment_length(const char *text, size_t length)
{
    size_t n = 0;
    while (n < length && text[n] != '/') {
        char c = text[n];
        if (!is_lower_or_digit(c) && !(c >= 'A' && c <= 'Z') && c != '.' && c != '-' && c != '_')
            return 0;
        n++;
    }
    if ((n == 1 && text[0] == '.') || (n == 2 && text[0] == '.' && text[1] == '.'))
        return 0;
    return n;
}

static int skip_literal(const char **text, size_t *length, const char *literal)
{
    size_t n = strlen(literal);
    if (*length < n || memcmp(*text, literal, n) != 0)
        return 0;
    *text += n;
    *length -= n;
    return 1;
}

static int skip_segment(const char **text, size_t *length)
{
    size_t n = segment_length(*text, *length);
    *text += n;
    *length -= n;
    return n > 0;
}

/* Reads the scheme and the trust domain. 0 if they are no good. */
static int skip_domain(const char **text, size_t *length)
{
    size_t domain = 0;
    if (*length > SPIFFE_ID_MAX || !skip_literal(text, length, SCHEME))
        return 0;
    while (domain < *length && (*text)[domain] != '/') {
        char c = (*text)[domain];
        if (!is_lower_or_digit(c) && c != '.' && c != '-' && c != '_')
            return 0;
        domain++;
    }
    *text += domain;
    *length -= domain;
    return domain > 0 && domain <= 255;
}

int spiffe_id_valid(const char *text, size_t length)
{
    if (!skip_domain(&text, &length) || length == 0)
        return 0;
    while (length > 0)
        if (!skip_literal(&text, &length, "/") || !skip_segment(&text, &length))
            return 0;
    return 1;
}

int spiffe_domain_id_valid(const char *text, size_t length)
{
    return skip_domain(&text, &length) && length == 0;
}

int spiffe_id_in_domain(const char *text, size_t length, const char *trust_domain)
{
    size_t domain = strlen(trust_domain);
    return domain > 0 && skip_literal(&text, &length, SCHEME) && skip_literal(&text, &length, trust_domain) &&
           (length == 0 || text[0] == '/');
}

int spiffe_id_names_workload(const char *text, size_t length)
{
    return skip_domain(&text, &length) && skip_literal(&text, &length, "/ns/") &&
           skip_segment(&text, &length) && skip_literal(&text, &length, "/sa/") &&
           skip_segment(&text, &length) && length == 0;
}

/* True for the one spelling of an IPv6 address (RFC 5952: lower case, the longest run of zeros left out, none
 * in front), which inet_ntop writes. One that stands for an IPv4 address is that address, and spelt so. */
static int v6_parse(const char *host, uint8_t ip[16])
{
    char spelt[INET6_ADDRSTRLEN];
    return inet_pton(AF_INET6, host, ip) == 1 && memcmp(ip, V4_MAPPED, sizeof(V4_MAPPED)) != 0 &&
           inet_ntop(AF_INET6, ip, spelt, sizeof(spelt)) != NULL && strcmp(host, spelt) == 0;
}

int authority_parse(const char *text, size_t length, struct ns_address *out)
{
    char host[INET6_ADDRSTRLEN + 1];
    size_t host_length, port_at;
    int bracketed = length > 0 && text[0] == '[';
    const char *end = bracketed ? memchr(text, ']', length) : memchr(text, ':', length);
    if (end == NULL)
        return -1;
    if (bracketed) {
        host_length = (size_t)(end - text) - 1;
        port_at = (size_t)(end - text) + 2;
        if (port_at > length || end[1] != ':')
            return -1;
    } else {
        host_length = (size_t)(end - text);
        port_at = host_length + 1;
    }
    if (host_length == 0 || host_length >= sizeof(host))
        return -1;
    memcpy(host, text + (bracketed ? 1 : 0), host_length);
    host[host_length] = 0;
    if (strlen(host) != host_length)
        return -1;

    if (length - port_at < 1 || length - port_at > 5 || text[port_at] == '0')
        return -1;
    uint32_t port = 0;
    for (size_t i = port_at; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        port = port * 10 + (uint32_t)(text[i] - '0');
    }
    if (port > 65535)
        return -1;

    struct ns_address address = {.port = (uint16_t)port};
    if (bracketed) {
        if (!v6_parse(host, address.ip))
            return -1;
    } else {
        memcpy(address.ip, V4_MAPPED, sizeof(V4_MAPPED));
        if (inet_pton(AF_INET, host, address.ip + 12) != 1)
            return -1;
    }
    *out = address;
    return 0;
}

int address_is_v4(const struct ns_address *address)
{
    return memcmp(address->ip, V4_MAPPED, sizeof(V4_MAPPED)) == 0;
}

int address_same_ip(const struct ns_address *a, const struct ns_address *b)
{
    return memcmp(a->ip, b->ip, sizeof(a->ip)) == 0;
}

static char *decimal_format(uint32_t number, char *out)
{
    char digits[10];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    while (count > 0)
        *out++ = digits[--count];
    return out;
}

/* By hand for IPv4, because it is done twice for each connection, and printf is a tenth of what that costs.
 */
size_t authority_format(const struct ns_address *address, char out[AUTHORITY_MAX])
{
    if (!address_is_v4(address)) {
        char host[INET6_ADDRSTRLEN] = "";
        inet_ntop(AF_INET6, address->ip, host, sizeof(host));
        return (size_t)snprintf(out, AUTHORITY_MAX, "[%s]:%u", host, address->port);
    }
    char *at = out;
    for (int i = 12; i < 16; i++) {
        at = decimal_format(address->ip[i], at);
        *at++ = i < 15 ? '.' : ':';
    }
    at = decimal_format(address->port, at);
    *at = 0;
    return (size_t)(at - out);
}
