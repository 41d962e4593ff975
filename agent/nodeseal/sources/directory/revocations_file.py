"""revocations.json of a mesh directory: what `nodeseal revoke` and `nodeseal trust remove --force` revoke, one entry a
line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from nodeseal.mesh.revocation import REVOCATIONS, Revocation, RevocationKey
from nodeseal.sources.directory import writer

NAME = "revocations.json"


def listed(directory: Path) -> dict[RevocationKey, Revocation]:
    """What is there. To be called within writer.writing. Raises WriteError."""
    file = writer.read_own(directory / NAME)
    return {one.key: one for _index, one in file.lists[REVOCATIONS.name].valid()} if file is not None else {}


def write(directory: Path, revocations: Iterable[Revocation]) -> None:
    """Exactly these are there from now on. To be called within writer.writing. Raises WriteError."""
    lines = [json.dumps(_fields(one)) for one in revocations]
    text = f'{{"{REVOCATIONS.name}": [\n' + ",\n".join(lines) + "\n]}\n" if lines else None
    writer.replace(directory / NAME, text)


def revoke_anchor(directory: Path, one: Revocation, forget_before: str) -> None:
    """Puts in that of a trust anchor. Those of other anchors since before `forget_before` (ISO 8601, UTC) go: whoever
    these had verified has been cut. To be called within writer.writing. Raises WriteError."""
    kept = [
        other
        for key, other in listed(directory).items()
        if key != one.key and (other.anchor is None or not other.since or other.since >= forget_before)
    ]
    write(directory, [*kept, one])


def restore_anchors(directory: Path, fingerprints: Collection[str]) -> None:
    """Takes those of these trust anchors out. To be called within writer.writing. Raises WriteError."""
    there = listed(directory)
    kept = [one for one in there.values() if one.anchor not in fingerprints]
    if len(kept) < len(there):
        write(directory, kept)


def _fields(one: Revocation) -> dict[str, Any]:
    if one.node is not None:
        fields: dict[str, Any] = {"node": one.node, "identities": list(map(str, one.identities))}
        if len(one.serials):
            fields["serials"] = [f"{serial:x}" for serial in one.serials]
    elif one.anchor is not None:
        fields = {"anchor": one.anchor}
    elif one.identities:
        fields = {"identity": str(one.identities[0])}
    else:
        fields = {"serials": [f"{serial:x}" for serial in one.serials]}
    optional = {"trust_domain": one.trust_domain, "reason": one.reason, "since": one.since}
    return fields | {name: value for name, value in optional.items() if value}
