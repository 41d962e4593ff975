"""tcpdump on an interface of a node: every packet there, read back from the file that it writes."""

from __future__ import annotations

import secrets
import socket
import time

from nodeseal.mesh.address import Address
from nodeseal_lab.demo.pcap import UDP, Packet, read_pcap
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.topology import UPLINK

_DISCARD_PORT = 9
_WAIT_SECONDS = 15.0
_POLL_SECONDS = 0.02


class Wiretap:
    """Starts tcpdump at once on an interface of the node (default: its uplink) and returns when it listens. `towards`
    is any address that the node reaches through the interface. Raises LabError."""

    def __init__(self, lab: Lab, node: str, *, towards: Address, interface: str = UPLINK) -> None:
        self._netns = lab.plan.node(node).netns
        self._peer = towards
        self._interface = interface
        self._seen = 0
        self.file = lab.directory / f"{node}-{interface}.pcap"
        log = lab.directory / f"{node}-{interface}.tcpdump.log"
        # -U and immediate mode: a packet is in the file as soon as it was seen. -Z root: Debian's tcpdump would
        # become a user that may not write here.
        argv = [
            "tcpdump",
            "-i",
            interface,
            "-n",
            "-U",
            "--immediate-mode",
            "-s",
            "0",
            "-Z",
            "root",
            "-w",
            str(self.file),
        ]
        self._process = lab.processes.start(f"tcpdump {node} {interface}", argv, netns=self._netns, output=log)
        deadline = time.monotonic() + _WAIT_SECONDS
        while "listening on" not in log.read_text():
            if not self._process.alive or time.monotonic() > deadline:
                raise LabError(
                    f"tcpdump does not start in {self._netns}: {log.read_text().strip() or 'it says nothing'}"
                )
            time.sleep(_POLL_SECONDS)

    def cut(self) -> list[Packet]:
        """The packets since the last cut. Nothing sent before this call is missed: a datagram of our own is sent over
        the wire and waited for in the file. Raises LabError."""
        mark = f"nodeseal demo mark {secrets.token_hex(8)}".encode()
        run_in(self._netns, lambda: _send(mark, self._peer))
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            packets = list(read_pcap(self.file))
            marks = [
                number for number, packet in enumerate(packets) if packet.protocol == UDP and packet.payload == mark
            ]
            if marks:
                part, self._seen = packets[self._seen : marks[0]], marks[0] + 1
                return part
            if time.monotonic() > deadline:
                raise LabError(f"tcpdump in {self._netns} does not see the packets on {self._interface}")
            time.sleep(_POLL_SECONDS)


def _send(datagram: bytes, address: Address) -> None:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(datagram, (str(address), _DISCARD_PORT))
