"""A core process alone in a network namespace, without an agent and without capture: its listeners are dialled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from nodeseal.cores.client import CoreClient
from nodeseal.cores.process import CoreOptions, spawn
from nodeseal.linux.namespace import NetworkNamespace, set_network_namespace
from nodeseal.mesh.model import Workload
from nodeseal_lab.namespaces import create_namespace, enter, remove_namespace

_SECONDS = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class LoneCore:
    """One core, the process `pid`; `ask` talks to it."""

    def __init__(self, pid: int, client: CoreClient, namespace: NetworkNamespace, loop: asyncio.Runner) -> None:
        self.pid = pid
        self._client = client
        self._namespace = namespace
        self._loop = loop

    def ask(
        self, method: Callable[Concatenate[CoreClient, P], Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """CoreClient's method."""
        return self._loop.run(method(self._client, *args, **kwargs))

    def add(self, key: int, workload: Workload, trust_domain: str, listeners: Mapping[int, int]) -> None:
        """Gives it a workload and its listening sockets by role, which stay the caller's."""
        identity = workload.identity(trust_domain)
        fd = self._namespace.fd
        self.ask(CoreClient.workload_add, key, workload.key, identity, workload.addresses, netns_fd=fd)
        self.ask(CoreClient.workload_listen, key, listeners)


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
            set_network_namespace(home.fd)
            remove_namespace(name)


@contextlib.contextmanager
def lone_core(workers: int, trust_domain: str) -> Iterator[LoneCore]:
    """A new core in this process's namespace, ended with the block."""
    with (
        tempfile.TemporaryDirectory(prefix="nodeseal-bench-") as directory,
        asyncio.Runner() as loop,
        NetworkNamespace.open("/proc/self/ns/net") as namespace,
    ):
        process = spawn(Path(directory), CoreOptions(workers=workers, trust_domain=trust_domain))
        try:
            core = LoneCore(process.pid, CoreClient.newest(Path(directory), _SECONDS), namespace, loop)
            yield core
            core.ask(CoreClient.stop)
        finally:
            process.terminate()
            process.wait()
