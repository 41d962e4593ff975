"""trust.yaml of a mesh directory: the trust anchors that `nodeseal trust` adds and removes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from nodeseal.mesh.trust_anchor import TRUST_ANCHORS, TrustAnchor
from nodeseal.sources.directory import writer

NAME = "trust.yaml"

_HEAD = "# Written by `nodeseal trust`.\n"


def add(directory: Path, anchors: Iterable[TrustAnchor]) -> None:
    """Puts in those that are not there. To be called within writer.writing. Raises WriteError."""
    listed = _listed(directory)
    _write(directory, [*listed.values(), *(one for one in anchors if one.key not in listed)])


def has(directory: Path, key: str) -> bool:
    """Whether it is there. To be called within writer.writing. Raises WriteError."""
    return key in _listed(directory)


def remove(directory: Path, keys: Collection[str]) -> frozenset[str]:
    """Takes out those that are there; which these were. To be called within writer.writing. Raises WriteError."""
    listed = _listed(directory)
    found = frozenset(key for key in keys if key in listed)
    if found:
        _write(directory, [one for one in listed.values() if one.key not in found])
    return found


def _listed(directory: Path) -> dict[str, TrustAnchor]:
    file = writer.read_own(directory / NAME)
    return {one.key: one for _index, one in file.lists[TRUST_ANCHORS.name].valid()} if file is not None else {}


def _write(directory: Path, anchors: Iterable[TrustAnchor]) -> None:
    lines = [_HEAD.rstrip(), f"{TRUST_ANCHORS.name}:"]
    for one in anchors:
        lines.append(f"  - pem: |  # {one.key}")
        lines += [f"      {line}" for line in one.pem.splitlines()]
    writer.replace(directory / NAME, "\n".join(lines) + "\n" if len(lines) > 2 else None)
