/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * socket.h: the sockets of this machine that a packet has to do with.
 */
#include "nodeseal.h"

/* States of TCP (enum of include/net/tcp_states.h). */
#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT 2
#define STATE_TIME_WAIT 6
#define STATE_CLOSE 7
#define STATE_LISTEN 10
#define STATE_NEW_SYN_RECV 12

/* The socket that has sent the packet; 0: it was forwarded, or answers for a socket that is none (yet, any
 * more): a SYN-ACK, or what follows a close. Those carry nothing. */
static __always_inline struct bpf_sock *sender(struct __sk_buff *skb)
{
    struct bpf_sock *sk = skb->sk;

    return sk ? bpf_sk_fullsock(sk) : 0;
}

/* The socket, or the request, or the listener, that a packet with these numbers finds in this namespace, with
 * a reference; 0: there is none. */
static __always_inline struct bpf_sock *receiver(struct __sk_buff *skb, const struct ns_flow *flow, int ipv6)
{
    struct bpf_sock_tuple tuple = {};

    if (ipv6) {
        __builtin_memcpy(tuple.ipv6.saddr, &flow->source, sizeof(tuple.ipv6.saddr));
        __builtin_memcpy(tuple.ipv6.daddr, &flow->destination, sizeof(tuple.ipv6.daddr));
        tuple.ipv6.sport = flow->source_port;
        tuple.ipv6.dport = flow->destination_port;
        return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
    }
    tuple.ipv4.saddr = flow->source.word[3];
    tuple.ipv4.daddr = flow->destination.word[3];
    tuple.ipv4.sport = flow->source_port;
    tuple.ipv4.dport = flow->destination_port;
    return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* Its state, unless it is a listener; 0: there is none. */
static __always_inline u32 receiver_state(struct __sk_buff *skb, const struct ns_flow *flow, int ipv6)
{
    struct bpf_sock *found = receiver(skb, flow, ipv6);
    u32 state;

    if (!found)
        return 0;
    state = found->state;
    bpf_sk_release(found);
    return state == STATE_LISTEN ? 0 : state;
}

/* The mark of the socket in whose name a packet with these numbers is sent, if that is established, here and
 * with a mark; else 0. */
static __always_inline u32 established_sender(struct __sk_buff *skb, const struct ns_flow *flow, int ipv6)
{
    struct ns_flow back = {flow->destination, flow->source, flow->destination_port, flow->source_port};
    struct bpf_sock *found = receiver(skb, &back, ipv6);
    struct bpf_sock *sk;
    u32 mark = 0;

    if (!found)
        return 0;
    sk = found->state == STATE_ESTABLISHED ? bpf_sk_fullsock(found) : 0;
    if (sk)
        mark = sk->mark;
    bpf_sk_release(found);
    return mark;
}

/* Whether no connection of this machine sends the packet: the kernel answers for none, or for a listener.
 * `sk`: the packet's sender, or 0. */
static __always_inline int nobody_sends(struct bpf_sock *sk)
{
    return !sk || ((sk->state == STATE_CLOSE || sk->state == STATE_LISTEN) && sk->protocol != NS_IPPROTO_UDP);
}

/* Whether the socket in whose name a packet with these numbers is sent is here, established, and has received
 * no data. */
static __always_inline int untouched_sender(struct __sk_buff *skb, const struct ns_flow *flow, int ipv6)
{
    struct ns_flow back = {flow->destination, flow->source, flow->destination_port, flow->source_port};
    struct bpf_sock *found = receiver(skb, &back, ipv6);
    struct bpf_tcp_sock *tcp;
    struct bpf_sock *sk;
    int untouched = 0;

    if (!found)
        return 0;
    sk = found->state == STATE_ESTABLISHED ? bpf_sk_fullsock(found) : 0;
    if (sk) {
        tcp = bpf_tcp_sock(sk);
        untouched = tcp && !tcp->data_segs_in;
    }
    bpf_sk_release(found);
    return untouched;
}
