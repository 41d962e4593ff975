"""Watches every frame on the nodes' uplinks for what must never cross them in plaintext.

A program for a lab's fabric; `Watch` (chaos/network.py) starts and asks it. It listens in the namespaces of all nodes
by packet sockets (packet(7)) and looks for two markers: the secret one, which only enrolled workloads send to each
other, and the open one, of workloads that are not enrolled: that it is seen shows that the watch works.

Operations:
* stats() -> {"frames", "bytes", "unseen", "open", "secret"}: `unseen` are frames that the kernel could not give to us,
  `open` and `secret` are frames with the marker
* sightings() -> [{"at", "node", "frame"}] of the first secret ones; `at` is CLOCK_MONOTONIC
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

from nodeseal_lab.demo.pcap import parse_frame
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.topology import UPLINK
from support.connection import endpoint
from support.control import ControlServer

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/if_packet.h
_SO_RCVBUFFORCE = 33
_BUFFER = 64 << 20
_FRAMES_PER_TURN = 256
_SIGHTINGS_MAX = 100


class Sniffer:
    """The program. `namespaces`: those of the nodes."""

    def __init__(self, control: Path, secret: bytes, open_marker: bytes, namespaces: list[str]) -> None:
        self._poll = select.epoll()
        self._secret, self._open = secret, open_marker
        self._taps = {tap.fileno(): (tap, name) for name in namespaces for tap in [_tap(name)]}
        self._stats = {"frames": 0, "bytes": 0, "unseen": 0, "open": 0, "secret": 0}
        self._sightings: list[dict[str, Any]] = []
        operations = {"stats": self.stats, "sightings": lambda: self._sightings}
        self._control = ControlServer(control, operations)
        for fd in (*self._taps, self._control.fileno()):
            self._poll.register(fd, select.EPOLLIN)

    def stats(self) -> dict[str, int]:
        for tap, _ in self._taps.values():
            # Reading them clears them.
            self._stats["unseen"] += struct.unpack("=II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        return self._stats

    def run(self) -> None:
        """For ever."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._taps:
                    self._look(*self._taps[fd])
                else:
                    self._control.handle()

    def _look(self, tap: socket.socket, node: str) -> None:
        stats, secret, open_marker = self._stats, self._secret, self._open
        with contextlib.suppress(BlockingIOError):
            for _ in range(_FRAMES_PER_TURN):
                frame = tap.recv(1 << 17)
                stats["frames"] += 1
                stats["bytes"] += len(frame)
                if secret in frame:
                    stats["secret"] += 1
                    if len(self._sightings) < _SIGHTINGS_MAX:
                        seen = {"at": time.monotonic(), "node": node, "frame": _describe(frame)}
                        self._sightings.append(seen)
                elif open_marker in frame:
                    stats["open"] += 1


def _tap(netns: str) -> socket.socket:
    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        opened.setblocking(False)
        opened.bind((UPLINK, _ETH_P_ALL))
        return opened

    return run_in(netns, listen)


def _describe(frame: bytes) -> str:
    packet = parse_frame(frame)
    if packet is None:
        return f"{len(frame)} bytes, no TCP"
    ends = f"{endpoint(packet.flow[:2])} -> {endpoint(packet.flow[2:])}"
    return f"{ends}, sequence {packet.sequence}, {len(packet.payload)} bytes"


def main(control: str, secret: str, open_marker: str, *namespaces: str) -> None:
    """Runs until it is ended. The markers are hexadecimal."""
    Sniffer(Path(control), bytes.fromhex(secret), bytes.fromhex(open_marker), list(namespaces)).run()
