// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * note_loopback.c: tells lookup_host.c what came by on lo of the node's namespace with which mark.
 *
 * Attached by a TCX link at the ingress of lo. sk_lookup sees no marks, and from lo come both the connections
 * that mark_host.c has marked and the core's own to the applications. What opens a connection, or could (a
 * SYN, or an ACK for which there is no socket: the end of a SYN-cookie handshake), is noted here, and looked
 * up by the kernel in the same turn.
 *
 * bpf_skc_lookup_tcp runs the sk_lookup programs itself when it comes to the listeners, and lookup_host.c
 * takes notes away: so the note is written after it, and one instance of this program serves all workloads.
 *
 * Fails closed: a marked packet that is not understood is dropped.
 */
#include "lib/captured.h"
#include "lib/host.h"
#include "lib/packet.h"

int note_loopback(struct __sk_buff *skb)
{
    struct ns_looped note = {};
    struct packet packet = {};

    if (skb->mark != NS_MARK_TO_APP && !host_mark(skb->mark))
        return TC_ACT_UNSPEC;
    if (!packet_read(skb, &packet))
        return dropped(NS_COUNT_LOOP_UNKNOWN);
    if (!may_open(packet.flags))
        return TC_ACT_UNSPEC;
    if (!(packet.flags & TCP_SYN) && receiver_state(skb, &packet.flow, packet.ipv6))
        return TC_ACT_UNSPEC;
    note.when = bpf_ktime_get_ns();
    note.mark = skb->mark;
    return looped.update(&packet.flow, &note) ? dropped(NS_COUNT_LOOP_NOTE_FAILED) : TC_ACT_UNSPEC;
}
