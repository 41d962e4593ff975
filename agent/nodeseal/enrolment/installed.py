"""What is in place for an enrolled workload, what went wrong with it, and what all enrolments of a node share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CgroupGoneError
from nodeseal.capture.workload import Captured
from nodeseal.clock import utc_now
from nodeseal.cores.distribution import TrustPusher
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.identity.credentials import Credential, Credentials
from nodeseal.identity.trust import TrustBundle
from nodeseal.linux.namespace import NamespaceGoneError
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Workload, WorkloadName
from nodeseal.mesh.reasons import WhyNotEnrolled
from nodeseal.mesh.spiffe import SpiffeId


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
class Surroundings:
    """What all enrolments of a node share."""

    node: NodeServices
    core: CoreSupervisor
    capture: CaptureThread
    credentials: Credentials
    trust: TrustPusher
    settle: float
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], datetime] = utc_now
    rand: Callable[[], float] = random.random


@dataclass(slots=True)
class Held:
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

    @property
    def draining(self) -> bool:
        """New connections go direct; those that were captured go on."""
        return self.captured.phase == "leaving"


@dataclass(slots=True)
class Trouble:
    """Why a workload is not where it should be, and when the next try is (event loop time)."""

    reason: WhyNotEnrolled
    detail: str
    retry_at: float


def reason_of(error: BaseException) -> WhyNotEnrolled:
    """The word for a failed step."""
    if isinstance(error, NamespaceGoneError):
        return WhyNotEnrolled.NAMESPACE_GONE
    if isinstance(error, CgroupGoneError):
        return WhyNotEnrolled.CGROUP_GONE
    if isinstance(error, AddressInUseError):
        return WhyNotEnrolled.ADDRESS_IN_USE
    if isinstance(error, AddressNotReadyError):
        return WhyNotEnrolled.PENDING
    if isinstance(error, AddressNotFoundError):
        return WhyNotEnrolled.ADDRESS_MISMATCH
    return WhyNotEnrolled.FAILED


def text_of(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
