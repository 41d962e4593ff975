"""What is in place for an enrolled workload."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from nodeseal.capture.workload import Captured
from nodeseal.identity.credentials import Credential
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Workload
from nodeseal.mesh.spiffe import SpiffeId


@dataclass(slots=True)
class Installed:
    """What is in place for a workload: `workload` is the mesh state's when it was installed."""

    workload: Workload
    key: int
    identity: SpiffeId
    captured: Captured
    incarnation: int  # of the core that has it; 0: no core has
    roles: set[int] = field(default_factory=set)  # of the listeners that the core has
    limits: Limits | None = None  # that the core goes by; None: nobody knows
    credential: Credential | None = None
    bundle: TrustBundle | None = None  # that the core had when it got the credential
    direct_since: float = 0.0  # draining: when capture ended (event loop time); 0: before this agent began
    removing: bool = False  # the rest is being taken away; only `release` is left to be tried again

    def lacking(self) -> dict[int, int]:
        """The listeners that the core does not have: role -> descriptor."""
        return {role: fd for role, fd in self.captured.listeners.items() if role not in self.roles}

    def has_expired(self, now: datetime) -> bool:
        """Whether its certificate has."""
        return self.credential is not None and self.credential.svid.not_after <= now

    @property
    def draining(self) -> bool:
        """New connections go direct; those that were captured go on."""
        return self.captured.phase == "leaving"
