"""The test bed: client pod, its node, the other node, server pod, as namespaces of a lab of the product's own.

```
 pod shipper           node1       node2           pod pipeline
 load, proxy A  ----  routing  ---- routing  ----  proxy B, serve
```

Every peer gets a new bed for every visit, so that none inherits another's sockets in TIME_WAIT, caches or heap. A bed
is a lab named bench<pid>x<n>: should the bench be killed, `nodeseal lab down --name` removes it, and the next run does
so by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bench.build import Programs
from bench.certificates import issue, make_authority
from bench.errors import BenchError
from nodeseal_lab.lab import LAB_ROOT, Lab, take_down
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import FIRST_POD_NUMBER, Plan, Pod, prefix
from nodeseal_lab.processes import ProcessRecord, start_time

T = TypeVar("T")

CLIENT, SERVER = "shipper", "pipeline"
APP_PORT = 8080
MAX_PODS = 240
"""On one node: its pods have one /24."""
READY_SECONDS = 30.0
_POLL_SECONDS = 0.02
_NAME = re.compile(r"bench([0-9]+)x[0-9]+")
_numbers = itertools.count()


class Bed:
    """One bed. Make it with `new_bed`."""

    def __init__(self, lab: Lab, programs: Programs) -> None:
        self.lab = lab
        self.programs = programs
        self._authority: Path | None = None

    @property
    def authority(self) -> Path:
        """The bed's CA directory, made at its first use."""
        if self._authority is None:
            self._authority = make_authority(self.lab.directory / "ca")
        return self._authority

    def address(self, pod: str) -> str:
        """The pod's address."""
        return str(self.lab.plan.pod(pod).address)

    @property
    def app(self) -> str:
        """Where the application listens, ADDRESS:PORT."""
        return f"{self.address(SERVER)}:{APP_PORT}"

    def run(self, pod: str, function: Callable[[], T]) -> T:
        """Calls the function inside the pod's network namespace."""
        return run_in(self.lab.plan.pod(pod).netns, function)

    def directory(self, pod: str) -> Path:
        """A directory for the proxy of a pod, with certificates as bench.certificates.issue writes them."""
        directory = self.lab.pod_directory(pod) / "proxy"
        if not directory.exists():
            issue(self.authority, pod, directory)
        return directory

    def start(
        self, pod: str, argv: Sequence[str], role: str, environment: Mapping[str, str] | None = None
    ) -> ProcessRecord:
        """Starts a program in a pod; it ends with the bed. What it prints goes to its role's log in the pod's
        directory."""
        command = [*(["env"] if environment else []), *(f"{k}={v}" for k, v in (environment or {}).items()), *argv]
        self.lab.pod_directory(pod).mkdir(parents=True, exist_ok=True)
        return self.lab.processes.start(
            f"{role} {pod}", command, netns=self.lab.plan.pod(pod).netns, output=self.log(pod, role)
        )

    def log(self, pod: str, role: str) -> Path:
        """Where `start` puts what a program prints."""
        return self.lab.pod_directory(pod) / f"{role}.log"

    def setting(self, pod: str, name: str) -> str:
        """A sysctl of the pod's network namespace, such as ipv4/tcp_congestion_control."""
        return self.run(pod, lambda: Path("/proc/sys/net", name).read_text().strip())

    def exchange(self, target: str, request: bytes, size: int) -> bytes:
        """Sends a request from the client pod and reads `size` bytes. Raises OSError, EOFError."""
        host, _, port = target.rpartition(":")

        def connect() -> socket.socket:
            return socket.create_connection((host, int(port)), timeout=5)

        with self.run(CLIENT, connect) as connection:
            connection.sendall(request)
            data = b""
            while len(data) < size:
                part = connection.recv(size - len(data))
                if not part:
                    raise EOFError(f"the connection ended after {len(data)} of {size} bytes")
                data += part
            return data

    def wait_ready(self, target: str, request: bytes, size: int, processes: Sequence[ProcessRecord]) -> None:
        """Waits until an exchange through the target succeeds. Raises BenchError when it does not, or when a process
        that it needs has ended."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.exchange(target, request, size)
                return
            except (OSError, EOFError) as error:
                for process in processes:
                    if not process.alive:
                        raise BenchError(f"{process.role} ended: {self._last_words(process)}") from error
                if time.monotonic() > deadline:
                    words = "; ".join(filter(None, (self._last_words(process) for process in processes)))
                    raise BenchError(
                        f"no answer from {target} after {READY_SECONDS:.0f} s: {error}; logs: {words or 'empty'}"
                    ) from error
            time.sleep(_POLL_SECONDS)

    def _last_words(self, process: ProcessRecord) -> str:
        role, _, pod = process.role.rpartition(" ")
        path = self.log(pod, role)
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return " | ".join(lines[-3:])


@contextlib.contextmanager
def new_bed(programs: Programs, *, pods_per_node: int | tuple[int, int] = 1) -> Iterator[Bed]:
    """A bed with its server running; taken down at the end of the block, however that ends. `pods_per_node` (for both,
    or for each of them): more than one adds pods in which nothing runs. Raises BenchError, LabError."""
    name = f"bench{os.getpid()}x{next(_numbers)}"
    counts = (pods_per_node, pods_per_node) if isinstance(pods_per_node, int) else pods_per_node
    lab = Lab.up(_plan(name, counts), with_agents=False, with_apps=False)
    try:
        bed = Bed(lab, programs)
        bed.start(SERVER, [str(programs.serve), bed.app], "serve")
        yield bed
    finally:
        report = take_down(name)
    if report.failures:
        raise BenchError(f"the test bed {name} was not removed: {'; '.join(report.failures)}")


def remove_old_beds() -> None:
    """Takes down the beds of benches that were killed."""
    if LAB_ROOT.is_dir():
        for path in LAB_ROOT.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and start_time(int(match[1])) is None:
                take_down(path.name)


def _plan(name: str, counts: tuple[int, int]) -> Plan:
    plan = Plan.build(name)
    pods = []
    for node, first, count in zip(plan.nodes, (CLIENT, SERVER), counts, strict=True):
        if not 1 <= count <= MAX_PODS:
            raise BenchError(f"{count} pods on {node.name}: expected 1 to {MAX_PODS}")
        names = [first, *(f"more{node.number}-{k}" for k in range(count - 1))]
        for number, pod in enumerate(names, FIRST_POD_NUMBER):
            pods.append(Pod(pod, node.name, prefix(name) + pod, node.pod_network[number], enrolled_from_start=True))
    return dataclasses.replace(plan, pods=tuple(pods))
