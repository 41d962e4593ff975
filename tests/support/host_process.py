"""Processes in cgroups of their own, for workloads that share a network namespace; and those cgroups.

The kernel goes by the cgroup of the process that made a socket, so that a thread of the test does not do. A process
takes commands as JSON lines and answers each with one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from typing import Any

from nodeseal.linux import cgroups
from support.patience import wait_for

_numbers = itertools.count()

_PROGRAM = r"""
import json, os, socket, sys, threading

cgroup = sys.argv[1]
if cgroup:
    with open(cgroup + "/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))
connections, peers = {}, []


def family_of(address):
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def serve(accepted):
    try:
        while data := accepted.recv(65536):
            accepted.sendall(data)
    except OSError:
        pass
    accepted.close()


def accept(listener):
    while True:
        accepted, peer = listener.accept()
        peers.append([peer[0].removeprefix("::ffff:"), peer[1]])
        threading.Thread(target=serve, args=(accepted,), daemon=True).start()


def run(command):
    what = command["do"]
    if what == "listen":
        at = command["at"]
        listener = socket.create_server(tuple(at), family=family_of(at), backlog=64, dualstack_ipv6=at[0] == "::")
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    elif what == "peers":
        return list(peers)
    elif what == "dial":
        to, port = command["to"], command["port"]
        connection = socket.socket(family_of(to))
        connection.settimeout(command["timeout"])
        if command["mark"]:
            connection.setsockopt(socket.SOL_SOCKET, 36, command["mark"])
        if port:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", port))
        try:
            connection.connect(tuple(to))
        except BaseException:
            connection.close()
            raise
        connections[len(connections)] = connection
        return [len(connections) - 1, connection.getsockname()[1], connection.getsockopt(socket.SOL_SOCKET, 36)]
    elif what == "echo":
        connection, data = connections[command["id"]], command["data"].encode()
        connection.sendall(data)
        received = b""
        while len(received) < len(data) and (part := connection.recv(65536)):
            received += part
        return received == data
    elif what == "mark":
        connections[command["id"]].setsockopt(socket.SOL_SOCKET, 36, command["mark"])
    elif what == "close":
        connections[command["id"]].close()


for line in sys.stdin:
    try:
        answer = {"is": run(json.loads(line))}
    except OSError as error:
        answer = {"error": type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


class Cgroup:
    """A directory in the cgroup v2 tree, with those below it; removed at the end, which its processes must have met."""

    def __init__(self) -> None:
        self.root = cgroups.find_cgroup()
        self.path = self.root / f"nst-{os.getpid()}-{next(_numbers)}"
        self.path.mkdir()

    def make(self, *names: str) -> str:
        """A cgroup below it; its path as the mesh state has it."""
        path = self.path.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return self.name(*names)

    def name(self, *names: str) -> str:
        """The same, whether it is there or not."""
        return "/" + str(self.path.joinpath(*names).relative_to(self.root))

    def remove(self, *names: str) -> None:
        """Remove it and what is below, once its last process is gone from it."""
        top = self.path.joinpath(*names)

        def gone() -> bool:
            for path in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()
            return not top.exists()

        wait_for(gone, f"{top} is removed")

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class HostProcess:
    """A process in a network namespace and, given its path in the tree, in a cgroup."""

    def __init__(self, netns: str, cgroup: str = "") -> None:
        """`netns`: a name under /run/netns."""
        where = str(cgroups.find_cgroup() / cgroup.lstrip("/")) if cgroup else ""
        command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", _PROGRAM, where]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # It is where it should be once it answers.
        self.peers()

    def listen(self, port: int, address: str = "::") -> None:
        """Serve as an echo server; by default at any address of both families."""
        self._ask(do="listen", at=[address, port])

    def peers(self) -> list[tuple[str, int]]:
        """From where its servers were dialled."""
        return [(address, port) for address, port in self._ask(do="peers")]

    def dial(self, to: tuple[str, int], *, timeout: float = 5.0, source_port: int = 0, mark: int = 0) -> Dialled:
        """A connection; `mark`: SO_MARK that is set before. Raises ConnectionError, TimeoutError or PermissionError, as
        the calls in the process did."""
        number, port, mark = self._ask(do="dial", to=list(to), timeout=timeout, port=source_port, mark=mark)
        return Dialled(self, number, port, mark)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            known = {error.__name__: error for error in (TimeoutError, ConnectionRefusedError, PermissionError)}
            raise known.get(answer["error"], ConnectionError)(answer["error"])
        return answer["is"]

    def __enter__(self) -> HostProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Dialled:
    """A connection that a process has opened, with the source port and the mark that its socket had then."""

    def __init__(self, process: HostProcess, number: int, port: int, mark: int) -> None:
        self._process, self._number = process, number
        self.port, self.mark = port, mark

    def echoes(self, data: str = "4111 1111 1111 1111") -> bool:
        """Whether the other side sends back what is sent. Raises ConnectionError, TimeoutError."""
        return bool(self._process._ask(do="echo", id=self._number, data=data))

    def set_mark(self, mark: int) -> None:
        """Set SO_MARK. Raises PermissionError."""
        self._process._ask(do="mark", id=self._number, mark=mark)

    def ended(self) -> bool:
        """Whether the other side has closed it."""
        try:
            return not self.echoes()
        except ConnectionError:
            return True

    def close(self) -> None:
        """Close it."""
        self._process._ask(do="close", id=self._number)
