"""The core's listening sockets, made inside a workload's network namespace: one for each role.

The outbound and inbound listeners get their connections from BPF programs or rules only. They are bound to loopback on
a port that the kernel chooses: sk_lookup and bpf_sk_assign hand a socket over whatever it is bound to, TPROXY is told
where they are, and there a packet from outside cannot reach them by number, as it would on the wildcard address.
IP_TRANSPARENT lets the accepted sockets own the foreign address that was dialled.

Where IPv6 is captured these two are IPv6 sockets that take IPv4 as well. HBONE has a socket for the primary address of
each family; to further addresses assign_lookup.c gives it what comes there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Container, Iterable

from nodeseal.capture import constants
from nodeseal.capture.errors import AddressInUseError, CaptureError
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.socket_options import IP_TRANSPARENT, SO_MARK
from nodeseal.mesh.address import Address

BACKLOG = 4096
OUTBOUND = 0
INBOUND = 1
HBONE = 2
HBONE6 = 3
PARKED = 4  # no listener: the ring of parked SYNs (a map), or their queue, which the backend has
_KEEPALIVE_SECONDS = 180  # as ztunnel, and as the core's own connections to other machines
TRACKED_SECONDS = 25  # shorter than conntrack forgets a connection whose application can still send: see iptables.py
STEERED = (OUTBOUND, INBOUND)  # those that BPF programs or rules hand connections to
SHARED = (HBONE, HBONE6)  # by the processes of a node
FROM_OUTSIDE = (INBOUND, HBONE, HBONE6)


def roles_of(addresses: Iterable[Address]) -> tuple[int, ...]:
    """The listeners that a workload with these addresses has."""
    versions = {address.version for address in addresses}
    return (OUTBOUND, INBOUND, *([HBONE] if 4 in versions else []), *([HBONE6] if 6 in versions else []))


def make_listener(
    namespace: NetworkNamespace,
    role: int,
    addresses: Collection[Address],
    *,
    dual: bool = False,
    keepalive: bool = False,
    mark: int = constants.MARK_CAPTURED,
) -> int:
    """A non-blocking listening socket's descriptor for one role of a workload with these addresses.

    `dual`: what is steered may be of either family, else it is IPv4; `keepalive`: captured connections show themselves
    to conntrack every TRACKED_SECONDS; `mark`: what they carry.
    Raises AddressInUseError, CaptureError.
    """
    if role in (HBONE, HBONE6):
        version = 4 if role == HBONE else 6
        bind_to = next((str(address) for address in addresses if address.version == version), "")
    else:
        version = 6 if dual else 4
        # A socket that is bound to ::1 would be for IPv6 alone, whatever its options say (__inet6_bind()).
        bind_to = "127.0.0.1" if version == 4 else "::ffff:127.0.0.1"
    mark = mark if role == OUTBOUND else constants.MARK_CORE
    return namespace.run(lambda: _listen(str(namespace.path), role, version, bind_to, mark, keepalive=keepalive))


def make_listeners(
    namespace: NetworkNamespace,
    addresses: Collection[Address],
    *,
    besides: Container[int] = (),
    dual: bool | None = None,
    keepalive: bool = False,
    mark: int = constants.MARK_CAPTURED,
) -> dict[int, int]:
    """A workload's, by role, but for the roles `besides`; all or none. `dual`: see make_listener; None: if one of the
    addresses is IPv6. Raises AddressInUseError, CaptureError."""
    if dual is None:
        dual = any(address.version == 6 for address in addresses)
    made: dict[int, int] = {}
    try:
        # HBONE first: it is the one that may be in somebody's way.
        for role in sorted(roles_of(addresses), key=lambda role: role in STEERED):
            if role not in besides:
                made[role] = make_listener(namespace, role, addresses, dual=dual, keepalive=keepalive, mark=mark)
    except BaseException:
        close_all(made)
        raise
    return made


def check_free(namespace: NetworkNamespace, addresses: Iterable[Address]) -> None:
    """Raises AddressInUseError if somebody listens at the port of tunnels at one of these addresses, which no listener
    of ours is bound to; CaptureError."""
    for address in addresses:
        made = make_listener(namespace, HBONE if address.version == 4 else HBONE6, (address,))
        os.close(made)


def takes_ipv6(listener: int | None) -> bool:
    """Whether a steered listener takes IPv6 as well; one that is yet to be made can."""
    if listener is None:
        return True
    with socket.socket(fileno=os.dup(listener)) as made:
        return made.family == socket.AF_INET6


def set_mark(fd: int, mark: int) -> None:
    """What connections that the listener accepts from now on carry. Raises CaptureError."""
    with socket.socket(fileno=os.dup(fd)) as listener:
        try:
            # Of a captured connection's sockets no mark may be set, not even the same one (bpf/keep_mark.c).
            if listener.getsockopt(socket.SOL_SOCKET, SO_MARK) != mark:
                listener.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        except OSError as error:
            raise CaptureError(f"cannot mark a listener: {error.strerror}; this needs CAP_NET_ADMIN") from None


def close_all(listeners: dict[int, int]) -> None:
    """Close and forget the descriptors; harmless when done twice."""
    while listeners:
        _, fd = listeners.popitem()
        with contextlib.suppress(OSError):
            os.close(fd)


def _listen(where: str, role: int, version: int, address: str, mark: int, *, keepalive: bool) -> int:
    steered = role in STEERED
    port = 0 if steered else constants.HBONE_PORT
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise CaptureError(f"cannot listen on IPv{version} in {where}: {error.strerror}") from None
    place = f"{address}:{port}" if version == 4 else f"[{address}]:{port}"
    with listener:
        try:
            if version == 6:
                # What the BPF programs hand over may be IPv4, whatever the namespace's net.ipv6.bindv6only says.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not steered))
            # What the core accepts inherits the mark, and fwmark_reflect gives it to the resets that answer it: towards
            # a captured application those must stay on lo, instead of leaving for the address that it dialled.
            listener.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if steered or role in SHARED:
                # The same flag for both families. TPROXY gives connections to such sockets only.
                listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            # Accepted sockets inherit these, which saves a system call for each of them per connection. Only inbound
            # plaintext needs keepalive: tunnels have pings, and a workload cannot vanish without a word.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What an application sends as urgent stays in its place in the stream: else it would be left out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            if role == INBOUND:
                _keep_alive(listener, _KEEPALIVE_SECONDS, _KEEPALIVE_SECONDS // 3)
            elif role == OUTBOUND and keepalive:
                _keep_alive(listener, TRACKED_SECONDS, TRACKED_SECONDS)
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(
                    f"address in use: {place} in {where} is held by another process; the mesh port "
                    "must be free in every enrolled workload: stop what listens there, or do not enrol this workload"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise CaptureError(
                    f"address not found: {address} is on no interface in {where}; correct the workload's address "
                    "or netns"
                ) from None
            raise CaptureError(
                f"cannot listen on {place} in {where}: {error.strerror}; this needs root, or CAP_NET_ADMIN"
            ) from None
        return listener.detach()


def _keep_alive(listener: socket.socket, idle: int, interval: int) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
