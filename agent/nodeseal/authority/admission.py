"""Who may ask for which identity. Pure: the mesh state decides, and nothing else.

A node gets certificates for the identities of the workloads that the mesh state wants enrolled on it; on Kubernetes for
those of the pods that are bound to it (bound_pods.py). So whoever has a node has its workloads, and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from nodeseal.authority.bound_pods import BoundPods
from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import ServiceWord
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.revocation import REVOCATIONS, Revocation, Serials, certificates_of, identities_of, nodes_of
from nodeseal.mesh.spiffe import Identity, SpiffeId, SpiffeIdError

AGAIN_S = 2.0
"""The service may see a change of the mesh state later than the node: so soon the node may ask again."""

_Account = tuple[str, str]
"""(namespace, service account)"""


@dataclass(frozen=True, slots=True)
class Residents:
    """What of a mesh state decides, by node: made once for each state, because every request asks."""

    trust_domain: str
    enrolled: Mapping[str, frozenset[_Account]]
    """The accounts of workloads that are to be enrolled."""
    known: Mapping[str, frozenset[_Account]]
    """The accounts of all workloads."""
    revoked: Mapping[Identity, Revocation] = field(default_factory=dict)
    """The identities that are revoked."""
    revoked_nodes: Mapping[str, Revocation] = field(default_factory=dict)
    revoked_certificates: Serials = field(default_factory=Serials)
    """Of nodes too: a node certificate that is revoked proves nothing."""
    bound: BoundPods | None = None
    """On Kubernetes these decide, instead of `enrolled` and `known`: they change by themselves."""

    @classmethod
    def of(cls, mesh: Mesh) -> Self:
        """In linear time."""
        enrolled: dict[str, set[_Account]] = {}
        known: dict[str, set[_Account]] = {}
        for workload in mesh.workloads.values():
            account = (workload.key.namespace, workload.service_account)
            known.setdefault(workload.node, set()).add(account)
            if workload.wanted:
                enrolled.setdefault(workload.node, set()).add(account)
        revocations = mesh.of(REVOCATIONS).values()
        return cls(
            mesh.trust_domain,
            _frozen(enrolled),
            _frozen(known),
            identities_of(revocations),
            nodes_of(revocations),
            certificates_of(revocations, mesh.trust_domain),
        )


def check_node(residents: Residents, node: str, serial: int | None = None) -> None:
    """Raises Refused if the mesh state revokes the node: nothing is issued to it, not even a certificate of its own.
    `serial`: of the node certificate that it has shown, which may be revoked by itself."""
    if (found := residents.revoked_nodes.get(node)) is not None:
        raise Refused(
            ServiceWord.NODE_REVOKED, f"the node {node} is revoked{found.because}; see 'nodeseal revoke list'"
        )
    if serial is not None and serial in residents.revoked_certificates:
        raise Refused(
            ServiceWord.NODE_CERTIFICATE_REVOKED,
            f"the node certificate {serial:x} of {node} is revoked; take that back, or let the node join anew: "
            f"nodeseal ca token create --node {node}",
        )


def admit(residents: Residents, node: str, identity: str, serial: int | None = None) -> SpiffeId:
    """The identity, if this node may have a certificate for it. `serial`: see check_node. Raises Refused."""
    try:
        wanted = SpiffeId.parse(identity)
    except SpiffeIdError as error:
        raise Refused(ServiceWord.IDENTITY_MALFORMED, str(error)) from None
    if wanted.trust_domain != residents.trust_domain:
        raise Refused(
            ServiceWord.IDENTITY_OF_ANOTHER_DOMAIN,
            f"{wanted} is not of the trust domain {residents.trust_domain}, the only one that is issued in here",
        )
    check_node(residents, node, serial)
    if (found := residents.revoked.get(wanted)) is not None:
        raise Refused(ServiceWord.IDENTITY_REVOKED, f"{wanted} is revoked{found.because}; see 'nodeseal revoke list'")
    account = (wanted.namespace, wanted.service_account)
    if residents.bound is not None:
        if residents.bound.has(node, account):
            return wanted
        raise Refused(
            ServiceWord.IDENTITY_NOT_ON_NODE,
            f"no pod with the service account {'/'.join(account)} is bound to the node {node} now",
            AGAIN_S,
        )
    if account in residents.enrolled.get(node, ()):
        return wanted
    if account in residents.known.get(node, ()):
        raise Refused(
            ServiceWord.IDENTITY_NOT_ENROLLED,
            f"the mesh state does not want {wanted} to be enrolled on the node {node}; set `enrolled: true` there",
            AGAIN_S,
        )
    raise Refused(
        ServiceWord.IDENTITY_NOT_ON_NODE,
        f"the mesh state has no workload with the identity {wanted} on the node {node}; correct it if that is wrong",
        AGAIN_S,
    )


def _frozen(found: Mapping[str, set[_Account]]) -> Mapping[str, frozenset[_Account]]:
    return MappingProxyType({node: frozenset(accounts) for node, accounts in found.items()})
