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
 * IPv6 extension headers are passed over, up to EXTENSIONS_MAX of them, to find what they carry. What they
 * hide from us must not reach the application: a chain that is longer, or that goes on to another address
 * (routing header with segments left), is dropped. ESP and AH are protocols of their own, as in IPv4.
 *
 * What the workload excludes (lib/bypass.h) passes to the application, and so do connections from the node
 * itself, such as the kubelet's probes: they need none of our processes, since whoever probes ends what does
 * not answer.
 *
 * With the setting PARK_IN a SYN goes into the workload's ring (lib/ring.h) and no further, whether or not it
 * meets a socket in TIME_WAIT. The core reads it, decides, and sends a SYN that is allowed to the application
 * itself (park_loopback.c): from then on the connection is none of ours. With SYN cookies the ACK that ends
 * the handshake is like any other; it passes if its SYN was admitted, and else goes to the core's listener.
 * So does a SYN while the ring is crowded: the core forwards that connection.
 *
 * TC_ACT_UNSPEC (TCX_NEXT is the same number) lets the TCX programs and tc filters that follow have their
 * say; with none, the packet goes on.
 *
 * Fails closed: a connection that cannot be given to the core is dropped, never handed to the application,
 * unless the workload is to be open while nobody holds the listener.
 */
#include "lib/bypass.h"
#include "lib/headers.h"
#include "lib/pod.h"
#include "lib/ring.h"
#include "lib/socket.h"

#define FRAGMENT_MORE 0x2000 /* IPv4 */
#define FRAGMENT_OFFSET 0x1fff
#define FRAGMENT6_MORE 0x0001 /* IPv6, RFC 8200 section 4.5 */
#define FRAGMENT6_OFFSET 0xfff8
#define EXTENSION_HOP_BY_HOP 0
#define EXTENSION_ROUTING 43
#define EXTENSION_FRAGMENT 44
#define EXTENSION_DESTINATION 60
#define EXTENSIONS_MAX 8 /* RFC 8200 names four that may come before TCP, one of them twice */

/* The beginning of every extension header; `length` in units of 8 bytes, the first not counted. */
struct extension_header {
    u8 next;
    u8 length;
    union {
        u16 fragment; /* fragment header: offset and "more" */
        struct {
            u8 routing_type;
            u8 segments_left;
        };
    };
};

/* What is known of a packet once its headers are read. IPv4 addresses are mapped. */
struct packet {
    struct ns_flow flow;
    int ipv6;
    int first_fragment; /* more fragments follow */
    int detour;         /* IPv6: the header's destination is not the last one */
    u32 length;         /* of all headers before TCP's */
};

enum reading {
    READ,      /* TCP begins at `length` */
    NOT_TCP,   /* or a later fragment, which opens nothing without its first one */
    TRUNCATED, /* headers are cut off */
    TOO_LONG   /* more extension headers than are looked at */
};

static __always_inline enum reading read_ipv4(struct __sk_buff *skb, struct packet *packet)
{
    struct ipv4_header ip;

    if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
        return TRUNCATED;
    packet->length = (ip.version_length & 0x0f) * 4;
    if (ip.version_length >> 4 != 4 || packet->length < sizeof(ip))
        return TRUNCATED;
    if (ip.protocol != NS_IPPROTO_TCP || ip.fragment & NS_NET16(FRAGMENT_OFFSET))
        return NOT_TCP;
    packet->flow.source = ns_mapped(ip.source);
    packet->flow.destination = ns_mapped(ip.destination);
    packet->first_fragment = ip.fragment & NS_NET16(FRAGMENT_MORE);
    return READ;
}

static __always_inline enum reading read_ipv6(struct __sk_buff *skb, struct packet *packet)
{
    struct extension_header extension;
    struct ipv6_header ip;
    u8 next;

    if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
        return TRUNCATED;
    if ((ip.version_class_flow & NS_NET32(0xf0000000)) != NS_NET32(0x60000000))
        return TRUNCATED;
    if (ns_near(&ip.source) || ns_near(&ip.destination))
        return NOT_TCP;
    packet->ipv6 = 1;
    packet->flow.source = ip.source;
    packet->flow.destination = ip.destination;
    packet->length = sizeof(ip);
    next = ip.next;
    for (int i = 0; i <= EXTENSIONS_MAX; i++) {
        if (next == NS_IPPROTO_TCP)
            return READ;
        if (next != EXTENSION_HOP_BY_HOP && next != EXTENSION_ROUTING && next != EXTENSION_FRAGMENT &&
            next != EXTENSION_DESTINATION)
            return NOT_TCP;
        if (bpf_skb_load_bytes_relative(skb, packet->length, &extension, sizeof(extension),
                                        BPF_HDR_START_NET))
            return TRUNCATED;
        if (next == EXTENSION_FRAGMENT) {
            if (extension.fragment & NS_NET16(FRAGMENT6_OFFSET))
                return NOT_TCP;
            if (extension.fragment & NS_NET16(FRAGMENT6_MORE))
                packet->first_fragment = 1;
            packet->length += 8;
        } else {
            if (next == EXTENSION_ROUTING && extension.segments_left)
                packet->detour = 1;
            packet->length += (extension.length + 1) * 8;
        }
        next = extension.next;
    }
    return TOO_LONG;
}

/* A packet that this namespace forwards is none of our business; giving it a socket would get it dropped. */
static __always_inline int forwarded(struct __sk_buff *skb, struct packet *packet)
{
    struct bpf_fib_lookup route = {};
    long result;

    route.ifindex = skb->ifindex;
    if (packet->ipv6) {
        route.family = NS_AF_INET6;
        __builtin_memcpy(route.ipv6_src, &packet->flow.source, sizeof(route.ipv6_src));
        __builtin_memcpy(route.ipv6_dst, &packet->flow.destination, sizeof(route.ipv6_dst));
    } else {
        route.family = NS_AF_INET;
        route.ipv4_src = packet->flow.source.word[3];
        route.ipv4_dst = packet->flow.destination.word[3];
    }
    result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
    if (result < 0) {
        count(NS_COUNT_STEER_ROUTE_FAILED);
        return 0;
    }
    /* NOT_FWDED: local, or no route that forwards. FWD_DISABLED: a pod's usual case. */
    return result != BPF_FIB_LKUP_RET_NOT_FWDED && result != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

enum claim {
    CLAIMED,   /* a connection or request takes the packet */
    OPENING,   /* no socket, or a listener: the packet opens a connection, or tries to */
    REVISITED, /* a SYN for a socket in TIME_WAIT, which sends the kernel on to look for a listener */
    REQUESTED  /* one for a request, which does so if its listener is gone */
};

/* What the kernel's own socket lookup makes of the packet. */
static __always_inline enum claim claimed(struct __sk_buff *skb, struct packet *packet, u8 flags)
{
    u32 state = receiver_state(skb, &packet->flow, packet->ipv6);

    if (!state)
        return OPENING;
    if (flags & TCP_SYN && state == STATE_TIME_WAIT)
        return REVISITED;
    return flags & TCP_SYN && state == STATE_NEW_SYN_RECV ? REQUESTED : CLAIMED;
}

/*
 * Whether a socket of this machine has sent the packet: then it is still attached, for veth devices keep it
 * when they take a packet into another namespace (skb_scrub_packet), and whoever receives one in between lets
 * go of it (ip_rcv_core; a bridge, of what its ports bring). So it is here for what the node's own processes
 * dial, and not for what the node forwards, from other pods or from other machines, also when it does so
 * under an address of its own (masquerading). On a kernel that does not keep it, nothing is local.
 */
static __always_inline int sent_here(struct __sk_buff *skb)
{
    struct bpf_sock *sk = sender(skb);

    return sk && sk->protocol == NS_IPPROTO_TCP;
}

/*
 * An enrolled workload has no need of plaintext: where it has a node's address for itself, nothing from there
 * is the node's. Where processes of the node share it, what a socket of theirs sends here directly is of one
 * that is not enrolled: the others' are marked when they dial (mark_host.c), and go to the core.
 */
static __always_inline int from_node(struct __sk_buff *skb, const struct ns_address *source)
{
    u32 *kind = bypass_of(NS_SCOPE_NODE, source);
    u32 *peer;

    if (!kind)
        return 0;
    peer = bypass_of(NS_SCOPE_PEER, source);
    if (peer && *peer != NS_PEER_SHARED)
        return 0;
    return (*kind == NS_NODE_TRUSTED && !peer) || sent_here(skb);
}

/* Goes on to the application, past the core. */
static __always_inline int passed(struct packet *packet, u8 flags, u32 why)
{
    if (flags & TCP_SYN)
        note_inbound(&packet->flow, why);
    return TC_ACT_UNSPEC;
}

/* A SYN that comes by at sk_lookup once more: assign_lookup.c is to give it to the core. */
static __always_inline int revisiting(struct packet *packet)
{
    u64 now = bpf_ktime_get_ns();

    return revisited.update(&packet->flow, &now) ? dropped(NS_COUNT_STEER_REVISIT_FAILED) : TC_ACT_UNSPEC;
}

/* Whether the workload is open, because nobody holds the inbound listener. */
static __always_inline int unguarded(u32 wanted)
{
    struct bpf_sock *listener;

    if (!(wanted & NS_SETTING_OPEN))
        return 0;
    listener = pod_listener(NS_LISTENER_INBOUND);
    if (!listener)
        return 1;
    bpf_sk_release(listener);
    return 0;
}

/* Whether the packet can wait in the ring: the core reads no extension headers, and a flood from outside is
 * not to keep the workload from dialling. */
static __always_inline int can_wait(struct packet *packet)
{
    u32 key = 0;
    struct ns_ring *workload = self.lookup(&key);

    if (packet->ipv6 && packet->length > sizeof(struct ipv6_header))
        return 0;
    return workload && !ring_crowded(workload);
}

int steer_ingress(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct tcp_header tcp;
    struct bpf_sock *listener;
    enum reading reading;
    enum claim claim;
    u32 *wanted, excluded;
    long error;

    /* A tagged packet comes by again on its VLAN device, which has this program as well. */
    if (skb->vlan_present)
        return TC_ACT_UNSPEC;
    wanted = pod_settings();
    if (!wanted)
        return TC_ACT_UNSPEC;
    if (skb->protocol == NS_NET16(ETH_P_IP) && *wanted & NS_FAMILY_IPV4)
        reading = read_ipv4(skb, &packet);
    else if (skb->protocol == NS_NET16(ETH_P_IPV6) && *wanted & NS_FAMILY_IPV6)
        reading = read_ipv6(skb, &packet);
    else
        return TC_ACT_UNSPEC;

    if (reading == NOT_TCP)
        return TC_ACT_UNSPEC;
    if (reading == TOO_LONG)
        return forwarded(skb, &packet) ? TC_ACT_UNSPEC : dropped(NS_COUNT_STEER_HEADERS);
    if (reading == TRUNCATED ||
        bpf_skb_load_bytes_relative(skb, packet.length, &tcp, sizeof(tcp), BPF_HDR_START_NET)) {
        /* A first fragment too small for the flags would hide a SYN (RFC 1858, RFC 7112). */
        if (packet.first_fragment)
            return dropped(NS_COUNT_STEER_FRAGMENT);
        count(NS_COUNT_STEER_TRUNCATED);
        return TC_ACT_UNSPEC;
    }
    if (packet.detour)
        return forwarded(skb, &packet) ? TC_ACT_UNSPEC : dropped(NS_COUNT_STEER_HEADERS);
    if (tcp.destination == NS_NET16(NS_HBONE_PORT))
        return TC_ACT_UNSPEC;
    if (!may_open(tcp.flags))
        return TC_ACT_UNSPEC;
    packet.flow.source_port = tcp.source;
    packet.flow.destination_port = tcp.destination;
    claim = claimed(skb, &packet, tcp.flags);
    if (claim == CLAIMED || forwarded(skb, &packet))
        return TC_ACT_UNSPEC;

    excluded = bypass_inbound(&packet.flow.destination, &packet.flow.source, tcp.destination);
    if (excluded) {
        count(NS_COUNT_STEER_EXCLUDED);
        return passed(&packet, tcp.flags, excluded);
    }
    if (from_node(skb, &packet.flow.source)) {
        count(NS_COUNT_STEER_FROM_NODE);
        return passed(&packet, tcp.flags, NS_NATIVE_NODE);
    }

    if (packet.first_fragment)
        return dropped(NS_COUNT_STEER_FRAGMENT);
    if (*wanted & NS_SETTING_PARK_IN) {
        /* What follows a SYN that was admitted is for whom that was for. */
        if (claim != REVISITED && admitted(&packet.flow) && (claim == REQUESTED || !(tcp.flags & TCP_SYN)))
            return TC_ACT_UNSPEC;
        if (claim != REQUESTED && tcp.flags & TCP_SYN && can_wait(&packet) && !unguarded(*wanted))
            return park(skb, NS_PARKED_ARRIVED, packet.length + (tcp.offset >> 4) * 4,
                        pod_natives(*wanted, 0), 0);
    }
    if (claim != OPENING)
        return revisiting(&packet);
    listener = pod_listener(NS_LISTENER_INBOUND);
    if (!listener)
        return *wanted & NS_SETTING_OPEN ? passed(&packet, tcp.flags, NS_NATIVE_OPEN)
                                         : dropped(NS_COUNT_STEER_NO_LISTENER);
    error = bpf_sk_assign(skb, listener, 0);
    bpf_sk_release(listener);
    return error ? dropped(NS_COUNT_STEER_ASSIGN_FAILED) : TC_ACT_UNSPEC;
}
