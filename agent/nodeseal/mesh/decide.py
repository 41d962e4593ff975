"""The decisions: what to do with a connection. Pure functions of the model; the core process calls them.

Theory of operation
-------------------
Two nodes learn of a change at different times, so a decision is made from the *deciding* node's knowledge, and must be
right whatever the other node knows at that moment. A workload comes in and goes out in phases (nodeseal.mesh.model):

    own node's phase   ABSENT  ABSENT (captured)  JOINING        ENROLLED   LEAVING        ABSENT
    others see         ABSENT  ABSENT             either         ENROLLED   either         ABSENT

The agent moves a workload on from JOINING, and takes the capture away after LEAVING, only when the others have had time
to see what was published or withdrawn (the agent's `settle`). Given that, these rules refuse nothing wrongly:

* A captured workload tunnels to every destination that it sees as enrolled, in whatever phase it is itself.
* A captured workload takes tunnels in every phase.
* Plaintext from an enrolled source is refused by an ENROLLED workload only: in every other phase the source may not
  know, or may know already, that there is no tunnel to be used.

(Processes of a node, which share its address with others, are refused by nobody for it: nothing tells them apart from
outside, and the node's kubelet is to go on. That they never begin plaintext is their own node's work alone.)

and once both ends are ENROLLED plaintext between them is impossible twice over: the source does not begin it, and the
destination does not accept it. A connection that ran in plaintext before that is never cut for it (`established`).

What a workload excludes inbound is allowed in plaintext in every phase and mode; from an enrolled source only if that
one excludes it outbound. What it excludes outbound goes where it was dialled; to an enrolled workload only if that one
excludes it inbound. Capture lets such connections pass by: here are those that were captured before, or by a capture
that cannot tell.

An address that two workloads claim (Mesh.contested) is neither's. Nothing is tunnelled there, and as soon as one of the
two is enrolled nothing goes there or is taken from there in plaintext: whose application it is nobody can tell.

A refusal is deliberate in these cases and no others: strict mode (established or not; while the workload joins or
leaves only for sources that are not enrolled), the mesh's own ports, and a peer that is not who it should be. It also
ends a flow that already runs. What merely leads nowhere (a name, a port, a workload that is gone) is Unavailable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeseal.mesh.address import (
    HBONE_PORT,
    MESH_PORTS,
    Address,
    ApplicationAddress,
    OriginalDestination,
    TunnelAddress,
)
from nodeseal.mesh.fronts import (
    Choose,
    Found,
    Sticky,
    all_of,
    endpoints_for,
    front_at,
    leads_to_a_peer,
    services_at,
    workload_at,
)
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused
from nodeseal.mesh.spiffe import Identity

POLICY_TRUST_DOMAIN = "same trust domain, or one that is federated with"
POLICY_OWN_IDENTITY = "identity of the source's workload"
POLICY_NO_PLAINTEXT = "no plaintext between enrolled workloads"
POLICY_MESH_PORTS = "no connection to the mesh's own ports"


@dataclass(frozen=True, slots=True)
class Plaintext:
    """Connect to `address` without mutual TLS, because of `why`."""

    address: ApplicationAddress
    why: WhyPlaintext


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Connect through HBONE to address.address, port 15008; `address` is the authority.

    `identity` is the only one that is accepted from the peer. `by_name`: others live at the same address, and the peer
    has to be told which is meant.
    """

    address: ApplicationAddress
    identity: Identity
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Outbound: use any of `endpoints`; there is at least one."""

    endpoints: tuple[Plaintext | Tunnel, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Outbound: reset the connection."""

    why: WhyRefused


@dataclass(frozen=True, slots=True)
class Allow:
    """Inbound: connect to the application. `why` there is no mutual TLS; None if there is."""

    why: WhyPlaintext | None


@dataclass(frozen=True, slots=True)
class Deny:
    """Inbound: refuse (HBONE: 401). `policy` says which rule in words, `why` in one word."""

    policy: str
    why: WhyRefused


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Cannot be done: a new flow is refused (HBONE: 502), one that already runs is none the worse for it."""

    why: WhyRefused

    @property
    def passes(self) -> bool:
        """Whether this node may only be behind: it learns in a moment what another knows already. Whoever can wait does
        (HBONE: 503). And whether nobody is to answer, not even by a refusal."""
        return self.why in _PASSING


_PASSING = frozenset(
    {
        WhyRefused.UNKNOWN_WORKLOAD,
        WhyRefused.WRONG_ADDRESS,
        WhyRefused.NO_LOCAL_ENDPOINT,
        WhyRefused.OUTSIDE_SOURCE_RANGES,
    }
)


def outbound(
    mesh: Mesh,
    workload: WorkloadName,
    destination: OriginalDestination,
    *,
    established: bool,
    choose: Choose = all_of,
) -> Route | Refuse | Unavailable:
    """Where a captured connection of `workload` goes.

    `established` says that it already runs in plaintext: the answer is then always a Route of Plaintext, which is what
    it may stay, however the mesh has changed under it. A flow that runs in a tunnel is asked for as a new one.

    `choose`: of the endpoints of a service's front, those that the answer is to name.
    """
    here = mesh.workloads.get(workload)
    if here is None and not established:
        return Unavailable(WhyRefused.UNKNOWN_WORKLOAD)
    if here is not None and destination.port not in MESH_PORTS:
        excluded = excluded_outbound(mesh, here, destination)
        if excluded is not None:
            return _as_dialled(destination, excluded)
    if (service := mesh.service_by_address.get(destination.address)) is not None:
        return _to_service(mesh, service, destination, established)
    if mesh.fronts and (found := front_at(mesh, destination.address, destination.port)) is not None:
        return _to_front(mesh, here, found, destination, established, choose)
    target = mesh.by_address.get(destination.address)
    if target is None and destination.address not in mesh.hosts:
        return _to_nobody(mesh, destination, established)
    if destination.port in MESH_PORTS and not established:
        return Refuse(WhyRefused.MESH_PORT)
    if target is None and (target := mesh.host_at(destination.address, destination.port)) is None:
        return _as_dialled(destination)
    return Route((_to_workload(mesh, target, destination.address, destination.port, established),))


def inbound_tunnel(
    mesh: Mesh, workload: WorkloadName, peer: Identity, source: Address, authority: TunnelAddress
) -> Allow | Deny | Unavailable:
    """Whether the CONNECT of an authenticated `peer`, coming from the address `source`, may reach `workload`.

    A peer at a known workload's address must have that workload's identity. One at any other address (a gateway, a
    node) is judged by its trust domain alone. At an address that the processes of a node share, it must be that of one
    of them; towards such a process the port has to be one of its own. The phase of `workload` plays no part: see the
    module's text.
    """
    if peer.trust_domain not in mesh.trust_domains:
        return Deny(POLICY_TRUST_DOMAIN, WhyRefused.WRONG_TRUST_DOMAIN)
    here = mesh.workloads.get(workload)
    if here is None:
        return Unavailable(WhyRefused.UNKNOWN_WORKLOAD)
    if authority.address not in here.addresses:
        return Unavailable(WhyRefused.WRONG_ADDRESS)
    if authority.address in mesh.contested:
        return Unavailable(WhyRefused.CONTESTED_ADDRESS)
    if authority.port in MESH_PORTS:
        return Unavailable(WhyRefused.MESH_PORT)
    if here.host is not None and not _reached_at(mesh, here, authority):
        return Unavailable(WhyRefused.NO_SUCH_PORT)
    if not _may_come_from(mesh, peer, source):
        return Deny(POLICY_OWN_IDENTITY, WhyRefused.IDENTITY_MISMATCH)
    return Allow(None)


def _reached_at(mesh: Mesh, here: Workload, authority: TunnelAddress) -> bool:
    """Whether the port is that of a process with the identity of `here`: a tunnel is made for an identity, and two of
    them may share one."""
    target = mesh.host_at(authority.address, authority.port)
    return target is not None and target.identity(mesh.trust_domain) == here.identity(mesh.trust_domain)


def _may_come_from(mesh: Mesh, peer: Identity, source: Address) -> bool:
    origin = mesh.by_address.get(source)
    if origin is not None:
        return origin.identity(mesh.trust_domain) == peer
    origins = mesh.hosts.get(source) or mesh.contested.get(source)
    return origins is None or any(one.identity(mesh.trust_domain) == peer for one in origins)


def inbound_plaintext(
    mesh: Mesh, workload: WorkloadName, source: Address, port: int, *, established: bool
) -> Allow | Deny | Unavailable:
    """Whether plaintext from the address `source` may reach `port` of `workload`.

    `established` says that it already does: it is then refused by strict mode only.
    """
    here = mesh.workloads.get(workload)
    if here is None:
        return Unavailable(WhyRefused.UNKNOWN_WORKLOAD)
    origins = mesh.claimants(source)
    if port != HBONE_PORT and (excluded := excluded_inbound(mesh, here, source, port)) is not None:
        return Allow(excluded)
    # An enrolled peer that does not know yet that this workload joins or leaves means no harm by its plaintext.
    shared = any(one.accepts_tunnels for one in mesh.hosts.get(source, ()))
    enrolled = any(origin.accepts_tunnels for origin in origins)
    unaware = here.phase is not Phase.ENROLLED and (shared or enrolled)
    if here.mode is Mode.STRICT and not unaware:
        return Deny(f"{here.key} mode strict", WhyRefused.STRICT)
    if port == HBONE_PORT:
        # Capture never steers this port here. Should it ever, going on would connect the core to itself.
        return Deny(POLICY_MESH_PORTS, WhyRefused.MESH_PORT)
    if shared:
        # A process that is not enrolled, or one that is and whose node does not know yet: the sender sees to it that it
        # is no other, see docs/host-workloads.md.
        return Allow(WhyPlaintext.SOURCE_SHARES_ADDRESS)
    if not origins:
        return Allow(WhyPlaintext.SOURCE_NOT_IN_MESH)
    if not enrolled:
        return Allow(WhyPlaintext.SOURCE_NOT_ENROLLED)
    if here.phase is not Phase.ENROLLED:
        return Allow(WhyPlaintext.SOURCE_JOINING)
    if established:
        return Allow(WhyPlaintext.OPENED_BEFORE_ENROLMENT)
    why = WhyRefused.SOURCE_IS_ENROLLED if len(origins) == 1 else WhyRefused.CONTESTED_ADDRESS
    return Deny(POLICY_NO_PLAINTEXT, why)


def excluded_inbound(mesh: Mesh, here: Workload, source: Address, port: int) -> WhyPlaintext | None:
    """The reason if plaintext from `source` to `port` of `here` passes by nodeseal: the mesh state says so, and if the
    source is an enrolled workload, of both."""
    why = here.exclude.inbound.why(source, port)
    if why is None:
        return None
    for origin in mesh.claimants(source):
        # Which of its addresses was dialled nobody says: it may be any of that family.
        dialled = here.addresses_like(source)
        if origin.accepts_tunnels and not all(origin.exclude.outbound.why(one, port) for one in dialled):
            return None
    return why


def excluded_outbound(mesh: Mesh, here: Workload, destination: OriginalDestination) -> WhyPlaintext | None:
    """The same for what `here` dials. (A service that leads to an enrolled workload is never excluded, but where it is
    dialled at a node's address: who excludes that excludes its node ports.)"""
    address, port = destination.address, destination.port
    why = here.exclude.outbound.why(address, port)
    if why is None:
        return None
    if services := services_at(mesh, address):
        return None if any(leads_to_a_peer(mesh, service) for service in services) else why
    targets = mesh.claimants(address)
    if not targets and (process := mesh.host_at(address, port)) is not None:
        targets = (process,)
    for target in targets:
        # It may have been dialled from any of that family.
        sources = here.addresses_like(address)
        if target.accepts_tunnels and not all(target.exclude.inbound.why(one, port) for one in sources):
            return None
    return why


def _to_nobody(mesh: Mesh, destination: OriginalDestination, established: bool) -> Route | Refuse | Unavailable:
    """An address that is no workload's: unknown, or claimed by several."""
    claimants = mesh.contested.get(destination.address, ())
    if not claimants:
        return _as_dialled(destination)
    if not any(one.accepts_tunnels for one in claimants):
        return _as_dialled(destination, WhyPlaintext.DESTINATION_NOT_ENROLLED)
    if established:
        return _as_dialled(destination, WhyPlaintext.OPENED_BEFORE_ENROLMENT)
    return Unavailable(WhyRefused.CONTESTED_ADDRESS)


def _to_service(
    mesh: Mesh, service: Service, destination: OriginalDestination, established: bool
) -> Route | Refuse | Unavailable:
    port = service.target_port(destination.port)
    if port is None:
        return _as_dialled(destination) if established else Unavailable(WhyRefused.NO_SUCH_PORT)
    if port in MESH_PORTS and not established:
        return Refuse(WhyRefused.MESH_PORT)
    targets = [target for name in service.endpoints if (target := mesh.workloads.get(name)) is not None]
    if not targets:
        return _as_dialled(destination) if established else Unavailable(WhyRefused.NO_ENDPOINT)
    found = []
    for target in targets:
        where: Address | None = target.address_like(destination.address)
        if where in mesh.contested:
            where = _uncontested(mesh, target, destination.address)
        if where is not None:
            found.append(_to_workload(mesh, target, where, port, established))
    if found:
        return Route(tuple(found))
    return _as_dialled(destination) if established else Unavailable(WhyRefused.CONTESTED_ADDRESS)


def _to_front(
    mesh: Mesh,
    here: Workload | None,
    found: Found | WhyRefused,
    destination: OriginalDestination,
    established: bool,
    choose: Choose,
) -> Route | Refuse | Unavailable:
    if isinstance(found, WhyRefused):
        return _as_dialled(destination) if established else Unavailable(found)
    service, front = found
    endpoints = endpoints_for(mesh, front, here, destination.address)
    if isinstance(endpoints, WhyRefused):
        if established:
            return _as_dialled(destination)
        return Refuse(endpoints) if endpoints is WhyRefused.MESH_PORT else Unavailable(endpoints)
    if established:
        # It goes on where it is; whoever keeps an endpoint keeps it by new ones.
        chosen: Sequence[ApplicationAddress] = endpoints[:1]
    else:
        keeps = service.affinity
        port, version = front.service_port, front.version
        sticky = Sticky(service.key, port, version, keeps.seconds) if keeps is not None else None
        chosen = choose(endpoints, sticky)
    return Route(tuple(_to_endpoint(mesh, endpoint, established) for endpoint in chosen))


def _to_endpoint(mesh: Mesh, endpoint: ApplicationAddress, established: bool) -> Plaintext | Tunnel:
    target = workload_at(mesh, endpoint)
    if target is None:
        claimed = endpoint.address in mesh.contested
        why = WhyPlaintext.DESTINATION_NOT_ENROLLED if claimed else WhyPlaintext.DESTINATION_NOT_IN_MESH
        return Plaintext(endpoint, why)
    return _to_workload(mesh, target, endpoint.address, endpoint.port, established)


def _uncontested(mesh: Mesh, target: Workload, dialled: Address) -> Address | None:
    """Its first address that it alone claims, those of the family that was dialled before others."""
    mine = [address for address in target.addresses if address not in mesh.contested]
    return min(mine, key=lambda address: address.version != dialled.version, default=None)


def _to_workload(mesh: Mesh, target: Workload, where: Address, port: int, established: bool) -> Plaintext | Tunnel:
    address = ApplicationAddress(where, port)
    if target.host is not None and not target.host.has(port):
        return Plaintext(address, WhyPlaintext.DESTINATION_NOT_IN_MESH)
    if not target.accepts_tunnels:
        return Plaintext(address, WhyPlaintext.DESTINATION_NOT_ENROLLED)
    if established:
        return Plaintext(address, WhyPlaintext.OPENED_BEFORE_ENROLMENT)
    return Tunnel(address, target.identity(mesh.trust_domain), by_name=target.host is not None)


def _as_dialled(destination: OriginalDestination, why: WhyPlaintext = WhyPlaintext.DESTINATION_NOT_IN_MESH) -> Route:
    address = ApplicationAddress(destination.address, destination.port)
    return Route((Plaintext(address, why),))
