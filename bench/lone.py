"""A core process alone in a network namespace, without an agent and without capture: its listeners are dialled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from nodeseal.cores.client import CoreClient, CoreOptions, spawn
from nodeseal.linux import syscalls
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.mesh.model import Workload
from nodeseal_lab.namespaces import create_namespace, enter, remove_namespace

_SECONDS = 60.0


class LoneCore:
    """One core; `client` talks to it."""

    def __init__(self, client: CoreClient, namespace: NetworkNamespace) -> None:
        self.client = client
        self._namespace = namespace

    def add(self, key: int, workload: Workload, trust_domain: str, listeners: Mapping[int, int]) -> None:
        """Gives it a workload and its listening sockets by role, which stay the caller's."""
        identity = workload.identity(trust_domain)
        self.client.workload_add(key, workload.key, identity, workload.addresses, netns_fd=self._namespace.fd)
        self.client.workload_listen(key, listeners)


@contextlib.contextmanager
def lone_namespace() -> Iterator[None]:
    """Moves this process into a network namespace of its own, until the end of the block."""
    name = f"benchlone{os.getpid()}"
    with NetworkNamespace.open("/proc/self/ns/net") as home:
        create_namespace(name)
        try:
            enter(name)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            syscalls.set_network_namespace(home.fd)
            remove_namespace(name)


@contextlib.contextmanager
def lone_core(workers: int, trust_domain: str) -> Iterator[LoneCore]:
    """A new core in this process's namespace, ended with the block."""
    with (
        tempfile.TemporaryDirectory(prefix="nodeseal-bench-") as directory,
        NetworkNamespace.open("/proc/self/ns/net") as namespace,
    ):
        process = spawn(Path(directory), CoreOptions(workers=workers, trust_domain=trust_domain))
        try:
            client = CoreClient.connect(Path(directory), timeout=_SECONDS)
            yield LoneCore(client, namespace)
            client.stop()
            client.close()
        finally:
            process.terminate()
            process.wait()
