"""Reading capture files, made here byte by byte."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nodeseal_lab.demo.pcap import ACK, SYN, TCP, UDP, PcapError, parse_frame, read_pcap, streams

CLIENT, SERVER = "10.77.1.10", "10.77.2.10"
CLIENT_6, SERVER_6 = "fd77::1:10", "fd77::2:10"


def tcp(payload: bytes = b"", *, flags: int = ACK, sequence: int = 1, options: bytes = b"", port: int = 40000) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack("!HHIIBBHHH", port, 8080, sequence, 0, offset, flags, 65535, 0, 0) + options + payload


def frame(
    body: bytes, *, protocol: int = TCP, ip_options: bytes = b"", fragment: int = 0, padding: bytes = b""
) -> bytes:
    length = 20 + len(ip_options)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        0,
        length + len(body),
        0,
        fragment,
        64,
        protocol,
        0,
        IPv4Address(CLIENT).packed,
        IPv4Address(SERVER).packed,
    )
    return bytes(12) + b"\x08\x00" + header + ip_options + body + padding


def frame6(body: bytes, *headers: tuple[int, bytes], protocol: int = TCP, padding: bytes = b"") -> bytes:
    """`headers`: extension headers, each its number and what follows its first byte, which names the next one."""
    for number, rest in reversed(headers):
        body = bytes([protocol]) + rest + body
        protocol = number
    addresses = IPv6Address(CLIENT_6).packed + IPv6Address(SERVER_6).packed
    header = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return bytes(12) + b"\x86\xdd" + header + addresses + body + padding


def capture(path: Path, frames: list[bytes], *, order: str = "<", magic: int = 0xA1B2C3D4, link_type: int = 1) -> Path:
    content = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    for one in frames:
        content += struct.pack(order + "IIII", 0, 0, len(one), len(one)) + one
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_every_byte_order_and_resolution_is_read(tmp_path: Path, order: str, magic: int) -> None:
    path = capture(tmp_path / "x.pcap", [frame(tcp(b"hello"))], order=order, magic=magic)
    (packet,) = read_pcap(path)
    assert packet.flow == (CLIENT, 40000, SERVER, 8080)
    assert packet.payload == b"hello"


def test_half_written_record_ends_the_reading(tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [frame(tcp(b"one")), frame(tcp(b"two"))])
    path.write_bytes(path.read_bytes()[:-1])
    assert [packet.payload for packet in read_pcap(path)] == [b"one"]


def test_half_written_header_is_an_empty_capture(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"\xd4\xc3\xb2\xa1")
    assert list(read_pcap(path)) == []


def test_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"GIF89a" + bytes(30))
    with pytest.raises(PcapError, match="not a capture file"):
        list(read_pcap(path))


def test_other_link_type_is_refused(tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [], link_type=113)
    with pytest.raises(PcapError, match="link type 113: expected 1"):
        list(read_pcap(path))


def test_ip_and_tcp_options_are_skipped() -> None:
    packet = parse_frame(frame(tcp(b"data", options=bytes(12)), ip_options=bytes(8)))
    assert packet is not None
    assert packet.payload == b"data"


def test_ethernet_padding_is_not_payload() -> None:
    packet = parse_frame(frame(tcp(b""), padding=bytes(6)))
    assert packet is not None
    assert packet.payload == b""


def test_udp_datagram_is_read() -> None:
    packet = parse_frame(frame(struct.pack("!HHHH", 1, 9, 12, 0) + b"mark", protocol=UDP))
    assert packet is not None
    assert (packet.protocol, packet.destination_port, packet.payload) == (UDP, 9, b"mark")


@pytest.mark.parametrize(
    "content",
    [b"", bytes(20), frame(tcp()), frame(tcp(), fragment=100), frame(tcp(), protocol=1)],
    ids=["empty", "short", "truncated", "later-fragment", "icmp"],
)
def test_what_is_not_a_whole_packet_is_left_out(content: bytes) -> None:
    assert parse_frame(content[:-1] if content == frame(tcp()) else content) is None


def test_only_a_syn_without_ack_opens() -> None:
    opening, answering = parse_frame(frame(tcp(flags=SYN))), parse_frame(frame(tcp(flags=SYN | ACK)))
    assert opening is not None
    assert opening.opens
    assert answering is not None
    assert not answering.opens


def stream_of(*frames: bytes) -> bytes:
    packets = [packet for one in frames if (packet := parse_frame(frame(one))) is not None]
    return streams(packets)[CLIENT, 40000, SERVER, 8080]


def test_stream_puts_segments_in_order() -> None:
    assert stream_of(tcp(flags=SYN, sequence=9), tcp(b"cd", sequence=12), tcp(b"ab", sequence=10)) == b"abcd"


def test_stream_takes_a_retransmission_once() -> None:
    assert stream_of(tcp(b"ab", sequence=10), tcp(b"abcd", sequence=10), tcp(b"cd", sequence=12)) == b"abcd"


def test_stream_goes_on_where_sequence_numbers_wrap() -> None:
    last = 0xFFFFFFFF
    assert (
        stream_of(tcp(flags=SYN, sequence=last - 2), tcp(b"ab", sequence=last - 1), tcp(b"cd", sequence=0)) == b"abcd"
    )


def test_text_split_between_segments_is_found_in_the_stream() -> None:
    assert b"4111 1111" in stream_of(tcp(b"card=4111 1", sequence=10), tcp(b"111 1111", sequence=21))


def test_reused_ports_begin_a_new_stream() -> None:
    assert stream_of(tcp(b"old", sequence=5), tcp(flags=SYN, sequence=100), tcp(b"new", sequence=101)) == b"new"


HOP_BY_HOP = (0, bytes(7))
LONG_OPTIONS = (60, b"\1" + bytes(14))
FRAGMENT_1 = (44, b"\0\0\1" + bytes(4))
FRAGMENT_2 = (44, b"\0\0\x40" + bytes(4))


@pytest.mark.parametrize("headers", [(), (HOP_BY_HOP,), (HOP_BY_HOP, LONG_OPTIONS, FRAGMENT_1)])
def test_ipv6_is_read_behind_extension_headers(headers: tuple[tuple[int, bytes], ...]) -> None:
    packet = parse_frame(frame6(tcp(b"hello", flags=SYN, sequence=7), *headers, padding=bytes(6)))
    assert packet is not None
    assert packet.flow == (CLIENT_6, 40000, SERVER_6, 8080)
    assert (packet.protocol, packet.flags, packet.sequence, packet.payload) == (TCP, SYN, 7, b"hello")


def test_ipv6_udp_is_read() -> None:
    packet = parse_frame(frame6(struct.pack("!HHHH", 5000, 9, 8 + 4, 0) + b"mark", protocol=UDP))
    assert packet is not None
    assert (packet.protocol, packet.ports, packet.payload) == (UDP, (5000, 9), b"mark")


@pytest.mark.parametrize(
    "content",
    [
        frame6(tcp(b"hello"), FRAGMENT_2),
        frame6(tcp(b"hello"), protocol=58),
        frame6(tcp(b"hello"), protocol=59),
        frame6(tcp()[:12]),
        frame6(b"\6\1", protocol=60),
        frame6(b"")[:50],
        b"",
    ],
    ids=["later fragment", "icmpv6", "nothing", "tcp cut off", "options cut off", "header cut off", "empty"],
)
def test_ipv6_that_is_neither_or_not_whole_is_passed_over(content: bytes) -> None:
    assert parse_frame(content) is None
