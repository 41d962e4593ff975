"""A pod at the moment at which its network has been made: what is known of it before any process of it runs, and before
anybody else knows its address."""

from __future__ import annotations

from dataclasses import dataclass

from nodeseal.mesh.address import Address
from nodeseal.mesh.model import WorkloadName


class ArrivalError(Exception):
    """Whether the pod is to be enrolled cannot be said now, or it may not run as it is; one line."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the container runtime says of it. The same pod may arrive again, with another sandbox."""

    name: WorkloadName
    """Its namespace and name in Kubernetes."""
    uid: str
    """ "" when the runtime does not say."""
    sandbox: str
    """By which the runtime knows what it has made: the id of its container."""
    netns: str
    """The absolute path of its network namespace; "" when that is gone already, of one that departs."""
    addresses: tuple[Address, ...] = ()
    """In the order of the network plugins' result."""
