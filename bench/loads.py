"""The loads that every peer gets, in this order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """A mixture for load.c: numbers of connections of each kind. `rate`: requests/s of all keep-alive connections
    together; 0 is the closed loop."""

    name: str
    keepalive: int = 0
    rate: int = 0
    churn: int = 0
    up: int = 0
    down: int = 0
    idle: int = 0

    def arguments(self) -> list[str]:
        """For load.c's command line."""
        kinds = ("keepalive", "rate", "churn", "up", "down", "idle")
        return [part for kind in kinds if (number := getattr(self, kind)) for part in (f"--{kind}", str(number))]


FIXED_RATE = 10_000

LOADS = (
    Load("requests_c1", keepalive=1),
    Load("requests_c64", keepalive=64),
    Load("requests_c512", keepalive=512),
    Load("fixed_rate_c64", keepalive=64, rate=FIXED_RATE),
    Load("connections_c32", churn=32),
    Load("connections_c1", churn=1),
    Load("down_1", down=1),
    Load("up_1", up=1),
    Load("down_8", down=8),
    Load("up_8", up=8),
    Load("mix", keepalive=32, rate=2_000, churn=2, up=1, down=1),
)
