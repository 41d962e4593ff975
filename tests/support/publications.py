"""What the nodes of a lab publish of their trust anchors."""

from __future__ import annotations

from support.lab import RunningLab


def issuer(lab: RunningLab, node: str) -> str:
    """The digest of the root by which the node says that it issues."""
    return _first_line(lab, node).partition(" CA: ")[2][:32]


def trusts(lab: RunningLab, node: str) -> set[str]:
    """The digests of the roots that the node says its core has."""
    return set(_first_line(lab, node).partition(" trusts: ")[2].split())


def _first_line(lab: RunningLab, node: str) -> str:
    return (lab.directory / "mesh" / "enrolled" / f"{node}.yaml").read_text().splitlines()[0]
