"""Whose a node is: one agent's, the one that holds the lock of its run directory. Pure.

That lock keeps two agents of one run directory apart, and lets one take over from the other. What is published for a
node names the agent by its machine's boot and its run directory, so that agents of two run directories, or of two
machines that were given one name, find out: they would overwrite each other's publication, and peers that read the
wrong one send plaintext.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nodeseal.sources.kubernetes.mesh_objects import HolderSpec

FRESH_S = 300.0
"""An agent that renewed within it is there."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """An agent. `boot`: of its machine's kernel, as its Node has it too; containers see the same."""

    boot: str
    run_directory: Path

    @classmethod
    def here(cls, run_directory: Path) -> Holder:
        """This one. Raises OSError."""
        return cls(_BOOT_ID.read_text(encoding="ascii").strip(), run_directory)

    @property
    def spec(self) -> HolderSpec:
        """As it is published."""
        return HolderSpec(self.boot, str(self.run_directory))


def refusal(
    node: str, mine: Holder, theirs: HolderSpec | None, seconds: float | None, node_boot: str, *, left: bool = False
) -> str | None:
    """Why the node is another agent's, one line; None: it is this one's. `theirs`: who is named; `seconds`: since that
    one has renewed, None: nobody knows; `node_boot`: which boot the Node is of, as its kubelet says; "": unknown;
    `left`: something is left in that one's run directory, if it is on this machine."""
    if theirs is None or theirs == mine.spec:
        return None
    fresh = seconds is not None and seconds < FRESH_S
    if theirs.boot == mine.boot:
        if not fresh and not left:
            return None
        lately = f", which said so {seconds:.0f} s ago" if fresh else ""
        return (
            f"the node {node} is in use by another agent of this machine, with the run directory "
            f"{theirs.run_directory}{lately}: start the agent with that one, or clean that one up first"
        )
    # The machine was started again, or it is not the one whose Node it is.
    if node_boot == mine.boot or (not node_boot and not fresh):
        return None
    return (
        f"the node {node} belongs to another agent on another machine (boot {theirs.boot}, this one is {mine.boot}): "
        "give this agent the name of its own node"
    )


def seconds_since(renewed: str, now: datetime) -> float | None:
    """Since that time, as an object has it; None: it has none. One that is ahead counts as now."""
    try:
        at = datetime.fromisoformat(renewed)
    except ValueError:
        return None
    return max(0.0, (now - at).total_seconds()) if at.tzinfo is not None else None
