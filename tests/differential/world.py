"""What a case has: a client, a server, where to dial and where to listen. It cannot tell which lab it is in."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from differential.place import COMMAND_SECONDS, LIMIT, Place
from differential.router import Router
from differential.setting import Setting
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.topology import BRIDGE
from support.connection import Address, echo
from support.patience import wait_for
from support.tcp_table import LISTEN, tcp_table

Handler = Callable[[socket.socket], object]
_numbers = itertools.count()


class World:
    """One run of one case in one of the labs; what is opened through it is closed at the end."""

    def __init__(self, lab: Lab, places: Callable[[str], Place], setting: Setting, ports: Sequence[int]) -> None:
        """`ports`: nobody else has them in this lab."""
        relation = setting.relation
        self.version = setting.version
        self.client = places(relation.client)
        self.server = places(relation.server)
        self.port = relation.port or ports[0]
        self.more_ports = tuple(ports[1:])
        """For a bound source, or a second server, where the server is a pod."""
        service = next(iter(lab.plan.services)).addresses
        self.service = next(str(one) for one in service if one.version == self.version)
        self.target: Address = (self.service if relation.service else self.server.address(self.version), self.port)
        """What the client dials."""
        self.source = self.client.address(self.version)
        self.places = places
        self._plan = lab.plan
        self._directory: Path | None = None
        self._stack = contextlib.ExitStack()

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of sockets."""
        return socket.AF_INET6 if self.version == 6 else socket.AF_INET

    def new_socket(self, seconds: float | None = LIMIT) -> socket.socket:
        """A client's socket; `seconds`: what it waits at most (Python polls then), None: it blocks."""
        client = self.client.make_socket(self.family)
        client.settimeout(seconds)
        return self.closing(client)

    def listen(
        self,
        backlog: int = 128,
        *,
        port: int = 0,
        at: str = "",
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> socket.socket:
        """A server's socket that listens at its own address, or `at` another; `prepare` gets it before that."""
        listener = self.server.make_socket(self.family)
        self.closing(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if prepare is not None:
            prepare(listener)
        listener.bind((at or self.server.address(self.version), port or self.port))
        listener.listen(backlog)
        listener.settimeout(LIMIT)
        return listener

    def serve(self, handler: Handler = echo, *, port: int = 0, at: str = "", backlog: int = 128) -> Served:
        """A server with a thread for each connection; the handler's connection is closed when it returns."""
        served = Served(self.listen(backlog, port=port, at=at), handler)
        self._stack.callback(served.close)
        return served

    def dial(self) -> socket.socket:
        """A connection to the server. Raises OSError."""
        return self.dial_to(self.target)

    def dial_to(self, address: Address) -> socket.socket:
        """A connection of the client to somewhere. Raises OSError."""
        client = self.new_socket()
        client.connect(address)
        return client

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """The two ends of a connection, the client's and the server's."""
        listener = self.listen()
        client = self.dial()
        accepted, _ = listener.accept()
        accepted.settimeout(LIMIT)
        return client, self.closing(accepted)

    def closing(self, one: socket.socket) -> socket.socket:
        """The socket, which is closed with the world."""
        self._stack.callback(one.close)
        return one

    def program(self, place: Place, *argv: str, ready: int | None = None) -> subprocess.Popen[str]:
        """A program that runs until the world is closed; `ready`: the port of it that has to listen first."""
        process = place.start(*argv)
        self._stack.callback(_end, process)
        if ready is not None:
            wait_for(lambda: process.poll() is not None or listens(place, ready), f"{argv[0]} listens")
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
        return process

    @property
    def directory(self) -> Path:
        """For files, until the world is closed."""
        if self._directory is None:
            self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self._directory

    def named(self, names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """What to put before a command, so that these names stand for these addresses (/etc/hosts)."""
        path = self.directory / "hosts"
        lines = [f"{address} {name}" for name, addresses in names.items() for address in addresses]
        path.write_text("127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in lines))
        return ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(path))

    def node_of(self, place: Place) -> str:
        """The network namespace of the place's node."""
        return self._plan.node(place.plan.node).netns

    def filter(self, netns: str, hook: str, rule: str) -> Callable[[], None]:
        """A rule of nftables at a hook ("input") of a namespace, until what it returns is called, or the world is
        closed."""
        table = f"case{next(_numbers)}"
        _nft(netns, f"table inet {table} {{ chain case {{ type filter hook {hook} priority 0; {rule}; }}; }}")
        return self._once(lambda: _nft(netns, f"delete table inet {table}"))

    def nat(self, netns: str, hook: str, rule: str) -> None:
        """A rule that translates addresses at a hook ("prerouting"), until the world is closed."""
        table, priority = f"case{next(_numbers)}", {"prerouting": -110, "postrouting": 90}[hook]
        _nft(netns, f"table inet {table} {{ chain case {{ type nat hook {hook} priority {priority}; {rule}; }}; }}")
        self._stack.callback(_nft, netns, f"delete table inet {table}")

    def route(self, netns: str, *route: str) -> None:
        """A route of a namespace ("unreachable", "192.0.2.0/24"), until the world is closed."""
        _run(netns, "ip", f"-{self.version}", "route", "add", *route)
        self._stack.callback(_run, netns, "ip", f"-{self.version}", "route", "del", *route)

    def router_says(self, address: str, says: str) -> None:
        """The client's router answers SYNs to this address, see router.py, until the world is closed."""
        node = self.node_of(self.client)
        family = "ip6" if self.version == 6 else "ip"
        self.filter(node, "forward", f"{family} daddr {address} drop")
        self._stack.callback(Router(node, BRIDGE, self.version, address, says).close)

    def at_end(self, action: Callable[[], object]) -> None:
        """Calls it before what was opened earlier is closed."""
        self._stack.callback(action)

    def _once(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action, to be called at any time; otherwise it is when the world is closed."""
        left = [action]

        def act() -> None:
            while left:
                left.pop()()

        self._stack.callback(act)
        return act

    def close(self) -> None:
        """End all that was opened."""
        self._stack.close()


class Served:
    """A server that runs until close()."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self.peers: list[Address] = []
        self._listener = listener
        self._handler = handler
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        listener.settimeout(None)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """End the listener and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(LIMIT)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(LIMIT)
            self.peers.append(peer[:2])
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            self._handler(connection)


def listens(place: Place, port: int) -> bool:
    """Whether something listens at this port in the place's namespace."""
    return place.run(lambda: any(one.state == LISTEN and one.local[1] == port for one in tcp_table()))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _nft(netns: str, rules: str) -> None:
    _run(netns, "nft", "-f", "-", text=rules)


def _run(netns: str, *argv: str, text: str = "") -> None:
    done = run_in(
        netns,
        lambda: subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS),
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
