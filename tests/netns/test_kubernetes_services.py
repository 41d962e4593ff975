"""Services of Kubernetes on the wire: a captured workload dials, and arrives where the rows say.

node1's core is told of each row's services as its agent would tell it. The pods are those of the rows; what is on node3
there is on node2 here, since endpoints say themselves where they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.model import Mesh, MeshDifference, Service, WorkloadName
from nodeseal.mesh.node import NODES
from nodeseal.mesh.service import SERVICES, Front, Way
from support.connection import Address, echoes, endpoint
from support.core_client import ask
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs
from support.service_objects import nodes_of, services_of
from support.service_rows import AT_NODES, OUTSIDE, PODS, REFUSED, ROWS, SILENT, Dial, Row, Slice, World, node_of
from support.service_rows import Service as ServiceRow
from support.sniffer import ports_used

CARD = b"card=4111 1111 1111 1111;"
VIRTUAL = {
    "cluster": ("10.96.0.1", "fd96::1"),
    "cluster-2": ("10.96.0.2", "fd96::2"),
    "balancer": ("198.51.100.80", "fd97::80"),
    "external": ("198.51.100.81", "fd97::81"),
    "node2-external": ("198.51.100.2", "fd97::2"),
    "node3": ("198.51.100.3", "fd97::3"),
}
TRIES = 200
DIALLED = [row for row in ROWS if any(dial.endpoints or dial.arrives == REFUSED for dial in row.dials)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    pods = [f"{pod}:{'node1' if node_of(pod) == 'node1' else 'node2'}" for pod in PODS]
    settings = {"workers": 2}
    more = [*pods, f"{OUTSIDE}:node2:plain"]
    with running_lab(tmp_path_factory.mktemp("services"), more_pods=more, ipv6=True, settings=settings) as lab:
        yield lab


@pytest.fixture(scope="module")
def world(lab: RunningLab) -> World:
    found: dict[str, Mapping[int, str]] = {name: {4: v4, 6: v6} for name, (v4, v6) in VIRTUAL.items()}
    for pod in (*PODS, OUTSIDE):
        found[pod] = {version: lab.address(pod, version) for version in (4, 6)}
    for name in ("node1", "node2"):
        found[name] = {one.version: str(one) for one in lab.lab.plan.node(name).addresses}
    addresses = {name + ("/6" if version == 6 else ""): one[version] for name, one in found.items() for version in one}
    return World({name: name for name in ("node1", "node2", "node3")}, addresses)


@contextlib.contextmanager
def told(lab: RunningLab, change: Mapping[str, Iterable[Any]]) -> Iterator[None]:
    """node1's core knows these objects as well, meanwhile."""
    before = ask(lab.run_dir("node1"), CoreClient.mesh_read)
    assert before is not None
    put = MeshDifference(before.trust_domain, {kind: tuple(items) for kind, items in change.items()})
    after = before.apply(put)
    _tell(lab, before, after)
    try:
        yield
    finally:
        _tell(lab, after, before)


def _tell(lab: RunningLab, before: Mesh, after: Mesh) -> None:
    epoch = ask(lab.run_dir("node1"), CoreClient.hello).epoch
    assert ask(lab.run_dir("node1"), CoreClient.mesh_change, before, after, epoch + 1, base=epoch)


def serve(row: Row, programs: Programs, world: World) -> None:
    """Something listens at each endpoint of the row, also at those that are not to be used."""
    places = {
        (one if isinstance(one, str) else one.name, part.version, port)
        for service in row.services
        for part in service.slices
        for one in part.endpoints
        for port in part.ports.values()
    }
    places |= {(name.removesuffix("/6"), 6 if name.endswith("/6") else 4, port) for name, port in expected_of(row)}
    for pod, version, port in places:
        programs.serve(pod, port=port, host=world.addresses[pod + ("/6" if version == 6 else "")])


def expected_of(row: Row) -> set[tuple[str, int]]:
    return {(name, int(port)) for dial in row.dials for name, _, port in (one.partition(":") for one in dial.endpoints)}


def place(dial: Dial, world: World) -> Address:
    return world.addresses[dial.to], dial.port


def arrives(lab: RunningLab, programs: Programs, address: Address) -> tuple[str, bool]:
    """(where one connection of the client ends, whether it is mutual TLS on the way)."""
    client = programs.dial("client", address)
    assert echoes(client, CARD)
    row = lab.outbound(client)
    client.close()
    return row["endpoint"], row["mtls"]


@pytest.mark.parametrize("row", DIALLED, ids=[row.name for row in DIALLED])
def test_a_connection_arrives_where_the_row_says(lab: RunningLab, programs: Programs, world: World, row: Row) -> None:
    objects = {SERVICES.name: services_of(row.objects(world)), NODES.name: nodes_of(world)}
    serve(row, programs, world)
    with told(lab, objects):
        for dial in row.dials:
            if dial.arrives == REFUSED:
                with pytest.raises(ConnectionRefusedError):
                    programs.dial("client", place(dial, world))
            wanted = {at(name, int(port), world): name for name, port in (one.split(":") for one in dial.endpoints)}
            found: set[str] = set()
            for _ in range(TRIES):
                if found == set(wanted):
                    break
                there, mtls = arrives(lab, programs, place(dial, world))
                assert there in wanted
                assert mtls == (wanted[there] != OUTSIDE)
                found.add(there)
            assert found == set(wanted)


def at(name: str, port: int, world: World) -> str:
    return endpoint((world.addresses[name], port))


SILENT_DIALS = [(row, dial) for row in ROWS for dial in row.dials if dial.arrives == SILENT]


@pytest.mark.ebpf_only("connect() waits only where SYNs are parked")
@pytest.mark.parametrize(("row", "dial"), SILENT_DIALS, ids=[f"{row.name}-{dial.to}" for row, dial in SILENT_DIALS])
def test_connect_waits_where_nobody_answers_until_somebody_does(
    lab: RunningLab, programs: Programs, world: World, row: Row, dial: Dial
) -> None:
    address, port = place(dial, world)
    server = programs.serve("a1")
    there = ApplicationAddress(ip_address(server.address[0]), server.address[1])
    front = Front(Way.CLUSTER, 4, (ip_address(address),), port, port, (there,))
    with told(lab, {SERVICES.name: services_of(row.objects(world)), NODES.name: nodes_of(world)}):
        client = programs.begin("client", (address, port))
        host, own = client.getsockname()

        def waits() -> bool:
            rows = [one for one in lab.connections("node1") if one["source"] == f"{host}:{own}"]
            return [(one["state"], one["destination"]) for one in rows] == [("deciding", f"{address}:{port}")]

        wait_for(waits, "the connection waits")
        with told(lab, {SERVICES.name: [Service(WorkloadName("shop", "web"), (), (), (), (front,))]}):
            client.settimeout(PATIENCE)
            assert echoes(client, CARD)


def test_a_node_port_is_dialled_through_the_mesh(lab: RunningLab, programs: Programs, world: World) -> None:
    """Without nodeseal's doing the nodes would masquerade: it would be plaintext between two enrolled workloads."""
    row = next(row for row in ROWS if row.name == "node-port")
    server = programs.serve("b1", port=8080)
    (only_b1,) = services_of(replace(row, services=(ServiceRow((Slice(("b1",)),), AT_NODES),)).objects(world))
    with told(lab, {SERVICES.name: [only_b1], NODES.name: nodes_of(world)}), programs.sniff("node1") as wire:
        for node in ("node1", "node2"):
            client = programs.dial("client", (world.addresses[node], 30080))
            assert echoes(client, CARD)
            found = lab.outbound(client)
            assert (found["mtls"], found["peer"]) == (True, lab.identity("b1"))
        packets = wire.cut()
    assert not any(CARD in packet.payload for packet in packets)
    assert ports_used(packets) <= {HBONE_PORT}
    assert {address for address, _ in server.sources} == {world.addresses["client"]}


def test_a_client_keeps_its_endpoint_in_every_way_and_on_every_worker(
    lab: RunningLab, programs: Programs, world: World
) -> None:
    spec = AT_NODES | {"sessionAffinity": "ClientIP"}
    names = ("a1", "a2", "b1", "b2", "c1")
    for name in names:
        programs.serve(name, port=8080)
    (service,) = services_of(Row("", "", (ServiceRow((Slice(names),), spec),)).objects(world))
    ways = [(world.addresses["cluster"], 80), (world.addresses["node1"], 30080), (world.addresses["node2"], 30080)]
    with told(lab, {SERVICES.name: [service], NODES.name: nodes_of(world)}):
        found = {arrives(lab, programs, address) for _ in range(10) for address in ways}
        ((first, mtls),) = found
        assert mtls
    left = tuple(name for name in names if at(name, 8080, world) != first)
    (service,) = services_of(Row("", "", (ServiceRow((Slice(left),), spec),)).objects(world))
    with told(lab, {SERVICES.name: [service], NODES.name: nodes_of(world)}):
        ((second, _),) = {arrives(lab, programs, address) for _ in range(10) for address in ways}
    assert second != first
    (service,) = services_of(Row("", "", (ServiceRow((Slice(names),), spec),)).objects(world))
    with told(lab, {SERVICES.name: [service], NODES.name: nodes_of(world)}):
        assert {arrives(lab, programs, address) for _ in range(10) for address in ways} == {(second, True)}
