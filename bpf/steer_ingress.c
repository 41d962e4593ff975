// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * steer_ingress.c: gives connections that arrive from outside to the core's inbound listener.
 *
 * Attached as the first TCX program at the ingress of every device of the workload's namespace but lo; where
 * the kernel has no TCX (before 6.6), as a tc filter (clsact ingress, direct action). It assigns a socket to
 * packets that open a connection; all others pass and find their socket as always, so connections older than
 * enrolment stay with the application.
 *
 * What opens a connection: a SYN, unless a connection or a request with these four numbers is there already
 * (then it is a retransmission, or the kernel has to answer with a challenge ACK); and an ACK for which there
 * is neither connection nor request, the end of a SYN-cookie handshake. An ACK that is neither is answered
 * with RST by the listener, as it would be without us.
 *
 * A SYN that meets a socket in TIME_WAIT (the client uses its port again after the server closed first)
 * cannot be assigned: the kernel refuses a second socket of the same four numbers. It passes, the kernel
 * retires the old socket and looks for a listener; the same happens when a request has lost its listener.
 * Such a SYN is noted in `revisited`, and assign_lookup.c gives it to the inbound listener when it comes by
 * there.
 *
 * sk_lookup alone cannot do all this: it cannot tell traffic from outside from the core's own connection to
 * the application.
 *
 * TC_ACT_UNSPEC (TCX_NEXT is the same number) lets the TCX programs and tc filters that follow have their
 * say; with none, the packet goes on.
 *
 * Fails closed: a connection that cannot be given to the core is dropped, never handed to the application.
 */
#include "nodeseal.h"

BPF_TABLE("sockmap", u32, u64, listeners, NS_LISTENER_COUNT);
BPF_TABLE("lru_hash", struct ns_flow, u64, revisited, 1024);
BPF_TABLE("percpu_array", u32, u64, counters, NS_COUNT_COUNT);

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define ETH_P_IP 0x0800
#define FRAGMENT_MORE 0x2000
#define FRAGMENT_OFFSET 0x1fff
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define STATE_TIME_WAIT 6
#define STATE_LISTEN 10
#define STATE_NEW_SYN_RECV 12

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

struct tcp_header {
    u16 source;
    u16 destination;
    u32 sequence;
    u32 acknowledged;
    u8 offset;
    u8 flags;
    u16 window;
};

static __always_inline void count(u32 key)
{
    u64 *value = counters.lookup(&key);

    if (value)
        *value += 1;
}

/* A packet that this namespace forwards is none of our business; giving it a socket would get it dropped. */
static __always_inline int forwarded(struct __sk_buff *skb, struct ipv4_header *ip)
{
    struct bpf_fib_lookup route = {};
    long result;

    route.family = NS_AF_INET;
    route.ifindex = skb->ifindex;
    route.ipv4_src = ip->source;
    route.ipv4_dst = ip->destination;
    result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
    if (result < 0) {
        count(NS_COUNT_STEER_ROUTE_FAILED);
        return 0;
    }
    /* NOT_FWDED: local, or no route that forwards. FWD_DISABLED: a pod's usual case. */
    return result != BPF_FIB_LKUP_RET_NOT_FWDED && result != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

enum claim {
    CLAIMED,  /* a connection or request takes the packet */
    OPENING,  /* no socket, or a listener: the packet opens a connection, or tries to */
    REVISITED /* a SYN for a socket that may send the kernel on to look for a listener */
};

/* What the kernel's own socket lookup makes of the packet. */
static __always_inline enum claim claimed(struct __sk_buff *skb, struct ipv4_header *ip,
                                          struct tcp_header *tcp)
{
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *found;
    u32 state;

    tuple.ipv4.saddr = ip->source;
    tuple.ipv4.daddr = ip->destination;
    tuple.ipv4.sport = tcp->source;
    tuple.ipv4.dport = tcp->destination;
    found = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return OPENING;
    state = found->state;
    bpf_sk_release(found);
    if (state == STATE_LISTEN)
        return OPENING;
    if (tcp->flags & TCP_SYN && (state == STATE_TIME_WAIT || state == STATE_NEW_SYN_RECV))
        return REVISITED;
    return CLAIMED;
}

int steer_ingress(struct __sk_buff *skb)
{
    u32 role = NS_LISTENER_INBOUND;
    struct ipv4_header ip;
    struct tcp_header tcp;
    struct bpf_sock *listener;
    enum claim claim;
    u32 length;
    long error;

    /* A tagged packet comes by again on its VLAN device, which has this program as well. */
    if (skb->protocol != NS_NET16(ETH_P_IP) || skb->vlan_present)
        return TC_ACT_UNSPEC;
    if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET)) {
        count(NS_COUNT_STEER_TRUNCATED);
        return TC_ACT_UNSPEC;
    }
    length = (ip.version_length & 0x0f) * 4;
    if (ip.version_length >> 4 != 4 || length < sizeof(ip)) {
        count(NS_COUNT_STEER_TRUNCATED);
        return TC_ACT_UNSPEC;
    }
    /* Later fragments have no TCP header; a connection's first one decides, below. */
    if (ip.protocol != NS_IPPROTO_TCP || ip.fragment & NS_NET16(FRAGMENT_OFFSET))
        return TC_ACT_UNSPEC;
    if (bpf_skb_load_bytes_relative(skb, length, &tcp, sizeof(tcp), BPF_HDR_START_NET)) {
        /* A first fragment too small for the flags would hide a SYN (RFC 1858). */
        if (ip.fragment & NS_NET16(FRAGMENT_MORE)) {
            count(NS_COUNT_STEER_FRAGMENT);
            return TC_ACT_SHOT;
        }
        count(NS_COUNT_STEER_TRUNCATED);
        return TC_ACT_UNSPEC;
    }
    if (tcp.destination == NS_NET16(NS_HBONE_PORT))
        return TC_ACT_UNSPEC;
    if (tcp.flags & TCP_RST || !(tcp.flags & (TCP_SYN | TCP_ACK)) ||
        (tcp.flags & TCP_SYN && tcp.flags & TCP_ACK))
        return TC_ACT_UNSPEC;
    claim = claimed(skb, &ip, &tcp);
    if (claim == CLAIMED || forwarded(skb, &ip))
        return TC_ACT_UNSPEC;

    if (ip.fragment & NS_NET16(FRAGMENT_MORE)) {
        count(NS_COUNT_STEER_FRAGMENT);
        return TC_ACT_SHOT;
    }
    if (claim == REVISITED) {
        struct ns_flow flow = {ip.source, ip.destination, tcp.source, tcp.destination};
        u64 now = bpf_ktime_get_ns();

        if (revisited.update(&flow, &now)) {
            count(NS_COUNT_STEER_REVISIT_FAILED);
            return TC_ACT_SHOT;
        }
        return TC_ACT_UNSPEC;
    }
    listener = (struct bpf_sock *)listeners.lookup(&role);
    if (!listener) {
        count(NS_COUNT_STEER_NO_LISTENER);
        return TC_ACT_SHOT;
    }
    error = bpf_sk_assign(skb, listener, 0);
    bpf_sk_release(listener);
    if (error) {
        count(NS_COUNT_STEER_ASSIGN_FAILED);
        return TC_ACT_SHOT;
    }
    return TC_ACT_UNSPEC;
}
