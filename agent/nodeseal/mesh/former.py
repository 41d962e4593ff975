"""A model as cores of former protocols can have it.

Some know no fronts of services. Older ones know one address of each family, and each address claimed once. They must
not take a further address of an enrolled workload for nobody's: they would send plaintext there. So each of these
becomes an object of its own, with the same identity, node, phase and exclusions. Of a contested address such a core
knows one claimant: what it tunnels there proves that it is that one, or fails.
"""

from dataclasses import replace

from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Mesh, MeshDifference, Workload, WorkloadName
from nodeseal.mesh.service import SERVICES
from nodeseal.mesh.workload import WORKLOADS, primaries_of

_SIGN = "~"
"""Between the name and the address of what stands for a further address; no name in a file has it."""


def without_fronts(mesh: Mesh) -> Mesh:
    """The same model without services that have fronts: what is dialled there is nobody's to such a core."""
    gone = tuple(service.key for service in mesh.services.values() if service.fronts)
    return mesh.apply(MeshDifference(mesh.trust_domain, {}, {SERVICES.name: gone})) if gone else mesh


def to_former(mesh: Mesh) -> Mesh:
    """The same model if each workload has such addresses."""
    put: list[Workload] = []
    removed: list[WorkloadName] = []
    contested = mesh.contested
    for workload in mesh.workloads.values():
        addresses = workload.addresses
        if len(addresses) == 1 and not contested:
            continue
        mine = [one for one in addresses if one not in contested or contested[one][0].key == workload.key]
        primaries = primaries_of(mine)
        if primaries == addresses:
            continue
        if primaries:
            put.append(replace(workload, addresses=primaries))
        else:
            removed.append(workload.key)
        put += [_standing_for(workload, one) for one in mine if one not in primaries]
    if not put and not removed:
        return mesh
    return mesh.apply(MeshDifference(mesh.trust_domain, {WORKLOADS.name: tuple(put)}, {WORKLOADS.name: tuple(removed)}))


def from_former(mesh: Mesh) -> Mesh:
    """The reverse, as far as such a core has been told."""
    further: dict[WorkloadName, list[Address]] = {}
    removed: list[WorkloadName] = []
    for key, workload in mesh.workloads.items():
        name, sign, _ = key.name.partition(_SIGN)
        if sign:
            removed.append(key)
            further.setdefault(WorkloadName(key.namespace, name), []).append(workload.address)
    if not removed:
        return mesh
    put = tuple(
        replace(mesh.workloads[key], addresses=mesh.workloads[key].addresses + tuple(addresses))
        for key, addresses in further.items()
        if key in mesh.workloads
    )
    return mesh.apply(MeshDifference(mesh.trust_domain, {WORKLOADS.name: put}, {WORKLOADS.name: tuple(removed)}))


def _standing_for(workload: Workload, address: Address) -> Workload:
    name = WorkloadName(workload.key.namespace, f"{workload.key.name}{_SIGN}{address}")
    return replace(workload, key=name, addresses=(address,), wanted=False)
