"""Where and how cores run, as the configuration has it.

core:
  own_cgroup: true                           # each core in a cgroup of its own, outside of the agent's
  memory: 2GiB                               # most that a core may use; needs own_cgroup
  cpus: 2                                    # CPUs that a core may use; needs own_cgroup
  image_directory: /var/lib/nodeseal/image   # cores run from a copy of their files there
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nodeseal.documents.document import Scalar
from nodeseal.documents.limits import read_size
from nodeseal.documents.schema import Fields

_MEMORY_MIN, _MEMORY_MAX = 64 << 20, 1 << 44
"""An empty core has some 30 MiB."""
_CPUS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """See the module's text."""

    own_cgroup: bool = False
    memory: int | None = None
    """Bytes; None: no limit."""
    cpus: float | None = None
    """None: no limit."""
    image_directory: Path | None = None
    """None: cores run from where their files are."""


def read_core_settings(fields: Fields, name: str, base: Path) -> CoreSettings:
    """The field `name`, a mapping; paths are relative to `base`. Problems are noted with the fields."""
    node = fields.node(name, "a mapping: own_cgroup, memory, cpus, image_directory", required=False)
    if node is None:
        return CoreSettings()
    inner = Fields(fields.problems, node, fields.at(name))
    directory = inner.text("image_directory", "", expected="a path")
    settings = CoreSettings(
        inner.truth("own_cgroup", False),
        read_size(inner, "memory", _MEMORY_MIN, _MEMORY_MAX, "a size from 64MiB such as 2GiB, or none"),
        _cpus(inner),
        base / directory if directory else None,
    )
    for limit in ("memory", "cpus"):
        if inner.has(limit) and not settings.own_cgroup:
            fields.problems.add(inner.line_of(limit), inner.at(limit), "'own_cgroup: true' beside it", "none")
    inner.close()
    return settings


def _cpus(fields: Fields) -> float | None:
    expected = "a number of CPUs from 0.1, such as 2 or 1.5, or none"
    node = fields.node("cpus", expected, required=False)
    if node is None or (isinstance(node, Scalar) and node.text == "none"):
        return None
    if isinstance(node, Scalar) and _CPUS.fullmatch(node.text) and float(node.text) >= 0.1:
        return float(node.text)
    fields.wrong(node, "cpus", expected)
    return None
