"""Enrolment and un-enrolment as two nodes see them, at every moment and from both sides.

A workload passes through stages. In each, its own node knows its phase and whether its connections are captured, and
the other node sees it as published or not; where both are listed, the news is on its way. The table of all pairs of
stages and views is small enough to be tried as a whole.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import product

import pytest

from nodeseal.mesh.address import OriginalDestination, TunnelAddress
from nodeseal.mesh.decide import Allow, Deny, Plaintext, Route, Tunnel, inbound_plaintext, inbound_tunnel, outbound
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused

TRUST_DOMAIN = "example.org"
CLIENT = WorkloadName("default", "client")
SERVER = WorkloadName("default", "server")
CLIENT_ADDRESS = IPv4Address("10.1.0.1")
SERVER_ADDRESS = IPv4Address("10.2.0.1")
PORT = 8080


@dataclass(frozen=True)
class Stage:
    name: str
    captured: bool
    phase: Phase
    seen_as: tuple[Phase, ...]
    """What the other node may see; more than one while the news is on its way."""


STAGES = (
    Stage("outside", False, Phase.ABSENT, (Phase.ABSENT,)),
    Stage("captured", True, Phase.ABSENT, (Phase.ABSENT,)),
    Stage("published", True, Phase.ABSENT, (Phase.ABSENT, Phase.ENROLLED)),
    Stage("joining", True, Phase.JOINING, (Phase.ABSENT, Phase.ENROLLED)),
    Stage("enrolled", True, Phase.ENROLLED, (Phase.ENROLLED,)),
    Stage("leaving", True, Phase.LEAVING, (Phase.ENROLLED, Phase.ABSENT)),
    Stage("left", False, Phase.ABSENT, (Phase.ABSENT,)),
)
SITUATIONS = [
    pytest.param(
        client, server, client_seen, server_seen, id=f"{client.name}({client_seen})-{server.name}({server_seen})"
    )
    for client, server in product(STAGES, STAGES)
    for client_seen, server_seen in product(client.seen_as, server.seen_as)
]
ON_ONE_NODE = [
    pytest.param(client, server, id=f"{client.name}-{server.name}") for client, server in product(STAGES, STAGES)
]


def mesh_of(client: Phase, server: Phase, mode: Mode = Mode.PERMISSIVE) -> Mesh:
    return Mesh.build(
        TRUST_DOMAIN,
        [
            Workload(CLIENT, "client", "node1", (CLIENT_ADDRESS,), None, True, Mode.PERMISSIVE, client),
            Workload(SERVER, "server", "node2", (SERVER_ADDRESS,), None, True, mode, server),
        ],
    )


@dataclass(frozen=True)
class Outcome:
    on_the_wire: str  # "plaintext" or "tunnel"
    refused: WhyRefused | None


def connect(client: Stage, server: Stage, at_client: Mesh, at_server: Mesh, *, established: bool = False) -> Outcome:
    """A connection as both nodes treat it; `established`, as both judge it anew when it already runs in plaintext."""
    tunnelled = False
    if client.captured:
        route = outbound(at_client, CLIENT, OriginalDestination(SERVER_ADDRESS, PORT), established=established)
        if not isinstance(route, Route):
            return Outcome("plaintext", route.why)
        (endpoint,) = route.endpoints
        assert endpoint.address.address == SERVER_ADDRESS
        tunnelled = isinstance(endpoint, Tunnel)
        if isinstance(endpoint, Tunnel):
            assert endpoint.identity == at_client.workloads[SERVER].identity(TRUST_DOMAIN)
    if tunnelled:
        if not server.captured:
            return Outcome("tunnel", WhyRefused.UNKNOWN_WORKLOAD)  # nobody listens
        peer = at_client.workloads[CLIENT].identity(TRUST_DOMAIN)
        answer = inbound_tunnel(at_server, SERVER, peer, CLIENT_ADDRESS, TunnelAddress(SERVER_ADDRESS, PORT))
        return Outcome("tunnel", None if isinstance(answer, Allow) else answer.why)
    if not server.captured:
        return Outcome("plaintext", None)
    reply = inbound_plaintext(at_server, SERVER, CLIENT_ADDRESS, PORT, established=established)
    return Outcome("plaintext", None if isinstance(reply, Allow) else reply.why)


@pytest.mark.parametrize(("client", "server", "client_seen", "server_seen"), SITUATIONS)
@pytest.mark.parametrize("established", [False, True], ids=["new", "established"])
def test_no_stage_of_two_nodes_refuses_a_connection(
    client: Stage, server: Stage, client_seen: Phase, server_seen: Phase, established: bool
) -> None:
    at_client = mesh_of(client.phase, server_seen)
    at_server = mesh_of(client_seen, server.phase)
    outcome = connect(client, server, at_client, at_server, established=established)
    assert outcome.refused is None


@pytest.mark.parametrize(("client", "server"), ON_ONE_NODE)
@pytest.mark.parametrize("established", [False, True], ids=["new", "established"])
def test_no_stage_on_one_node_refuses_a_connection(client: Stage, server: Stage, established: bool) -> None:
    mesh = mesh_of(client.phase, server.phase)
    assert connect(client, server, mesh, mesh, established=established).refused is None


@pytest.mark.parametrize(("client", "server", "client_seen", "server_seen"), SITUATIONS)
def test_tunnels_go_on_in_every_stage(client: Stage, server: Stage, client_seen: Phase, server_seen: Phase) -> None:
    at_client = mesh_of(client.phase, server_seen)
    at_server = mesh_of(client_seen, server.phase)
    route = outbound(at_client, CLIENT, OriginalDestination(SERVER_ADDRESS, PORT), established=False)
    peer = at_client.workloads[CLIENT].identity(TRUST_DOMAIN)
    assert isinstance(route, Route)
    assert inbound_tunnel(at_server, SERVER, peer, CLIENT_ADDRESS, TunnelAddress(SERVER_ADDRESS, PORT)) == Allow(None)


def test_between_enrolled_workloads_the_source_opens_tunnels_only() -> None:
    mesh = mesh_of(Phase.ENROLLED, Phase.ENROLLED)
    route = outbound(mesh, CLIENT, OriginalDestination(SERVER_ADDRESS, PORT), established=False)
    assert isinstance(route, Route)
    assert [type(endpoint) for endpoint in route.endpoints] == [Tunnel]


@pytest.mark.parametrize(
    ("phase", "kind"),
    [(Phase.ABSENT, Plaintext), (Phase.JOINING, Tunnel), (Phase.ENROLLED, Tunnel), (Phase.LEAVING, Plaintext)],
)
def test_tunnels_begin_when_a_workload_joins_and_end_when_it_leaves(phase: Phase, kind: type) -> None:
    for client in Phase:
        route = outbound(mesh_of(client, phase), CLIENT, OriginalDestination(SERVER_ADDRESS, PORT), established=False)
        assert isinstance(route, Route)
        assert [type(endpoint) for endpoint in route.endpoints] == [kind]


def test_between_enrolled_workloads_the_destination_refuses_new_plaintext() -> None:
    mesh = mesh_of(Phase.ENROLLED, Phase.ENROLLED)
    answer = inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=False)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.SOURCE_IS_ENROLLED


@pytest.mark.parametrize("client", [stage for stage in STAGES if stage.captured], ids=lambda stage: stage.name)
def test_a_captured_source_never_sends_new_plaintext_to_an_enrolled_destination(client: Stage) -> None:
    enrolled = next(stage for stage in STAGES if stage.name == "enrolled")
    for seen in client.seen_as:
        outcome = connect(client, enrolled, mesh_of(client.phase, Phase.ENROLLED), mesh_of(seen, Phase.ENROLLED))
        assert outcome == Outcome("tunnel", None)


@pytest.mark.parametrize("phase", list(Phase))
def test_plaintext_from_before_enrolment_is_named_as_such_at_both_ends(phase: Phase) -> None:
    mesh = mesh_of(phase, Phase.ENROLLED)
    route = outbound(mesh, CLIENT, OriginalDestination(SERVER_ADDRESS, PORT), established=True)
    assert isinstance(route, Route)
    (endpoint,) = route.endpoints
    assert isinstance(endpoint, Plaintext)
    assert endpoint.why is WhyPlaintext.OPENED_BEFORE_ENROLMENT
    expected = (
        WhyPlaintext.OPENED_BEFORE_ENROLMENT
        if phase in (Phase.JOINING, Phase.ENROLLED)
        else WhyPlaintext.SOURCE_NOT_ENROLLED
    )
    assert inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=True) == Allow(expected)


STRICT_REFUSAL = Deny("default/server mode strict", WhyRefused.STRICT)


@pytest.mark.parametrize(("phase", "established"), list(product(Phase, [False, True])))
def test_strict_refuses_those_who_are_not_enrolled_in_every_phase(phase: Phase, established: bool) -> None:
    for client in (Phase.ABSENT, Phase.LEAVING):
        mesh = mesh_of(client, phase, Mode.STRICT)
        assert inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=established) == STRICT_REFUSAL


@pytest.mark.parametrize("established", [False, True])
def test_strict_refuses_plaintext_of_enrolled_peers_once_it_is_enrolled_itself(established: bool) -> None:
    mesh = mesh_of(Phase.ENROLLED, Phase.ENROLLED, Mode.STRICT)
    assert inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=established) == STRICT_REFUSAL


@pytest.mark.parametrize("phase", [Phase.JOINING, Phase.LEAVING])
def test_strict_takes_plaintext_of_enrolled_peers_who_may_not_know_yet(phase: Phase) -> None:
    mesh = mesh_of(Phase.ENROLLED, phase, Mode.STRICT)
    expected = Allow(WhyPlaintext.SOURCE_JOINING)
    assert inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=False) == expected


@pytest.mark.parametrize("phase", [Phase.ABSENT, Phase.JOINING, Phase.LEAVING])
def test_plaintext_of_an_enrolled_source_is_accepted_while_in_transition(phase: Phase) -> None:
    mesh = mesh_of(Phase.ENROLLED, phase)
    expected = Allow(WhyPlaintext.SOURCE_JOINING)
    assert inbound_plaintext(mesh, SERVER, CLIENT_ADDRESS, PORT, established=False) == expected
