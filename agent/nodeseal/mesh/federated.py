"""Trust domains that a mesh is federated with: their workloads may be peers, each verified by the bundle of its own
domain. One kind of objects of the mesh model."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nodeseal.mesh.kinds import Kind, MeshError
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain, split


class Profile(StrEnum):
    """How a bundle endpoint is known (SPIFFE Federation, section 5.2)."""

    WEB = "https_web"
    """By a certificate of the Web PKI for the host in its URL."""
    SPIFFE = "https_spiffe"
    """By an X.509-SVID."""


@dataclass(frozen=True, slots=True)
class BundleEndpoint:
    """Where each node fetches a bundle (SPIFFE Federation, section 5.1)."""

    url: str
    profile: Profile
    spiffe_id: str = ""
    """The endpoint's own, for https_spiffe."""
    ca_file: str = ""
    """For https_web: CAs in PEM form instead of the system's; the path of a file on every node."""

    @property
    def trust_domain(self) -> str:
        """Of the endpoint's own id; "" with https_web."""
        return split(self.spiffe_id)[0] if self.spiffe_id else ""


@dataclass(frozen=True, slots=True)
class Federated:
    """One trust domain, with its bundle or where each node finds it: exactly one of the ways, but that an endpoint may
    have a bundle or a file beside it, which counts until the endpoint has given one."""

    key: str
    """The trust domain."""
    bundle: str = ""
    """Certificates in PEM form, or a SPIFFE bundle (JWKS)."""
    bundle_file: str = ""
    """The path of a file with the same, on every node."""
    endpoint: BundleEndpoint | None = None
    from_workload_api: bool = False
    """Each node takes what its own Workload API gives."""


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
