"""The mesh state on its way between agent and core: what is written, what is read, and what is not taken."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from nodeseal.contracts.mesh import MESSAGES, decode_difference, encode_difference
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.limits import LimitChanges
from nodeseal.mesh.model import (
    KINDS,
    Mesh,
    MeshDifference,
    MeshError,
    Mode,
    OnFailure,
    Phase,
    Service,
    ServicePort,
    Workload,
    WorkloadName,
)
from nodeseal.mesh.node import Node
from nodeseal.mesh.service import Affinity, Front, NodeEndpoints, Way

RECORDED = Path(__file__).parent / "recorded" / "mesh-protocol-4.jsonl"
"""As the core protocol's version 4 had them: MODEL as a whole, then CHANGE."""

DOMAIN = "example.org"
EXCLUDE = Exclusions(
    Excluded((PortRange(80, 80), PortRange(8000, 8010)), (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8"))),
    Excluded(ports=(PortRange(5432, 5432),)),
)
SHIPPER = Workload(
    WorkloadName("default", "shipper"),
    "shipper",
    "node1",
    (IPv4Address("10.0.0.1"),),
    "/run/netns/shipper",
    True,
    Mode.STRICT,
    Phase.LEAVING,
    exclude=EXCLUDE,
)
WEB = Workload(
    WorkloadName("team-a", "web"),
    "web",
    "node2",
    (IPv4Address("10.0.0.2"), IPv6Address("fd00::2")),
    None,
    False,
    Mode.PERMISSIVE,
    on_failure=OnFailure.OPEN,
)
INGRESS = Workload(
    WorkloadName("default", "ingress"),
    "robot",
    "node2",
    (IPv6Address("fd00::3"),),
    "ingress",
    True,
    Mode.PERMISSIVE,
    Phase.JOINING,
    limits=LimitChanges(connections=5, memory=0),
)
VECTOR = Workload(
    WorkloadName("default", "vector"),
    "vector",
    "node1",
    (IPv4Address("10.0.0.9"),),
    OWN_NAMESPACE,
    True,
    Mode.PERMISSIVE,
    Phase.ENROLLED,
    host=HostPlace("/system.slice/vector.service", (PortRange(9000, 9010),)),
)
FRONT = Service(
    WorkloadName("default", "front"),
    (IPv4Address("10.9.0.1"),),
    (ServicePort(80, 8080), ServicePort(443, 8443)),
    (SHIPPER.key, WEB.key),
)
EMPTY = Service(WorkloadName("default", "empty"), (IPv6Address("fd00::9"), IPv4Address("10.9.0.2")), (), ())
MODEL = Mesh.build(DOMAIN, (SHIPPER, WEB, INGRESS, VECTOR), (FRONT, EMPTY))
CHANGE = MeshDifference(
    DOMAIN,
    {"workloads": (SHIPPER,), "services": (EMPTY,)},
    {
        "workloads": (WorkloadName("default", "gone"), WorkloadName("team-a", "gone")),
        "services": (WorkloadName("default", "gone"),),
    },
)


def recorded() -> list[bytes]:
    return RECORDED.read_bytes().splitlines()


def as_json(difference: MeshDifference) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(bytes(encode_difference(difference)))
    return message


def read(message: object) -> MeshDifference:
    return decode_difference(json.dumps(message).encode())


def test_every_kind_that_is_for_cores_has_a_message() -> None:
    assert list(MESSAGES) == [name for name, kind in KINDS.items() if kind.for_cores]


def test_what_version_4_wrote_is_read() -> None:
    full, change = map(decode_difference, recorded())
    assert Mesh.from_difference(full) == MODEL
    assert change == CHANGE


def test_what_version_4_read_is_written() -> None:
    # Also the order of the fields: nobody looks at it, but byte for byte is easily compared.
    assert [bytes(encode_difference(one)) for one in (MODEL.as_difference(), CHANGE)] == recorded()


def test_kinds_and_fields_that_are_not_known_are_passed_over() -> None:
    message = as_json(CHANGE)
    message["workloads"][0]["colour"] = {"red": 1}
    message |= {"policies": [{"name": "x"}], "removed_policies": ["x"]}
    assert read(message) == CHANGE


def test_an_empty_difference_is_a_trust_domain() -> None:
    assert as_json(MeshDifference(DOMAIN)) == {"trust_domain": DOMAIN}
    assert read({"trust_domain": DOMAIN}) == MeshDifference(DOMAIN)


def test_limits_that_are_not_changed_are_not_written() -> None:
    written = {item["name"]: item.get("limits") for item in as_json(MODEL.as_difference())["workloads"]}
    assert written == {"shipper": None, "web": None, "ingress": {"connections": 5, "memory": 0}, "vector": None}


def test_names_that_come_again_are_one_object() -> None:
    other = replace(SHIPPER, key=WorkloadName("default", "other"), addresses=(IPv4Address("10.0.0.7"),))
    message = encode_difference(MeshDifference(DOMAIN, {"workloads": (SHIPPER, other)}))
    one, two = decode_difference(message).put["workloads"]
    assert one.key.namespace is two.key.namespace
    assert one.service_account is two.service_account
    assert one.node is two.node


ITEM: dict[str, Any] = as_json(MeshDifference(DOMAIN, {"workloads": (WEB,)}))["workloads"][0]
SERVICE: dict[str, Any] = as_json(MeshDifference(DOMAIN, {"services": (FRONT,)}))["services"][0]


@pytest.mark.parametrize(
    "addresses", [[], ["10.0.0.1", "10.0.0.1"], [f"10.0.0.{last}" for last in range(1, 34)], "10.0.0.1"]
)
def test_addresses_of_a_workload_are_at_most_32_each_once(addresses: object) -> None:
    with pytest.raises(MeshError, match="addresses"):
        read({"trust_domain": DOMAIN, "workloads": [{**ITEM, "addresses": addresses}]})


AT = ApplicationAddress(IPv4Address("10.0.0.2"), 8080), ApplicationAddress(IPv4Address("10.0.0.3"), 9090)
LOCAL = (NodeEndpoints("node1", AT[:1]), NodeEndpoints("node2", AT[1:]))
BALANCED = Service(
    WorkloadName("shop", "web"),
    (),
    (),
    (),
    (
        Front(Way.CLUSTER, 4, (IPv4Address("10.9.0.3"),), 80, 80, AT),
        Front(Way.LOAD_BALANCER, 4, (IPv4Address("192.0.2.1"),), 80, 80, AT, sources=(ip_network("10.0.0.0/8"),)),
        Front(Way.NODE, 4, (), 30080, 80, AT, by_node=LOCAL),
        Front(Way.NODE, 4, (), 30081, 81, (), by_node=()),
        Front(Way.CLUSTER, 6, (IPv6Address("fd00:9::3"),), 80, 80, (), silent=True),
    ),
    Affinity(10800),
)


def test_fronts_travel_with_their_endpoints_once() -> None:
    node = Node("node1", (IPv4Address("192.168.0.1"), IPv6Address("fd00::1")))
    difference = MeshDifference(DOMAIN, {"services": (BALANCED,), "nodes": (node,)}, {"nodes": ("node2",)})
    assert decode_difference(encode_difference(difference)) == difference
    (message,) = as_json(difference)["services"]
    whole = [[8080, ["10.0.0.2"]], [9090, ["10.0.0.3"]]]
    assert message["lists"] == [whole, whole[:1], whole[1:], []]
    read = decode_difference(encode_difference(difference)).put["services"][0].fronts
    assert read[0].endpoints is read[1].endpoints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fronts": []}, "addresses has nothing, and there are no fronts"),
        ({"lists": []}, "fronts has the list 0, which is none of 0"),
        ({"lists": [[[0, ["10.0.0.2"]]]] * 4}, "lists"),
        ({"lists": [[[8080, ["pod"]]]] * 4}, "'pod' is not an IP address"),
        ({"affinity": -1}, "affinity"),
    ],
)
def test_malformed_fronts_are_refused(change: dict[str, object], message: str) -> None:
    (service,) = as_json(MeshDifference(DOMAIN, {"services": (BALANCED,)}))["services"]
    with pytest.raises(MeshError, match=message):
        read({"trust_domain": DOMAIN, "services": [service | change]})


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1", "10.0.0.2"], ["10.0.0.1", "fd00::1", "fd00::2"], "10.0.0.1"])
def test_addresses_of_a_service_are_one_or_one_of_each_family(addresses: object) -> None:
    with pytest.raises(MeshError, match="addresses"):
        read({"trust_domain": DOMAIN, "services": [{**SERVICE, "addresses": addresses}]})


def test_all_addresses_of_a_workload_travel_in_their_order() -> None:
    addresses = tuple(map(ip_address, ("10.0.0.2", "fd00::2", "10.0.0.1", "fd00::1")))
    many = replace(WEB, addresses=addresses)
    difference = MeshDifference(DOMAIN, {"workloads": (many,)})
    assert as_json(difference)["workloads"][0]["addresses"] == ["10.0.0.2", "fd00::2", "10.0.0.1", "fd00::1"]
    assert decode_difference(encode_difference(difference)) == difference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trust_domain": 5}, "trust_domain: Expected `str`, got `int`"),
        ({"workloads": {}}, "workloads: Expected `array`, got `object`"),
        ({"workloads": [{}]}, "missing required field `namespace`"),
        ({"workloads": ["x"]}, "mesh on the wire: workloads: Expected `object`"),
        ({"workloads": [{**ITEM, "addresses": ["10.0.0.300"]}]}, "'10.0.0.300' is not an IP address"),
        ({"workloads": [{**ITEM, "phase": "away"}]}, "phase"),
        ({"workloads": [{**ITEM, "limits": {"memory": -1}}]}, "limits.memory"),
        ({"workloads": [{**ITEM, "limits": {"memory": True}}]}, "limits.memory"),
        ({"removed_workloads": ["x"]}, "removed_workloads: 'x' is not of the form namespace/name"),
        ({"services": [{**SERVICE, "ports": [[0, 1]]}]}, "services: .*ports"),
        ({"services": [{**SERVICE, "endpoints": ["x"]}]}, "services: 'x' is not of the form namespace/name"),
    ],
)
def test_a_malformed_difference_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(MeshError, match=message):
        read({"trust_domain": DOMAIN, **change})


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"{}", b'{"trust_domain": "a"', b'{"workloads": ' + b"[" * 10_000])
def test_what_is_no_difference_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(MeshError, match=r"^mesh on the wire: [^\n]+$"):
        decode_difference(data)


def test_a_difference_with_removals_is_no_whole_mesh() -> None:
    with pytest.raises(MeshError, match="a whole mesh is expected"):
        Mesh.from_difference(CHANGE)
