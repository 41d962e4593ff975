"""The network between a lab's nodes in user space, which can be as bad as wanted: a program for the lab's fabric.

`BadLink` (chaos/network.py) starts and asks it. The nodes' cables end in ports of a bridge in the fabric's namespace;
the program takes the ports out of the bridge and carries the frames itself, by packet sockets (packet(7)). It needs no
queueing discipline of the kernel's (netem is missing on many), and nothing of the host's own network namespace. 3,000
frames a second, which a chaos run has, cost it a twentieth of a CPU.

Operations:
* set(loss, delay_ms, jitter_ms, reorder, duplicate): all ports, both ways, from the next frame on
* stats() -> {"frames", "delivered", "lost", "late", "dropped"}: `lost` by intent, `dropped` because a port was down or
  a queue full, `late` the longest time in milliseconds that a frame left after it was due
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import time
from pathlib import Path

from chaos.impairment import Direction, Impairment
from support.control import ControlServer

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23  # linux/if_packet.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 32 << 20
_FRAME_MAX = 1 << 16
_FRAMES_PER_TURN = 64
_QUEUE_MAX = 50_000
_FOR_ALL = 0x01  # the group bit of an Ethernet address


class Link:
    """The program. `ports`: the names of the interfaces that it joins."""

    def __init__(self, control: Path, seed: int, ports: list[str]) -> None:
        self._poll = select.epoll()
        self._ports = [_packet_socket(port) for port in ports]
        self._by_fd = {port.fileno(): number for number, port in enumerate(self._ports)}
        self._directions = [Direction(seed + number) for number in range(len(ports))]
        self._where: dict[bytes, int] = {}  # Ethernet address -> the port behind which it is
        self._due: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()
        self._stats = {"frames": 0, "delivered": 0, "lost": 0, "dropped": 0, "late": 0.0}
        self._control = ControlServer(control, {"set": self.set, "stats": lambda: self._stats})
        for fd in (*self._by_fd, self._control.fileno()):
            self._poll.register(fd, select.EPOLLIN)

    def set(self, **impairment: float) -> None:
        for direction in self._directions:
            direction.impairment = Impairment(**impairment)

    def run(self) -> None:
        """For ever."""
        while True:
            wait = max(self._due[0][0] - time.monotonic(), 0) if self._due else -1
            for fd, _ in self._poll.poll(wait):
                if fd in self._by_fd:
                    self._receive(self._by_fd[fd])
                else:
                    self._control.handle()
            self._deliver()

    def _receive(self, number: int) -> None:
        port, direction, stats = self._ports[number], self._directions[number], self._stats
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame = port.recv(_FRAME_MAX)
            except BlockingIOError:
                return
            except OSError:
                return  # told once that the port went down
            stats["frames"] += 1
            self._where[frame[6:12]] = number
            times = direction.deliveries(time.monotonic())
            if not times:
                stats["lost"] += 1
            elif len(self._due) > _QUEUE_MAX:
                stats["dropped"] += 1
                continue
            for due in times:
                heapq.heappush(self._due, (due, next(self._order), number, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, _, number, frame = heapq.heappop(self._due)
            self._stats["late"] = max(self._stats["late"], (now - due) * 1000)
            to = None if frame[0] & _FOR_ALL else self._where.get(frame[:6])
            for other, port in enumerate(self._ports):
                if other == number or to not in (None, other):
                    continue
                try:
                    port.send(frame)
                    self._stats["delivered"] += 1
                except OSError:
                    self._stats["dropped"] += 1


def _packet_socket(port: str) -> socket.socket:
    """Gets what arrives at the port and sends out of it, never both of the same frame."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    opened.setblocking(False)
    opened.bind((port, _ETH_P_ALL))
    return opened


def main(control: str, seed: str, *ports: str) -> None:
    """Runs until it is ended, in the namespace that the ports are in."""
    from pyroute2 import IPRoute

    link = Link(Path(control), int(seed), list(ports))
    with IPRoute() as links:
        for port in ports:
            # From now on no frame is carried twice.
            links.link("set", index=links.link_lookup(ifname=port)[0], master=0)
    link.run()
