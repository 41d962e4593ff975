"""BPF programs by BPF_PROG_TEST_RUN, in a namespace of their own, and the packets to feed them with."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

from nodeseal.capture import constants
from nodeseal.capture.bpf.maps import enter_listener, mapped
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.bypass import Bypass
from nodeseal.linux import bpf
from support.namespaces import Namespaces
from support.patience import wait_for
from support.pods import compiled

DEVICE_ADDRESS, DEVICE_ADDRESS_6 = "10.93.0.5", "fd93::5"
PEER_ADDRESS, PEER_ADDRESS_6 = "10.93.0.9", "fd93::9"
BOTH_FAMILIES = constants.FAMILIES[4] | constants.FAMILIES[6]
POD_MAPS = ("listeners", "settings", "revisited", "parked", "self")
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


def ipv6(
    payload: bytes,
    *headers: tuple[int, bytes],
    protocol: int = 6,
    source: str = PEER_ADDRESS_6,
    destination: str = DEVICE_ADDRESS_6,
) -> bytes:
    """A packet with extension headers, each its number and what follows its first byte, which names the next one."""
    for number, rest in reversed(headers):
        payload = bytes([protocol]) + rest + payload
        protocol = number
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64) + addresses + payload


def tcp(destination: int, flags: int, source: int = 40000) -> bytes:
    """A TCP header."""
    return struct.pack("!HHIIBBHHH", source, destination, 1000, 2000, 5 << 4, flags, 65535, 0, 0)


class Bench:
    """One program with maps of its own, in a namespace with the device d0 (10.93.0.5/24, fd93::5/64)."""

    def __init__(
        self, stack: ExitStack, program: str, programs: Programs | None = None, *, settings: int = BOTH_FAMILIES
    ) -> None:
        """`settings`: as in the map of that name; the families in which the workload has an address, usually."""
        self.namespace = stack.enter_context(Namespaces()).create("bench")
        self.namespace.ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
        self.namespace.add_address("d0", f"{DEVICE_ADDRESS}/24")
        self.namespace.add_address("d0", f"{DEVICE_ADDRESS_6}/64")
        for device in ("d0", "d1"):
            self.namespace.ip("link", "set", device, "up")
        self.namespace.ip("route", "add", "default", "dev", "d0")
        self.namespace.ip("-6", "route", "add", "default", "dev", "d0")
        self._index = self.namespace.json("link", "show", "d0")[0]["ifindex"]
        programs = programs or Programs(compiled())
        self._maps = {
            name: programs.new_map(name)
            for name in (*POD_MAPS, "counters", "own", "owned", "bypass", "places", "rings", *constants.NATIVE_MAPS)
        }
        self._program = programs.load(program, self._maps)
        bpf.map_update(self._maps["settings"], bytes(4), struct.pack("=I", settings))
        for fd in (*self._maps.values(), self._program):
            stack.callback(os.close, fd)

    @contextmanager
    def listener(self, role: int) -> Iterator[int]:
        """Someone holds the listener of this role; its socket cookie."""
        with self.namespace.run(lambda: listen("::ffff:127.0.0.1")) as made:
            enter_listener(self._maps["listeners"], role, made.fileno())
            yield struct.unpack("=Q", made.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]

    @contextmanager
    def connection(self, port: int, address: str = DEVICE_ADDRESS) -> Iterator[tuple[socket.socket, int]]:
        """A connection of the namespace with itself: the accepted socket, and the port of the other side."""

        def connect() -> tuple[socket.socket, socket.socket]:
            with listen(address, port) as server:
                dialled = socket.create_connection((address, port), source_address=(address, 0))
                return server.accept()[0], dialled

        accepted, dialled = self.namespace.run(connect)
        with accepted, dialled:
            yield accepted, dialled.getsockname()[1]

    def wait_for_time_wait(self, local: int, remote: int) -> None:
        """Until the connection with these ports is in TIME_WAIT."""

        def there() -> bool:
            lines = self.namespace.run(
                lambda: [
                    line
                    for name in ("tcp", "tcp6")
                    for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
                ]
            )
            wanted = (f"{local:04X}", f"{remote:04X}", "06")
            return any((line.split()[1][-4:], line.split()[2][-4:], line.split()[3]) == wanted for line in lines)

        wait_for(there, "TIME_WAIT")

    def packet(self, data: bytes, *, mark: int = 0) -> tuple[int, dict[str, int]]:
        """Run on a packet that comes in by d0, with a mark: the verdict, and the counters that moved."""
        context = bytearray(192)  # struct __sk_buff
        struct.pack_into("=I", context, 8, mark)
        struct.pack_into("=II", context, 36, self._index, self._index)  # ingress_ifindex, ifindex
        before = self._counters()
        verdict, _ = self.namespace.run(lambda: bpf.program_test_run(self._program, data, bytes(context)))
        return verdict, self._moved(before)

    def lookup(
        self, local: str, remote: str, protocol: int = 6, local_port: int = 80, remote_port: int = 40000
    ) -> tuple[int, int, dict[str, int]]:
        """Run as sk_lookup: the verdict, the cookie of the chosen socket (0: none), and the counters that moved."""
        context = bytearray(_SK_LOOKUP_SIZE)  # struct bpf_sk_lookup
        family = socket.AF_INET6 if ":" in local else socket.AF_INET
        # An IPv4 address has a field of its own, in front of that for IPv6.
        place = 4 if family == socket.AF_INET6 else 0
        struct.pack_into("=II", context, 8, family, protocol)
        struct.pack_into("=16s", context, 16 + place, socket.inet_pton(family, remote))
        struct.pack_into("!H", context, 36, remote_port)
        struct.pack_into("=16s", context, 40 + place, socket.inet_pton(family, local))
        struct.pack_into("=I", context, 60, local_port)  # ingress_ifindex must be 0, says the kernel
        before = self._counters()
        verdict, out = self.namespace.run(
            lambda: bpf.program_test_run(self._program, None, bytes(context), _SK_LOOKUP_SIZE)
        )
        return verdict, struct.unpack_from("=Q", out)[0], self._moved(before)

    def bypass(self, entries: Mapping[bytes, int]) -> None:
        """These entries and no others in the map of what passes by the core."""
        Bypass(self._maps["bypass"]).replace(entries)

    @property
    def ring(self) -> int:
        """The ring of parked SYNs."""
        return self._maps["parked"]

    def place(self, address: str, port: int) -> None:
        """A process of the node listens there."""
        key = mapped(ip_address(address)) + struct.pack("!HH", port, 0)
        bpf.map_update(self._maps["places"], key, struct.pack("=III", 1, constants.STATE_CAPTURE, 0))

    def own(self, address: str) -> None:
        """The namespace has this address."""
        bpf.map_update(self._maps["own"], mapped(ip_address(address)), b"\1")

    def note(self, source: str, source_port: int, destination: str, destination_port: int, age_ns: int = 0) -> None:
        """Note a SYN as steer_ingress does."""
        when = struct.pack("=Q", time.monotonic_ns() - age_ns)
        bpf.map_update(self._maps["revisited"], _flow(source, source_port, destination, destination_port), when)

    def revisited(self, source: str, source_port: int, destination: str, destination_port: int) -> bool:
        """Whether steer_ingress has noted this SYN."""
        key = _flow(source, source_port, destination, destination_port)
        return bpf.map_lookup(self._maps["revisited"], key, 8) is not None

    def _counters(self) -> list[int]:
        cpus = os.cpu_count() or 1
        values = []
        for key in range(len(constants.COUNTERS)):
            value = bpf.map_lookup(self._maps["counters"], struct.pack("=I", key), 8 * max(cpus, 256))
            values.append(sum(item for (item,) in struct.iter_unpack("=Q", value or b"")))
        return values

    def _moved(self, before: list[int]) -> dict[str, int]:
        after = self._counters()
        return {name: new - old for name, old, new in zip(constants.COUNTERS, before, after, strict=True) if new != old}


def _flow(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    ends = mapped(ip_address(source)) + mapped(ip_address(destination))
    return ends + struct.pack("!HH", source_port, destination_port)


def listen(address: str, port: int = 0) -> socket.socket:
    """A listening socket; one of IPv6 is good for IPv4 as well."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind((address, port))
    made.listen()
    return made
