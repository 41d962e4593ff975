"""What can be seen on the wire between the nodes while a peer runs: a figure for a proxy that does not encrypt is worth
nothing, and neither is one for a "capture" that let everything pass."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from bench.bed import Bed
from bench.errors import BenchError
from bench.peers.peer import Peer, Started
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.topology import UPLINK

MARKER = b"nodeseal-bench-marker"
REQUEST = b"GET /keep HTTP/1.1\r\nHost: bench\r\nX-Marker: " + MARKER + b"\r\n\r\n"
RESPONSE_SIZE = 1024 + len(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\n\r\n")

_ETH_P_ALL = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """Bytes of frames that crossed node1's uplink, and whether the marker of the exchange could be read in one."""

    size: int
    marker: bool


def watch_exchange(bed: Bed, target: str) -> Seen:
    """Makes one exchange and looks at everything that crosses the wire meanwhile. The marker is short and stands
    within one segment."""
    node = bed.lab.plan.nodes[0]

    def listen() -> socket.socket:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sniffer.bind((UPLINK, _ETH_P_ALL))
        return sniffer

    with run_in(node.netns, listen) as sniffer:
        bed.exchange(target, REQUEST, RESPONSE_SIZE)
        sniffer.settimeout(0.05)
        frames = []
        try:
            while True:
                frames.append(sniffer.recv(1 << 17))
        except TimeoutError:
            return Seen(sum(map(len, frames)), any(MARKER in frame for frame in frames))


def check_wire(bed: Bed, peer: Peer, started: Started) -> None:
    """Raises BenchError when the wire shows what it should not, or the look at it shows nothing."""
    seen = watch_exchange(bed, started.target)
    if seen.size < RESPONSE_SIZE:
        raise BenchError(f"{peer.name}: only {seen.size} bytes crossed the wire for a response of {RESPONSE_SIZE}")
    if seen.marker and peer.encrypts:
        raise BenchError(f"{peer.name}: plaintext is on the wire between the nodes; its figures would say nothing")
    if not seen.marker and not peer.encrypts:
        raise BenchError(f"{peer.name}: its plaintext was not found on the wire, so the look for it proves nothing")
