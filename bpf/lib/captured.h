/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * captured.h: whether a packet belongs to a captured connection, whatever became of it on its way.
 *
 * A captured connection has its ends on this machine: the application and the core, with lo between them. Its
 * packets find lo by their marks and addresses, and rules of others (netfilter, tc) rewrite both: kube-proxy
 * sets bits of marks, translates the addresses of services and routes the packet anew by what has come out.
 * So the programs at the end of the way out do not go by the packet: they ask its socket, whose mark no rule
 * can reach, and which nobody changes once the connection is captured (keep_mark.c).
 *
 * The packet's mark counts as well: copies (netfilter's TEE) have no socket.
 */
#include "lib/socket.h"

/* Of a connection that a process of the node, which is a workload, has dialled. */
static __always_inline int host_mark(u32 mark)
{
    return (mark & NS_MARK_HOST_MASK) == NS_MARK_HOST;
}

/* Of a SYN of such a process that was parked, and goes on. */
static __always_inline int host_released(u32 mark)
{
    return (mark & NS_MARK_HOST_MASK) == NS_MARK_HOST_RELEASED;
}

/* Of either end of a captured connection, in a pod or in the node's namespace, or of a SYN of one. */
static __always_inline int captured_mark(u32 mark)
{
    return mark == NS_MARK_CAPTURED || mark == NS_MARK_TO_APP || mark == NS_MARK_ANSWER ||
           mark == NS_MARK_RELEASED || host_mark(mark) || host_released(mark);
}

/* `sk`: the packet's sender, or 0. */
static __always_inline int captured_packet(struct __sk_buff *skb, struct bpf_sock *sk)
{
    return captured_mark(skb->mark) || (sk && captured_mark(sk->mark));
}
