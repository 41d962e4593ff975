"""A kind is an entry in a table: one that only this file knows goes all the way that workloads and services go."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from nodeseal.contracts.mesh import MESSAGES, MessageOf, decode_difference, encode_difference
from nodeseal.documents.document import Node, Problem, Problems
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.readers import READERS
from nodeseal.documents.schema import Fields
from nodeseal.mesh.address import Address, parse_address
from nodeseal.mesh.kinds import Clash, GroupIndex, Index, Kind, MeshError, Table, clashes
from nodeseal.mesh.model import KINDS, Mesh, MeshDifference, Workload, WorkloadName
from nodeseal.mesh.workload import WORKLOADS, Mode
from nodeseal.sources.directory.source import MeshStateError, load
from support.core_server import RunningServer

# ---- all that there is of gateways


@dataclass(frozen=True, slots=True)
class Gateway:
    key: str
    address: Address
    zone: str
    leads_to: tuple[WorkloadName, ...] = ()


def _read_key(text: str) -> str:
    if "/" in text:
        raise MeshError(f"{text!a} is no gateway's name")
    return text


def _rivals(zone: str, one: Gateway, other: Gateway) -> Clash | None:
    if one.address.version == other.address.version:
        return None
    return Clash(GATEWAYS, one, GATEWAYS, other, "zone", zone, note="of different families")


def _check(trust_domain: str, gateways: Iterable[Gateway]) -> None:
    for gateway in gateways:
        if gateway.zone == trust_domain:
            raise MeshError(f"the zone of {gateway.key} is the trust domain")


GATEWAY_BY_ADDRESS: Index[Address, Gateway] = Index("gateway_by_address", "address", lambda one: (one.address,))
ZONES: GroupIndex[str, Gateway] = GroupIndex("zones", "zone", lambda one: (one.zone,), _rivals)
GATEWAYS: Kind[str, Gateway] = Kind("gateways", "gateway", _read_key, (GATEWAY_BY_ADDRESS, ZONES), _check)


class GatewayMessage(msgspec.Struct):
    name: str
    address: str
    zone: str
    leads_to: list[str]


class GatewayEntry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: str
    zone: str | UnsetType = UNSET
    leads_to: list[str] | UnsetType = UNSET


def _read(problems: Problems, node: Node, path: str) -> Gateway | None:
    before, fields = problems.count, Fields(problems, node, path)
    items = fields.items("leads_to", "a list", required=False)
    leads_to = tuple(WorkloadName.parse(item.text) for item in items)  # type: ignore[union-attr]
    gateway = Gateway(fields.name("name"), fields.addresses()[0], fields.name("zone", "here"), leads_to)
    fields.close()
    return gateway if problems.count == before else None


def _check_ends(stated: Stated, lists: Iterable[Placed[Gateway]]) -> Iterator[Problem]:
    for placed in lists:
        for index, gateway in placed.valid():
            for name in gateway.leads_to:
                if name not in stated.keys[WORKLOADS.name]:
                    yield placed.problem(index, "leads_to", "a workload", str(name))


@pytest.fixture(autouse=True)
def gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "gateways", GATEWAYS)
    monkeypatch.setitem(READERS, "gateways", Reader(GatewayEntry, _read, check=_check_ends))
    message: MessageOf[Gateway, GatewayMessage] = MessageOf(
        GatewayMessage,
        lambda one: GatewayMessage(one.key, str(one.address), one.zone, list(map(str, one.leads_to))),
        lambda it: Gateway(it.name, parse_address(it.address), it.zone, tuple(map(WorkloadName.parse, it.leads_to))),
    )
    monkeypatch.setitem(MESSAGES, "gateways", message)


# ---- and its ways

EAST = Gateway("east", IPv4Address("10.5.0.1"), "here", (WorkloadName("default", "a"),))
WEST = Gateway("west", IPv4Address("10.5.0.2"), "here")
STATE: dict[str, list[dict[str, Any]]] = {
    "workloads": [{"name": "a", "node": "n", "address": "10.0.0.1"}],
    "gateways": [
        {"name": "west", "address": "10.5.0.2"},
        {"name": "east", "address": "10.5.0.1", "leads_to": ["default/a"]},
    ],
}


def workload(number: int) -> Workload:
    address = IPv4Address("10.0.0.0") + number
    return Workload(WorkloadName("default", f"w{number}"), "default", "n", (address,), None, True, Mode.PERMISSIVE)


def mesh(*gateways: Gateway) -> Mesh:
    return Mesh.build("example.org", [workload(1)], gateways=gateways)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_kind_goes_from_a_file_to_a_core_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for module in ("contracts.core", "splice.transfer"):
        monkeypatch.setattr(f"nodeseal.{module}.MESH_PART", 2)  # several parts
    directory = tmp_path / "mesh"
    directory.mkdir()
    (directory / "mesh.yaml").write_text("trust_domain: example.org\n")
    (directory / f"objects.{suffix}").write_text(json.dumps(STATE))
    server = RunningServer(tmp_path)
    try:
        told = load(directory)
        assert told.of(GATEWAYS) == {"east": EAST, "west": WEST}
        server.client.mesh(told, 1)
        assert server.server.decider.state.mesh == told
        assert server.client.mesh_read() == told

        moved = {"name": "west", "address": "10.5.0.7"}
        (directory / f"objects.{suffix}").write_text(json.dumps({**STATE, "gateways": [moved]}))
        now = load(directory)
        assert server.client.mesh_change(told, now, 2, base=1)
        assert server.client.mesh_read().of(GATEWAYS) == {"west": replace(WEST, address=IPv4Address("10.5.0.7"))}
        index = server.server.decider.state.mesh.by(GATEWAYS, GATEWAY_BY_ADDRESS)
        assert index.keys() == {IPv4Address("10.5.0.7")}
    finally:
        server.end()


def test_what_another_version_does_not_know_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    message = encode_difference(mesh(EAST).as_difference())
    monkeypatch.delitem(KINDS, "gateways")
    assert Mesh.from_difference(decode_difference(message)) == Mesh.build("example.org", [workload(1)])


def test_a_kinds_mistakes_are_told_with_their_places(tmp_path: Path) -> None:
    def complaints(*gateways: dict[str, Any]) -> list[str]:
        (tmp_path / "mesh.yaml").write_text("trust_domain: example.org\n")
        (tmp_path / "objects.json").write_text(json.dumps({**STATE, "gateways": gateways}))
        with pytest.raises(MeshStateError) as caught:
            load(tmp_path)
        return str(caught.value).splitlines()

    west, east = STATE["gateways"]
    assert complaints({**west, "zoen": "x"}) == [
        "objects.json:1: gateways[0].zoen: expected 'zone', found the unknown field 'zoen'"
    ]
    assert complaints(west, {**west, "address": "10.0.0.1"}) == [
        "objects.json: gateways[1].name: expected a name used once, found west again (first at objects.json, "
        "gateways[0])",
        "objects.json: gateways[1].address: expected an address used once, found 10.0.0.1 again (first at "
        "objects.json, workloads[0])",
    ]
    assert complaints(west, {**east, "address": "fd00::1"}) == [
        "objects.json: gateways[1].zone: expected a zone used once, found here again (first at objects.json, "
        "gateways[0])"
    ]
    assert complaints({**east, "leads_to": ["default/x"]}) == [
        "objects.json: gateways[0].leads_to: expected a workload, found default/x"
    ]


def test_indexes_follow_what_changes() -> None:
    model = mesh(EAST, WEST)
    assert model.groups(GATEWAYS, ZONES) == {"here": (EAST, WEST)}
    there = replace(EAST, zone="there", address=WEST.address)
    moved = model.apply(MeshDifference("example.org", {"gateways": (there,)}, {"gateways": ("west",)}))
    assert moved.groups(GATEWAYS, ZONES) == {"there": (there,)}
    assert moved.by(GATEWAYS, GATEWAY_BY_ADDRESS) == {WEST.address: there}
    assert moved.tables["workloads"] is model.tables["workloads"]


@pytest.mark.parametrize(
    ("gateway", "message"),
    [
        (replace(EAST, key="other"), "gateways east and other share the address 10.5.0.1"),
        (replace(EAST, key="other", address=IPv4Address("10.0.0.1")), "workload default/w1 and gateway other share"),
        (
            Gateway("other", parse_address("fd00::1"), "here"),
            "gateways east and other of different families share the zone here",
        ),
        (Gateway("other", IPv4Address("10.5.0.9"), "example.org"), "the zone of other is the trust domain"),
    ],
)
def test_what_a_kind_does_not_allow_is_refused(gateway: Gateway, message: str) -> None:
    model = mesh(EAST)
    with pytest.raises(MeshError, match=message):
        mesh(EAST, gateway)
    with pytest.raises(MeshError, match=message):
        model.apply(MeshDifference("example.org", {"gateways": (gateway,)}))
    assert model == mesh(EAST)


@pytest.mark.parametrize("count", [1, 5])
def test_an_address_is_one_objects_whatever_its_kind(count: int) -> None:
    """However many are new, and however many are there."""
    taken = Gateway("new", IPv4Address("10.0.0.1"), "here")
    others = tuple(Gateway(f"g{n}", IPv4Address("10.6.0.0") + n, "here") for n in range(count))
    model = Mesh.build("example.org", map(workload, range(1, 4)))
    with pytest.raises(MeshError, match=r"workload default/w1 and gateway new share the address 10\.0\.0\.1"):
        model.apply(MeshDifference("example.org", {"gateways": (*others, taken)}))
    with pytest.raises(MeshError, match=r"workload default/w1 and gateway new share the address 10\.0\.0\.1"):
        Mesh.build("example.org", [], gateways=(*others, taken)).apply(
            MeshDifference("example.org", {"workloads": (workload(1),)})
        )


def test_a_key_that_comes_twice_is_refused() -> None:
    with pytest.raises(MeshError, match="two gateways are named east"):
        Table.empty(GATEWAYS).changed((EAST, EAST))


def test_all_that_clashes_is_found_with_its_places() -> None:
    other = replace(WEST, key="other", address=EAST.address)
    found = clashes([(GATEWAYS, [("one", EAST), ("two", replace(EAST, zone="there")), ("three", other)])])
    assert [(first, later, clash.what) for first, later, clash in found] == [
        ("one", "two", "name"),
        ("one", "two", "address"),
        ("one", "three", "address"),
    ]
