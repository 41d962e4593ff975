"""Stand-ins for what the agent drives: capture, the core, credentials, the mesh state's source."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nodeseal.capture import constants
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.natives import Event, Log, Native, Place, Total
from nodeseal.capture.workload import Addresses, Captured, CaptureTarget
from nodeseal.contracts.core import CoreStats, WorkloadStats
from nodeseal.cores.client import CoreError
from nodeseal.cores.process import spawn
from nodeseal.identity.issuer import Fault, Flaw, Issuer, Svid
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.trust import TrustBundle
from nodeseal.linux.namespace import NamespaceGoneError
from nodeseal.local.config import Config
from nodeseal.local.issuers import OwnCa
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.mesh.trust import Trust
from nodeseal.mesh.workload import primaries_of
from nodeseal.sources.source import Claim, Description, MeshStateError, Publishers, Reference, Source

TRUST_DOMAIN = "example.org"
fake_spawn = functools.partial(
    spawn, core_command=(sys.executable, str(Path(__file__).with_name("fake_core_process.py")))
)


async def until(condition: Callable[[], object], what: str = "condition", seconds: float = 20.0) -> None:
    """Lets the loop run until the condition holds. Fails, naming `what`, when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.002)


async def until_flaws(issuer: Issuer, *flaws: Flaw) -> None:
    """Lets the loop run until these are what the issuer says of itself."""
    while True:
        if [fault.flaw for fault in await issuer.condition()] == list(flaws):
            return
        await asyncio.sleep(0.002)


def agent_config(mesh: Path, **changes: Any) -> Config:
    """Of node1, with everything in the mesh directory and nothing that waits."""
    values: dict[str, Any] = {
        "node": "node1",
        "mesh": mesh,
        "ca": OwnCa(mesh),
        "run_dir": mesh,
        "workers": 1,
        "congestion_control": "",
        "spin": timedelta(0),
        "certificate_lifetime": timedelta(hours=24),
        "settle": timedelta(0),
        "preconnect": timedelta(0),
        "drain_limit": None,
        "capture": Choice.AUTO,
        "cgroup": None,
    }
    return Config(**{**values, **changes})


def workload(name: str, netns: Path | str | None, **changes: Any) -> Workload:
    """default/<name> on node1, wanted, at an address made of its name."""
    values: dict[str, Any] = {
        "key": WorkloadName("default", name),
        "service_account": name,
        "node": "node1",
        "addresses": (IPv4Address(0x0A000000 + sum(name.encode())),),
        "netns": str(netns) if netns is not None else None,
        "wanted": True,
        "mode": Mode.PERMISSIVE,
        "phase": Phase.ABSENT,
    }
    return Workload(**{**values, **changes})


def mesh(*workloads: Workload) -> Mesh:
    """A model of these."""
    return Mesh.build(TRUST_DOMAIN, workloads)


TRUST = Trust(frozenset({"1" * 32}), "1" * 32, ())
"""What a node with a FakeIssuer says of its CA."""


class FakeIssuer(Issuer):
    """Issues without cryptography, certificates for two hours. `error` is raised instead when set; `answers` is cleared
    by who wants to see it slow."""

    trust_domain = TRUST_DOMAIN
    anchor = "1" * 64

    def __init__(self) -> None:
        self.bundle = TrustBundle(TRUST_DOMAIN, "bundle", frozenset({self.anchor}))
        self.issued: list[SpiffeId] = []
        self.asked = 0
        self.error: Exception | None = None
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.answers = asyncio.Event()
        self.answers.set()
        self._changed = asyncio.Event()

    def describe(self) -> str:
        return "a stand-in"

    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        del present
        self.asked += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        self.issued.append(identity)
        serial = str(len(self.issued))
        return Svid(
            identity, "chain", PrivateKey.generate(), self.now, self.now + timedelta(hours=2), serial, self.anchor
        )

    def trust(self, pem: str) -> None:
        """Other trust anchors from now on."""
        self.bundle = replace(self.bundle, pem=pem)
        self._changed.set()

    async def changes(self) -> AsyncIterator[TrustBundle]:
        while True:
            self._changed.clear()
            yield self.bundle
            await self._changed.wait()

    async def condition(self) -> tuple[Fault, ...]:
        await self.answers.wait()
        return ()

    async def close(self) -> None:
        pass


class FakeNamespace:
    """A file stands for the namespace: its inode is the namespace's."""

    def __init__(self, netns: str) -> None:
        self.path = Path(netns)
        try:
            self.fd = os.open(netns, os.O_RDONLY)
        except FileNotFoundError:
            raise NamespaceGoneError(f"network namespace not found: {netns} does not exist") from None
        self.inode = os.fstat(self.fd).st_ino
        self.cookie = self.inode

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> FakeNamespace:
        return self

    def __exit__(self, *_rest: object) -> None:
        self.close()


def make_listeners(roles: tuple[int, ...] = (0, 1, 2)) -> dict[int, int]:
    """Descriptors that stand for listeners."""
    return {role: socket.socket().detach() for role in roles}


class FakeBypass:
    """What passes by the core, in memory."""

    def __init__(self) -> None:
        self.entries: dict[bytes, int] = {}
        self.error: Exception | None = None

    def replace(self, entries: Mapping[bytes, int]) -> None:
        if self.error is not None:
            raise self.error
        self.entries = dict(entries)

    def change(self, put: Mapping[bytes, int], remove: Iterable[bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.entries |= put
        for key in remove:
            self.entries.pop(key, None)


class FakeCapture:
    """CaptureThread without a kernel. `log` is what happened, `errors` are raised by the method of that name."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.log: list[str] = log if log is not None else []
        self.failures: dict[str, Exception] = {}
        self.left_behind: list[Captured] = []
        self.captured: dict[str, Captured] = {}
        self.addresses = Addresses()
        """What of its addresses is astray."""
        self.changed = False
        """Whether there is something new in a namespace."""
        self.bypass = FakeBypass()
        self.native: dict[str, dict[int, Native]] = {}
        self.backend = "ebpf"
        self.why = ""

    def _note(self, what: str, name: str) -> None:
        if (error := self.failures.get(what)) is not None:
            raise error
        self.log.append(f"capture.{what} {name}".strip())

    def make(self, target: CaptureTarget, phase: str = "capturing") -> Captured:
        captured = Captured(target, FakeNamespace(target.netns), phase)  # type: ignore[arg-type]
        captured.addresses = replace(self.addresses, near=primaries_of(target.addresses))
        self.captured[target.name] = captured
        return captured

    async def has_cgroup(self, _path: str) -> bool:
        return True

    async def prepare(self) -> None:
        self._note("prepare", "")

    async def adopt(self) -> list[Captured]:
        self._note("adopt", "")
        return self.left_behind

    async def forget(self, _run_dir: Path) -> None:
        self._note("forget", "")

    async def open_namespace(self, netns: str) -> FakeNamespace:
        return FakeNamespace(netns)

    async def enrol(self, one: Workload) -> Captured:
        self._note("enrol", one.key.name)
        assert one.netns is not None
        captured = self.captured.get(str(one.key))
        if captured is None:
            captured = self.make(CaptureTarget(str(one.key), one.netns, one.addresses))
        captured.phase = "capturing"
        captured.target = CaptureTarget(str(one.key), one.netns, one.addresses)
        for role, fd in make_listeners().items():
            if role in captured.listeners:
                os.close(fd)
            else:
                captured.listeners[role] = fd
        return captured

    async def look_again(self, one: Workload) -> bool:
        return self.changed

    async def take_listeners(self, captured: Captured, held: Mapping[int, int]) -> list[int]:
        self._note("take_listeners", captured.target.name)
        for role in (0, 1, 2) if captured.phase == "capturing" else (0,):
            if role not in captured.listeners:
                captured.listeners[role] = os.dup(held[role]) if role in held else socket.socket().detach()
        return []

    async def park(self, captured: Captured, *, on: bool, native: bool) -> None:
        self._note("park" if on else "unpark", captured.target.name)
        captured.parking, captured.native = on, on and native

    async def configure(self, one: Workload) -> None:
        self._note("configure", str(one.key))

    async def stop_new(self, captured: Captured) -> None:
        self._note("stop_new", captured.target.name)
        captured.phase = "leaving"

    async def release(self, captured: Captured) -> None:
        self._note("release", captured.target.name)
        self.captured.pop(captured.target.name, None)
        captured.close()

    has_rules = False
    tracked = ""
    early = ""

    async def errors(self) -> dict[str, int]:
        return dict.fromkeys(constants.COUNTERS, 0)

    async def direct(self, _captured: Captured) -> list[Any]:
        return []

    async def native_log(self, _first: Sequence[int], *, wanted: bool) -> tuple[list[tuple[str, Event]], Log]:
        return [], Log()

    async def natives(self) -> dict[str, dict[int, Native]]:
        return self.native

    async def native_sums(self) -> dict[str, Total]:
        return {name: Total(opened=len(found)) for name, found in self.native.items()}

    async def native_places(self) -> dict[tuple[str, Place], Total]:
        return {}

    async def end_native(self, captured: Captured, native: Native) -> bool:
        self._note("end_native", captured.target.name)
        return self.native[captured.target.name].pop(native.cookie, None) is not None

    def close(self) -> None:
        for captured in self.captured.values():
            captured.close()


class FakeCore:
    """CoreSupervisor without a process: `log` gets every call, `failures` raise by the method's name."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.failures: dict[str, CoreError] = {}
        self.ready = True
        self.incarnation = 1
        self.pid: int | None = 1
        self.error: str | None = None
        self.current = self
        self.trust_apart = True
        self.reads_rings = True
        self.older: dict[int, FakeCore] = {}
        self.live = 0
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = method.__name__
        if (error := self.failures.get(name)) is not None:
            raise error
        self.calls.append((name, args, kwargs))
        self.log.append(f"core.{name}")
        if name == "stats":
            return CoreStats(), (WorkloadStats(key=1, workload="default/shipper", connections=self.live),)
        return None

    def links(self) -> list[FakeCore]:
        return [self]

    def link(self, incarnation: int) -> FakeCore | None:
        return self if incarnation == self.incarnation else self.older.get(incarnation)

    async def call_all(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return [(None, await self.call(method, *args, **kwargs))]


class FakeNode:
    """NodeServices: notes pushes and publications."""

    trust_domain = TRUST_DOMAIN

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.enrolment: Any = None
        self.publish_error: Exception | None = None
        self.publications: list[bool] = []
        self.neighbours_behind = False
        self._keys = 0

    async def push(self) -> None:
        self.log.append(f"push {self.enrolment.phase.value}")

    async def publish(self) -> None:
        if self.publish_error is not None:
            raise self.publish_error
        if self.publications[-1:] != [self.enrolment.published]:
            self.publications.append(self.enrolment.published)
            self.log.append(f"publish {'with' if self.enrolment.published else 'without'}")

    def waits_for_neighbours(self, _name: WorkloadName) -> bool:
        return self.neighbours_behind

    def moved_on(self) -> None:
        self.log.append("moved on")

    def new_key(self) -> int:
        self._keys += 1
        return self._keys


class ScriptedSource(Source):
    """A source whose changes the test writes: put() a Mesh or a MeshStateError. All else is the one's behind it."""

    def __init__(self, behind: Source, *items: Mesh | MeshStateError) -> None:
        self.behind = behind
        self.node = behind.node
        self.publishers: Publishers = {}
        self._queue: asyncio.Queue[Mesh | MeshStateError] = asyncio.Queue()
        for item in items:
            self.put(item)

    def put(self, item: Mesh | MeshStateError) -> None:
        self._queue.put_nowait(item)

    async def changes(self) -> AsyncIterator[Mesh | MeshStateError]:
        while True:
            yield await self._queue.get()

    def describe(self) -> Description:
        return self.behind.describe()

    def reference(self) -> Reference:
        return self.behind.reference()

    def verify(self) -> Iterator[str]:
        return self.behind.verify()

    async def load(self) -> Mesh:
        return await self.behind.load()

    async def claim(self) -> Claim:
        return await self.behind.claim()

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        return await self.behind.publish(workloads, trust)

    async def withdraw(self) -> str | None:
        return await self.behind.withdraw()


def status_of(**changes: Any) -> Any:
    """An object with these attributes."""
    return SimpleNamespace(**changes)


@contextlib.contextmanager
def closing_captures(capture: FakeCapture) -> Any:
    """Closes the descriptors that the fake capture still holds."""
    try:
        yield capture
    finally:
        capture.close()
