"""A router that answers SYNs to an address by an ICMP error, a moment later, as one that is some hops away does.

The kernel's own answer (an unreachable route, a rule that rejects) would arrive while connect() still has the socket:
in a lab all hops are one call. TCP takes an error that comes then for a hint, and tells it with the next retransmission
(tcp_v4_err of net/ipv4/tcp_ipv4.c), which is not what a network does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

from nodeseal_lab.namespaces import run_in

DELAY = 0.02
"""Seconds."""
HOST, NETWORK, PROHIBITED = "host", "network", "prohibited"
_CODES = {
    4: {HOST: (3, 1), NETWORK: (3, 0), PROHIBITED: (3, 13)},
    6: {HOST: (1, 3), NETWORK: (1, 0), PROHIBITED: (1, 1)},
}
"""(type, code) of RFC 792, RFC 1812 and RFC 4443."""
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_IPV6_HEADER = 40


class Router:
    """Answers what comes in by a device, until close(). The packets themselves have to be dropped by somebody else."""

    def __init__(self, netns: str, device: str, version: int, address: str, says: str) -> None:
        """`says`: HOST, NETWORK or PROHIBITED."""
        self._version = version
        self._code = _CODES[version][says]
        self._stop_reader, self._stop_writer = socket.socketpair()
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self._address = socket.inet_pton(family, address)
        protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP

        def sockets() -> tuple[socket.socket, socket.socket]:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPES[version]))
            packets.bind((device, _ETHERTYPES[version]))
            return packets, socket.socket(family, socket.SOCK_RAW, protocol)

        self._packets, self._answers = run_in(netns, sockets)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop_writer.close()
        self._thread.join()
        for one in (self._packets, self._answers, self._stop_reader):
            one.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._packets, self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            packet, (_, _, kind, *_) = self._packets.recvfrom(2048)
            if kind == socket.PACKET_OUTGOING or (source := self._syn_from(packet)) is None:
                continue
            if select.select([self._stop_reader], [], [], DELAY)[0]:
                return
            with contextlib.suppress(OSError):
                self._answers.sendto(self._error(packet), (source, 0))

    def _syn_from(self, packet: bytes) -> str | None:
        """The source of a SYN to the address; None for all else."""
        if self._version == 4:
            start, destination, source, protocol = (packet[0] & 15) * 4, packet[16:20], packet[12:16], packet[9]
        else:
            start, destination, source, protocol = _IPV6_HEADER, packet[24:40], packet[8:24], packet[6]
        if destination != self._address or protocol != socket.IPPROTO_TCP or not packet[start + 13] & 2:
            return None
        return socket.inet_ntop(socket.AF_INET6 if self._version == 6 else socket.AF_INET, source)

    def _error(self, packet: bytes) -> bytes:
        kind, code = self._code
        # The kernel computes the checksum of ICMPv6 (RFC 3542, 3.1), and not that of ICMP.
        body = struct.pack("!BBHI", kind, code, 0, 0) + packet[: 20 + 40 if self._version == 4 else 1232]
        if self._version == 6:
            return body
        return body[:2] + struct.pack("!H", _checksum(body)) + body[4:]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
