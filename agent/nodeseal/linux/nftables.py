"""One table of nf_tables, made and removed by netlink (linux/netfilter/nf_tables.h): no program has to be installed.

Functions here are to be called inside the namespace (NetworkNamespace.run). They raise OSError with what the kernel
said: EOPNOTSUPP, EPROTONOSUPPORT or EAFNOSUPPORT where it has no nf_tables.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 1, 2, 3, 6
_NLMSG_ERROR = 2
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_INET = 1  # NFPROTO_INET: IPv4 and IPv6
_HOOK_PREROUTING, _HOOK_OUTPUT = 0, 3
_REGISTER = 1
_META_MARK, _META_IIF = 3, 4
_LOOPBACK = 1  # the kernel gives lo this index in every namespace
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Mark:
    """What a rule matches: packets whose mark is this, as far as the mask goes."""

    value: int
    mask: int = 0xFFFFFFFF


def put_untracking(table: str, sent: Iterable[Mark], looped: Iterable[Mark], priority: int) -> None:
    """Make a table that keeps packets from conntrack: what this machine sends with one of the marks of `sent`, and what
    comes in by lo with one of `looped`; in one step in the place of one of this name. `priority`: of its chains.
    """
    messages = [
        # Adding what is there is no error; so that there is something to delete.
        (_NEWTABLE, _CREATE, _text(1, table)),
        (_DELTABLE, 0, _text(1, table)),
        (_NEWTABLE, _CREATE, _text(1, table)),
    ]
    for chain, hook, condition, marks in (
        ("output", _HOOK_OUTPUT, [], sent),
        ("prerouting", _HOOK_PREROUTING, _equals(_META_IIF, _LOOPBACK), looped),
    ):
        place = _nested(4, _be32(1, hook), _be32(2, priority))
        messages.append((_NEWCHAIN, _CREATE, _text(1, table) + _text(3, chain) + place + _text(7, "filter")))
        for mark in marks:
            parts = [*condition, *_equals(_META_MARK, mark.value, mark.mask), _expression("notrack")]
            rule = _nested(4, *(_nested(1, part) for part in parts))
            messages.append((_NEWRULE, _CREATE | _APPEND, _text(1, table) + _text(2, chain) + rule))
    _transact(messages)


def remove_table(table: str) -> bool:
    """False when there is none."""
    try:
        _transact([(_DELTABLE, 0, _text(1, table))])
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def table_exists(table: str) -> bool:
    """Whether there is one of this name. Cheap enough to be asked several times a second."""
    with _connect() as netlink:
        netlink.send(_message(_SUBSYSTEM << 8 | _GETTABLE, _REQUEST, 1, 0, _text(1, table)))
        failed = _error(netlink.recv(65536))
    if failed not in (None, errno.ENOENT):
        raise OSError(failed, os.strerror(failed))
    return failed is None


def _equals(key: int, value: int, mask: int = 0xFFFFFFFF) -> list[bytes]:
    """meta KEY & MASK == VALUE, of a key that the kernel has in the machine's own order."""
    return [
        _expression("meta", _be32(1, _REGISTER), _be32(2, key)),
        _expression(
            "bitwise",
            _be32(1, _REGISTER),
            _be32(2, _REGISTER),
            _be32(3, 4),
            _nested(4, _number(mask)),
            _nested(5, _number(0)),
        ),
        _expression("cmp", _be32(1, _REGISTER), _be32(2, 0), _nested(3, _number(value))),
    ]


def _transact(messages: Sequence[tuple[int, int, bytes]]) -> None:
    """All of them (type, flags, attributes) or none. Raises OSError for the first that is refused."""
    parts = [_message(_BATCH_BEGIN, _REQUEST, 0, _SUBSYSTEM)]
    last = len(messages)
    for number, (kind, flags, attributes) in enumerate(messages, 1):
        # Errors are answered anyhow.
        wanted = _REQUEST | flags | (_ACK if number == last else 0)
        parts.append(_message(_SUBSYSTEM << 8 | kind, wanted, number, 0, attributes))
    parts.append(_message(_BATCH_END, _REQUEST, last + 1, _SUBSYSTEM))
    with _connect() as netlink:
        netlink.send(b"".join(parts))
        while True:
            answer = netlink.recv(65536)
            failed = _error(answer)
            if failed:
                raise OSError(failed, os.strerror(failed))
            if _HEADER.unpack_from(answer)[3] == last:
                return


def _connect() -> contextlib.closing[socket.socket]:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    netlink.settimeout(_TIMEOUT_S)
    netlink.bind((0, 0))
    return contextlib.closing(netlink)


def _error(answer: bytes) -> int | None:
    """The error that a message brings, 0 for an acknowledgement; None: it is no such message."""
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    return -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else None


def _message(kind: int, flags: int, sequence: int, resource: int, attributes: bytes = b"") -> bytes:
    body = struct.pack("!BBH", 0 if kind in (_BATCH_BEGIN, _BATCH_END) else _INET, 0, resource) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _be32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _number(value: int) -> bytes:
    """NFTA_DATA_VALUE as a register holds it, in the machine's own order."""
    return _attribute(1, struct.pack("=I", value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _text(1, name) + (_nested(2, *attributes) if attributes else b"")
