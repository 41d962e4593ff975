"""TCP connections of a workload that do not go through the core: those that are older than its enrolment.

They are read from the kernel inside the workload's network namespace with sock_diag(7). A socket that carries one of
nodeseal's marks belongs to a connection through the core (with eBPF the application's own socket is CAPTURED; the one
that it accepted from the core took TO_APP over from the SYN by tcp_fwmark_accept, the core's are CAPTURED, TO_APP or
CORE), and so does one whose other end is such a socket, here in the same namespace. What is left over is what the core
does not see. INET_DIAG_MARK comes without being asked for, given CAP_NET_ADMIN
(net/ipv4/inet_diag.c, inet_diag_msg_attrs_fill).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from nodeseal.mesh.address import Address

Endpoint = tuple[Address, int]

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21  # linux/sock_diag.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_INET_DIAG_INFO, _INET_DIAG_MARK, _INET_DIAG_CGROUP_ID = 2, 15, 21  # linux/inet_diag.h
_TCP_ESTABLISHED, _TCP_SYN_SENT, _TCP_LISTEN = 1, 2, 10
_ANY_LIVE_STATE = 0xFFF & ~(1 << 6 | 1 << _TCP_LISTEN)  # all but TIME_WAIT, which has no application, and LISTEN
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBBI48s")  # struct inet_diag_req_v2
_MESSAGE = struct.Struct("=BBBB48sIIIII")  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
# In struct inet_diag_sockid, which is 48 bytes: ports, addresses, a device, and the cookie.
_COOKIE, _COOKIE_AT = struct.Struct("=Q"), 40
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"
# struct tcp_info (linux/tcp.h): tcpi_bytes_received at 128; tcpi_bytes_sent, tcpi_bytes_retrans at 200.
_BYTES_RECEIVED, _BYTES_SENT = 128, 200


class DirectError(Exception):
    """The kernel did not list a namespace's sockets."""


@dataclass(frozen=True, slots=True)
class Direct:
    """An established connection with `local` (the workload's own address) and `remote`, each an address and a port.

    `inbound`: the workload accepted it. `mark`: 0, or one that the application or somebody else gave it. Bytes are what
    this side's application sent and received, retransmissions left out, or None when the kernel does not say.
    """

    local: Endpoint
    remote: Endpoint
    inbound: bool
    mark: int
    bytes_sent: int | None
    bytes_received: int | None
    cgroup: int = field(default=0, compare=False)
    """The number of the cgroup that the socket was made in; 0: the kernel does not say."""
    cookie: int = field(default=0, compare=False)
    """The kernel's number of the socket."""


@dataclass(frozen=True, slots=True)
class _Socket:
    family: int
    state: int
    identity: bytes
    source: Endpoint
    destination: Endpoint
    mark: int
    info: bytes
    cgroup: int

    @property
    def cookie(self) -> int:
        """The kernel's number of it."""
        number: int = _COOKIE.unpack_from(self.identity, _COOKIE_AT)[0]
        return number


def direct_connections(own: Collection[Address], marks: frozenset[int]) -> list[Direct]:
    """The connections of the calling thread's network namespace that carry none of `marks`, of the families of `own`,
    the workload's addresses.

    Loopback, IPv6 on the link and connections of the workload with itself are left out: they are never captured. Raises
    DirectError.
    """
    families = {address.version for address in own}
    states = _ANY_LIVE_STATE | 1 << _TCP_LISTEN
    # A dual-stack application's sockets are AF_INET6 ones with v4-mapped addresses.
    sockets = [one for family in (socket.AF_INET, socket.AF_INET6) for one in _dump(family, states)]
    listening = {one.source[1] for one in sockets if one.state == _TCP_LISTEN}
    through_core = {(one.destination, one.source) for one in sockets if one.mark in marks}
    found = []
    for one in sockets:
        if one.state != _TCP_ESTABLISHED or one.mark in marks or (one.source, one.destination) in through_core:
            continue
        local, remote = one.source, one.destination
        if local[0].version not in families or remote[0] in own or remote[0] == local[0]:
            continue
        if any(
            address.is_loopback or (address.version == 6 and address.is_link_local) for address, _ in (local, remote)
        ):
            continue
        sent, received = _byte_counts(one.info)
        found.append(Direct(local, remote, local[1] in listening, one.mark, sent, received, one.cgroup, one.cookie))
    return found


def end_captured(
    marks: frozenset[int], connections: Collection[tuple[Endpoint, Endpoint]] = (), *, opening: bool = False
) -> int:
    """Ends every TCP socket in the calling thread's network namespace that carries one of `marks`, or has one of these
    pairs of ends, its own first (SOCK_DESTROY). `opening`: also those that wait for the answer to their SYN.

    For cleanup: a socket that was captured must not live on without its routes, or its next segment would leave the
    namespace unprotected. How many were ended; a socket that ended by itself meanwhile does not count. Raises
    DirectError.
    """
    ended = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        for one in list(_dump(family, _ANY_LIVE_STATE)):
            waits = opening and one.state == _TCP_SYN_SENT and not one.mark and not one.destination[0].is_loopback
            if one.mark in marks or waits or (one.source, one.destination) in connections:
                ended += _destroy(one.family, 1 << one.state, one.identity)
    return ended


def end_connection(local: Endpoint, remote: Endpoint, cookie: int) -> bool:
    """Ends this one socket of the calling thread's network namespace, and no other with the same ends. False when it
    has ended meanwhile. Raises DirectError."""
    family = socket.AF_INET if local[0].version == 4 else socket.AF_INET6
    ends = struct.pack("!HH16s16s", local[1], remote[1], local[0].packed, remote[0].packed)
    return bool(_destroy(family, _ANY_LIVE_STATE, ends + bytes(4) + _COOKIE.pack(cookie)))


def _dump(family: int, states: int) -> Iterator[_Socket]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, states, b"\0" * 48)
    with _netlink() as netlink:
        _send(netlink, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, request)
        while True:
            for kind, payload in _messages(netlink):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise DirectError(f"sock_diag: error {-struct.unpack_from('=i', payload)[0]}")
                yield _parse(payload)


def _destroy(family: int, states: int, identity: bytes) -> int:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states, identity)
    with _netlink() as netlink:
        _send(netlink, _SOCK_DESTROY, _NLM_F_REQUEST | _NLM_F_ACK, request)
        for kind, payload in _messages(netlink):
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", payload)[0]
                if number in (0, 2):  # ENOENT: it has ended meanwhile
                    return int(number == 0)
                raise DirectError(f"SOCK_DESTROY: error {number}")
    return 0


def _netlink() -> socket.socket:
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    except OSError as error:
        raise DirectError(f"sock_diag: {error.strerror}") from error
    netlink.settimeout(5)
    return netlink


def _send(netlink: socket.socket, kind: int, flags: int, payload: bytes) -> None:
    try:
        netlink.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, 1, 0) + payload)
    except OSError as error:
        raise DirectError(f"sock_diag: {error.strerror or error}") from error


def _messages(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    try:
        data = netlink.recv(1 << 18)
    except OSError as error:
        raise DirectError(f"sock_diag: {error.strerror or error}") from error
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, _sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _parse(payload: bytes) -> _Socket:
    family, state, _timer, _retrans, identity, *_rest = _MESSAGE.unpack_from(payload)
    attributes = {}
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = payload[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    source_port, destination_port = struct.unpack_from("!HH", identity)
    source, destination = identity[4:20], identity[20:36]
    mark = attributes.get(_INET_DIAG_MARK, b"\0\0\0\0")
    return _Socket(
        family=family,
        state=state,
        identity=identity,
        source=_endpoint(family, source, source_port),
        destination=_endpoint(family, destination, destination_port),
        mark=struct.unpack("=I", mark[:4])[0],
        info=attributes.get(_INET_DIAG_INFO, b""),
        cgroup=struct.unpack("=Q", attributes.get(_INET_DIAG_CGROUP_ID, bytes(8))[:8])[0],
    )


def _endpoint(family: int, raw: bytes, port: int) -> Endpoint:
    if family == socket.AF_INET:
        return IPv4Address(raw[:4]), port
    if raw.startswith(_V4_MAPPED):
        return IPv4Address(raw[12:]), port
    return IPv6Address(raw), port


def _byte_counts(info: bytes) -> tuple[int | None, int | None]:
    if len(info) < _BYTES_SENT + 16:
        return None, None
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    sent, again = struct.unpack_from("=QQ", info, _BYTES_SENT)
    return sent - again, received
