"""The core's three listening sockets, made inside a workload's network namespace.

The outbound and inbound listeners get their connections from the BPF programs only. They are bound to 127.0.0.1 on a
port that the kernel chooses: the address and port play no part in the assignment (sk_lookup and bpf_sk_assign hand a
socket over whatever it is bound to), and there a packet from outside cannot reach them by number, as it would on the
wildcard address. IP_TRANSPARENT lets the accepted sockets own the foreign address that was dialled.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from nodeseal.capture import constants, syscalls
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.netns import NetworkNamespace
from nodeseal.mesh.address import Address

BACKLOG = 4096
OUTBOUND = 0
INBOUND = 1
HBONE = 2
_KEEPALIVE_SECONDS = 180  # as ztunnel, and as the core's own connections to other machines
ROLES = (OUTBOUND, INBOUND, HBONE)


class AddressInUseError(CaptureError):
    """Something else in the workload's namespace holds the mesh port."""


def make_listener(namespace: NetworkNamespace, role: int, address: Address) -> int:
    """A non-blocking listening socket's descriptor for one role (`address`: the workload's own, used by HBONE).

    Raises AddressInUseError, CaptureError.
    """
    return namespace.run(lambda: _listen(str(namespace.path), role, address))


def make_listeners(namespace: NetworkNamespace, address: Address) -> dict[int, int]:
    """All three, by role; all or none. Raises AddressInUseError, CaptureError."""
    made: dict[int, int] = {}
    try:
        for role in (HBONE, OUTBOUND, INBOUND):
            made[role] = make_listener(namespace, role, address)
    except BaseException:
        close_all(made)
        raise
    return made


def close_all(listeners: dict[int, int]) -> None:
    """Close and forget the descriptors; harmless when done twice."""
    while listeners:
        _, fd = listeners.popitem()
        with contextlib.suppress(OSError):
            os.close(fd)


def _listen(where: str, role: int, address: Address) -> int:
    bind_to = (str(address), constants.HBONE_PORT) if role == HBONE else ("127.0.0.1", 0)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with listener:
        try:
            # What the core accepts inherits the mark, and fwmark_reflect gives it to the resets that answer it: towards
            # a captured application those must stay on lo, instead of leaving for the address that it dialled.
            mark = constants.MARK_CAPTURED if role == OUTBOUND else constants.MARK_CORE
            listener.setsockopt(socket.SOL_SOCKET, syscalls.SO_MARK, mark)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if role != HBONE:
                listener.setsockopt(socket.SOL_IP, syscalls.IP_TRANSPARENT, 1)
            # Accepted sockets inherit these, which saves a system call for each of them per connection. Only inbound
            # plaintext needs keepalive: tunnels have pings, and a workload cannot vanish without a word.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What an application sends as urgent stays in its place in the stream: else it would be left out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            if role == INBOUND:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS // 3)
            listener.bind(bind_to)
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(
                    f"address in use: {bind_to[0]}:{bind_to[1]} in {where} is held by another process; the mesh port "
                    "must be free in every enrolled workload: stop what listens there, or do not enrol this workload"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise CaptureError(
                    f"address not found: {address} is on no interface in {where}; correct the workload's address "
                    "or netns"
                ) from None
            raise CaptureError(
                f"cannot listen on {bind_to[0]}:{bind_to[1]} in {where}: {error.strerror}; this needs root, or "
                "CAP_NET_ADMIN"
            ) from None
        return listener.detach()
