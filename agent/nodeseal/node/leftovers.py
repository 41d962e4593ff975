"""Workloads that this node had enrolled, that the mesh state no longer gives it, and that still run here.

A slip of the pen in `node:` takes a workload out of its node's list, and its traffic is plaintext from then on. Whoever
meant that says `enrolled: false`, or the pod ends: then nothing is left of it here. An agent that is restarted must not
forget them: they are noted in the run directory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nodeseal.capture.workload import Captured
from nodeseal.enrolment.capture_thread import inode_of
from nodeseal.local import run_directory
from nodeseal.mesh.model import Mesh, Phase, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

log = logging.getLogger("nodeseal.agent")

HasCgroup = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a workload was captured. `cgroup`: of a process of the node."""

    netns: str
    inode: int
    cgroup: str | None


class Leftovers:
    """Those of one node, and those that the agent before noted in its run directory."""

    def __init__(self, node: str, run_dir: Path) -> None:
        self._node = node
        self._path = run_dir / run_directory.LEFTOVERS
        self._places = _read(self._path)

    def note(self, name: WorkloadName, captured: Captured) -> None:
        """The mesh state has taken a workload that is captured away from this node."""
        host = captured.target.host
        place = _Place(captured.target.netns, captured.namespace.inode, host.cgroup if host is not None else None)
        if self._places.get(name) != place:
            self._places[name] = place
            self._write()

    def forget(self, name: WorkloadName) -> None:
        """It is this node's again."""
        if self._places.pop(name, None) is not None:
            self._write()

    async def look(self, has_cgroup: HasCgroup) -> None:
        """Forgets what does not run here any more."""
        for name, place in list(self._places.items()):
            gone = inode_of(place.netns) != place.inode
            if gone or (place.cgroup is not None and not await has_cgroup(place.cgroup)):
                self.forget(name)

    def problems(self, mesh: Mesh) -> Iterator[Problem]:
        """One for each that is not enrolled on the node that has it by now."""
        for name, place in sorted(self._places.items()):
            workload = mesh.workloads.get(name)
            if workload is not None and workload.phase is Phase.ENROLLED:
                continue
            where = f"in the cgroup {place.cgroup}" if place.cgroup is not None else f"in {place.netns}"
            now = f"gives it the node {workload.node}" if workload is not None else "no longer has it"
            remedy = "correct 'node' there" if workload is not None else "say 'enrolled: false' there if that is meant"
            yield Problem(
                ProblemWord.WAS_ENROLLED,
                f"{name} was enrolled on this node ({self._node}) and still runs {where}, but the mesh state {now}: "
                "its traffic is in plaintext",
                f"{remedy}, or end it",
                str(name),
            )

    def _write(self) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        try:
            draft.write_text(json.dumps({str(name): asdict(place) for name, place in self._places.items()}))
            draft.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s; an agent that is restarted forgets them", self._path, error.strerror)


def _read(path: Path) -> dict[WorkloadName, _Place]:
    """What `_write` wrote; nothing, with a line in the log, when it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {WorkloadName.parse(name): _Place(**place) for name, place in found.items()}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("cannot read %s: %s", path, " ".join(str(error).split()))
    return {}
