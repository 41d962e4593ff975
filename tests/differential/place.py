"""Where a program of a case runs: a pod, or a cgroup of a node. Its sockets and commands are made there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nodeseal_lab.cgroups import in_cgroup
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.processes import child_environment

T = TypeVar("T")

COMMAND_SECONDS = 60.0
LIMIT = 30.0
"""Seconds that a case's socket waits before it fails by itself; longer than what is to be seen."""

# A socket belongs for life to the network namespace and the cgroup of who made it: a process in both makes them for
# threads of the test, which are in neither.
_MAKER = """
import array, socket, sys
here = socket.socket(fileno=int(sys.argv[1]))
while asked := here.recv(1):
    made = socket.socket(asked[0])
    here.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
    made.close()
"""


class Place:
    """A workload of a lab, as one of its programs has it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.plan = lab.plan.pod(name)
        self.name = name
        self._maker: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._lock = threading.Lock()

    def address(self, version: int) -> str:
        """Its own."""
        return next(str(one) for one in self.plan.addresses if one.version == version)

    def run(self, function: Callable[[], T]) -> T:
        """Call it in the network namespace, not in the cgroup."""
        return run_in(self.plan.netns, function)

    def sysctl(self, name: str, value: str) -> None:
        """Set one of the namespace's ("ipv4/tcp_syn_retries"); for all cases."""
        self.run(lambda: Path("/proc/sys/net", name).write_text(value))

    def make_socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket, blocking, without limits."""
        if not self.plan.cgroup:
            return self.run(lambda: socket.socket(family, socket.SOCK_STREAM))
        with self._lock:
            if self._maker is None:
                self._maker = self._start_maker()
            here = self._maker[1]
            here.send(bytes([family]))
            _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
        return socket.socket(fileno=descriptors[0])

    def command(self, *argv: str, text: str = "", seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end, `text` on its standard input. Raises subprocess.TimeoutExpired."""
        command = in_cgroup(self.plan.cgroup, argv)
        return self.run(
            lambda: subprocess.run(
                command, input=text, capture_output=True, text=True, check=False, timeout=seconds, env=_environment()
            )
        )

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a program there; who starts it ends it."""
        command = in_cgroup(self.plan.cgroup, argv)
        return self.run(
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=_environment(),
            )
        )

    def close(self) -> None:
        """End what makes its sockets."""
        if self._maker is not None:
            process, here = self._maker
            here.close()
            process.wait(COMMAND_SECONDS)

    def _start_maker(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            command = in_cgroup(self.plan.cgroup, [sys.executable, "-s", "-E", "-c", _MAKER, str(there.fileno())])
            fd = there.fileno()
            process = self.run(lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[fd]))
        return process, here


def _environment() -> dict[str, str]:
    return child_environment() | {"LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/root")}
