"""Services of Kubernetes: where what a workload dials arrives, by the objects of the API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.kubernetes import objects
from nodeseal.mesh.address import ApplicationAddress, OriginalDestination
from nodeseal.mesh.decide import Refuse, Route, Tunnel, Unavailable, outbound
from nodeseal.mesh.fronts import Sticky
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, Workload, WorkloadName
from nodeseal.mesh.node import NODES
from nodeseal.sources.kubernetes.services import SERVICE_NAME, FoundService, Here, KnownEndpoints, here_of, service_of
from support import service_page
from support.service_objects import HERE, nodes_of, services_of
from support.service_rows import ALONE, AT_NODES, HTTP, OUTSIDE, PODS, REFUSED, ROWS, SILENT, Dial, Row, Slice, World
from support.service_rows import Service as ServiceRow
from support.service_rows import node_of as node_of_pod

_V4 = {
    **{pod: f"10.0.0.{number}" for number, pod in enumerate(PODS, 1)},
    OUTSIDE: "203.0.113.9",
    "node1": "192.168.0.1",
    "node2": "192.168.0.2",
    "node3": "192.168.0.3",
    "node2-external": "198.51.100.2",
    "cluster": "10.96.0.1",
    "cluster-2": "10.96.0.2",
    "balancer": "198.51.100.80",
    "external": "198.51.100.81",
}
ADDRESSES = _V4 | {f"{name}/6": f"fd00::{text.replace('.', ':')}" for name, text in _V4.items()}
WORLD = World({name: name for name in ("node1", "node2", "node3")}, ADDRESSES)
TESTS = Path(__file__).resolve().parents[1]
DIALLED = [row for row in ROWS if row.dials]
CLIENT = WorkloadName("shop", "client")
NAMES = {ip_address(text): name for name, text in ADDRESSES.items()}


def pod(name: str) -> Workload:
    addresses = (ip_address(ADDRESSES[name]), ip_address(ADDRESSES[f"{name}/6"]))
    key = WorkloadName("shop", name)
    return Workload(key, name, node_of_pod(name), addresses, None, True, Mode.PERMISSIVE, Phase.ENROLLED)


def mesh_of(services: Iterable[Service], *workloads: Workload) -> Mesh:
    pods = {one.key: one for one in (*map(pod, PODS), *workloads)}
    return Mesh.build("example.org", pods.values(), services, **{NODES.name: nodes_of(WORLD)})


def arrives(mesh: Mesh, dial: Dial, client: WorkloadName = CLIENT) -> str:
    """In the words of a Dial. Whoever is enrolled is reached through a tunnel, anybody else in plaintext."""
    destination = OriginalDestination(ip_address(ADDRESSES[dial.to]), dial.port)
    answer = outbound(mesh, client, destination, established=False)
    if isinstance(answer, Refuse):
        return REFUSED
    if isinstance(answer, Unavailable):
        return SILENT if answer.passes else REFUSED
    assert isinstance(answer, Route)
    found = set()
    for one in answer.endpoints:
        name = NAMES[one.address.address]
        assert isinstance(one, Tunnel) == (name.removesuffix("/6") in PODS)
        found.add(f"{name}:{one.address.port}")
    dialled = f"{dial.to}:{dial.port}"
    return ALONE if found == {dialled} and dial.to.removesuffix("/6") not in PODS else " ".join(sorted(found))


@pytest.mark.parametrize("row", DIALLED, ids=[row.name for row in DIALLED])
def test_a_connection_goes_where_kube_proxy_would_send_it(row: Row) -> None:
    mesh = mesh_of(services_of(row.objects(WORLD)))
    for dial in row.dials:
        expected = " ".join(sorted(dial.endpoints)) or dial.arrives
        assert arrives(mesh, dial) == expected, f"{dial.to}:{dial.port}"


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(bool(row.dials) != bool(row.tests) for row in ROWS)


@pytest.mark.parametrize("test", [test for row in ROWS for test in row.tests])
def test_the_tests_that_rows_name_are_there(test: str) -> None:
    file, _, name = test.partition(": ")
    form = f"TEST({name})" if file.endswith(".c") else f"def {name}("
    assert form in (TESTS / ("cext" if file.endswith(".c") else "unit") / file).read_text()


def test_the_page_says_what_the_rows_do() -> None:
    assert service_page.PAGE.read_text() == service_page.text(), "make reference writes it"


def test_an_affinity_is_one_for_all_ways_to_a_port() -> None:
    asked: list[Sticky | None] = []

    def choose(endpoints: Sequence[ApplicationAddress], sticky: Sticky | None) -> Sequence[ApplicationAddress]:
        asked.append(sticky)
        return endpoints[:1]

    spec = AT_NODES | {"sessionAffinity": "ClientIP", "externalIPs": ["$at-external"]}
    for config, seconds in (({}, 10800), ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}, 7)):
        asked.clear()
        service = ServiceRow((Slice(("a1", "b1")),), spec | config)
        mesh = mesh_of(services_of(Row("", "", (service,)).objects(WORLD)))
        for to, port in (("cluster", 80), ("external", 80), ("node1", 30080), ("node2", 30080)):
            outbound(
                mesh, CLIENT, OriginalDestination(ip_address(ADDRESSES[to]), port), established=False, choose=choose
            )
        assert asked == [Sticky(WorkloadName("shop", "web"), 80, 4, seconds)] * 4


def test_the_own_node_has_a_zone_by_its_label() -> None:
    read = msgspec.convert({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}, objects.Node)
    assert here_of(read) == Here("n", "z")
    assert here_of(objects.Node(objects.Meta("n"))) == Here("n")


def test_a_service_that_is_looked_at_from_another_node_leads_elsewhere() -> None:
    row = next(row for row in ROWS if row.name == "internal-local")
    mesh = mesh_of(services_of(row.objects(WORLD), Here("node2", "zone-b")))
    assert arrives(mesh, row.dials[0], WorkloadName("shop", "b2")) == "b1:8080"


def test_what_is_not_enrolled_is_reached_in_plaintext() -> None:
    row = next(row for row in ROWS if row.name == "cluster-ip")
    outside = replace(pod("b1"), phase=Phase.ABSENT)
    mesh = mesh_of(services_of(row.objects(WORLD)), outside)
    destination = OriginalDestination(ip_address(ADDRESSES["cluster"]), 80)
    answer = outbound(mesh, CLIENT, destination, established=False)
    assert isinstance(answer, Route)
    assert {(NAMES[one.address.address], type(one).__name__) for one in answer.endpoints} == {
        ("a1", "Tunnel"),
        ("b1", "Plaintext"),
    }


WHOLE = ServiceRow((Slice(("a1",)),)).manifest()


def read(service: dict[str, Any], *slices: dict[str, Any]) -> FoundService:
    parts = [msgspec.convert(WORLD.filled(one), objects.EndpointSlice) for one in slices]
    return service_of(msgspec.convert(WORLD.filled(service), objects.Service), parts, HERE)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"externalIPs": ["10.0.0.300"]}, "externalIPs has '10.0.0.300', which is no IP address"),
        ({"clusterIPs": ["10.96.0.1", "fd00::1%eth0"]}, "clusterIPs has 'fd00::1%eth0', which is no IP address"),
        ({"ports": [HTTP, {"name": "x", "port": 0}]}, "0 is no port"),
        ({"ports": [HTTP | {"nodePort": 70000}]}, "70000 is no port"),
        (
            {"loadBalancerSourceRanges": ["10.0.0.0/33"]},
            "loadBalancerSourceRanges has '10.0.0.0/33', which is no range of addresses",
        ),
    ],
)
def test_what_cannot_be_of_a_service_is_passed_over_and_told(spec: dict[str, Any], problem: str) -> None:
    found = read(WHOLE | {"spec": WHOLE["spec"] | spec}, Slice(("a1",)).manifest("web", 0))
    assert found.problems == (f"service shop/web: {problem}; it is passed over",)
    assert found.service == read(WHOLE, Slice(("a1",)).manifest("web", 0)).service


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (
            {"endpoints": [{"addresses": ["fd00::1"]}]},
            "EndpointSlice web-1 has the address 'fd00::1', which is no IPv4's",
        ),
        ({"endpoints": [{"addresses": ["pod"]}]}, "EndpointSlice web-1 has the address 'pod', which is no IPv4's"),
        ({"ports": [{"name": "http", "port": 65536}]}, "65536 is no port"),
        ({"endpoints": None}, None),
        ({"ports": None}, None),
        ({"ports": [{"name": "http", "port": None}]}, None),
        ({"endpoints": [{"addresses": None}]}, None),
        ({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]}, None),
        ({"addressType": "IPv7"}, None),
    ],
)
def test_what_cannot_be_of_a_slice_is_passed_over(part: dict[str, Any], problem: str | None) -> None:
    good, bad = Slice(("a1",)).manifest("web", 0), Slice(("b1",)).manifest("web", 1) | part
    found = read(WHOLE, good, bad)
    assert found.problems == (() if problem is None else (f"service shop/web: {problem}; it is passed over",))
    assert found.service == read(WHOLE, good).service


def test_an_endpoint_of_which_nothing_is_said_is_ready() -> None:
    slices = Slice(("a1",)).manifest("web", 0)
    bare = slices | {"endpoints": [{"addresses": ["$at-a1"]}]}
    assert read(WHOLE, bare).service == read(WHOLE, slices).service
    conditions = {"ready": None, "serving": None, "terminating": None}
    bare = slices | {"endpoints": [{"addresses": ["$at-a1"], "conditions": conditions, "hints": None}]}
    assert read(WHOLE, bare).service == read(WHOLE, slices).service


def test_a_service_may_not_have_more_pairs_of_ports_and_addresses_than_agents_bear() -> None:
    ports = [{"name": f"p{number}", "port": number, "protocol": "TCP"} for number in range(1, 1001)]
    addresses = [f"198.18.{number // 250}.{number % 250}" for number in range(1000)]
    found = read(WHOLE | {"spec": WHOLE["spec"] | {"ports": ports, "externalIPs": addresses}})
    assert found.problems == (
        "service shop/web: externalIPs has more than 64 addresses; the others are passed over",
        "service shop/web: with the port 770 it has more than 50000 addresses and endpoints; that port and what comes "
        "after it are passed over",
    )
    assert found.service is not None
    assert {front.port for front in found.service.fronts} == set(range(1, 770))


def test_the_order_of_slices_says_nothing() -> None:
    parts = [Slice((name,)).manifest("web", number) for number, name in enumerate(("b1", "a1", "c1"))]
    assert read(WHOLE, *parts).service == read(WHOLE, *reversed(parts)).service


def test_large_service_is_read_alike_whether_its_slices_are_known_or_not() -> None:
    def part(number: int, *addresses: str) -> objects.EndpointSlice:
        endpoints = [objects.Endpoint((address,)) for address in addresses]
        meta = objects.Meta(f"web-{number}", "shop", labels={SERVICE_NAME: "web"})
        return objects.EndpointSlice(meta, "IPv4", endpoints, [objects.EndpointPort(None, 8080)])

    spec = objects.ServiceSpec(cluster_ip="10.96.0.9", ports=[objects.ServicePort(80)])
    service = objects.Service(objects.Meta("web", "shop"), spec)
    one, two, wrong = part(1, "10.1.0.1", "10.1.0.2"), part(2, "10.1.0.3"), part(3, "nowhere")
    changed = part(2, "10.1.0.3", "10.1.0.4")
    known = KnownEndpoints()
    for parts in ([one, two, wrong], [one, changed, wrong], [one, changed, wrong], [changed]):
        assert service_of(service, parts, HERE, known) == service_of(service, parts, HERE)
    known.forget(one.key)
    assert known.get(one, 8080) is None
    assert known.get(changed, 8080) is not None
    assert known.get(two, 8080) is None
    assert known.get(wrong, 8080) is None


def test_ports_of_slices_are_looked_through_once_however_many_a_service_has() -> None:
    looked = 0

    class Ports(list[objects.EndpointPort]):
        def __iter__(self) -> Iterator[objects.EndpointPort]:
            nonlocal looked
            looked += 1
            return super().__iter__()

    meta = objects.PlainMeta("web", "shop", labels={SERVICE_NAME: "web"})
    ports = [objects.ServicePort(number, f"p{number}") for number in range(1, 1001)]
    one = objects.Service(meta, objects.ServiceSpec(cluster_ip="10.96.0.1", ports=ports))
    part = objects.EndpointSlice(
        meta, "IPv4", [objects.Endpoint(("10.0.0.1",))], Ports([objects.EndpointPort("p7", 80, "TCP")])
    )
    found = service_of(one, [part], Here("node1")).service
    assert found is not None
    assert [front.port for front in found.fronts if front.endpoints] == [7]
    assert looked == 1
