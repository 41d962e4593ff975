"""Reasons that several cases share."""

from __future__ import annotations

ACCEPTS_FIRST = (
    "**To come.** The core accepts plaintext from those who are not enrolled, and what a process of the node dials, "
    "before it knows whether anyone answers. What is wrong is told by a reset afterwards. It is to hold the SYN until "
    "there is an answer."
)
OWN_PORT = (
    "**To come.** The core chooses the source port of its connection to the application. It is to use the client's own."
)
PROXIED = "**To come.** Plaintext connections are relayed by the core. They are to be the kernel's own from end to end."
NO_URGENT_DATA = (
    "A tunnel is a stream of HTTP/2, which has no urgent data, and no place to say where a byte of it was (RFC 9113). "
    "RFC 6093 tells applications not to use it, for middleboxes clear it. The byte is delivered like all others."
)
FORWARDED_SOURCE = (
    "What nodes translate on the way is the tunnel. Within it, the client's own address travels with the connection "
    "(`forwarded`, RFC 7239), so that the server sees the client and not the node."
)
UNKNOWN_VIP = (
    "The client's node takes the address for one outside the mesh, and sends plaintext there. Behind the translation "
    "is an enrolled workload, whose node refuses plaintext from another one that is enrolled: a translation would be a "
    "way round mutual TLS. Name the address in the mesh state, as a service; `nodeseal status` on both nodes says "
    "which one."
)
LOOPBACK = (
    "The kernel's connection of the application ends at the core, on the same node: its path is the loopback device, "
    "with segments of 64 KiB. On the wire the tunnel's own connection has the segments of the path."
)
OUR_MARK = (
    "The mark is how the kernel keeps a captured connection on its way to the core, for life. The application may read "
    "it, and cannot change it."
)
APP_MARK = (
    "A connection between two enrolled workloads has nodeseal's mark, and a socket has one mark. The application's "
    "gives way: without ours its bytes would leave in plaintext."
)
LISTENER_MARK = (
    "The kernel gives the mark of a listening socket to its answers (tcp_fwmark_accept counts for those without one). "
    "They leave for the client instead of the core, and no handshake ends. Exclude the port, or capture by iptables."
)
