/*
 * syn.h: the SYN of a connection that waits for its answer, and the packets that answer it. Sans-I/O.
 *
 * An application chooses the bytes of its SYN, so they are hostile. Of a SYN the headers are kept: a payload
 * (TCP Fast Open) is left out, and being unacknowledged TCP sends it again. Checksums of what was received
 * are never looked at: of a packet that has not left its machine they are not computed. Those of what is
 * made here are right.
 *
 * What is made begins with the IP header. It is sent by a raw socket of the namespace: protocol IPPROTO_RAW
 * in either family means that the header is included (IPv6: Linux 4.5). The destination of sendmsg() is that
 * of the packet, with port 0 (with another, IPv6 refuses), and SO_MARK is ancillary data.
 */
#ifndef NS_SYN_H
#define NS_SYN_H

#include <stddef.h>
#include <stdint.h>

#include "base/cause.h"
#include "nodeseal_core.h"

enum {
    /* Headers: 60 + 60 bytes of IPv4, 40 + 60 of IPv6. */
    SYN_BYTES_MAX = 120,
    /* What an answer takes at most: an ICMP error that quotes them, 20 + 8 + 120 and 40 + 8 + 100. */
    SYN_ANSWER_MAX = 148,
};

struct syn {
    /* Both ports are not 0. */
    struct ns_address source;
    struct ns_address destination;
    /* The initial sequence number: another of the same addresses is another connection. */
    uint32_t sequence;
    /* What it announces; 0: nothing. */
    uint16_t mss;
    /* Of `bytes` that count. */
    uint8_t length;
    /* Where in them TCP's header begins: 40 if it is IPv6, 20 to 60 if it is IPv4. */
    uint8_t tcp_at;
    /* IP header and TCP header as they were received. */
    uint8_t bytes[SYN_BYTES_MAX];
};

/* 0, or -1 for what is not an IPv4 header, or an IPv6 header without extensions, before a complete TCP header
 * with SYN and without ACK, RST and FIN. Fragments, and IPv4 addresses that are mapped in an IPv6 header, are
 * refused too. What follows the TCP header is payload. Nothing is written if it fails. */
int syn_parse(const uint8_t *bytes, size_t length, struct syn *out);

/* Each of these returns the packet's length, at most SYN_ANSWER_MAX; 0: `capacity` is less. */

/* The same SYN without its payload. A maximum segment size above `mss_most` is lowered to it; 0: it stays. */
size_t syn_again(const struct syn *syn, uint16_t mss_most, uint8_t *out, size_t capacity);
/* That a SYN with these ends and this number follows: a RST in its place (bpf/lib/let_out.h). */
size_t syn_notice(const struct syn *syn, uint8_t *out, size_t capacity);
/* What a closed port answers: RST and ACK, from the destination to the source. */
size_t syn_refusal(const struct syn *syn, uint8_t *out, size_t capacity);
/* An ICMP or ICMPv6 error, from the source to the source. CAUSE_NO_HOST: host (address) unreachable;
 * CAUSE_NO_NETWORK: network unreachable (no route). Other causes have none: 0. */
size_t syn_unreachable(const struct syn *syn, enum cause cause, uint8_t *out, size_t capacity);

#endif
