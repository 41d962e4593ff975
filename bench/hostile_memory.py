"""What a hostile peer with a proper identity can make a core hold: `python -m bench.hostile_memory`.

One core with one worker in a network namespace of its own has the workload `victim`, with the default limits. A
program of another identity attacks it through tunnels; a client of a third one opens a new stream every 20 ms, in a
tunnel that it has and in new ones, and counts those that are not served. The attacks:

    uploads     10 tunnels of 200 streams send to an application that reads nothing, as much as they were granted
                at first and are granted then. The peer never acknowledges smaller windows for its streams
    crumbs      2,000 streams send one byte each, and another one every second
    ended       one stream after the other sends 1 MiB, ends and is reset with NO_ERROR, 2,000 in all
    tunnels     5,000 tunnels, one after the other, that send nothing
    downloads   2,000 streams ask an application for much and grant it no window

Told is the core's resident memory before, at most, and a minute after the attacker has gone; what the kernel's TCP has
at most (of the whole machine, less what it had before); what the core counts; and how many of the client's streams
were refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import select
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psutil

from bench.certificates import issue_svid, make_authority
from bench.errors import BenchError
from bench.lone import lone_core, lone_namespace
from nodeseal.authority.signer import Signer
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import HBONE_PORT
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.splice.native import LISTEN_HBONE
from nodeseal_lab.errors import LabError
from nodeseal_lab.plan import TRUST_DOMAIN

TUNNELS, STREAMS, LENGTH = 10, 200, 1 << 20
MANY_TUNNELS = 5000
PAUSE = 60.0
_VICTIM, _HOSTILE, _CLIENT = "127.9.9.9", "127.3.0.1", "127.3.0.2"
_SILENT, _ECHO, _SPEAKING = 8080, 8081, 8082
_PATIENCE = 30.0
_PIECE = 16384
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_INITIAL_WINDOW = 65535
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STATUS_200 = 0x88  # RFC 7541 appendix A


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ATTACKS), help="attacks, with commas (default: all)")
    parser.add_argument("--memory", type=int, default=Limits().memory >> 20, help="the victim's limit, in MiB")
    parser.add_argument("--pause", type=float, default=PAUSE, help=f"seconds after an attack (default {PAUSE:g})")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    wanted = options.only.split(",")
    if unknown := set(wanted) - ATTACKS.keys():
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with lone_namespace():
            rows = [measure(name, options.memory << 20, options.pause) for name in wanted]
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(rows, indent=1) if options.output == "json" else markdown(rows))
    return 0


def measure(attack: str, limit: int, pause: float) -> dict[str, Any]:
    """One attack on a new core; sizes in MiB."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodeseal-bench-")))
        site = stack.enter_context(_site(directory, limit))
        client = stack.enter_context(_child(_serve_client, directory))
        _wait_for_ready(client)
        before, kernel_before = site.resident(), _kernel_memory()
        hostile = stack.enter_context(_child(ATTACKS[attack], directory))
        most = kernel = counted = 0.0
        ended = None
        # Until what is held has not grown for five seconds.
        since = time.monotonic()
        while ended is None or time.monotonic() < ended:
            now, tcp = site.resident(), _kernel_memory() - kernel_before
            counted = max(counted, site.counted())
            if now > most + 1 or tcp > kernel + 4:
                since = time.monotonic()
            most, kernel = max(most, now), max(kernel, tcp)
            if ended is None and hostile.done() and time.monotonic() > since + 5:
                ended = time.monotonic()
            time.sleep(0.1)
        hostile.stop()
        client.stop()
        served, refused = client.result()
        time.sleep(pause)
        return {
            "attack": attack,
            "limit": limit >> 20,
            "before": before,
            "most": most,
            "after": site.resident(),
            "kernel": kernel,
            "counted": counted,
            "served": served,
            "refused": refused,
            "cut": hostile.result(),
        }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as they stand in docs/hostile-peers.md."""
    lines = [
        "| attack | core's memory before, at most, a minute after | counted at most | kernel's TCP memory "
        "| another client's new streams: served, refused | tunnels cut |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['attack']} | {row['before']:.0f}, {row['most']:.0f}, {row['after']:.0f} MiB "
            f"| {row['counted']:.0f} MiB | {row['kernel']:.0f} MiB "
            f"| {row['served']}, {row['refused']} | {row['cut']} |"
        )
    return "\n".join(lines)


# ---- what is attacked


class _Site:
    def __init__(self, core: Any, pid: int) -> None:
        self._core = core
        self._pid = pid

    def resident(self) -> float:
        """MiB of the core's process."""
        return psutil.Process(self._pid).memory_info().rss / (1 << 20)

    def counted(self) -> float:
        """MiB that the core counts as held for the victim."""
        _stats, rows = self._core.ask(CoreClient.stats)
        return float(rows[0].memory) / (1 << 20)


def _kernel_memory() -> float:
    """MiB that the machine's TCP sockets hold."""
    line = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    return int(line.split()[line.split().index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextlib.contextmanager
def _site(directory: Path, limit: int) -> Iterator[_Site]:
    victim, hostile, client = _workload("victim", _VICTIM), _workload("hostile", _HOSTILE), _workload("client", _CLIENT)
    authority = make_authority(directory / "ca")
    signer = Signer.load(authority, datetime.now(UTC))
    for peer in (hostile, client):
        _write_certificate(signer, peer, directory / peer.key.name)
    with contextlib.ExitStack() as stack:
        _wait_for_ready(stack.enter_context(_child(_serve_applications, directory)))
        before = _children()
        core = stack.enter_context(lone_core(1, TRUST_DOMAIN))
        (pid,) = _children() - before
        core.ask(CoreClient.mesh, Mesh.build(TRUST_DOMAIN, [victim, hostile, client], []), 1)
        listener = stack.enter_context(socket.create_server((_VICTIM, HBONE_PORT), backlog=4096))
        core.add(1, victim, TRUST_DOMAIN, {LISTEN_HBONE: listener.fileno()})
        identity = victim.identity(TRUST_DOMAIN)
        svid = issue_svid(signer, identity)
        core.ask(CoreClient.trust_bundles, TRUST_DOMAIN, {TRUST_DOMAIN: signer.bundle_pem})
        core.ask(
            CoreClient.workload_credentials,
            1,
            identity,
            chain_pem=svid.chain_pem,
            private_key=svid.key,
            bundle_pem=signer.bundle_pem,
        )
        core.ask(CoreClient.workload_limits, 1, Limits(memory=limit))
        yield _Site(core, pid)


def _write_certificate(signer: Signer, workload: Workload, directory: Path) -> None:
    svid = issue_svid(signer, workload.identity(TRUST_DOMAIN))
    directory.mkdir(mode=0o700)
    for name, text in (("chain", svid.chain_pem), ("key", svid.key.pem()), ("bundle", signer.bundle_pem)):
        (directory / f"{name}.pem").write_text(text)


def _workload(name: str, address: str) -> Workload:
    key = WorkloadName("default", name)
    return Workload(key, name, "node1", (IPv4Address(address),), None, True, Mode.PERMISSIVE, Phase.ENROLLED)


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def _serve_applications(_directory: Path, child: _Child) -> None:
    """At _SILENT nothing is read; at _ECHO all is sent back; at _SPEAKING as much is sent as goes."""
    listeners = {port: socket.create_server((_VICTIM, port), backlog=4096) for port in (_SILENT, _ECHO, _SPEAKING)}
    kept: dict[int, tuple[int, socket.socket]] = {}
    poll = select.epoll()
    for listener in listeners.values():
        poll.register(listener, select.EPOLLIN)
    ports = {listener.fileno(): port for port, listener in listeners.items()}
    child.ready()
    while True:
        for fd, _events in poll.poll(1):
            if fd in ports:
                accepted, _peer = listeners[ports[fd]].accept()
                accepted.setblocking(False)
                kept[accepted.fileno()] = (ports[fd], accepted)
                wanted = {_SILENT: select.EPOLLRDHUP, _ECHO: select.EPOLLIN, _SPEAKING: select.EPOLLOUT}[ports[fd]]
                poll.register(accepted, wanted | (select.EPOLLET if ports[fd] == _SPEAKING else 0))
            elif not _serve(*kept[fd]):
                kept.pop(fd)[1].close()


def _serve(port: int, connection: socket.socket) -> bool:
    """One event of an application's connection; false: it has ended."""
    try:
        if port == _SPEAKING:
            while True:
                connection.send(bytes(_PIECE))
        elif port == _SILENT:
            return False  # its end was announced
        data = connection.recv(_PIECE)
        connection.send(data)
        return bool(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


# ---- programs of their own, so that none waits for another's interpreter


class _Child:
    """A process that runs `function(directory, child)` in this namespace, until stop()."""

    def __init__(self, function: Callable[[Path, _Child], Any], directory: Path) -> None:
        self.stopping = multiprocessing.Event()
        self._ready = multiprocessing.Event()
        self._results: multiprocessing.Queue[Any] = multiprocessing.Queue()
        self._function = function
        self._directory = directory
        self._process = multiprocessing.Process(target=self._run, daemon=True)
        self._process.start()
        self._result: Any = None

    def _run(self) -> None:
        self._results.put(self._function(self._directory, self))

    def ready(self) -> None:
        """The child has done what it is for, or has begun it."""
        self._ready.set()

    def done(self) -> bool:
        """Whether it has said so."""
        return self._ready.is_set()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def result(self) -> Any:
        """What the function returned, after stop()."""
        return self._result

    def stop(self) -> None:
        """Ends it."""
        if self._process.is_alive():
            self.stopping.set()
            with contextlib.suppress(Exception):
                self._result = self._results.get(timeout=_PATIENCE)
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def _child(function: Callable[[Path, _Child], Any], directory: Path) -> Iterator[_Child]:
    child = _Child(function, directory)
    try:
        yield child
    finally:
        child._process.terminate()
        child._process.join()


def _wait_for_ready(child: _Child) -> None:
    end = time.monotonic() + _PATIENCE
    while not child.done():
        if time.monotonic() > end or not child.alive():
            raise BenchError("a program of the bench did not start")
        time.sleep(0.05)


# ---- peers


class _Cut(Exception):
    """The core has ended the tunnel."""


class _Tunnel:
    """HTTP/2 by hand over a connection to the victim's port 15008. Acknowledges only the first settings, which grant
    large windows."""

    def __init__(self, directory: Path, source: str, *, initial_window: int | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(directory / "bundle.pem")
        context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((_VICTIM, HBONE_PORT), timeout=_PATIENCE, source_address=(source, 0))
        try:
            self.socket = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.credit = _INITIAL_WINDOW
        self.credits: dict[int, int] = {}
        self.answers: dict[int, bool] = {}
        self._next = 1
        self._acknowledged = False
        self._input = bytearray()
        setting = b"" if initial_window is None else b"\0\4" + initial_window.to_bytes(4)
        self.send(_PREFACE + _frame(_SETTINGS, 0, 0, setting))

    def send(self, data: bytes) -> None:
        """Raises _Cut when the core has ended the tunnel."""
        try:
            self.socket.settimeout(_PATIENCE)
            self.socket.sendall(data)
        except OSError as error:
            raise _Cut from error

    def open(self, port: int) -> int:
        """A new stream to an application."""
        stream, self._next = self._next, self._next + 2
        self.credits[stream] = LENGTH
        fields = _literal(2, "CONNECT") + _literal(1, f"{_VICTIM}:{port}")
        self.send(_frame(_HEADERS, _END_HEADERS, stream, fields))
        return stream

    def data(self, stream: int, length: int, *, end: bool = False) -> None:
        """Sends that many bytes."""
        self.credit -= length
        self.credits[stream] -= length
        self.send(_frame(_DATA, _END_STREAM if end else 0, stream, bytes(length)))

    def reset(self, stream: int, code: int = 0) -> None:
        """Ends a stream."""
        self.send(_frame(_RST_STREAM, 0, stream, code.to_bytes(4)))

    def listen(self, timeout: float) -> None:
        """Takes what comes within that time. Raises _Cut at the tunnel's end."""
        end = time.monotonic() + timeout
        while True:
            self.socket.settimeout(max(end - time.monotonic(), 0.0001))
            try:
                part = self.socket.recv(1 << 16)
            except (TimeoutError, ssl.SSLWantReadError):
                return
            except OSError as error:
                raise _Cut from error
            if not part:
                raise _Cut
            self._input += part
            self._take_frames()
            if time.monotonic() >= end:
                return

    def _take_frames(self) -> None:
        while len(self._input) >= 9:
            length, kind, flags = int.from_bytes(self._input[:3]), self._input[3], self._input[4]
            stream = int.from_bytes(self._input[5:9]) & 0x7FFFFFFF
            if len(self._input) < 9 + length:
                return
            payload = bytes(self._input[9 : 9 + length])
            del self._input[: 9 + length]
            if kind == _WINDOW_UPDATE and stream == 0:
                self.credit += int.from_bytes(payload)
            elif kind == _WINDOW_UPDATE:
                self.credits[stream] += int.from_bytes(payload)
            elif kind == _SETTINGS and not flags & _ACK:
                if not self._acknowledged:
                    self.send(_frame(_SETTINGS, _ACK, 0, b""))
                self._acknowledged = True
            elif kind == _PING and not flags & _ACK:
                self.send(_frame(_PING, _ACK, 0, payload))
            elif kind == _HEADERS:
                self.answers[stream] = payload[0] == _STATUS_200
            elif kind == _RST_STREAM:
                self.answers.setdefault(stream, False)
            elif kind == _GOAWAY and int.from_bytes(payload[4:8]) != 0:
                raise _Cut

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: int, value: str) -> bytes:
    """A header field whose name is in the static table, without indexing and Huffman code (RFC 7541 6.2.2)."""
    return bytes((name, len(value))) + value.encode()


def _serve_client(directory: Path, child: _Child) -> tuple[int, int]:
    """The well-behaved client: (streams that were answered 200, others)."""
    served = refused = 0
    tunnel: _Tunnel | None = None
    own = directory / "client"
    while not child.stopping.is_set():
        try:
            # Every tenth stream in a tunnel of its own, as if the client had just come.
            if tunnel is None or (served + refused) % 10 == 0:
                if tunnel is not None:
                    tunnel.close()
                tunnel = _Tunnel(own, _CLIENT)
            stream = tunnel.open(_ECHO)
            end = time.monotonic() + _PATIENCE
            while stream not in tunnel.answers and time.monotonic() < end:
                tunnel.listen(0.005)
            good = tunnel.answers.get(stream, False)
            if good:
                tunnel.reset(stream)
        except (_Cut, OSError):
            good, tunnel = False, None
        served, refused = served + good, refused + (not good)
        child.ready()
        time.sleep(0.02)
    return served, refused


def _in_tunnels(directory: Path, child: _Child, work: Callable[[_Tunnel], None], **options: Any) -> int:
    """Does it in TUNNELS tunnels at once, and keeps them; how many were cut."""
    cut = [False] * TUNNELS
    done = [False] * TUNNELS

    def one(number: int) -> None:
        try:
            tunnel = _Tunnel(directory / "hostile", _HOSTILE, **options)
            work(tunnel)
            done[number] = True
            while not child.stopping.is_set():
                tunnel.listen(0.2)
        except (_Cut, OSError):
            cut[number] = done[number] = True

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(TUNNELS)]
    for thread in threads:
        thread.start()
    while not all(done) and not child.stopping.is_set():
        time.sleep(0.1)
    child.ready()
    for thread in threads:
        thread.join()
    return sum(cut)


def _upload(tunnel: _Tunnel) -> None:
    streams = [tunnel.open(_SILENT) for _ in range(STREAMS)]
    tunnel.listen(0.5)
    last = time.monotonic()
    while time.monotonic() < last + 3:  # then it gets no more
        tunnel.listen(0.01)
        for stream in streams:
            if tunnel.credits[stream] < _PIECE:
                continue
            tunnel.listen(0)
            if tunnel.credit >= _PIECE:
                last = time.monotonic()
                tunnel.data(stream, _PIECE)


def attack_uploads(directory: Path, child: _Child) -> int:
    return _in_tunnels(directory, child, _upload)


def attack_crumbs(directory: Path, child: _Child) -> int:
    def work(tunnel: _Tunnel) -> None:
        streams = [tunnel.open(_SILENT) for _ in range(STREAMS)]
        for _ in range(10):
            tunnel.listen(1)
            for stream in streams:
                tunnel.data(stream, 1)

    return _in_tunnels(directory, child, work)


def attack_ended(directory: Path, child: _Child) -> int:
    def work(tunnel: _Tunnel) -> None:
        for _ in range(STREAMS):
            stream = tunnel.open(_SILENT)
            tunnel.listen(0.02)
            last = time.monotonic()
            for number in range(LENGTH // _PIECE):
                tunnel.listen(0)
                while tunnel.credit < _PIECE:
                    if time.monotonic() > last + 3:
                        return
                    tunnel.listen(0.05)
                last = time.monotonic()
                tunnel.data(stream, _PIECE, end=number == LENGTH // _PIECE - 1)
            tunnel.reset(stream)

    return _in_tunnels(directory, child, work)


def attack_downloads(directory: Path, child: _Child) -> int:
    def work(tunnel: _Tunnel) -> None:
        for _ in range(STREAMS):
            tunnel.open(_SPEAKING)
            tunnel.listen(0)

    return _in_tunnels(directory, child, work, initial_window=0)


def attack_tunnels(directory: Path, child: _Child) -> int:
    tunnels: list[_Tunnel] = []
    cut = 0
    for _ in range(MANY_TUNNELS):
        if child.stopping.is_set():
            break
        try:
            tunnel = _Tunnel(directory / "hostile", _HOSTILE)
            tunnel.listen(0.0001)
            tunnels.append(tunnel)
        except (_Cut, OSError):
            cut += 1
    child.ready()
    child.stopping.wait()
    return cut


ATTACKS: dict[str, Callable[[Path, _Child], int]] = {
    "uploads": attack_uploads,
    "crumbs": attack_crumbs,
    "ended": attack_ended,
    "tunnels": attack_tunnels,
    "downloads": attack_downloads,
}

if __name__ == "__main__":
    sys.exit(main())
