"""What can go wrong with a cluster: one class per meaning, each text one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nodeseal_lab.errors import LabError


class ClusterError(LabError):
    """Something in the cluster did not work."""


class NoClusterError(ClusterError):
    """There is no cluster of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no cluster named '{name}' is up; make one with: python -m cluster up --name {name}")


class ClusterExistsError(ClusterError):
    """A cluster of this name is up, or was left half made."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a cluster named '{name}' is there; take it down with: python -m cluster down --name {name}")


class MissingProgramError(ClusterError):
    """A program that the cluster is made of is not on this machine."""

    def __init__(self, program: str | Path, remedy: str) -> None:
        super().__init__(f"{program} is missing: {remedy}")


class CommandError(ClusterError):
    """A command failed that had to work."""

    def __init__(self, argv: Sequence[str], status: int, said: str) -> None:
        self.status, self.said = status, said
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        super().__init__(f"{' '.join(argv)[:200]} failed with status {status}: {last[0]}")
