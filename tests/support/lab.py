"""A lab with real agents and cores for tests, and small socket programs inside its pods.

    with running_lab(tmp_path, more_pods=("web:node2:plain",)) as lab, Programs(lab) as programs:
        server = programs.serve("pipeline", echo)
        with programs.sniff("node1") as wire:
            client = programs.dial("shipper", server.address)
            client.sendall(b"hello")
            ...
            assert not wire.carries(b"hello")
        row = lab.outbound(client)

The programs are threads of the test itself: a socket belongs for life to the network namespace that it was made in, so
only socket() is called inside the pod's. A lab takes a few seconds to come up: share one among tests that do not
disturb each other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

from nodeseal.cores.client import CoreClient
from nodeseal_lab import agents
from nodeseal_lab.demo.pcap import TCP, UDP, Packet, parse_frame, streams
from nodeseal_lab.errors import AgentError
from nodeseal_lab.lab import Lab, take_down
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN, Plan, PodRequest
from nodeseal_lab.processes import child_environment
from nodeseal_lab.topology import UPLINK
from support.namespaces import wait_for
from support.node_rules import asked_node_rules
from support.workers import add_settings, lab_settings

T = TypeVar("T")
Address = tuple[str, int]

HBONE_PORT = 15008
PATIENCE = 60.0
"""Seconds after which what should have happened has not: only a test that fails waits for so long."""

QUICK_SETTLE = "500ms"
"""How long workloads join and leave, where no test opens connections meanwhile. Where one does, it has to be SETTLE of
nodeseal_lab.mesh_state: a SYN that is lost is sent again after a second."""

BOTH_FAMILIES = pytest.mark.parametrize("programs", [4, 6], ids=["ipv4", "ipv6"], indirect=True)
"""For single tests in a lab with IPv6. A module whose tests all run over both says IP_VERSIONS instead."""

_DISCARD_PORT = 9
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/if_packet.h
_numbers = itertools.count()
live_labs: list[RunningLab] = []
"""The labs that are up now; see tests/netns/conftest.py."""


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Asks again until the condition holds; its value. Fails the test, naming `what`, when it never does."""
    return wait_for(condition, what, seconds)


class RunningLab:
    """A lab that is up: `lab` is the product's own, the rest is what tests ask of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = lab.directory

    def address(self, pod: str, version: int = 4) -> str:
        """The pod's address of that version of IP."""
        return next(str(one) for one in self.lab.plan.pod(pod).addresses if one.version == version)

    def identity(self, pod: str) -> str:
        """The pod's SPIFFE id."""
        return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{pod}"

    def node_of(self, pod: str) -> str:
        """The name of the pod's node."""
        return self.lab.plan.pod(pod).node

    def run(self, pod: str, function: Callable[[], T]) -> T:
        """Calls the function inside the pod's network namespace."""
        return run_in(self.lab.plan.pod(pod).netns, function)

    def run_dir(self, node: str) -> Path:
        """The run directory of the node's agent."""
        return self.lab.run_dirs[node]

    def sysctl(self, pod: str, name: str, value: str | None = None) -> str:
        """A setting of the pod's namespace ("ipv4/tcp_syncookies"), after writing it when a value is given."""

        def body() -> str:
            path = Path("/proc/sys/net", name)
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

        return self.run(pod, body)

    # ---- what the agents say

    def status(self, node: str) -> dict[str, Any]:
        """The agent's status. Raises AgentError when it does not answer."""
        return agents.ask_agent(self.run_dir(node), "status")

    def workload(self, pod: str) -> dict[str, Any]:
        """The pod in its agent's status."""
        return agents.workloads_of(self.run_dir(self.node_of(pod)))[pod]

    def connections(self, node: str) -> list[dict[str, Any]]:
        """The connections of the node, as `nodeseal connections -o json` gives them."""
        rows: list[dict[str, Any]] = agents.ask_agent(self.run_dir(node), "connections")["connections"]
        return rows

    def refused(self, node: str, **wanted: object) -> list[dict[str, Any]]:
        """The peers that the node refused, as `nodeseal connections -o json` gives them, with these values."""
        rows: list[dict[str, Any]] = agents.ask_agent(self.run_dir(node), "connections")["refused"]
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def outbound(self, client: socket.socket) -> dict[str, Any]:
        """The row of a connection that was dialled in a pod, on the pod's own node; waits until it is there and
        decided."""
        source = endpoint(client.getsockname())
        own = client.getsockname()[0]
        node = next(pod.node for pod in self.lab.plan.pods if own in map(str, pod.addresses))

        def find() -> dict[str, Any] | None:
            rows = [row for row in self.connections(node) if row["source"] == source and row["direction"] == "outbound"]
            return rows[0] if rows and rows[0]["state"] not in ("deciding", "connecting") else None

        return wait_until(find, f"the agent of {node} shows the connection from {source}")

    def enrolled(self, *pods: str) -> bool:
        """Whether every one of the pods is enrolled; False as well while an agent does not answer."""
        try:
            return all(self.workload(pod)["enrolled"] for pod in pods)
        except (AgentError, KeyError):
            return False

    def logs(self) -> Iterator[tuple[str, str]]:
        """(name, the last lines) of every agent's and core's log."""
        for run_dir in self.lab.run_dirs.values():
            for name in ("agent.log", "core.log"):
                with contextlib.suppress(OSError):
                    yield f"{run_dir.name}/{name}", "\n".join((run_dir / name).read_text().splitlines()[-40:])

    def core_stats(self, node: str) -> dict[str, int]:
        """The counters of the node's core. Raises CoreError when it does not answer."""
        core = CoreClient.connect(self.run_dir(node))
        try:
            return core.stats()[0]
        finally:
            core.close()

    # ---- the nodes' processes

    def agent_pid(self, node: str) -> int:
        """The running agent. Fails the test when there is none."""
        pid = agents.agent_pid(self.run_dir(node))
        assert pid is not None, f"no agent runs on {node}"
        return pid

    def agent_runs(self, node: str) -> bool:
        """Whether there is an agent, also one that is stopped and answers nobody."""
        return agents.agent_pid(self.run_dir(node)) is not None

    def core_pids(self, node: str) -> list[int]:
        """Every core that runs, the newest first."""
        return agents.core_pids(self.run_dir(node))

    def core_pid(self, node: str) -> int:
        """The running core. Fails the test when there is none."""
        pids = agents.core_pids(self.run_dir(node))
        assert pids, f"no core runs on {node}"
        return pids[0]

    def kill_agent(self, node: str, number: int = signal.SIGKILL) -> None:
        """Signals the agent and waits until it has ended."""
        end_process(self.agent_pid(node), number)

    def kill_core(self, node: str, number: int = signal.SIGKILL) -> None:
        """Signals the core and waits until it has ended."""
        end_process(self.core_pid(node), number)

    def start_agent(self, node: str, **settings: Any) -> None:
        """Starts the node's agent, `settings` added to its configuration, and waits until it answers."""
        run_dir = self.run_dir(node)
        add_settings(run_dir / "agent.yaml", settings)
        record = agents.start_agent(self.lab.processes, self.lab.plan.node(node), run_dir)
        agents.wait_for_agents({node: run_dir}, [record])

    def start_agents(self) -> None:
        """Starts the agent of every node that has none, all at the same time, and waits until they answer."""
        missing = {name: run_dir for name, run_dir in self.lab.run_dirs.items() if not self.agent_runs(name)}
        nodes = [(self.lab.plan.node(name), run_dir) for name, run_dir in missing.items()]
        records = [agents.start_agent(self.lab.processes, node, run_dir) for node, run_dir in nodes]
        agents.wait_for_agents(missing, records)

    def restart_agent(self, node: str, number: int = signal.SIGTERM, **settings: Any) -> None:
        """kill_agent, start_agent."""
        self.kill_agent(node, number)
        self.start_agent(node, **settings)

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command line: nodeseal ARGUMENTS."""
        return nodeseal(*arguments, **options)


@contextlib.contextmanager
def running_lab(
    root: Path,
    *,
    more_pods: Sequence[str] = (),
    host_workloads: Sequence[str] = (),
    enrol: bool = True,
    with_agents: bool = True,
    with_apps: bool = False,
    supervised: bool = False,
    settings: dict[str, Any] | None = None,
    ipv6: bool = False,
    node_rules: str | None = None,
) -> Iterator[RunningLab]:
    """A lab with a name of its own below `root`, gone at the end. `more_pods` as in `lab up --pod`, `host_workloads` as
    in `lab up --host-workload`; `node_rules` as in `lab up --node-rules`, None: those that were asked for; `settings`
    are added to the agents' configuration, whose `settle` is QUICK_SETTLE otherwise. An agent that ends stays away
    unless `supervised`."""
    name = f"t{os.getpid()}x{next(_numbers)}"
    requests = [PodRequest.parse(text) for text in more_pods]
    requests += [PodRequest.parse_host_workload(text) for text in host_workloads]
    rules = asked_node_rules() if node_rules is None else node_rules
    plan = Plan.build(name, more_pods=requests, enrol=enrol, ipv6=ipv6, node_rules=rules)

    with lab_settings({"settle": QUICK_SETTLE} | (settings or {})):
        lab = Lab.up(plan, with_agents=with_agents, with_apps=with_apps, supervised=supervised, root=root)
    running = RunningLab(lab)
    live_labs.append(running)
    try:
        yield running
    finally:
        live_labs.remove(running)
        report = take_down(name, root)
    assert report.failures == (), "the lab was not taken down"


def nodeseal(*arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `nodeseal ARGUMENTS` as a user does, output captured as text. `options` as for subprocess.run; `env` is
    added to the environment."""
    environment = child_environment() | options.pop("env", {})
    prefix: Sequence[str] = options.pop("prefix", ())
    return subprocess.run(
        [*prefix, sys.executable, "-m", "nodeseal", *arguments],
        **{"capture_output": True, "text": True, "check": False, "timeout": timeout, "env": environment, **options},
    )


def end_process(pid: int, number: int = signal.SIGKILL) -> None:
    """Signals a process and waits until all its threads have ended, and with them its locks and sockets are gone.

    The state Z in /proc/PID/stat comes earlier: it tells of the main thread only."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, number)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            pytest.fail(f"process {pid} does not end after signal {number}")
    finally:
        os.close(process)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def endpoint(address: Address) -> str:
    """ "10.0.0.1:80" or "[fd00::1]:80", as the agents write it."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def family_of(host: str) -> int:
    """The address family of sockets that use this address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


# ---- programs

Handler = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """A server's handler: sends back what it gets, ends when the client does."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def silent(connection: socket.socket) -> None:
    """A server's handler that reads nothing and says nothing: the test works with Server.accepted."""


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes. Raises EOFError when the other side ends before."""
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            raise EOFError(f"the connection ended after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


def echoes(connection: socket.socket, data: bytes = b"4111 1111 1111 1111") -> bool:
    """Whether the other side sends back exactly what is sent."""
    connection.sendall(data)
    return receive_exactly(connection, len(data)) == data


def reset(connection: socket.socket) -> None:
    """Ends a connection with an RST: close() with a linger time of zero (socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Server:
    """Accepts in a pod until close(); `handler` gets each connection in a thread of its own. A handler that returns or
    raises OSError or EOFError leaves the connection open until close(): the test decides how it ends."""

    def __init__(
        self,
        lab: RunningLab,
        pod: str,
        handler: Handler,
        port: int = 0,
        *,
        host: str = "",
        protocol: int = 0,
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> None:
        """`host`: where it listens, at the pod's IPv4 address unless given; `prepare` gets the socket before it
        listens."""
        host = host or lab.address(pod)

        def listen() -> socket.socket:
            listener = socket.socket(family_of(host), socket.SOCK_STREAM, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if prepare is not None:
                prepare(listener)
            listener.bind((host, port))
            listener.listen(1024)
            return listener

        self.peers: list[Address] = []
        self.accepted: list[socket.socket] = []
        self._handler = handler
        self._threads: list[threading.Thread] = []
        self._listener = lab.run(pod, listen)
        self.address: Address = self._listener.getsockname()[:2]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def connection(self, number: int = 0) -> socket.socket:
        """The connection that was accepted as number `number`, once it is."""
        return wait_until(lambda: self.accepted[number : number + 1], "the server accepts the connection")[0]

    def connection_from(self, host: str, number: int = 0) -> socket.socket:
        """The `number`th connection from this address, once it is accepted."""

        def find() -> list[socket.socket]:
            pairs = zip(list(self.peers), list(self.accepted), strict=False)
            return [one for peer, one in pairs if peer[0] == host][number : number + 1]

        return wait_until(find, f"the server accepts a connection from {host}")[0]

    def close(self) -> None:
        """Ends the listener and every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in self.accepted:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for connection in self.accepted:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            self.peers.append(peer[:2])
            self.accepted.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._handler(connection)


class Programs:
    """The sockets, servers and sniffers of one test; all closed at the end."""

    def __init__(self, lab: RunningLab, version: int = 4) -> None:
        """`version`: of the IP over which the pods are to talk; 6 needs a lab that has it."""
        self.lab = lab
        self.version = version
        self._stack = contextlib.ExitStack()
        self._dialled: list[socket.socket] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First of all: a thread that is to be waited for may hang on one of these.
        for connection in self._dialled:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._stack.close()

    def at_end(self, action: Callable[[], object]) -> None:
        """Calls this when the test is over, before what was made earlier is closed."""
        self._stack.callback(action)

    def at(self, pod: str) -> str:
        """The pod's address."""
        return self.lab.address(pod, self.version)

    def serve(self, pod: str, handler: Handler = echo, port: int = 0, **options: Any) -> Server:
        """A server in the pod; port 0: a free one, see Server.address. `options` as for Server."""
        server = Server(self.lab, pod, handler, port, **{"host": self.at(pod), **options})
        self._stack.callback(server.close)
        return server

    def dial(self, pod: str, address: Address, *, timeout: float = PATIENCE) -> socket.socket:
        """A connection from the pod. Raises OSError."""

        def connect() -> socket.socket:
            connection = socket.socket(family_of(address[0]))
            try:
                connection.settimeout(timeout)
                connection.connect(address)
            except BaseException:
                connection.close()
                raise
            return connection

        connection = self.lab.run(pod, connect)
        self._dialled.append(connection)
        self._stack.callback(connection.close)
        return connection

    def sniff(self, node: str = "node1") -> Sniffer:
        """Everything on the wire between this node and the others, from now on."""
        here = self.lab.lab.plan.node(node)
        there = next(other for other in self.lab.lab.plan.nodes if other != here)
        marks = [(here.netns, str(there.address)), (there.netns, str(here.address))]
        return self._sniffer(Sniffer(here.netns, UPLINK, marks))

    def sniff_pod(self, pod: str) -> Sniffer:
        """Everything between the pod and its node, from now on."""
        here = self.lab.lab.plan.pod(pod)
        node = self.lab.lab.plan.node(here.node)
        marks = [(node.netns, str(here.address)), (here.netns, str(node.gateway))]
        return self._sniffer(Sniffer(node.netns, here.link, marks))

    def thread(self, function: Callable[[], object]) -> Worker:
        """Runs the function in a thread; it is waited for at the end of the test."""
        worker = Worker(function)
        self._stack.callback(worker.wait)
        return worker

    def _sniffer(self, sniffer: Sniffer) -> Sniffer:
        self._stack.callback(sniffer.close)
        return sniffer


class Worker:
    """A thread whose exception is not lost: result() raises it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._value: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the function has not returned yet."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Waits for the end, whichever it is."""
        self._thread.join(PATIENCE)

    def result(self) -> Any:
        """What the function returned. Raises what it raised; fails the test when it does not end."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            pytest.fail("a program of the test does not end")
        if self._error is not None:
            raise self._error
        return self._value

    def _body(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error


class Lines:
    """Numbered lines to an echo server and back, one after the other, until told to stop. Each answer is checked: a
    byte lost, doubled or out of order ends it with an error."""

    def __init__(self, programs: Programs, pod: str, address: Address) -> None:
        self.connection = programs.dial(pod, address)
        self.count = 0
        self._stop = threading.Event()
        self._worker = programs.thread(self._run)
        programs.at_end(self._stop.set)

    def goes_on(self) -> None:
        """Waits for some more lines. Fails the test when there are none."""
        wanted = self.count + 20
        wait_until(lambda: self.count >= wanted or not self._worker.running, "lines go on")
        if not self._worker.running:
            self._worker.result()

    def finish(self) -> int:
        """Stops, and returns how many lines there were. Raises what went wrong."""
        self._stop.set()
        self._worker.result()
        return self.count

    def _run(self) -> None:
        # The pause only leaves the processors to others.
        while not self._stop.wait(0.001):
            line = b"line %09d %s\n" % (self.count, b"x" * (self.count % 997))
            self.connection.sendall(line)
            answer = receive_exactly(self.connection, len(line))
            assert answer == line
            self.count += 1


# ---- the wire


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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> list[Packet]:
        """The TCP packets since the last cut; none that was sent before this call is missing, and none was lost."""
        words = [secrets.token_bytes(16) for _ in self._marks]
        for word, (netns, address) in zip(words, self._marks, strict=True):
            run_in(netns, lambda word=word, address=address: _send(word, address))

        def seen() -> bool:
            datagrams = {packet.payload for packet in self._packets[self._taken :] if packet.protocol == UDP}
            return datagrams.issuperset(words)

        wait_until(seen, "the sniffer sees its own mark")
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
