"""Reads the TCP and UDP packets of a capture file that tcpdump wrote on an Ethernet interface.

Sources: the file format is draft-ietf-opsawg-pcap; IPv4 is RFC 791, IPv6 RFC 8200, TCP RFC 9293, UDP RFC 768.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

TCP, UDP = 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_MAGICS = {
    b"\xd4\xc3\xb2\xa1": "<",  # microseconds
    b"\xa1\xb2\xc3\xd4": ">",
    b"\x4d\x3c\xb2\xa1": "<",  # nanoseconds
    b"\xa1\xb2\x3c\x4d": ">",
}
_LINKTYPE_ETHERNET = 1
_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = 0x0800, 0x86DD
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60

Flow = tuple[str, int, str, int]


class PcapError(Exception):
    """The file is not a capture of an Ethernet interface."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment or UDP datagram; `flags` and `sequence` are 0 for UDP."""

    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    flags: int
    sequence: int
    payload: bytes

    @property
    def flow(self) -> Flow:
        return self.source, self.source_port, self.destination, self.destination_port

    @property
    def ports(self) -> tuple[int, int]:
        return self.source_port, self.destination_port

    @property
    def opens(self) -> bool:
        """Whether it is the first packet of a connection: SYN without ACK."""
        return self.protocol == TCP and self.flags & (SYN | ACK) == SYN


def read_pcap(path: Path) -> Iterator[Packet]:
    """The TCP and UDP packets, in order. A record that is only partly written ends the reading. Raises PcapError."""
    content = path.read_bytes()
    if len(content) < 24:
        return
    order = _MAGICS.get(content[:4])
    if order is None:
        raise PcapError(f"{path}: not a capture file: it begins with {content[:4].hex()}")
    # The upper bits of the link type field carry the length of the frame check sequence.
    link_type = struct.unpack_from(order + "I", content, 20)[0] & 0xFFFF
    if link_type != _LINKTYPE_ETHERNET:
        raise PcapError(f"{path}: link type {link_type}: expected {_LINKTYPE_ETHERNET} (Ethernet)")
    at = 24
    while at + 16 <= len(content):
        captured = struct.unpack_from(order + "I", content, at + 8)[0]
        frame = content[at + 16 : at + 16 + captured]
        if len(frame) < captured:
            return
        at += 16 + captured
        if (packet := parse_frame(frame)) is not None:
            yield packet


def parse_frame(frame: bytes) -> Packet | None:
    """An Ethernet frame's TCP or UDP packet; None for anything else, later fragments, and truncated ones."""
    if len(frame) < 34:
        return None
    kind = struct.unpack_from("!H", frame, 12)[0]
    carried = _carried_by_ipv4(frame) if kind == _ETHERTYPE_IPV4 else None
    if kind == _ETHERTYPE_IPV6 and len(frame) >= 54:
        carried = _carried_by_ipv6(frame)
    if carried is None:
        return None
    source, destination, protocol, body = carried
    if protocol == TCP and len(body) >= 20:
        source_port, destination_port, sequence = struct.unpack_from("!HHI", body)
        payload = body[(body[12] >> 4) * 4 :]
        return Packet(TCP, source, source_port, destination, destination_port, body[13], sequence, payload)
    if protocol == UDP and len(body) >= 8:
        source_port, destination_port = struct.unpack_from("!HH", body)
        return Packet(UDP, source, source_port, destination, destination_port, 0, 0, body[8:])
    return None


def _carried_by_ipv4(frame: bytes) -> tuple[str, str, int, bytes] | None:
    """(source, destination, protocol, what it carries)."""
    header = (frame[14] & 0x0F) * 4
    total, _, fragment, _, protocol = struct.unpack_from("!HHHBB", frame, 16)
    if fragment & 0x1FFF or header < 20:
        return None
    # The frame may be longer than the packet: Ethernet pads short ones.
    body = frame[14 + header : 14 + total]
    return str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34])), protocol, body


def _carried_by_ipv6(frame: bytes) -> tuple[str, str, int, bytes] | None:
    """(source, destination, protocol behind the extension headers, what it carries)."""
    length, protocol = struct.unpack_from("!HB", frame, 18)
    body = frame[54 : 54 + length]
    while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION):
        if len(body) < 8 or (protocol == _FRAGMENT and struct.unpack_from("!H", body, 2)[0] & 0xFFF8):
            return None
        size = 8 if protocol == _FRAGMENT else (body[1] + 1) * 8
        protocol, body = body[0], body[size:]
    return str(IPv6Address(frame[22:38])), str(IPv6Address(frame[38:54])), protocol, body


def streams(packets: Iterable[Packet]) -> dict[Flow, bytes]:
    """The bytes of each direction of each TCP connection: in sequence order, what was sent twice once, gaps left
    out."""
    segments: dict[Flow, dict[int, bytes]] = {}
    first: dict[Flow, int] = {}
    for packet in packets:
        if packet.protocol != TCP:
            continue
        if packet.flags & SYN:
            # A SYN takes one sequence number. A flow's ports may be used again: the new connection replaces the old.
            first[packet.flow] = (packet.sequence + 1) & 0xFFFFFFFF
            segments[packet.flow] = {}
        if packet.payload:
            start = first.setdefault(packet.flow, packet.sequence)
            offset = (packet.sequence - start) & 0xFFFFFFFF
            known = segments.setdefault(packet.flow, {})
            if len(packet.payload) > len(known.get(offset, b"")):
                known[offset] = packet.payload
    return {flow: _join(parts) for flow, parts in segments.items()}


def _join(parts: dict[int, bytes]) -> bytes:
    joined = bytearray()
    position = 0
    for offset in sorted(parts):
        part = parts[offset]
        if offset < position:
            part = part[position - offset :]
        if part:
            joined += part
            position = max(position, offset) + len(part)
    return bytes(joined)
