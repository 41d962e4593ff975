// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * park_loopback.c: holds what a workload dials until it is known whether anybody answers.
 *
 * Attached at the ingress of lo in the workload's namespace, by a TCX link, or by a tc filter where the
 * kernel has no TCX. What is dialled comes by here, marked CAPTURED (mark_connect.c) and led to lo by a rule.
 * Its SYN goes into the workload's ring (lib/ring.h) and no further. The core reads the ring, finds the far
 * side, and answers: it sends the SYN again, marked RELEASED, which passes here and finds the core's listener
 * (assign_lookup.c); or it refuses; or it says nothing, and the application waits as long as it likes.
 *
 * Nothing is kept of a SYN that is parked. While nobody reads the ring, and when it is full, the sender's
 * kernel sends its SYN again. The setting PARK says that a core is there to read it, or was, and that the
 * next one will be; without it SYNs pass to the core's listener as they come.
 *
 * A reset that lies is dropped. A SYN that is released is not sent by the application's CPU: the application
 * may have sent its first bytes while the ACK before them, on another CPU, is just making the core's socket.
 * For a moment they find none, and the kernel resets the connection. So a RST whose own sender is
 * established is none of its doing: a socket that resets has left the kernel's table before. The bytes are
 * sent again (watch_dials.c).
 *
 * A SYN from outside that was parked (steer_ingress.c) and is for the application comes by here as well,
 * marked ADMITTED: its connection is native (lib/natives.h).
 *
 * A SYN with extension headers of IPv6 is not parked: it goes to the core's listener at once.
 *
 * Fails closed: what is captured and cannot be read is dropped.
 */
#include "lib/packet.h"
#include "lib/pod.h"
#include "lib/ring.h"
#include "lib/socket.h"

/* A SYN from outside that is for the application itself: the socket that it accepts has no mark of it, and
 * its answers go their own way. */
static __always_inline int admit(struct __sk_buff *skb)
{
    struct packet packet = {};

    if (!packet_read(skb, &packet))
        return dropped(NS_COUNT_PARK_UNREADABLE);
    note_inbound(&packet.flow, NS_NATIVE_DECIDED);
    skb->mark = 0;
    return TC_ACT_UNSPEC;
}

int park_loopback(struct __sk_buff *skb)
{
    struct packet packet = {};
    u32 *bits;

    if (skb->mark == NS_MARK_ADMITTED)
        return admit(skb);
    if (skb->mark != NS_MARK_CAPTURED)
        return TC_ACT_UNSPEC;
    bits = pod_settings();
    if (!bits || !(*bits & NS_SETTING_PARK))
        return TC_ACT_UNSPEC;
    if (!packet_read(skb, &packet))
        return packet.other ? TC_ACT_UNSPEC : dropped(NS_COUNT_PARK_UNREADABLE);
    if ((packet.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
        return park(skb, NS_PARKED_SYN, packet.length, pod_natives(*bits, 0), NS_MARK_RELEASED);
    if (packet.flags & TCP_RST && established_sender(skb, &packet.flow, packet.ipv6))
        return dropped(NS_COUNT_PARK_RESET_HELD);
    return TC_ACT_UNSPEC;
}
