/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * headers.h: packets as they are on the wire, and what the programs at devices answer of them.
 */
#include "lib/address.h"
#include "lib/counters.h"

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ipv4_header {
    u8 version_length;
    u8 tos;
    u16 total_length;
    u16 id;
    u16 fragment;
    u8 ttl;
    u8 protocol;
    u16 checksum;
    u32 source;
    u32 destination;
};

struct ipv6_header {
    u32 version_class_flow;
    u16 payload_length;
    u8 next;
    u8 hop_limit;
    struct ns_address source;
    struct ns_address destination;
};

struct tcp_header {
    u16 source;
    u16 destination;
    u32 sequence;
    u32 acknowledged;
    u8 offset;
    u8 flags;
    u16 window;
};

/* Whether a packet with these flags of TCP may open a connection: a SYN, or the ACK that ends a handshake
 * with SYN cookies. */
static __always_inline int may_open(u8 flags)
{
    return !(flags & TCP_RST) && (flags & (TCP_SYN | TCP_ACK)) && !(flags & TCP_SYN && flags & TCP_ACK);
}

static __always_inline int dropped(u32 why)
{
    count(why);
    return TC_ACT_SHOT;
}
