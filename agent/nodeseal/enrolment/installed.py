"""What is in place for an enrolled workload."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from nodeseal.capture.listeners import PARKED
from nodeseal.capture.workload import Captured
from nodeseal.identity.credentials import Credential
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Workload
from nodeseal.mesh.spiffe import Identity


@dataclass(slots=True)
class Installed:
    """What is in place for a workload: `workload` is the mesh state's when it was installed."""

    workload: Workload
    key: int
    identity: Identity
    captured: Captured
    # Of the core that has it; 0: no core has.
    incarnation: int
    # Of the listeners that the core has.
    roles: set[int] = field(default_factory=set)
    # The core that reads its ring: incarnation, and the key there; None: nobody does, or nobody knows of one.
    reader: tuple[int, int] | None = None
    # That the core goes by; None: nobody knows.
    limits: Limits | None = None
    # That the core has; None: that of a former agent.
    credential: Credential | None = None
    # That the core had when it got the credential.
    bundle: TrustBundle | None = None
    # Draining: when capture ended (event loop time); 0: before this agent began.
    direct_since: float = 0.0
    # The rest is being taken away; only `release` is left to be tried again.
    removing: bool = False

    def lacking(self) -> dict[int, int]:
        """The listening sockets that the core does not have: role -> descriptor."""
        has = {*self.roles, PARKED}
        return {role: fd for role, fd in self.captured.listeners.items() if role not in has}

    def has_expired(self, now: datetime) -> bool:
        """Whether its certificate has."""
        return self.credential is not None and self.credential.svid.not_after <= now

    @property
    def draining(self) -> bool:
        """New connections go direct; those that were captured go on."""
        return self.captured.phase == "leaving"
