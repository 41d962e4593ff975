"""Trust domains that a mesh is federated with: their workloads may be peers, each verified by the bundle of its own
domain. One kind of objects of the mesh model."""

from collections.abc import Iterable
from dataclasses import dataclass

from nodeseal.mesh.kinds import Kind, MeshError
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain


@dataclass(frozen=True, slots=True)
class Federated:
    """One trust domain, with its bundle or the place where each node finds it: exactly one of the two."""

    key: str
    """The trust domain."""
    bundle: str = ""
    """Certificates in PEM form, or a SPIFFE bundle (JWKS)."""
    bundle_file: str = ""
    """The path of a file with the same, on every node."""


def read_domain(text: str) -> str:
    """A trust domain. Raises MeshError."""
    try:
        check_trust_domain(text)
    except SpiffeIdError as error:
        raise MeshError(str(error)) from None
    return text


def _check(trust_domain: str, domains: Iterable[Federated]) -> None:
    for one in domains:
        if one.key == trust_domain:
            raise MeshError(f"the mesh's own trust domain {trust_domain} cannot be federated with")


FEDERATED: Kind[str, Federated] = Kind("federated", "federated trust domain", read_domain, check=_check)
