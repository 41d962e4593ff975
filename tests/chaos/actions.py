"""How each event of a schedule is brought about on a lab."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chaos.errors import ChaosError
from chaos.ledger import ENDING_SECONDS, Ledger
from chaos.network import BadLink
from chaos.scene import Scene
from chaos.schedule import Event, Kind
from nodeseal.contracts.api import STATUS, UPGRADE_CORE
from nodeseal.linux.pidfd import open_process
from nodeseal.local import generations
from nodeseal_lab import agents
from nodeseal_lab.errors import AgentError
from nodeseal_lab.files import write_atomically
from nodeseal_lab.lab import Lab
from support.authority import renew_intermediate

ANSWER_SECONDS = 30.0
"""How long an agent may take until it answers, does what it was told, or shows a mistake."""
LINK_DOWN_SECONDS = 1.0
_NEW_CORE_SECONDS = 3.0
_MISTAKES = ("workloads: [", "workloads:\n- name: web\n", "services: 7\n", "surprise: 1\n", "\tworkloads: []\n")


class NotDoneError(ChaosError):
    """An event that should have come true has not."""


@dataclass(slots=True)
class Actions:
    """Does events, one after the other."""

    lab: Lab
    scene: Scene
    link: BadLink
    ledger: Ledger
    _core_killed: dict[str, float] = field(default_factory=dict)  # node -> when
    _away: set[str] = field(default_factory=set)  # the pods that are not enrolled
    _mistakes: int = 0

    def do(self, event: Event) -> str:
        """Returns what there is to say about it. Raises NotDoneError, LabError, ChaosError."""
        subject, details = event.subject, event.details
        done: dict[Kind, Callable[[], str | None]] = {
            Kind.AGENT_KILL: lambda: self._end_agent(subject, signal.SIGKILL),
            Kind.AGENT_UPGRADE: lambda: self._end_agent(subject, signal.SIGTERM),
            Kind.CORE_KILL: lambda: self._kill_core(subject),
            Kind.BOTH_KILL: lambda: self._kill_both(subject),
            Kind.CORE_UPGRADE: lambda: self._upgrade_core(subject),
            Kind.CORE_UPGRADE_TWICE: lambda: f"{self._upgrade_core(subject)}; {self._upgrade_core(subject)}",
            Kind.UNENROL: lambda: self._unenrol(subject),
            Kind.ENROL: lambda: self._enrol(subject),
            Kind.STRICT: lambda: self._set_mode(subject, "strict"),
            Kind.PERMISSIVE: lambda: self._set_mode(subject, "permissive"),
            Kind.MESH_EDIT: lambda: self._edit_mesh(**details),
            Kind.MESH_MISTAKE: self._make_a_mistake,
            Kind.CA_RENEWAL: self._renew_ca,
            Kind.LINK_CHANGE: lambda: self.link.set(details["impairment"]),
            Kind.LINK_DOWN: lambda: self._link_down(subject),
            Kind.BURST: lambda: self.scene.burst(_pair(subject), **details),
            Kind.SLOW_READERS: lambda: self.scene.slow_readers(_pair(subject), **details),
        }
        said = done[event.kind]()
        for pod in set(self.scene.players.comers) - self._away:
            self.scene.top_up(pod)
        return said or ""

    def undo_mesh(self) -> None:
        """Takes away what events have added to the mesh state."""
        for path in (self._more, self._mistake):
            path.unlink(missing_ok=True)

    @property
    def _more(self) -> Path:
        return self.lab.mesh / "chaos-more.yaml"

    @property
    def _mistake(self) -> Path:
        return self.lab.mesh / "chaos-mistake.yaml"

    def _end_agent(self, node: str, number: int) -> str:
        run_dir = self.lab.run_dirs[node]
        pid = agents.agent_pid(run_dir)
        if pid is None:
            return "none runs"
        now = time.monotonic()
        # A core that has just been started has nothing yet but what this agent gives it.
        fresh = now - self._core_killed.get(node, -_NEW_CORE_SECONDS) < _NEW_CORE_SECONDS
        if fresh or not agents.core_pids(run_dir):
            self.ledger.nothing_runs(node, now)
        _kill(pid, number)
        return f"pid {pid}"

    def _kill_core(self, node: str) -> str:
        run_dir = self.lab.run_dirs[node]
        running = generations.running(run_dir)
        if not running:
            return "none runs"
        newest = max(running)
        if agents.agent_pid(run_dir) is None:
            self.ledger.nothing_runs(node, time.monotonic())
            _kill(running[newest], signal.SIGKILL)
        else:
            carried = self._carried(node, newest)
            crash = self.ledger.core_killed(node, time.monotonic(), carried)
            _kill(running[newest], signal.SIGKILL)
            crash.until = time.monotonic()
        self._core_killed[node] = time.monotonic()
        return f"pid {running[newest]}, generation {newest} of {', '.join(map(str, running))}"

    def _kill_both(self, node: str) -> str:
        run_dir = self.lab.run_dirs[node]
        agent, cores = agents.agent_pid(run_dir), agents.core_pids(run_dir)
        self.ledger.nothing_runs(node, time.monotonic())
        # The agent first: it would start another core. All cores: an older one would go on with what it has.
        for pid in ([agent] if agent is not None else []) + cores:
            _kill(pid, signal.SIGKILL)
        self._core_killed[node] = time.monotonic()
        return f"agent {agent}, cores {', '.join(map(str, cores))}"

    def _carried(self, node: str, generation: int) -> frozenset[str] | None:
        """The near ends of what a core carries from its node's pods; None: the agent cannot say."""
        try:
            rows = agents.connections_of(self.lab.run_dirs[node])
        except AgentError:
            return None
        return frozenset(row.source for row in rows if (row.core, row.direction) == (generation, "outbound"))

    def _upgrade_core(self, node: str) -> str:
        for _ in _until(f"the core of {node} is replaced"):
            with contextlib.suppress(AgentError):
                agents.ask_agent(self.lab.run_dirs[node], UPGRADE_CORE)
                break
        return f"cores {', '.join(map(str, agents.core_pids(self.lab.run_dirs[node])))}"

    def _unenrol(self, pod: str) -> None:
        self._away.add(pod)
        self.lab.unenrol(pod)

    def _enrol(self, pod: str) -> None:
        self.lab.enrol(pod)
        self._away.discard(pod)

    def _set_mode(self, pod: str, mode: str) -> None:
        for _ in _until(f"{pod} is {mode}"):
            with contextlib.suppress(AgentError):
                self.lab.set_mode(pod, mode)
                return

    def _edit_mesh(self, workloads: int) -> None:
        more = [
            {"name": f"far{number}", "node": "elsewhere", "address": f"10.78.{number // 250}.{number % 250 + 1}"}
            for number in range(workloads)
        ]
        write_atomically(self._more, yaml.safe_dump({"workloads": more}))

    def _make_a_mistake(self) -> None:
        text = _MISTAKES[self._mistakes % len(_MISTAKES)]
        self._mistakes += 1
        write_atomically(self._mistake, text)
        try:
            self._wait_for_mesh(lambda error: error is not None and self._mistake.name in error, "shows the mistake")
        finally:
            self._mistake.unlink()
        self._wait_for_mesh(lambda error: error is None, "shows no mistake any more")

    def _wait_for_mesh(self, holds: Callable[[str | None], bool], what: str) -> None:
        for name, run_dir in self.lab.run_dirs.items():
            for _ in _until(f"the agent of {name} {what}"):
                with contextlib.suppress(AgentError):
                    if holds(agents.ask_agent(run_dir, STATUS).mesh.error):
                        break

    def _renew_ca(self) -> None:
        renew_intermediate(self.lab.directory / "ca")

    def _link_down(self, node: str) -> None:
        self.link.pull(node)
        try:
            time.sleep(LINK_DOWN_SECONDS)
        finally:
            self.link.plug(node)


def _pair(subject: str) -> tuple[str, str]:
    client, server = subject.split()
    return client, server


def _kill(pid: int, number: int) -> None:
    """Signals a process. One that is killed has ended afterwards, with all its sockets: they go one by one, and until
    then it may do what it did."""
    with contextlib.suppress(ProcessLookupError):
        process = open_process(pid)
        try:
            signal.pidfd_send_signal(process, number)
            if number == signal.SIGKILL:
                poll = select.poll()
                poll.register(process, select.POLLIN)
                poll.poll(ENDING_SECONDS * 1000)
        finally:
            os.close(process)


def _until(what: str) -> Iterator[Any]:
    """Again and again, for as long as it may take. Raises NotDoneError."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        yield None
        time.sleep(0.1)
    raise NotDoneError(f"not after {ANSWER_SECONDS:.0f} s: {what}")
