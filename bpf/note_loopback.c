// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * note_loopback.c: tells lookup_host.c what came by on lo of the node's namespace with which mark, and holds
 * what a process of the node dials until it is known whether anybody answers.
 *
 * Attached by a TCX link at the ingress of lo. sk_lookup sees no marks, and from lo come both the connections
 * that mark_host.c has marked and the core's own to the applications. What opens a connection, or could (a
 * SYN, or an ACK for which there is no socket: the end of a SYN-cookie handshake), is noted here, and looked
 * up by the kernel in the same turn.
 *
 * bpf_skc_lookup_tcp runs the sk_lookup programs itself when it comes to the listeners, and lookup_host.c
 * takes notes away: so the note is written after it, and one instance of this program serves all workloads.
 *
 * A workload with a ring has its SYNs parked there, as park_loopback.c does it for one that has a namespace:
 * see there, also for the reset that lies. Here that has no mark, since the kernel gives its resets none in
 * this namespace (fwmark_reflect), and every reset on lo is looked at while any workload has a ring; it is
 * held if its sender is a socket that the core has accepted. What the core releases carries a mark that
 * names the workload.
 *
 * Fails closed: a marked packet that is not understood is dropped.
 */
#include "lib/captured.h"
#include "lib/host.h"
#include "lib/packet.h"
#include "lib/pod.h"
#include "lib/ring.h"

/* The rings of the workloads of this namespace, by number. */
BPF_ARRAY_OF_MAPS(host_rings, "parked", NS_HOST_NUMBERS);

/* Whether a packet is a reset in the name of a connection of the core's that is established. */
static __always_inline int lies(struct __sk_buff *skb)
{
    struct packet packet = {};
    u32 *bits = pod_settings();

    if (!bits || !(*bits & NS_SETTING_PARK) || !packet_read(skb, &packet) || !(packet.flags & TCP_RST))
        return 0;
    return established_sender(skb, &packet.flow, packet.ipv6) == NS_MARK_ANSWER;
}

static __always_inline int note(struct __sk_buff *skb, const struct packet *packet, u32 mark)
{
    struct ns_looped note = {bpf_ktime_get_ns(), mark};

    return looped.update(&packet->flow, &note) ? dropped(NS_COUNT_LOOP_NOTE_FAILED) : TC_ACT_UNSPEC;
}

int note_loopback(struct __sk_buff *skb)
{
    struct packet packet = {};
    u32 mark = skb->mark;
    u32 number = mark & ~NS_MARK_HOST_MASK;
    u32 *bits;
    void *ring;

    if (!mark)
        return lies(skb) ? dropped(NS_COUNT_PARK_RESET_HELD) : TC_ACT_UNSPEC;
    if (mark != NS_MARK_TO_APP && !host_mark(mark) && !host_released(mark))
        return TC_ACT_UNSPEC;
    /* Of what the core answers, ICMP is no TCP either. */
    if (!packet_read(skb, &packet))
        return host_released(mark) && packet.other ? TC_ACT_UNSPEC : dropped(NS_COUNT_LOOP_UNKNOWN);
    if (!may_open(packet.flags))
        return TC_ACT_UNSPEC;
    if (packet.flags & TCP_SYN) {
        ring = host_mark(mark) ? host_rings.lookup(&number) : 0;
        if (ring) {
            bits = pod_settings();
            return park_as(skb, bpf_ringbuf_reserve(ring, sizeof(struct ns_parked), 0), NS_PARKED_SYN,
                           packet.length, bits ? pod_natives(*bits, number) : 0,
                           NS_MARK_HOST_RELEASED | number);
        }
    } else if (receiver_state(skb, &packet.flow, packet.ipv6)) {
        return TC_ACT_UNSPEC;
    }
    return note(skb, &packet, host_released(mark) ? NS_MARK_HOST | number : mark);
}
