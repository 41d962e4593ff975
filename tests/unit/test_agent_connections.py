"""Listing a node's connections: which, in which order, and how many at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from nodeseal.api import connections_view
from nodeseal.api.connections_view import Position
from nodeseal.api.exchange import RequestError
from nodeseal.capture import constants
from nodeseal.capture.natives import Event as NativeEvent
from nodeseal.capture.natives import Native, Owner
from nodeseal.contracts import core
from nodeseal.contracts.api import PAGE, PAGE_MAX
from nodeseal.contracts.connections import ConnectionFilter, Connections
from nodeseal.contracts.core import Connection
from nodeseal.cores.client import CoreGone
from nodeseal.linux.sock_diag import Direct, DirectError
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.model import Mesh, Service, WorkloadName
from nodeseal.mesh.node import Node as NodeOfMesh
from nodeseal.mesh.service import Front, Way
from support.agent_fakes import mesh, status_of, workload

HERE, OTHER = workload("a", None), workload("b", None)


def row(number: int, **changes: Any) -> Connection:
    """As a core has it."""
    fields = {"id": number, "workload": "default/a", "direction": "outbound", "state": "open", **changes}
    return Connection(source="10.0.0.1:4000", destination="10.0.0.2:80", endpoint="10.0.0.2:80", **fields)


class Link:
    """A core with these rows. One that is `old` gives all in one answer, whatever is wanted, and in no order."""

    def __init__(self, generation: int, rows: list[Connection], *, old: bool) -> None:
        self.generation, self.rows, self.old = generation, rows, old
        self.asked: list[core.Connections] = []

    async def call(self, _method: object, wanted: core.Connections) -> tuple[list[Connection], int | None]:
        self.asked.append(wanted)
        if self.old:
            return sorted(self.rows, key=lambda row: row.id), None
        found = [row for row in sorted(self.rows, key=lambda row: row.id) if row.id >= wanted.first]
        found = [row for row in found if not (wanted.live and row.state == "closed")]
        found = [row for row in found if wanted.workload in (None, row.workload)]
        found = [row for row in found if wanted.direction in (None, row.direction)]
        rest = found[wanted.limit :]
        return found[: wanted.limit], rest[0].id if rest else None


class Node:
    """With cores that have these rows, by generation, and connections past them, by workload."""

    def __init__(
        self, cores: dict[int, list[Connection]], past: dict[str, list[Direct] | Exception], *, old: bool = False
    ) -> None:
        self.cores, self.past = cores, past
        self.config = status_of(node="node1")
        self.trust_domain = "example.org"
        self.mesh = mesh(HERE, OTHER)
        self.bypass = status_of(is_node=lambda _address: False, is_outside=lambda _mesh, _address: False)
        self.found = [Link(generation, rows, old=old) for generation, rows in cores.items()]
        self.core = status_of(current=self.found[0], links=lambda: self.found)
        self.capture = self
        self.ended: list[tuple[str, NativeEvent]] = []
        self.native_log = self
        self.noted: dict[str, dict[int, Native]] = {}
        self.enrolments = {}
        for name in past:
            installed = status_of(draining=False, captured=name)
            self.enrolments[WorkloadName.parse(name)] = status_of(name=WorkloadName.parse(name), installed=installed)

    async def direct(self, captured: str) -> list[Direct]:
        found = self.past[captured]
        if isinstance(found, Exception):
            raise found
        return random.sample(found, len(found))

    async def closed(self) -> list[tuple[str, NativeEvent]]:
        return self.ended

    async def natives(self) -> dict[str, dict[int, Native]]:
        return self.noted


def page(node: Any, **wanted: Any) -> Connections:
    chosen = ConnectionFilter(**wanted)
    return asyncio.run(connections_view.page(node, chosen, connections_view.beginning(chosen)))


def pages(node: Any, **wanted: Any) -> Iterator[Connections]:
    """All of them, one after the other."""
    after = None
    while True:
        found = page(node, after=after, **wanted)
        yield found
        if found.next is None:
            return
        after = found.next


def past(*ports: int, inbound: bool = True) -> list[Direct]:
    here = HERE.addresses[0]
    return [Direct((here, 80), (IPv4Address("192.0.2.7"), port), inbound, 0, 1, 2) for port in ports]


@pytest.fixture(params=["present", "old"])
def node(request: pytest.FixtureRequest) -> Node:
    """Two cores, with two and three connections, and three connections past them."""
    older = [row(1, state="closed", closed_ms=500, anchor="a" * 32), row(2)]
    present = [row(1), row(2 << 48, workload="default/b"), row(7, direction="inbound", anchor="a" * 32)]
    return Node(
        {3: present, 2: older},
        {"default/a": past(4001, 4000), "default/b": past(5000, inbound=False)},
        old=request.param == "old",
    )


IN_ORDER = ["core,2,1", "core,2,2", "core,3,1", "core,3,7", f"core,3,{2 << 48}"]
PAST = [f"past,default/a,192.0.2.7:{port},{HERE.addresses[0]}:80" for port in (4000, 4001)]
PAST += [f"past,default/b,{HERE.addresses[0]}:80,192.0.2.7:5000"]


def positions(found: Connections) -> list[str]:
    return [str(Position.of(one)) for one in found.connections]


def test_cores_come_first_then_what_is_past_them(node: Node) -> None:
    assert positions(page(node)) == [*IN_ORDER, *PAST]


@pytest.mark.parametrize("limit", range(1, 10))
def test_pages_have_all_in_the_same_order(node: Node, limit: int) -> None:
    found = list(pages(node, limit=limit))
    assert [one for part in found for one in positions(part)] == [*IN_ORDER, *PAST]
    assert all(len(part.connections) == limit for part in found[:-1])
    assert 1 <= len(found[-1].connections) <= limit


def test_a_service_is_named_where_it_was_dialled_and_its_workload_where_that_led() -> None:
    node = Node({1: [row(1, direction="outbound"), row(2)]}, {})
    front = Front(Way.NODE, 4, (), 30080, 80, (ApplicationAddress(OTHER.addresses[0], 80),))
    service = Service(WorkloadName("shop", "web"), (), (), (), (front,))
    at_node = IPv4Address("192.168.0.1")
    node.mesh = Mesh.build("example.org", (HERE, OTHER), (service,), nodes=(NodeOfMesh("node1", (at_node,)),))
    node.cores[1][0] = msgspec.structs.replace(
        node.cores[1][0], destination=f"{at_node}:30080", endpoint=f"{OTHER.addresses[0]}:80"
    )
    first, second = page(node).connections
    assert (first.destination_workload, first.endpoint_workload) == ("shop/web", "default/b")
    assert second.destination_workload != "shop/web"


def test_page_goes_on_whatever_has_ended(node: Node) -> None:
    first = page(node, limit=2)
    node.cores[2].clear()
    node.cores[3].pop(0)
    assert positions(page(node, after=first.next)) == [*IN_ORDER[3:], *PAST]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"live": True}, [*IN_ORDER[1:], *PAST]),
        ({"workload": "default/b"}, [IN_ORDER[4], PAST[2]]),
        ({"direction": "inbound"}, [IN_ORDER[3], *PAST[:2]]),
        ({"direction": "outbound", "workload": "default/b"}, [IN_ORDER[4], PAST[2]]),
        ({"workload": "default/c"}, []),
        ({"anchor": "a" * 8}, [IN_ORDER[0], IN_ORDER[3]]),
        ({"anchor": "a" * 64}, [IN_ORDER[0], IN_ORDER[3]]),
        ({"anchor": "a" * 64, "live": True}, [IN_ORDER[3]]),
        ({"anchor": "b" * 32}, []),
    ],
)
def test_only_what_is_wanted(node: Node, wanted: dict[str, Any], expected: list[str]) -> None:
    assert positions(page(node, **wanted)) == expected
    assert [one for part in pages(node, limit=1, **wanted) for one in positions(part)] == expected


def test_no_answer_has_more_than_it_may() -> None:
    many = Node({1: [row(number) for number in range(1, PAGE_MAX + 2)]}, {})
    assert len(page(many).connections) == PAGE
    assert len(page(many, limit=PAGE_MAX * 2).connections) == PAGE_MAX


def test_stream_comes_in_batches() -> None:
    many = Node({1: [row(number) for number in range(1, PAGE * 2 + 2)]}, {})

    async def sizes(limit: int | None) -> list[int]:
        return [len(batch) async for batch in connections_view.listing(many, ConnectionFilter(), None, limit)]

    assert asyncio.run(sizes(None)) == [PAGE, PAGE, 1]
    assert asyncio.run(sizes(PAGE + 5)) == [PAGE, 5]


def test_what_cannot_be_listed_is_said(node: Node) -> None:
    node.past["default/a"] = DirectError("no netlink")
    found = page(node)
    assert found.errors == ["default/a: connections past the core cannot be listed: no netlink"]
    assert positions(found) == [*IN_ORDER, PAST[2]]


@pytest.mark.parametrize(
    "after",
    [
        "",
        "core",
        "core,1",
        "core,x,1",
        f"core,1,{2**63 - 1}",
        "core,1,-2",
        "past,a",
        "past,a,b,c,d",
        "past,a,b,c,1,2",
        "future,1,2",
    ],
)
def test_place_that_is_none_is_refused(node: Node, after: str) -> None:
    with pytest.raises(RequestError, match="is not the 'next' of a page"):
        page(node, after=after)


def test_native_ones_that_were_closed_are_listed_beside_others_with_their_ends(node: Node) -> None:
    ends = ((IPv4Address("192.0.2.7"), 4000), (HERE.addresses[0], 80))
    for number in (12, 11):
        closed = Native(number, Owner(1), True, constants.NATIVE_DECIDED, *ends, 0)
        node.ended.append(("default/a", NativeEvent(closed, True, 1, acknowledged=5, received=3)))
    wanted = [PAST[0], f"{PAST[0]},11", f"{PAST[0]},12", PAST[1]]
    assert positions(page(node, workload="default/a", direction="inbound"))[1:] == wanted
    found = list(pages(node, limit=1))
    assert [position for one in found for position in positions(one)] == [*IN_ORDER, *wanted, PAST[2]]
    row = found[6].connections[0]
    assert (row.state, row.native, row.bytes_sent, row.bytes_received) == ("closed", True, 3, 5)
    assert positions(page(node, workload="default/a", direction="inbound", live=True))[1:] == PAST[:2]


def test_while_a_workload_drains_its_native_ones_are_listed_alone(node: Node) -> None:
    node.enrolments[HERE.key].installed.draining = True
    assert positions(page(node, workload="default/a", direction="inbound")) == [IN_ORDER[3]]
    (first, _) = node.past["default/a"] = past(4001, 4000)
    node.past["default/a"] = [replace(first, cookie=7)]
    ends = (first.remote, first.local)
    node.noted = {"default/a": {7: Native(7, Owner(1), True, constants.NATIVE_DECIDED, *ends, 0)}}
    found = page(node, workload="default/a", direction="inbound").connections
    assert [(one.source, one.native) for one in found[1:]] == [("192.0.2.7:4001", True)]


def test_what_ends_or_is_opened_between_the_looks_is_not_taken_for_older_than_enrolment(node: Node) -> None:
    """Sockets and notes are read one after the other; whoever has gone by the second look at sockets is not listed."""
    (first, second) = past(4000, 4001)
    older, opened, ended = (replace(first, cookie=1), replace(second, cookie=2), replace(past(4002)[0], cookie=3))
    looks = [[older, opened, ended], [older, opened]]
    notes: list[dict[str, dict[int, Native]]] = [{}]
    ends = (opened.remote, opened.local)
    notes.append({"default/a": {2: Native(2, Owner(1), True, constants.NATIVE_DECIDED, *ends, 0)}})

    async def direct(_captured: str) -> list[Direct]:
        return looks.pop(0)

    async def natives() -> dict[str, dict[int, Native]]:
        return notes.pop(0)

    node.direct, node.natives = direct, natives  # type: ignore[method-assign]
    found = page(node, workload="default/a", direction="inbound").connections[1:]
    reasons = {one.source: one.reason for one in found}
    assert reasons == {"192.0.2.7:4000": "opened-before-enrolment", "192.0.2.7:4001": "source-not-in-mesh"}


def test_row_is_complete(node: Node) -> None:
    (found,) = page(node, limit=1).connections
    assert msgspec.to_builtins(found)["closed_seconds"] == 0.5
    assert (found.core, found.peer, found.tls, found.reason, found.age_seconds) == (2, None, None, None, 0.0)


def test_core_is_asked_for_no_more_than_is_wanted() -> None:
    one = Node({1: [row(number) for number in range(1, 10)]}, {})
    found = page(one, limit=2, live=True, workload="default/a", direction="outbound")
    assert found.next == "core,1,2"
    asked = core.Connections(limit=3, live=True, workload="default/a", direction="outbound")
    assert one.found[0].asked == [asked]
    page(one, limit=2, after=found.next)
    assert one.found[0].asked[1:] == [core.Connections(first=3, limit=3)]


def test_core_that_ends_meanwhile_is_passed_over_unless_it_is_the_present_one(node: Node) -> None:
    async def ended(*_arguments: object) -> Any:
        raise CoreGone("the core (pid 1) has ended")

    older = next(link for link in node.found if link.generation == 2)
    older.call = ended
    assert positions(page(node)) == [*IN_ORDER[2:], *PAST]
    node.found[0].call = ended
    with pytest.raises(CoreGone):
        page(node)
    node.core.current = None
    node.core.error = "no memory"
    with pytest.raises(CoreGone, match="no memory"):
        page(node)
