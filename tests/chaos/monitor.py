"""Looks all the time, while events happen: at what the programs and the watch report, and whether nodes are back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chaos.ledger import Ledger
from chaos.network import Watch
from chaos.scene import Scene
from nodeseal.contracts.api import STATUS
from nodeseal.contracts.status import Status
from nodeseal_lab import agents
from nodeseal_lab.errors import AgentError
from nodeseal_lab.lab import Lab

STEP = 0.25
_EXPLAINED_MAX = 20
BACK_SECONDS = 60.0
"""After which a node on which all was killed has to be back."""


class Monitor:
    """A thread; `look` may also be called by others once it has stopped."""

    def __init__(self, lab: Lab, scene: Scene, watch: Watch, ledger: Ledger) -> None:
        self._lab, self._scene, self._watch, self._ledger = lab, scene, watch, ledger
        self._sightings = 0
        self._late: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        self.unseen = 0
        self._explained = 0

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Raises what ended it before."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.error is not None:
            raise self.error

    def look(self) -> None:
        """Once."""
        # First of all: an end of a connection is judged by whether its node was back.
        self._look_for_nodes()
        for incident in self._scene.incidents():
            found = len(self._ledger.violations)
            self._ledger.enter(incident)
            for violation in self._ledger.violations[found:]:
                self._ledger.violations[-1] = replace(violation, detail=f"{violation.detail}{self._why(incident)}")
        self._scene.tend()
        sightings = self._watch.sightings()
        for sighting in sightings[self._sightings :]:
            self._ledger.add(sighting["at"], "plaintext", f"on the uplink of {sighting['node']}: {sighting['frame']}")
        self._sightings = len(sightings)
        unseen = self._watch.stats()["unseen"]
        if unseen > self.unseen:
            self._ledger.add(time.monotonic(), "watch", f"{unseen - self.unseen} frames were not seen by the watch")
            self.unseen = unseen

    def wait_back(self, tell: Callable[[str], None]) -> None:
        """Until every node has agent and core, and all that should be enrolled is."""
        deadline = time.monotonic() + BACK_SECONDS
        nodes = {node.name for node in self._lab.plan.nodes}
        while waiting := {node for node in nodes if not self._is_back(node)}:
            if time.monotonic() > deadline:
                tell(f"not back after {BACK_SECONDS:.0f} s: {', '.join(sorted(waiting))}")
                return
            time.sleep(STEP)

    def _run(self) -> None:
        try:
            while not self._stop.wait(STEP):
                self.look()
        except BaseException as error:
            self.error = error

    def _why(self, incident: dict[str, Any]) -> str:
        """What the cores say of a connection that ended: they know it for a while, by the address of its client."""
        if self._explained >= _EXPLAINED_MAX:
            return ""
        self._explained += 1
        client = incident["local"] if incident["side"] == "client" else incident["remote"]
        said = []
        for node, run_dir in self._lab.run_dirs.items():
            with contextlib.suppress(AgentError):
                rows = agents.connections_of(run_dir)
                said += [f"{node}: {row.reason}" for row in rows if row.source == client and row.reason]
        return f" ({'; '.join(said)})" if said else ""

    def _look_for_nodes(self) -> None:
        for node in self._ledger.down():
            asked = time.monotonic()
            if self._is_back(node):
                self._ledger.runs_again(node, asked)
            elif node not in self._late:
                began = max(crash.at for crash in self._ledger.crashes if crash.node == node)
                if asked - began > BACK_SECONDS:
                    self._late.add(node)
                    self._ledger.add(asked, "event", f"{node} is not back {BACK_SECONDS:.0f} s after all was killed")

    def _is_back(self, node: str) -> bool:
        try:
            return is_back(agents.ask_agent(self._lab.run_dirs[node], STATUS))
        except AgentError:
            return False


def is_back(status: Status) -> bool:
    """Whether the core has every workload that is wanted on the node. An agent that starts answers before it knows of
    any."""
    wanted = [workload for workload in status.workloads if workload.wanted]
    ready = status.agent.starting is None and status.core.state == "running"
    return ready and all(workload.enrolled for workload in wanted)
