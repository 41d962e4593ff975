/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * account.h: what a sockops program counts of native connections (natives.h).
 *
 * Bytes are the kernel's own counts, in which the SYN that the socket has sent counts as a byte, and so does
 * a FIN. Both are taken off where it is known that they were acknowledged or received; a FIN that arrives
 * while the application waits for it in FIN_WAIT2 is not told from one that never came, and stays in.
 *
 * `natives` is asked at the end of a connection, and not the socket's mark: the application may have set one.
 */
#include "lib/dial.h"
#include "lib/natives.h"

#define STATE_FIN_WAIT2 5
#define STATE_CLOSE_WAIT 8
#define STATE_LAST_ACK 9
#define STATE_CLOSING 11

BPF_F_TABLE("hash", u64, struct ns_native, natives, NS_NATIVES, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct ns_native_place, struct ns_native_total, native_totals, NS_NATIVE_TOTALS,
            BPF_F_NO_PREALLOC);
BPF_TABLE("percpu_array", u32, struct ns_native_event, native_log, NS_NATIVE_LOG);
BPF_TABLE("percpu_array", u32, u64, native_told, 1);
BPF_TABLE("array", u32, u32, native_wanted, 1);

#define barrier() asm volatile("" ::: "memory")

/*
 * The last that were closed can be asked for; those that are opened are told to who listens, for whom it is
 * worth its time. Nobody is woken, and nothing is shared between CPUs. A program that interrupts this one
 * takes another number, or, between the two instructions that count, makes that of this one its own: then
 * what it wrote is written over as a whole.
 */
static __always_inline void tell(const struct ns_native *native, u64 cookie, u32 kind, u64 acknowledged,
                                 u64 received)
{
    u32 key = 0, place, *wanted = native_wanted.lookup(&key);
    u64 number, *told = native_told.lookup(&key);
    struct ns_native_event *event;

    if (!told || !wanted || (kind == NS_NATIVE_OPENED && !*wanted))
        return;
    number = *told;
    *told = number + 1;
    place = number % NS_NATIVE_LOG;
    event = native_log.lookup(&place);
    if (!event)
        return;
    event->number = 0;
    barrier();
    event->when = bpf_ktime_get_ns();
    event->cookie = cookie;
    event->kind = kind;
    event->acknowledged = acknowledged;
    event->received = received;
    event->native = *native;
    barrier();
    event->number = number + 1;
}

static __always_inline void turn_round(struct ns_flow *flow)
{
    struct ns_flow given = *flow;

    flow->source = given.destination;
    flow->destination = given.source;
    flow->source_port = given.destination_port;
    flow->destination_port = given.source_port;
}

/* The row of the totals. */
static __always_inline struct ns_native_place place_of(const struct ns_native *native)
{
    struct ns_native_place place = {native->netns, native->number, (u16)native->inbound, (u16)native->reason};

    place.far = native->inbound ? native->flow.source : native->flow.destination;
    return place;
}

/* The same row itself, made if there is none; NULL: there is no room. */
static __always_inline struct ns_native_total *total_of(const struct ns_native *native)
{
    struct ns_native_place place = place_of(native);
    struct ns_native_total none = {}, *total;

    total = native_totals.lookup(&place);
    if (!total) {
        native_totals.insert(&place, &none);
        total = native_totals.lookup(&place);
    }
    if (!total)
        count(NS_COUNT_NATIVE_TOTAL_LOST);
    return total;
}

static __always_inline void count_open(const struct ns_native *native, s64 change)
{
    struct ns_ring workload = {native->netns, native->number, 0};
    u64 none = 0, *open = native_open.lookup(&workload);

    if (!open) {
        native_open.insert(&workload, &none);
        open = native_open.lookup(&workload);
    }
    if (open)
        __sync_fetch_and_add(open, change);
}

/* A connection has come to be: from now on it is open. */
static __always_inline void account_opened(struct bpf_sock_ops *ops, struct ns_native *native)
{
    u64 cookie = bpf_get_socket_cookie(ops);
    struct ns_native_total *total;

    native->netns = bpf_get_netns_cookie(ops);
    native->opened = bpf_ktime_get_ns();
    total = total_of(native);
    if (total)
        __sync_fetch_and_add(&total->opened, 1);
    if (natives.update(&cookie, native)) {
        count(NS_COUNT_NATIVE_LOST);
        return;
    }
    if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG) < 0) {
        natives.delete(&cookie);
        count(NS_COUNT_NATIVE_LOST);
        return;
    }
    count_open(native, 1);
    tell(native, cookie, NS_NATIVE_OPENED, 0, 0);
}

/* The socket has dialled: 1 if its connection is native. What the core has decided so loses its mark before
 * the first packet that follows the SYN. */
static __always_inline int account_dialled(struct bpf_sock_ops *ops, u32 mark)
{
    struct ns_native native = {};
    struct ns_let *out;
    u32 none = 0;

    dial_flow(ops, &native.flow);
    if (mark == NS_MARK_CAPTURED || host_mark(mark)) {
        out = let_out.lookup(&native.flow);
        if (!out || out->sequence + 1 != ops->snd_una)
            return 0;
        native.reason = out->reason;
        native.number = host_mark(mark) ? mark & ~NS_MARK_HOST_MASK : 0;
        let_out.delete(&native.flow);
        if (bpf_setsockopt(ops, NS_SOL_SOCKET, NS_SO_MARK, &none, sizeof(none))) {
            count(NS_COUNT_NATIVE_HELD);
            return 0;
        }
    } else {
        u64 cookie = bpf_get_socket_cookie(ops);
        struct ns_let_go *go = let_go.lookup(&cookie);

        if (!go)
            return 0;
        native.reason = go->reason;
        native.number = go->number;
        let_go.delete(&cookie);
    }
    account_opened(ops, &native);
    return 1;
}

/* The socket was accepted. */
static __always_inline void account_accepted(struct bpf_sock_ops *ops, u32 mark)
{
    struct ns_native native = {};
    struct ns_let *in;

    if (captured_mark(mark) || mark == NS_MARK_CORE)
        return;
    dial_flow(ops, &native.flow);
    turn_round(&native.flow);
    in = let_in.lookup(&native.flow);
    if (!in)
        return;
    native.inbound = 1;
    native.reason = in->reason;
    let_in.delete(&native.flow);
    account_opened(ops, &native);
}

/* The socket is closed; `state`: what it was before. */
static __always_inline void account_closed(struct bpf_sock_ops *ops, u32 state)
{
    u64 cookie = bpf_get_socket_cookie(ops);
    struct ns_native *found = natives.lookup(&cookie), native;
    u64 acknowledged = ops->bytes_acked, received = ops->bytes_received;
    struct ns_native_place place;
    struct ns_native_total *total;

    if (!found)
        return;
    native = *found;
    natives.delete(&cookie);
    count_open(&native, -1);
    if (!native.inbound && acknowledged)
        acknowledged--;
    if (state == STATE_FIN_WAIT2 ||
        ((state == STATE_CLOSING || state == STATE_LAST_ACK) && ops->snd_una == ops->snd_nxt && acknowledged))
        acknowledged--;
    if ((state == STATE_CLOSING || state == STATE_LAST_ACK || state == STATE_CLOSE_WAIT) && received)
        received--;
    tell(&native, cookie, NS_NATIVE_CLOSED, acknowledged, received);
    place = place_of(&native);
    total = native_totals.lookup(&place);
    if (!total)
        return; /* of a workload that is captured no more, or counted as lost */
    __sync_fetch_and_add(&total->closed, 1);
    __sync_fetch_and_add(&total->acknowledged, acknowledged);
    __sync_fetch_and_add(&total->received, received);
}
