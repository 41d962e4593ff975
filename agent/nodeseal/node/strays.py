"""Plaintext of enrolled workloads that arrived here and was refused: their nodes did not know whom they dialled.

An address that is translated on the way (a virtual address of somebody's load balancer) is not in the mesh state, and
so is a further address of a workload that nobody has written down. The client's node takes either for one outside the
mesh. Only here, where it arrives, does anybody know better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

from nodeseal.contracts.refusal import Refusal
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.model import Mesh, MeshError, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord, WhyRefused

SHOWN_S = 600.0
_MOST = 64


class Strays:
    """What the cores' refusals say of such plaintext."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, Refusal]] = {}
        """Workload and client -> when its last one was, and which."""

    def take(self, refusals: Iterable[Refusal]) -> None:
        """What one core has refused lately."""
        now = self._clock()
        for one in refusals:
            if one.reason != WhyRefused.SOURCE_IS_ENROLLED or one.direction != "inbound" or one.workload is None:
                continue
            at = now - one.last_ms / 1000
            known = self._seen.get((one.workload, one.source))
            if known is None or known[0] < at:
                self._seen[one.workload, one.source] = at, one

    def problems(self, mesh: Mesh | None) -> Iterator[Problem]:
        """Those of the last minutes, one for each client and workload."""
        now = self._clock()
        self._seen = {key: seen for key, seen in self._seen.items() if now - seen[0] < SHOWN_S}
        for (name, source), (_at, one) in sorted(self._seen.items())[:_MOST]:
            if mesh is not None and (problem := _problem(mesh, name, source, one.destination)) is not None:
                yield problem


def _problem(mesh: Mesh, name: str, source: str, destination: str) -> Problem | None:
    try:
        here = mesh.workloads.get(WorkloadName.parse(name))
        client = mesh.by_address.get(ip_address(source))
        arrived = ApplicationAddress.parse(destination).address
    except (MeshError, ValueError):
        return None
    if here is None or client is None:
        return None  # the mesh state is another one by now
    text = f"{name}: plaintext of {client.key} (on {client.node}, {source}) to {destination} was refused"
    if arrived not in here.addresses:
        text += ", since nobody knows whose address that is"
        remedy = f"add {arrived} to the 'addresses' of {name} in the mesh state"
    else:
        text += f": {client.node} did not know whom it dialled"
        remedy = (
            f"see which address {client.key} dials ('nodeseal connections' on {client.node}), and add it to the "
            f"'addresses' of {name}, or as a service"
        )
    return Problem(ProblemWord.PLAINTEXT_FROM_ENROLLED, text, remedy, name)
