"""--workload: which workloads a command shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import click

from nodeseal.cli.errors import UsageError

workload_option = click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="Only this workload, as namespace/name; * stands for anything, as in 'shop/*'. May be given several times.",
)


@dataclass(frozen=True, slots=True)
class Selected:
    """Workloads by their names. No pattern: all of them, and what is of none."""

    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Sequence[str]) -> Selected:
        """What the option was given. Raises UsageError."""
        for one in given:
            namespace, slash, name = one.partition("/")
            if not (namespace and slash and name) or "/" in name:
                raise UsageError(f"{one[:80]!a} is no workload: say namespace/name, or 'namespace/*' for all of one")
        return cls(tuple(given))

    def __contains__(self, workload: str | None) -> bool:
        """`workload`: "namespace/name"; None: one that is not known any more."""
        if not self.patterns:
            return True
        return workload is not None and any(fnmatchcase(workload, pattern) for pattern in self.patterns)
