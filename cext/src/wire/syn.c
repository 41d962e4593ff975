/* syn.c: see syn.h. RFC 791 and 8200 (headers), 9293 (TCP), 792 and 4443 (ICMP). */
#include "wire/syn.h"

#include <string.h>

static const uint8_t MAPPED[12] = {[10] = 0xff, [11] = 0xff};

enum {
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    TCP_HEADER = 20,
    ICMP_HEADER = 8,
    PROTOCOL_ICMP = 1,
    PROTOCOL_TCP = 6,
    PROTOCOL_ICMPV6 = 58,
    HOP_LIMIT = 64,
    FIN = 1,
    SYN = 2,
    RST = 4,
    ACK = 16,
    OPTION_END = 0,
    OPTION_NOTHING = 1,
    OPTION_MSS = 2,
};

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

/* ---- what a SYN says ---- */

/* The next option of that kind and length, at or after `at` of the TCP header; its end if there is none. What
 * follows an option that cannot be read is not looked at, neither here nor by the kernel. */
static size_t option_find(const uint8_t *tcp, size_t end, size_t at, uint8_t kind, uint8_t length)
{
    while (at < end && tcp[at] != OPTION_END) {
        if (tcp[at] == OPTION_NOTHING) {
            at++;
            continue;
        }
        if (end - at < 2 || tcp[at + 1] < 2 || tcp[at + 1] > end - at)
            break;
        if (tcp[at] == kind && tcp[at + 1] == length)
            return at;
        at += tcp[at + 1];
    }
    return end;
}

/* Bytes of the IP header, 0 if it is none that is served; `packet`: of all that it says there is. */
static size_t ip_parse(const uint8_t *bytes, size_t length, size_t *packet)
{
    if (length == 0)
        return 0;
    if (bytes[0] >> 4 == 4) {
        size_t header = (bytes[0] & 15u) * 4u;
        if (header < IPV4_HEADER || length < header || bytes[9] != PROTOCOL_TCP)
            return 0;
        /* A fragment: more follow, or it is not the first. */
        if ((get16(bytes + 6) & 0x3fff) != 0)
            return 0;
        *packet = get16(bytes + 2);
        return header;
    }
    if (bytes[0] >> 4 != 6 || length < IPV6_HEADER || bytes[6] != PROTOCOL_TCP)
        return 0;
    /* Would be taken for IPv4 addresses. */
    if (memcmp(bytes + 8, MAPPED, sizeof(MAPPED)) == 0 || memcmp(bytes + 24, MAPPED, sizeof(MAPPED)) == 0)
        return 0;
    *packet = (size_t)get16(bytes + 4) + IPV6_HEADER;
    return IPV6_HEADER;
}

static void address_get(struct ns_address *address, const uint8_t *ip, size_t ip_length, const uint8_t *port)
{
    memset(address, 0, sizeof(*address));
    if (ip_length == 4)
        memcpy(address->ip, MAPPED, sizeof(MAPPED));
    memcpy(address->ip + 16 - ip_length, ip, ip_length);
    address->port = get16(port);
}

int syn_parse(const uint8_t *bytes, size_t length, struct syn *out)
{
    size_t packet;
    size_t at = ip_parse(bytes, length, &packet);
    if (at == 0 || length - at < TCP_HEADER)
        return -1;
    const uint8_t *tcp = bytes + at;
    size_t header = (tcp[12] >> 4) * 4u;
    if (header < TCP_HEADER || length - at < header || packet < at + header)
        return -1;
    if ((tcp[13] & (FIN | SYN | RST | ACK)) != SYN || get16(tcp) == 0 || get16(tcp + 2) == 0)
        return -1;
    memset(out, 0, sizeof(*out));
    size_t ip_length = bytes[0] >> 4 == 4 ? 4 : 16;
    const uint8_t *source = bytes + (ip_length == 4 ? 12 : 8);
    address_get(&out->source, source, ip_length, tcp);
    address_get(&out->destination, source + ip_length, ip_length, tcp + 2);
    out->sequence = get32(tcp + 4);
    out->length = (uint8_t)(at + header);
    out->tcp_at = (uint8_t)at;
    memcpy(out->bytes, bytes, out->length);
    /* The kernel goes by the last. */
    for (size_t i = TCP_HEADER; (i = option_find(tcp, header, i, OPTION_MSS, 4)) < header; i += 4)
        out->mss = get16(tcp + i + 2);
    return 0;
}

/* ---- what is made ---- */

static int is_ipv4(const struct syn *syn)
{
    return syn->bytes[0] >> 4 == 4;
}

/* Of what is made, without options. */
static size_t ip_header(const struct syn *syn)
{
    return is_ipv4(syn) ? IPV4_HEADER : IPV6_HEADER;
}

/* The ones' complement sum of RFC 1071, not folded yet; `length` below 64 KiB. */
static uint32_t sum_add(uint32_t sum, const uint8_t *bytes, size_t length)
{
    for (; length > 1; bytes += 2, length -= 2)
        sum += get16(bytes);
    return length == 0 ? sum : sum + (uint32_t)(bytes[0] << 8);
}

static uint16_t sum_end(uint32_t sum)
{
    while (sum >> 16 != 0)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* Both checksums and the length of a packet whose IP header has all else. The one of the payload is at
 * `checksum_at` from `at`; of ICMP it does not count the addresses. */
static size_t packet_finish(uint8_t *packet, size_t at, size_t length, size_t checksum_at)
{
    int ipv4 = packet[0] >> 4 == 4;
    uint8_t protocol = packet[ipv4 ? 9 : 6];
    uint32_t sum = 0;
    if (protocol != PROTOCOL_ICMP)
        sum = sum_add(protocol + (uint32_t)(length - at), packet + (ipv4 ? 12 : 8), ipv4 ? 8 : 32);
    put16(packet + at + checksum_at, 0);
    put16(packet + at + checksum_at, sum_end(sum_add(sum, packet + at, length - at)));
    if (!ipv4) {
        put16(packet + 4, length - at);
        return length;
    }
    put16(packet + 2, length);
    put16(packet + 10, 0);
    put16(packet + 10, sum_end(sum_add(0, packet, at)));
    return length;
}

/* An IP header of its own; `from` and `to` are the SYN's, of its family. Its length. */
static size_t packet_begin(const struct syn *syn, uint8_t *packet, const struct ns_address *from,
                           const struct ns_address *to, uint8_t protocol)
{
    size_t header = ip_header(syn);
    memset(packet, 0, header);
    if (is_ipv4(syn)) {
        packet[0] = 4 << 4 | IPV4_HEADER / 4;
        packet[6] = 0x40; /* not to be fragmented: it needs no number then (RFC 6864) */
        packet[8] = HOP_LIMIT;
        packet[9] = protocol;
        memcpy(packet + 12, from->ip + 12, 4);
        memcpy(packet + 16, to->ip + 12, 4);
    } else {
        packet[0] = 6 << 4;
        packet[6] = protocol;
        packet[7] = HOP_LIMIT;
        memcpy(packet + 8, from->ip, 16);
        memcpy(packet + 24, to->ip, 16);
    }
    return header;
}

size_t syn_again(const struct syn *syn, uint16_t mss_most, uint8_t *out, size_t capacity)
{
    if (capacity < syn->length)
        return 0;
    memcpy(out, syn->bytes, syn->length);
    uint8_t *tcp = out + syn->tcp_at;
    size_t header = syn->length - (size_t)syn->tcp_at;
    if (mss_most != 0 && syn->mss > mss_most)
        for (size_t i = TCP_HEADER; (i = option_find(tcp, header, i, OPTION_MSS, 4)) < header; i += 4)
            if (get16(tcp + i + 2) > mss_most)
                put16(tcp + i + 2, mss_most);
    return packet_finish(out, syn->tcp_at, syn->length, 16);
}

/* A packet of TCP without options. */
static size_t tcp_make(const struct syn *syn, const struct ns_address *from, const struct ns_address *to,
                       uint32_t sequence, uint32_t acknowledges, uint8_t flags, uint8_t *out, size_t capacity)
{
    size_t length = ip_header(syn) + TCP_HEADER;
    if (capacity < length)
        return 0;
    size_t at = packet_begin(syn, out, from, to, PROTOCOL_TCP);
    uint8_t *tcp = out + at;
    memset(tcp, 0, TCP_HEADER);
    put16(tcp, from->port);
    put16(tcp + 2, to->port);
    put32(tcp + 4, sequence);
    put32(tcp + 8, acknowledges);
    tcp[12] = TCP_HEADER / 4 << 4;
    tcp[13] = flags;
    return packet_finish(out, at, length, 16);
}

size_t syn_notice(const struct syn *syn, uint8_t *out, size_t capacity)
{
    return tcp_make(syn, &syn->source, &syn->destination, syn->sequence, 0, RST, out, capacity);
}

size_t syn_refusal(const struct syn *syn, uint8_t *out, size_t capacity)
{
    return tcp_make(syn, &syn->destination, &syn->source, 0, syn->sequence + 1, RST | ACK, out, capacity);
}

size_t syn_unreachable(const struct syn *syn, enum cause cause, uint8_t *out, size_t capacity)
{
    size_t length = ip_header(syn) + ICMP_HEADER + syn->length;
    if ((cause != CAUSE_NO_HOST && cause != CAUSE_NO_NETWORK) || capacity < length)
        return 0;
    uint8_t protocol = is_ipv4(syn) ? PROTOCOL_ICMP : PROTOCOL_ICMPV6;
    size_t at = packet_begin(syn, out, &syn->source, &syn->source, protocol);
    uint8_t *icmp = out + at;
    memset(icmp, 0, ICMP_HEADER);
    icmp[0] = is_ipv4(syn) ? 3 : 1; /* destination unreachable */
    if (cause == CAUSE_NO_HOST)
        icmp[1] = is_ipv4(syn) ? 1 : 3;
    memcpy(icmp + ICMP_HEADER, syn->bytes, syn->length);
    return packet_finish(out, at, length, 2);
}
