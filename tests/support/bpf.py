"""BPF programs by BPF_PROG_TEST_RUN, in a namespace of their own, and the packets to feed them with."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nodeseal.capture import constants, syscalls
from nodeseal.capture.installation import enter_listener
from nodeseal.capture.programs import Programs
from support.namespaces import Namespaces, wait_for
from support.pods import compiled

DEVICE_ADDRESS = "10.93.0.5"
PEER_ADDRESS = "10.93.0.9"
_SO_COOKIE = 57
_SK_LOOKUP_SIZE = 72


def ethernet(payload: bytes, kind: int = 0x0800) -> bytes:
    """A frame."""
    return b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2" + struct.pack("!H", kind) + payload


def ipv4(
    payload: bytes,
    *,
    protocol: int = 6,
    fragment: int = 0,
    options: bytes = b"",
    source: str = PEER_ADDRESS,
    destination: str = DEVICE_ADDRESS,
) -> bytes:
    """A packet; `fragment`: flags and offset, as in the header. The checksum is not filled in: nobody looks."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (20 + len(options)) // 4,
        0,
        20 + len(options) + len(payload),
        1,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    return header + options + payload


def tcp(destination: int, flags: int, source: int = 40000) -> bytes:
    """A TCP header."""
    return struct.pack("!HHIIBBHHH", source, destination, 1000, 2000, 5 << 4, flags, 65535, 0, 0)


class Bench:
    """One program with maps of its own, in a namespace with the device d0 (10.93.0.5/24)."""

    def __init__(self, stack: ExitStack, program: str, programs: Programs | None = None) -> None:
        self.namespace = stack.enter_context(Namespaces()).create("bench")
        self.namespace.ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
        self.namespace.ip("address", "add", f"{DEVICE_ADDRESS}/24", "dev", "d0")
        for device in ("d0", "d1"):
            self.namespace.ip("link", "set", device, "up")
        self.namespace.ip("route", "add", "default", "dev", "d0")
        self._index = self.namespace.json("link", "show", "d0")[0]["ifindex"]
        programs = programs or Programs(compiled())
        self._maps = {name: programs.new_map(name) for name in ("counters", "listeners", "own", "revisited")}
        self._program = programs.load(program, self._maps)
        for fd in (*self._maps.values(), self._program):
            stack.callback(os.close, fd)

    @contextmanager
    def listener(self, role: int) -> Iterator[int]:
        """Someone holds the listener of this role; its socket cookie."""
        with self.namespace.run(lambda: socket.create_server(("127.0.0.1", 0))) as made:
            enter_listener(self._maps["listeners"], role, made.fileno())
            yield struct.unpack("=Q", made.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]

    @contextmanager
    def connection(self, port: int) -> Iterator[tuple[socket.socket, int]]:
        """A connection of the namespace with itself: the accepted socket, and the port of the other side."""

        def connect() -> tuple[socket.socket, socket.socket]:
            with socket.create_server((DEVICE_ADDRESS, port)) as server:
                dialled = socket.create_connection((DEVICE_ADDRESS, port), source_address=(DEVICE_ADDRESS, 0))
                return server.accept()[0], dialled

        accepted, dialled = self.namespace.run(connect)
        with accepted, dialled:
            yield accepted, dialled.getsockname()[1]

    def wait_for_time_wait(self, local: int, remote: int) -> None:
        """Until the connection with these ports is in TIME_WAIT."""

        def there() -> bool:
            lines = self.namespace.run(lambda: Path("/proc/thread-self/net/tcp").read_text()).splitlines()[1:]
            wanted = (f"{local:04X}", f"{remote:04X}", "06")
            return any((line.split()[1][-4:], line.split()[2][-4:], line.split()[3]) == wanted for line in lines)

        wait_for(there, "TIME_WAIT")

    def packet(self, data: bytes) -> tuple[int, dict[str, int]]:
        """Run on a packet that comes in by d0: the verdict, and the counters that moved."""
        context = bytearray(192)  # struct __sk_buff
        struct.pack_into("=II", context, 36, self._index, self._index)  # ingress_ifindex, ifindex
        before = self._counters()
        verdict, _ = self.namespace.run(lambda: syscalls.program_test_run(self._program, data, bytes(context)))
        return verdict, self._moved(before)

    def lookup(
        self, local: str, remote: str, protocol: int = 6, local_port: int = 80, remote_port: int = 40000
    ) -> tuple[int, int, dict[str, int]]:
        """Run as sk_lookup: the verdict, the cookie of the chosen socket (0: none), and the counters that moved."""
        context = bytearray(_SK_LOOKUP_SIZE)  # struct bpf_sk_lookup
        struct.pack_into("=II4s", context, 8, socket.AF_INET, protocol, socket.inet_aton(remote))
        struct.pack_into("!H", context, 36, remote_port)
        struct.pack_into("=4s", context, 40, socket.inet_aton(local))
        struct.pack_into("=I", context, 60, local_port)  # ingress_ifindex must be 0, says the kernel
        before = self._counters()
        verdict, out = self.namespace.run(
            lambda: syscalls.program_test_run(self._program, None, bytes(context), _SK_LOOKUP_SIZE)
        )
        return verdict, struct.unpack_from("=Q", out)[0], self._moved(before)

    def own(self, address: str) -> None:
        """The namespace has this address."""
        syscalls.map_update(self._maps["own"], socket.inet_aton(address), b"\1")

    def note(self, source: str, source_port: int, destination: str, destination_port: int, age_ns: int = 0) -> None:
        """Note a SYN as steer_ingress does."""
        when = struct.pack("=Q", time.monotonic_ns() - age_ns)
        syscalls.map_update(self._maps["revisited"], _flow(source, source_port, destination, destination_port), when)

    def revisited(self, source: str, source_port: int, destination: str, destination_port: int) -> bool:
        """Whether steer_ingress has noted this SYN."""
        key = _flow(source, source_port, destination, destination_port)
        return syscalls.map_lookup(self._maps["revisited"], key, 8) is not None

    def _counters(self) -> list[int]:
        cpus = os.cpu_count() or 1
        values = []
        for key in range(len(constants.COUNTERS)):
            value = syscalls.map_lookup(self._maps["counters"], struct.pack("=I", key), 8 * max(cpus, 256))
            values.append(sum(item for (item,) in struct.iter_unpack("=Q", value or b"")))
        return values

    def _moved(self, before: list[int]) -> dict[str, int]:
        after = self._counters()
        return {name: new - old for name, old, new in zip(constants.COUNTERS, before, after, strict=True) if new != old}


def _flow(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    return struct.pack(
        "!4s4sHH", socket.inet_aton(source), socket.inet_aton(destination), source_port, destination_port
    )
