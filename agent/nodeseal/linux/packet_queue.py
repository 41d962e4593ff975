"""Queues of packets for user space (NFQUEUE, net/netfilter/nfnetlink_queue.c). Functions here are to be called inside
the namespace, but for same_socket().

A queue is a number to which a netlink socket is bound: the rules name the number, and packets go to the socket, whoever
holds it. It ends with the socket, and then the rules drop what they would give to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.errors import LinuxError

COPIED = 128  # bytes of each packet: the headers of IP and TCP
MOST = 1024  # packets in a queue
_BUFFER = 768 * 1024  # for as many messages; the kernel takes twice of it
_TABLE = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")

_SO_RCVBUFFORCE = 33
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5
_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_CONFIG = 3 << 8 | 2  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG
_CFG_COMMAND, _CFG_PARAMETERS, _CFG_MOST = 1, 2, 3
_BIND = 1
_COPY_PACKET = 2
_HEAD = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ABOUT = struct.Struct("!BBH")  # family, version, queue
_ATTRIBUTE = struct.Struct("=HH")
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Queue:
    """One of the namespace's. `port`: that of its netlink socket; `dropped`: packets that found no room."""

    number: int
    port: int
    dropped: int


def make(numbers: Iterable[int]) -> tuple[int, int]:
    """(descriptor, number) of a new queue, under the first of these numbers that is free. The descriptor is the
    caller's. Raises LinuxError."""
    try:
        queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise LinuxError(f"no socket of netfilter can be had (CONFIG_NETFILTER_NETLINK): {error.strerror}") from None
    with queue:
        try:
            queue.settimeout(_PATIENCE_S)
            queue.bind((0, 0))
            queue.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            # What finds no room is dropped, and its sender sends it again: no reason to stop until all is read.
            queue.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            number = _bind(queue, numbers)
            _ask(queue, number, _CFG_MOST, struct.pack("!I", MOST))
            # Last, since packets come from then on; so nothing is read any more, and the kernel's word is not heard.
            queue.send(_message(number, _CFG_PARAMETERS, struct.pack("!IB", COPIED, _COPY_PACKET), _NLM_F_REQUEST))
            queue.setblocking(False)
        except OSError as error:
            raise LinuxError(
                f"no queue of packets can be had (CONFIG_NETFILTER_NETLINK_QUEUE): {error.strerror or error}"
            ) from None
        return queue.detach(), number


def number_of(fd: int) -> int | None:
    """The number of the queue that this socket has; None: it has none here, or is something else."""
    with socket.socket(fileno=os.dup(fd)) as queue:
        if queue.family != socket.AF_NETLINK:
            return None
        port, _groups = queue.getsockname()
    return next((one.number for one in queues() if one.port == port), None)


def queues() -> Iterator[Queue]:
    """Those of the namespace."""
    with contextlib.suppress(FileNotFoundError):  # nobody has asked for one
        for line in _TABLE.read_text().splitlines():
            number, port, _waiting, _mode, _copied, dropped, lost, *_ = map(int, line.split())
            yield Queue(number, port, dropped + lost)


def same_socket(one: int, other: int) -> bool:
    """Whether two descriptors are of one socket."""
    first, second = os.fstat(one), os.fstat(other)
    return stat.S_ISSOCK(first.st_mode) and os.path.samestat(first, second)


def _bind(queue: socket.socket, numbers: Iterable[int]) -> int:
    for number in numbers:
        try:
            _ask(queue, number, _CFG_COMMAND, struct.pack("!BxH", _BIND, 0))
        except OSError as error:
            # Another socket has it.
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise
            continue
        return number
    raise OSError(errno.EBUSY, "all numbers are in use, or CAP_NET_ADMIN is missing")


def _ask(queue: socket.socket, number: int, attribute: int, value: bytes) -> None:
    """Raises OSError: what the kernel says."""
    queue.send(_message(number, attribute, value, _NLM_F_REQUEST | _NLM_F_ACK))
    answer = queue.recv(4096)
    _length, kind, *_ = _HEAD.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _HEAD.size)
    if kind != _NLMSG_ERROR or code != 0:
        raise OSError(-code, os.strerror(-code))


def _message(number: int, attribute: int, value: bytes, flags: int) -> bytes:
    body = _ABOUT.pack(socket.AF_UNSPEC, 0, number) + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), attribute) + value
    body += bytes(-len(body) % 4)
    return _HEAD.pack(_HEAD.size + len(body), _CONFIG, flags, 0, 0) + body
