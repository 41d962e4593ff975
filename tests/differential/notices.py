"""Reasons that several cases share."""

from __future__ import annotations

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
NO_TIMEOUT_ON_THE_WIRE = (
    "The application's TCP has its peer on the same node, which answers. That the far side is silent is known to the "
    "core, and it ends the connection when the application's own options would. But TCP has one message for that: a "
    "reset. No packet makes a socket fail with ETIMEDOUT."
)
LEG_HAS_THE_PORT = (
    "The core's connection to the application has the client's address and port, which it binds in the server's "
    "namespace. While it is open, the port can be bound at any address only with SO_REUSEADDR, as if the application "
    "had dialled from it (inet_csk_bind_conflict of net/ipv4/inet_connection_sock.c). Clients' ports are where nobody "
    "listens."
)
UNKNOWN_ADDRESS = (
    "The client's node cannot know whose the address is, and sends plaintext, which the server's node refuses: the two "
    "are enrolled. `nodeseal status` on both nodes names the address. Give it to the workload in the mesh state."
)
