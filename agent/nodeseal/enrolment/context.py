"""What all enrolments of a node share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from nodeseal.clock import utc_now
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.cores.trust_pusher import TrustPusher
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.identity.credentials import Credentials
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Connect, WorkloadName


class NodeServices(Protocol):
    """What an enrolment needs of the node: see nodeseal.node.node."""

    trust_domain: str

    async def push(self) -> None:
        """Sends the mesh state with the present phases to the core."""

    async def publish(self) -> None:
        """Publishes the workloads that say `published`. Raises PublicationError."""

    def waits_for_neighbours(self, name: WorkloadName) -> bool:
        """Whether another process of the node is about to be handed to the present core."""

    def moved_on(self) -> None:
        """Tells that the present core has a workload that an older one had."""

    def new_key(self) -> int:
        """A key that the core does not know."""


@dataclass(slots=True)
class Context:
    """What all enrolments of a node share."""

    node: NodeServices
    core: CoreSupervisor
    capture: CaptureThread
    credentials: Credentials
    trust: TrustPusher
    settle: float
    limits: Limits = field(default_factory=Limits)
    connect: Connect | None = None
    """Of workloads for which the mesh state does not say; None: nobody has said."""
    native: bool = False
    """What is decided to be plaintext goes past the core."""
    now: Callable[[], datetime] = utc_now
    rand: Callable[[], float] = random.random
