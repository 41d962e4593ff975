/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * dial.h: the socket that a sockops program is asked about, and the ring of its workload.
 */
#include "lib/captured.h"
#include "lib/ring.h"
#include "lib/socket.h"

#define NS_SOL_TCP 6

/* The mark of the socket; 0: it has none, or is none yet. */
static __always_inline u32 dial_mark(struct bpf_sock_ops *ops)
{
    struct bpf_sock *sk = ops->sk;

    return sk ? sk->mark : 0;
}

/* The ring of the workload whose socket it is; NULL: nothing of it is parked. */
static __always_inline void *dial_ring(struct bpf_sock_ops *ops, u32 mark)
{
    struct ns_ring key = {bpf_get_netns_cookie(ops), host_mark(mark) ? mark & ~NS_MARK_HOST_MASK : 0, 0};

    return rings.lookup(&key);
}

/*
 * The socket's connection, as its own SYN has it. Through volatile: the verifier allows the addresses only
 * one word at a time, and the compiler would make one load of two.
 */
static __always_inline void dial_flow(struct bpf_sock_ops *ops, struct ns_flow *flow)
{
    volatile struct bpf_sock_ops *read = ops;

    flow->destination.word[0] = read->remote_ip6[0];
    flow->destination.word[1] = read->remote_ip6[1];
    flow->destination.word[2] = read->remote_ip6[2];
    flow->destination.word[3] = read->remote_ip6[3];
    if (read->family == NS_AF_INET || ns_is_mapped(&flow->destination)) {
        flow->source = ns_mapped(read->local_ip4);
        flow->destination = ns_mapped(read->remote_ip4);
    } else {
        flow->source.word[0] = read->local_ip6[0];
        flow->source.word[1] = read->local_ip6[1];
        flow->source.word[2] = read->local_ip6[2];
        flow->source.word[3] = read->local_ip6[3];
    }
    flow->source_port = NS_NET16(read->local_port);
    flow->destination_port = NS_NET16(NS_NET32(read->remote_port) & 0xffff);
}

/* Asks for callbacks beside those that are asked for, by whomever. */
static __always_inline void dial_ask(struct bpf_sock_ops *ops, int callbacks)
{
    if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | callbacks) < 0)
        count(NS_COUNT_DIAL_UNWATCHED);
}

static __always_inline void dial_ask_no_more(struct bpf_sock_ops *ops, int callbacks)
{
    if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~callbacks) < 0)
        count(NS_COUNT_DIAL_UNWATCHED);
}

/* Tells the core something of the socket's connection. */
static __always_inline void dial_tell(struct bpf_sock_ops *ops, void *ring, u32 kind, u32 value)
{
    struct ns_parked told = {kind, 0, value, 0};

    dial_flow(ops, &told.flow);
    if (bpf_ringbuf_output(ring, &told, NS_PARKED_HEAD + sizeof(told.flow), 0))
        count(NS_COUNT_DIAL_UNTOLD);
}
