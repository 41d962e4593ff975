"""What is on the wire: every TCP packet on an interface of a lab."""

from __future__ import annotations

import functools
import secrets
import select
import socket
import struct
import threading
from collections.abc import Iterable

from nodeseal_lab.demo.pcap import TCP, UDP, Packet, parse_frame, streams
from nodeseal_lab.namespaces import run_in
from support.patience import wait_for

_DISCARD_PORT = 9
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/if_packet.h


class Sniffer:
    """Every TCP packet on an interface, both ways, by AF_PACKET (packet(7)).

    `marks`: (namespace, address) pairs; a datagram sent from there to that address crosses the interface. Seeing one
    for each direction says that everything before it has been seen.
    """

    def __init__(self, netns: str, interface: str, marks: Iterable[tuple[str, str]]) -> None:
        def listen() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            # Packets come from bind() on: none of another interface is among them.
            sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            sniffer.bind((interface, _ETH_P_ALL))
            return sniffer

        self._marks = list(marks)
        self._packets: list[Packet] = []
        self._taken = 0
        self._socket = run_in(netns, listen)
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> list[Packet]:
        """The TCP packets since the last cut; none that was sent before this call is missing, and none was lost."""
        words = [secrets.token_bytes(16) for _ in self._marks]
        for word, (netns, address) in zip(words, self._marks, strict=True):
            run_in(netns, functools.partial(_send, word, address))

        def seen() -> bool:
            datagrams = {packet.payload for packet in self._packets[self._taken :] if packet.protocol == UDP}
            return datagrams.issuperset(words)

        wait_for(seen, "the sniffer sees its own mark")
        packets = self._packets[self._taken :]
        self._taken += len(packets)
        lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        assert lost == 0, f"the sniffer lost {lost} packets"
        return [packet for packet in packets if packet.protocol == TCP]

    def carries(self, marker: bytes) -> bool:
        """Whether the marker can be read in any connection since the last cut, also across segments."""
        return carries(self.cut(), marker)

    def close(self) -> None:
        """Ends the listening."""
        if self._thread.is_alive():
            self._stop_writer.close()
            self._thread.join()
            self._stop_reader.close()
            self._socket.close()

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._stop_reader.fileno() in ready:
                return
            packet = parse_frame(self._socket.recv(1 << 17))
            if packet is not None:
                self._packets.append(packet)


def carries(packets: Iterable[Packet], marker: bytes) -> bool:
    """Whether the marker can be read in any of these packets or connections."""
    packets = list(packets)
    return any(marker in packet.payload for packet in packets) or any(
        marker in data for data in streams(packets).values()
    )


def ports_used(packets: Iterable[Packet]) -> set[int]:
    """The destination ports of the connections that were opened."""
    return {packet.destination_port for packet in packets if packet.opens}


def _send(datagram: bytes, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(datagram, (address, _DISCARD_PORT))
