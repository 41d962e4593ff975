"""What the bench asks of a peer."""

from __future__ import annotations

import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.accounting import family
from bench.bed import Bed
from nodeseal_lab.processes import ProcessRecord

ENTRY_PORT = 9000
"""Where a proxy that does not capture takes the application's connections, on 127.0.0.1 of the client pod."""
TUNNEL_PORT = 15008
"""Where the proxy of the server pod listens for the other one."""
IDLE_CONNECTIONS = 10_000

_SPARE_DESCRIPTORS = 400


@dataclass(frozen=True, slots=True)
class Started:
    """A peer that runs in a bed.

    `target`: where the load goes, ADDRESS:PORT. `proxies`: the first process of each side; with their descendants
    they are what is accounted. `helpers`: pids that the bytes do not pass, accounted on their own. `watched`: the
    processes whose end, or logs, explain a failure."""

    target: str
    proxies: tuple[int, ...] = ()
    helpers: tuple[int, ...] = ()
    watched: tuple[ProcessRecord, ...] = ()

    @property
    def pids(self) -> list[int]:
        """All processes of both sides' data path."""
        return [member for pid in self.proxies for member in family(pid)]


class Peer(ABC):
    """A way for bytes to get from the client pod to the server pod."""

    name: str
    encrypts: bool = True
    """Whether the wire between the nodes must not show plaintext."""
    threads: int = 2
    """Threads that move bytes, in each of the two proxies; nodeseal has what it takes by default."""
    shares_descriptors: bool = False
    """Whether one process needs two descriptors for each connection, as a proxy without a multiplexed tunnel does."""

    def missing(self) -> str | None:
        """What to do before this peer can be measured, in one line; None when nothing is."""
        return None

    @abstractmethod
    def version(self) -> str:
        """In one line."""

    @abstractmethod
    def start(self, bed: Bed) -> Started:
        """Starts both sides; the bed ends them. Raises BenchError, LabError."""

    def idle_connections(self, wanted: int) -> int:
        """How many of the connections that are wanted this process limit (RLIMIT_NOFILE) leaves room for."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE_DESCRIPTORS
        return min(wanted, descriptors // (2 if self.shares_descriptors else 1))


def program(name: str) -> str | None:
    """The path of a program; Debian's servers are in directories that not every PATH has."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def first_line(argv: Sequence[str | Path], *, containing: str = "") -> str:
    """The first line that a program prints (with this text in it); "unknown" when there is none."""
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False, timeout=20)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if containing in line and line.strip()]
    return lines[0] if lines else "unknown"
