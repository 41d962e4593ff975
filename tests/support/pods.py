"""Two pods joined by a router, and what capture tests do with them.

10.91.1.2 client eth0 --- a0 10.91.1.1  router  10.91.2.1 b0 --- eth0 server 10.91.2.2
fd91:1::2                    fd91:1::1          fd91:2::1                    fd91:2::2

IPv6 is there for tests that ask for it: the workloads have both addresses then, and IPv6 is what is dialled.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

from nodeseal.capture.backends import ruleset
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.bpf import cache, runtime, steering
from nodeseal.capture.bpf.compile import Compiled, compile_in_child
from nodeseal.capture.cleanup import Report, cleanup
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.mesh.address import Address
from support.connection import echo, family_of
from support.kept import kept_in
from support.namespaces import Namespace, Namespaces, iptables_rules
from support.options import BACKEND
from support.relay import Relay
from support.server import Server

CLIENT, CLIENT_6 = "10.91.1.2", "fd91:1::2"
SERVER, SERVER_6 = "10.91.2.2", "fd91:2::2"


@functools.cache
def compiled() -> Compiled:
    """bpf/, compiled once for as long as it does not change: what was compiled is kept in build/tests."""
    with kept_in("bpf") as directory:
        return cache.load_or_compile(directory, compile_in_child)


class Pods:
    """The topology, captures with their run directories, relays and servers; all gone at the end."""

    def __init__(self, directory: Path, *, tcx: bool = True, version: int = 4, backend: Choice | None = None) -> None:
        """`tcx`: False makes capture believe that the kernel has no TCX. `version`: 6 for workloads with both
        addresses, and `client_at` and `server_at`, where they are dialled, of IPv6. `backend`: None for the one that
        was asked for."""
        self._directory = directory
        self.backend = backend or BACKEND.asked()
        self.version = version
        self.client_at, self.server_at = (CLIENT, SERVER) if version == 4 else (CLIENT_6, SERVER_6)
        self.client_gateway = "10.91.1.1" if version == 4 else "fd91:1::1"
        self.tcx = tcx
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pods:
        net = self._stack.enter_context(Namespaces())
        self.net = net
        self.client, self.router, self.server = (net.create(label) for label in ("client", "router", "server"))
        net.join(self.client, "eth0", f"{CLIENT}/24", self.router, "a0", "10.91.1.1/24")
        net.join(self.server, "eth0", f"{SERVER}/24", self.router, "b0", "10.91.2.1/24")
        self.router.sysctl("net/ipv4/ip_forward", 1)
        self.client.ip("route", "add", "default", "via", "10.91.1.1")
        self.server.ip("route", "add", "default", "via", "10.91.2.1")
        if self.version == 6:
            self._join_ipv6(self.client, CLIENT_6, "a0", "fd91:1::1")
            self._join_ipv6(self.server, SERVER_6, "b0", "fd91:2::1")
            self.router.sysctl("net/ipv6/conf/all/forwarding", 1)
        self._patch(runtime, "compile_in_child", compiled)
        if not self.tcx:
            self._patch(steering, "probe_tcx", lambda: False)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _join_ipv6(self, pod: Namespace, address: str, peer: str, gateway: str) -> None:
        pod.add_address("eth0", f"{address}/64")
        self.router.add_address(peer, f"{gateway}/64")
        pod.ip("-6", "route", "add", "default", "via", gateway)

    @property
    def client_target(self) -> CaptureTarget:
        """The client as a workload."""
        return CaptureTarget("default/client", self.client.name, self._addresses(CLIENT, CLIENT_6))

    @property
    def server_target(self) -> CaptureTarget:
        """The server as a workload."""
        return CaptureTarget("default/server", self.server.name, self._addresses(SERVER, SERVER_6))

    def _addresses(self, *both: str) -> tuple[Address, ...]:
        return tuple(map(ip_address, both[: 1 if self.version == 4 else 2]))

    def _patch(self, module: ModuleType, name: str, value: object) -> None:
        self._stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def steered(self, namespace: Namespace, device: str = "eth0") -> bool:
        """Whether what comes in by a device is captured, in the way that is expected of this kernel."""
        if self.backend is Choice.IPTABLES:
            jumps = [rule for rule in namespace.run(iptables_rules) if rule.endswith(f"-j {ruleset.PREROUTING}")]
            return bool(jumps) and not namespace.tcx_programs(device) and not namespace.qdisc_exists(device)
        if self.tcx:
            return bool(namespace.tcx_programs(device)) and not namespace.qdisc_exists(device)
        return namespace.filter_exists(device) and not namespace.tcx_programs(device)

    def capture(self, node: str = "node1") -> NodeCapture:
        """A prepared capture with a run directory of its own; the same node again stands for a new agent."""
        capture = NodeCapture(self.run_dir(node), choice=self.backend)
        capture.prepare()
        self._stack.callback(self.cleanup, node)
        self._stack.callback(capture.close)
        return capture

    def at_end(self, action: Callable[[], object]) -> None:
        """Call this when the test is over, before what was made earlier is removed."""
        self._stack.callback(action)

    def run_dir(self, node: str = "node1") -> Path:
        """The run directory of a node."""
        return self._directory / node

    def cleanup(self, node: str = "node1") -> Report:
        """`nodeseal cleanup` for a node."""
        report = cleanup(self.run_dir(node))
        assert report.failed == []
        return report

    def relay(self, captured: Captured) -> Relay:
        """Serve the captured connections of a workload."""
        namespace = captured.namespace.path.name
        relay = Relay(next(item for item in self.net.all if item.name == namespace).run, captured.listeners)
        self._stack.callback(relay.close)
        return relay

    def echo(self, namespace: Namespace, port: int = 8080, *, address: str = "::", device: str = "") -> Server:
        """An echo server; `address`: any of both families, unless given."""

        def bind_to_device(listener: socket.socket) -> None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")

        server = Server(namespace.run, echo, address, port, prepare=bind_to_device if device else None)
        self._stack.callback(server.close)
        return server

    def dial(
        self,
        namespace: Namespace,
        destination: tuple[str, int],
        *,
        family: int | None = None,
        timeout: float = 5.0,
        options: tuple[tuple[int, int, bytes | int], ...] = (),
        source_port: int = 0,
        protocol: int = 0,
    ) -> socket.socket:
        """A connection of an application in the namespace."""

        def connect() -> socket.socket:
            connection = socket.socket(family or family_of(destination[0]), socket.SOCK_STREAM, protocol)
            try:
                connection.settimeout(timeout)
                for level, option, value in options:
                    connection.setsockopt(level, option, value)
                if source_port:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    connection.bind(("", source_port))
                connection.connect(destination)
            except BaseException:
                connection.close()
                raise
            return connection

        connection = namespace.run(connect)
        self._stack.callback(connection.close)
        return connection
