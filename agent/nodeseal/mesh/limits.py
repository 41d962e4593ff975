"""What one workload may take of its node's core, and who says so: the node's configuration, or the mesh state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NO_LIMIT: Final = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a workload may have; NO_LIMIT: as much as it takes."""

    connections: int = 20_000
    """At once: its flows, and the tunnels that peers opened to it."""
    memory: int = 256 << 20
    """Bytes that the core holds for it because somebody does not take them."""
    new_connections: int = 20_000
    """A second; a second's worth may come at once."""

    def as_dict(self) -> dict[str, int]:
        """By the names that they have everywhere: configuration, mesh state, control protocol."""
        return {name: getattr(self, name) for name in LIMIT_NAMES}


LIMIT_NAMES: Final = ("connections", "memory", "new_connections")


@dataclass(frozen=True, slots=True)
class LimitChanges:
    """What the mesh state says of one workload's limits; None: nothing, the node's own holds."""

    connections: int | None = None
    memory: int | None = None
    new_connections: int | None = None

    def over(self, limits: Limits) -> Limits:
        """`limits` with the changes."""
        return Limits(
            limits.connections if self.connections is None else self.connections,
            limits.memory if self.memory is None else self.memory,
            limits.new_connections if self.new_connections is None else self.new_connections,
        )

    def as_dict(self) -> dict[str, int]:
        """Those that are changed, by their names."""
        return {name: value for name in LIMIT_NAMES if (value := getattr(self, name)) is not None}


UNCHANGED: Final = LimitChanges()
