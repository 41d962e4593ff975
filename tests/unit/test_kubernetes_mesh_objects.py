"""The objects that nodes publish: what is written is read again, what is wrong is an error as a whole, and the schemas
that are installed know the same fields."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
import yaml

from nodeseal.kubernetes.objects import Node, PlainMeta
from nodeseal.manifests.chart import Chart
from nodeseal.mesh import node as mesh_node
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.trust import Need, Trust
from nodeseal.sources.kubernetes.mesh_objects import (
    MOST_ANCHORS,
    EndpointsSpec,
    MeshEndpoints,
    MeshNode,
    NodeStatus,
    ObjectError,
    number_of,
    object_name,
    read_endpoints,
    read_node,
    read_trust,
    write_trust,
    write_workload,
)

PLAIN = Workload(
    WorkloadName("shop", "cart-0"),
    "cart",
    "n1",
    (ip_address("10.0.0.1"), ip_address("fd00::1")),
    netns=None,
    wanted=True,
    mode=Mode.PERMISSIVE,
    phase=Phase.ENROLLED,
)
EXCLUDE = Exclusions(
    Excluded((PortRange(9090, 9090), PortRange(8000, 8010)), (ip_network("10.0.0.0/8"),)),
    Excluded((), (ip_network("fd00::/8"),)),
)


def an_object(*workloads: Any, name: str = "n1-0", node: str = "n1") -> MeshEndpoints:
    """As it comes from the API server."""
    spec = {"node": node, "workloads": list(workloads)}
    data = msgspec.json.encode({"metadata": {"name": name, "managedFields": []}, "spec": spec})
    return msgspec.json.decode(data, type=MeshEndpoints)


def changed(**changes: Any) -> dict[str, Any]:
    written: dict[str, Any] = msgspec.to_builtins(write_workload(PLAIN))
    return {**written, **changes}


@pytest.mark.parametrize(
    "workload",
    [
        PLAIN,
        replace(PLAIN, mode=Mode.STRICT),
        replace(PLAIN, exclude=EXCLUDE),
        replace(PLAIN, host=HostPlace("", (PortRange(1, 2), PortRange(80, 80)))),
    ],
)
def test_what_is_written_is_read_again(workload: Workload) -> None:
    read = read_endpoints(an_object(msgspec.to_builtins(write_workload(workload))))
    assert read.node == "n1"
    assert read.workloads == (workload,)


def test_what_only_its_own_node_needs_is_not_published() -> None:
    own = replace(PLAIN, netns="/run/netns/x", host=HostPlace("/kubepods/pod1", (PortRange(80, 80),)))
    written = msgspec.json.encode(write_workload(own))
    assert b"netns" not in written
    assert b"kubepods" not in written
    assert msgspec.to_builtins(write_workload(PLAIN)) == {
        "namespace": "shop",
        "name": "cart-0",
        "serviceAccount": "cart",
        "addresses": ["10.0.0.1", "fd00::1"],
    }


def test_what_another_version_says_is_passed_over() -> None:
    later = changed(mode="paranoid", colour="blue", exclude={"inbound": {"ports": [1], "users": ["x"]}})
    (read,) = read_endpoints(an_object(later)).workloads
    assert read == replace(PLAIN, exclude=Exclusions(Excluded((PortRange(1, 1),))))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"addresses": ["10.0.0.256"]}, "'10.0.0.256' is not an IP address"),
        ({"addresses": ["10.0.0.1", "10.0.0.1"]}, "shop/cart-0: an address is in it twice"),
        ({"addresses": ["127.0.0.1"]}, "shop/cart-0: 127.0.0.1 is no address of a workload"),
        ({"addresses": ["::"]}, "shop/cart-0: :: is no address of a workload"),
        ({"addresses": ["fe80::1"]}, "shop/cart-0: fe80::1 is no address of a workload"),
        ({"addresses": ["fd00::1%a"]}, "'fd00::1%a' has a zone; an address without '%' is expected"),
        ({"name": "a/b"}, "name 'a/b' is not made of a-z, A-Z, 0-9, '.', '_' and '-' (nor '.' or '..' alone)"),
        ({"namespace": ".."}, "namespace '..' is not made of a-z, A-Z, 0-9, '.', '_' and '-' (nor '.' or '..' alone)"),
        ({"exclude": {"inbound": {"ports": ["2-1"]}}}, "'2-1' is no port and no range of ports"),
        ({"exclude": {"inbound": {"ports": ["1-2-3"]}}}, "'1-2-3' is no port and no range of ports"),
        ({"exclude": {"outbound": {"ports": [-1]}}}, "-1 is no port and no range of ports"),
        ({"host": {"ports": [65536]}}, "65536 is no port and no range of ports"),
        (
            {"exclude": {"outbound": {"to": ["10.0.0.1/8"]}}},
            "10.0.0.1/8 has host bits set",
        ),
    ],
)
def test_one_wrong_workload_makes_the_object_an_error_in_one_line(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ObjectError) as raised:
        read_endpoints(an_object(changed(name="other"), changed(**wrong)))
    assert str(raised.value) == f"MeshEndpoints n1-0: {why}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"addresses": []},
        {"addresses": ["10.0.0.1"] * 33},
        {"addresses": [1]},
        {"addresses": ["1" * 46]},
        {"name": ""},
        {"name": "x" * 254},
        {"name": None},
        {"exclude": {"inbound": {"ports": list(range(1, 66))}}},
    ],
)
def test_what_is_out_of_bounds_is_not_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ObjectError):
        read_endpoints(an_object(changed(**wrong)))


def test_too_many_workloads_are_not_read() -> None:
    with pytest.raises(ObjectError):
        read_endpoints(an_object(*(changed(name=f"x{number}") for number in range(17))))


def test_workload_that_is_in_it_twice_is_an_error() -> None:
    with pytest.raises(ObjectError, match="a workload is in it twice"):
        read_endpoints(an_object(changed(), changed(addresses=["10.0.0.2"])))


@pytest.mark.parametrize(
    ("name", "node"), [("n1-a-0", "n1"), ("n1-0", "n1-0"), ("n1", "n1"), ("n1-1000", "n1"), ("n1-x", "n1"), ("-0", "")]
)
def test_object_of_another_node_s_name_is_an_error(name: str, node: str) -> None:
    with pytest.raises(ObjectError):
        read_endpoints(an_object(changed(), name=name, node=node))


def test_names_are_numbers_of_one_node_only() -> None:
    assert [number_of(object_name(node, 12), "n1") for node in ("n1", "n1-1", "n", "n1-")] == [12, None, None, None]


def test_trust_is_read_as_it_was_written() -> None:
    trust = Trust(frozenset({"1" * 32, "2" * 32}), "1" * 32, (Need("3" * 32, 7, 9), Need("4" * 32)))
    assert read_trust(NodeStatus("0.1.0", trust=write_trust(trust))) == trust
    silent = Trust(frozenset({"1" * 32}), "1" * 32)
    assert read_trust(NodeStatus("0.1.0", trust=write_trust(silent))) == silent
    assert read_trust(NodeStatus("0.1.0")) is None


def test_more_anchors_than_readers_take_are_left_out_and_the_issuer_s_is_not() -> None:
    written = write_trust(Trust(frozenset(f"{number:032x}" for number in range(100)), f"{99:032x}"))
    assert written is not None
    assert len(written.anchors) == MOST_ANCHORS
    assert f"{99:032x}" in written.anchors


def a_node(*addresses: object) -> MeshNode:
    status = {"agentVersion": "0.1.0", "addresses": list(addresses)}
    data = msgspec.json.encode({"metadata": {"name": "n1"}, "status": status})
    return msgspec.json.decode(data, type=MeshNode)


def test_addresses_of_a_node_are_read() -> None:
    found = read_node(a_node("10.0.0.1", "fd00::1", "10.0.0.1"))
    assert found == mesh_node.Node("n1", (ip_address("10.0.0.1"), ip_address("fd00::1")))
    assert read_node(a_node()) == mesh_node.Node("n1", ())


@pytest.mark.parametrize("address", ["127.0.0.1", "fe80::1", "224.0.0.1", "node"])
def test_what_is_no_address_of_a_node_is_an_error(address: str) -> None:
    with pytest.raises(ObjectError, match=r"^MeshNode n1: "):
        read_node(a_node("10.0.0.1", address))


@pytest.mark.parametrize("addresses", [["10.0.0.1"] * 17, [7], ["1" * 46]])
def test_addresses_of_a_node_have_bounds(addresses: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        a_node(*addresses)


def test_node_of_another_version_is_read() -> None:
    data = b'{"metadata": {"name": "n1"}, "status": {"agentVersion": "9", "moods": [1], "trust": null}}'
    assert msgspec.json.decode(data, type=MeshNode) == MeshNode(PlainMeta("n1"), NodeStatus("9"))


def test_node_is_ready_when_its_kubelet_says_so() -> None:
    def ready(status: str) -> bool:
        conditions = [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": status}]
        data = msgspec.json.encode({"metadata": {"name": "n"}, "status": {"conditions": conditions}})
        return msgspec.json.decode(data, type=Node).ready

    assert [ready(one) for one in ("True", "False", "Unknown")] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "part", "type_"),
    [("meshendpoints.nodeseal.io", "spec", EndpointsSpec), ("meshnodes.nodeseal.io", "status", NodeStatus)],
)
def test_schemas_that_are_installed_have_the_same_fields(name: str, part: str, type_: type[msgspec.Struct]) -> None:
    chart = Chart()
    (found,) = (one for one in chart.manifests("nodeseal-system", chart.values([])) if one.name == name)
    (version,) = yaml.safe_load(found.text)["spec"]["versions"]
    assert_alike(version["schema"]["openAPIV3Schema"]["properties"][part], type_, part)


def assert_alike(schema: dict[str, Any], type_: Any, where: str) -> None:
    """The same fields, all required that readers require, and readers bear whatever the schema allows."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        fields = msgspec.structs.fields(type_)
        assert set(schema["properties"]) == {one.encode_name for one in fields}, where
        required = {one.encode_name for one in fields if one.required}
        # What a reader does not need a writer may have to say.
        assert required <= set(schema.get("required", ())), where
        for one in fields:
            assert_alike(schema["properties"][one.encode_name], one.type, f"{where}.{one.encode_name}")
        return
    kind = msgspec.inspect.type_info(type_)
    if isinstance(kind, msgspec.inspect.UnionType):
        others = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
        kind = others[0]
    if isinstance(kind, msgspec.inspect.ListType):
        assert schema["type"] == "array", where
        assert schema.get("maxItems") == kind.max_length, where
        if isinstance(kind.item_type, msgspec.inspect.StructType):
            assert_alike(schema["items"], kind.item_type.cls, f"{where}[]")
    elif isinstance(kind, msgspec.inspect.StructType):
        assert_alike(schema, kind.cls, where)
    elif isinstance(kind, msgspec.inspect.StrType) and kind.max_length is not None and "enum" not in schema:
        assert schema["maxLength"] <= kind.max_length, where


def test_comparison_of_schemas_notices() -> None:
    with pytest.raises(AssertionError):
        assert_alike({"properties": {"node": {}}, "required": ["node"]}, EndpointsSpec, "spec")
