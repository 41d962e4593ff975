"""A stand-in for the core as the reader of a workload's ring: what is parked there, and the packets that answer it."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from nodeseal.capture import constants
from nodeseal.linux.socket_options import SO_MARK
from nodeseal.mesh.address import Address
from support.namespaces import Namespace

SYN, GONE, ARRIVED, TOLERANCE = 1, 2, 3, 4
_PAGE = mmap.PAGESIZE
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEAD = struct.Struct("=IIII")  # kind, length, value, mark
_FLOW = struct.Struct("!16s16sHH")


@dataclass(frozen=True)
class Parked:
    """A record. `packet`: the headers of a SYN; b"" of others."""

    kind: int
    mark: int
    packet: bytes
    source: tuple[str, int]
    destination: tuple[str, int]
    value: int = 0


class Ring:
    """The one reader of a BPF ring buffer: two pages with positions, and the data twice in a row behind them."""

    def __init__(self, fd: int, size: int = constants.RING_BYTES) -> None:
        self._fd = os.dup(fd)
        self._size = size
        self._consumer = mmap.mmap(self._fd, _PAGE)
        self._producer = mmap.mmap(self._fd, _PAGE + 2 * size, prot=mmap.PROT_READ, offset=_PAGE)

    def close(self) -> None:
        """What was not read is left to the next reader."""
        self._consumer.close()
        self._producer.close()
        os.close(self._fd)

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable while something is unread."""
        return self._fd

    @property
    def unread(self) -> int:
        """Bytes."""
        (read,), (written,) = struct.unpack_from("=Q", self._consumer), struct.unpack_from("=Q", self._producer)
        return int(written - read)

    def read(self) -> list[Parked]:
        """What is there now."""
        found = []
        (at,) = struct.unpack_from("=Q", self._consumer)
        while at < struct.unpack_from("=Q", self._producer)[0]:
            offset = _PAGE + at % self._size
            (length,) = struct.unpack_from("=I", self._producer, offset)
            if length & _BUSY:
                break
            if not length & _DISCARDED:
                found.append(_record(self._producer[offset + 8 : offset + 8 + length]))
            at += (8 + (length & ~(_BUSY | _DISCARDED)) + 7) // 8 * 8
            struct.pack_into("=Q", self._consumer, 0, at)
        return found

    def wait(self, timeout: float = 5.0) -> list[Parked]:
        """The same, once there is something. Raises TimeoutError."""
        if not select.select([self._fd], [], [], timeout)[0]:
            raise TimeoutError("nothing is parked")
        return self.read()


def _record(data: bytes) -> Parked:
    kind, length, value, mark = _HEAD.unpack_from(data)
    if kind in (SYN, ARRIVED):
        packet = data[_HEAD.size : _HEAD.size + length]
        return Parked(kind, mark, packet, *_ends_of(packet), value)
    source, destination, source_port, destination_port = _FLOW.unpack_from(data, _HEAD.size)
    assert len(data) == _HEAD.size + _FLOW.size
    return Parked(kind, mark, b"", (_text(source), source_port), (_text(destination), destination_port), value)


def _text(packed: bytes) -> str:
    address: Address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)  # type: ignore[union-attr]


def _ends_of(packet: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    at = _tcp_at(packet)
    source, destination = (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])
    source_port, destination_port = struct.unpack_from("!HH", packet, at)
    return (str(ip_address(source)), source_port), (str(ip_address(destination)), destination_port)


def _tcp_at(packet: bytes) -> int:
    return (packet[0] & 0x0F) * 4 if packet[0] >> 4 == 4 else 40


def again(packet: bytes) -> bytes:
    """The SYN as it is sent once more: without a payload, and with its checksums."""
    at = _tcp_at(packet)
    return _packet(packet[:at], packet[at:])


def notice(packet: bytes) -> bytes:
    """That the SYN of a process of the node goes out natively: a RST in its place (bpf/lib/let_out.h)."""
    at = _tcp_at(packet)
    ends_and_sequence = packet[at : at + 8]
    return _packet(packet[:at], ends_and_sequence + struct.pack("!IBBHHH", 0, 5 << 4, 0x04, 0, 0, 0))


def refusal(packet: bytes) -> bytes:
    """What a closed port answers it."""
    at = _tcp_at(packet)
    source, destination, sequence = struct.unpack_from("!HHI", packet, at)
    tcp = struct.pack("!HHIIBBHHH", destination, source, 0, (sequence + 1) & 0xFFFFFFFF, 5 << 4, 0x14, 0, 0, 0)
    if packet[0] >> 4 == 4:
        return _packet(b"\x45" + packet[1:12] + packet[16:20] + packet[12:16], tcp)
    return _packet(packet[:8] + packet[24:40] + packet[8:24], tcp)


def _packet(ip: bytes, tcp: bytes) -> bytes:
    head = bytearray(ip)
    if ip[0] >> 4 == 4:
        pseudo = ip[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
        struct.pack_into("!H", head, 2, len(ip) + len(tcp))
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, _checksum(bytes(head)))
    else:
        pseudo = ip[8:40] + struct.pack("!IHBB", len(tcp), 0, 0, socket.IPPROTO_TCP)
        struct.pack_into("!H", head, 4, len(tcp))
    body = bytearray(tcp)
    struct.pack_into("!H", body, 16, 0)
    struct.pack_into("!H", body, 16, _checksum(pseudo + bytes(body)))
    return bytes(head + body)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


class Sender:
    """Sends whole packets inside a namespace."""

    def __init__(self, namespace: Namespace, mark: int = 0) -> None:
        """`mark`: of its sockets, where packets have another one."""
        self._sockets = namespace.run(
            lambda: {
                version: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
            }
        )
        for raw in self._sockets.values():
            raw.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)

    def close(self) -> None:
        """No more."""
        for raw in self._sockets.values():
            raw.close()

    def send(self, packet: bytes, mark: int) -> None:
        """With this mark."""
        version = packet[0] >> 4
        to = str(IPv4Address(packet[16:20])) if version == 4 else str(IPv6Address(packet[24:40]))
        mark_data = [(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))]
        self._sockets[version].sendmsg([packet], mark_data, 0, (to, 0))


Verdict = Callable[[Parked], bool | None]
"""Of a SYN: True releases it, False refuses it, None leaves it unanswered."""


class Answers:
    """Reads a ring until close(), and answers what is parked there."""

    def __init__(
        self,
        namespace: Namespace,
        ring: int,
        verdict: Verdict = lambda _syn: True,
        arrived: Callable[[Parked], None] = lambda _syn: None,
    ) -> None:
        """`arrived`: what is done with a SYN from outside."""
        self.seen: list[Parked] = []
        """Every record."""
        self._verdict = verdict
        self._arrived = arrived
        self._ring = Ring(ring)
        self._sender = Sender(namespace)
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What comes now waits. Harmless when repeated."""
        if self._stop_writer.fileno() < 0:
            return
        self._stop_writer.close()
        self._thread.join()
        self._ring.close()
        self._sender.close()
        self._stop_reader.close()

    def of(self, kind: int) -> Iterator[Parked]:
        """The records of a kind."""
        return (one for one in self.seen if one.kind == kind)

    def _run(self) -> None:
        watched: list[Any] = [self._ring, self._stop_reader]
        while self._stop_reader not in select.select(watched, [], [])[0]:
            for one in self._ring.read():
                self.seen.append(one)
                if one.kind == ARRIVED:
                    self._arrived(one)
                answer = self._verdict(one) if one.kind == SYN else None
                if answer is True:
                    self._sender.send(again(one.packet), one.mark)
                elif answer is False:
                    self._sender.send(refusal(one.packet), constants.MARK_CORE)
