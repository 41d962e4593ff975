/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * mark.h: marking a socket whose application dials, for mark_connect.c and mark_host.c, which know whose it
 * is.
 *
 * What is certain to be outside the mesh is let go here, by a map: it needs none of our processes.
 *
 * The kernel calls connect6 alone for an AF_INET6 socket, also when it dials a v4-mapped address
 * (::ffff:10.0.0.1, as Java does by default), which makes an IPv4 connection.
 */
#include "lib/address.h"
#include "lib/bypass.h"
#include "lib/captured.h"
#include "lib/counters.h"
#include "lib/natives.h"

#define NS_REFUSE 0
#define NS_PROCEED 1

/* Whose a socket is. */
struct ns_owner {
    /* NULL: nobody's. */
    struct ns_enrolment *enrolment;
    /* What its captured connections carry. */
    u32 mark;
};

/* The program that includes this defines these three. */
static __always_inline struct ns_owner owner_of(struct bpf_sock_addr *ctx);
/* Whether the owner has this address beside those in its enrolment. */
static __always_inline int is_own(struct bpf_sock_addr *ctx, const struct ns_address *address);
/* Whether nobody holds the owner's outbound listener. */
static __always_inline int unguarded(struct bpf_sock_addr *ctx, const struct ns_owner *owner);

/* A mark from an earlier try of the same socket is of no use to a connection that goes direct. */
static __always_inline int unmark(struct bpf_sock_addr *ctx, struct bpf_sock *sk, u32 ours)
{
    u32 none = 0;

    if (sk->mark == ours && bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_MARK, &none, sizeof(none))) {
        count(NS_COUNT_CONNECT_MARK_FAILED);
        return NS_REFUSE;
    }
    return NS_PROCEED;
}

/* The address that the socket dials from: what it is bound to, else (a guess: a route may say another) `own`.
 */
static __always_inline struct ns_address bound_to(struct bpf_sock *sk, const struct ns_address *own)
{
    struct ns_address bound;

    if (ns_is_mapped(own))
        return sk->src_ip4 ? ns_mapped(sk->src_ip4) : *own;
    bound.word[0] = sk->src_ip6[0];
    bound.word[1] = sk->src_ip6[1];
    bound.word[2] = sk->src_ip6[2];
    bound.word[3] = sk->src_ip6[3];
    return ns_none(&bound) ? *own : bound;
}

/* The connection is let go. */
static __always_inline void let(struct bpf_sock_addr *ctx, const struct ns_owner *owner, u32 reason)
{
    u32 number = host_mark(owner->mark) ? owner->mark & ~NS_MARK_HOST_MASK : 0;

    note_socket(bpf_get_socket_cookie(ctx), number, reason);
}

/* `own`: the owner's address; `far`: the destination is not left alone for what it is. */
static __always_inline int mark(struct bpf_sock_addr *ctx, const struct ns_owner *owner,
                                const struct ns_address *own, const struct ns_address *destination, int far)
{
    const struct ns_enrolment *enrolment = owner->enrolment;
    int direct = enrolment->state == NS_STATE_LEAVE || (enrolment->open && unguarded(ctx, owner));
    struct bpf_sock *sk = ctx->sk;
    struct ns_address source;
    u32 ours = owner->mark, excluded;
    char no_device = 0;

    if (!sk)
        return NS_PROCEED;

    if (direct) {
        if (far && enrolment->state != NS_STATE_LEAVE)
            let(ctx, owner, NS_NATIVE_OPEN);
        return unmark(ctx, sk, ours);
    }

    if (!far || sk->mark == NS_MARK_CORE || sk->mark == NS_MARK_TO_APP)
        return NS_PROCEED;

    if (is_own(ctx, destination))
        return unmark(ctx, sk, ours);
    source = bound_to(sk, own);
    excluded = bypass_outbound(own, &source, destination, (u16)ctx->user_port);
    if (excluded) {
        count(NS_COUNT_CONNECT_EXCLUDED);
        let(ctx, owner, excluded);
        return unmark(ctx, sk, ours);
    }
    if (bypass_outside(destination)) {
        count(NS_COUNT_CONNECT_OUTSIDE);
        let(ctx, owner, NS_NATIVE_OUTSIDE);
        return unmark(ctx, sk, ours);
    }
    /* The programs of the nearest cgroup run first: those of one above it find their mark. */
    if (sk->mark != ours && host_mark(sk->mark))
        return NS_PROCEED;
    if (sk->mark && sk->mark != ours) {
        if (!bypass_peer(destination)) {
            count(NS_COUNT_CONNECT_FOREIGN_MARK);
            let(ctx, owner, NS_NATIVE_MARK);
            return NS_PROCEED;
        }
        count(NS_COUNT_CONNECT_MARK_REPLACED);
    }

    if (sk->bound_dev_if &&
        bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_BINDTODEVICE, &no_device, sizeof(no_device))) {
        count(NS_COUNT_CONNECT_UNBIND_FAILED);
        return NS_REFUSE;
    }

    if (bpf_setsockopt(ctx, NS_SOL_SOCKET, NS_SO_MARK, &ours, sizeof(ours))) {
        count(NS_COUNT_CONNECT_MARK_FAILED);
        return NS_REFUSE;
    }
    return NS_PROCEED;
}

static __always_inline int mark_ipv4(struct bpf_sock_addr *ctx, u32 destination)
{
    struct ns_owner owner = owner_of(ctx);
    struct ns_address own, far;

    if (!owner.enrolment || !owner.enrolment->ipv4)
        return NS_PROCEED;
    own = ns_mapped(owner.enrolment->ipv4);
    far = ns_mapped(destination);
    /* Connecting to 0.0.0.0 means the machine itself. */
    return mark(ctx, &owner, &own, &far,
                !NS_LOOPBACK_NET(destination) && destination && destination != owner.enrolment->ipv4);
}

static __always_inline int mark_ipv6(struct bpf_sock_addr *ctx)
{
    struct ns_address destination, own;
    struct ns_owner owner;

    destination.word[0] = ctx->user_ip6[0];
    destination.word[1] = ctx->user_ip6[1];
    destination.word[2] = ctx->user_ip6[2];
    destination.word[3] = ctx->user_ip6[3];
    if (ns_is_mapped(&destination))
        return mark_ipv4(ctx, destination.word[3]);
    owner = owner_of(ctx);
    if (!owner.enrolment || ns_none(&owner.enrolment->ipv6))
        return NS_PROCEED;
    own = owner.enrolment->ipv6;
    return mark(ctx, &owner, &own, &destination, !ns_near(&destination) && !ns_same(&destination, &own));
}

static __always_inline int dials_tcp(struct bpf_sock_addr *ctx)
{
    return ctx->type == NS_SOCK_STREAM && ctx->protocol == NS_IPPROTO_TCP;
}
