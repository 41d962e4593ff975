"""Which clients strict mode would refuse: what the counts of native connections tell over time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

from nodeseal.capture import constants
from nodeseal.capture.natives import Owner, Place, Total
from nodeseal.mesh.model import Mesh, Phase
from nodeseal.node.plain_clients import KEPT_S, SHOWN, PlainClients
from support.agent_fakes import mesh, workload

NAME = "default/a"
STRANGER = IPv4Address("192.0.2.7")
PEER = workload("b", None, node="node2", phase=Phase.ENROLLED)


class Kernel:
    """What it has counted."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, Place], Total] = {}
        self.error: OSError | None = None

    def put(
        self,
        opened: int,
        closed: int,
        far: IPv4Address = STRANGER,
        *,
        inbound: bool = True,
        reason: int = constants.NATIVE_DECIDED,
    ) -> None:
        self.counted[(NAME, Place(Owner(1), inbound, reason, far))] = Total(opened, closed)

    async def native_places(self) -> dict[tuple[str, Place], Total]:
        if self.error is not None:
            raise self.error
        return dict(self.counted)


class Node:
    """One that looks when it is told, at a time of its own."""

    def __init__(self) -> None:
        self.kernel, self.now = Kernel(), 0.0
        self.clients = PlainClients(self.kernel, lambda: self.now)

    def look(self, at: float) -> None:
        self.now = at
        asyncio.run(self.clients.look())

    def shown(self, state: Mesh | None = None) -> list[tuple[str, int, float]]:
        found = self.clients.rows(state).get(NAME, [])
        return [(one.address, one.connections, one.last_seconds) for one in found]


def test_a_client_is_seen_when_its_count_grows() -> None:
    node = Node()
    node.kernel.put(1, 1)
    node.look(10)
    node.look(70)
    assert node.shown() == [("192.0.2.7", 1, 60.0)]
    node.kernel.put(2, 2)
    node.look(100)
    assert node.shown() == [("192.0.2.7", 2, 0.0)]


def test_an_open_connection_is_there_now() -> None:
    node = Node()
    node.kernel.put(5, 4)
    node.look(10)
    node.look(500)
    assert node.shown() == [("192.0.2.7", 5, 0.0)]


def test_after_a_day_it_is_told_no_more() -> None:
    node = Node()
    node.kernel.put(1, 1)
    node.look(0)
    node.look(KEPT_S)
    assert node.shown()
    node.look(KEPT_S + 1)
    assert not node.shown()


def test_what_strict_would_not_refuse_is_no_client() -> None:
    node = Node()
    node.kernel.put(1, 1, inbound=False)
    for reason in (constants.NATIVE_NODE, constants.NATIVE_EXCLUDED_PORT, constants.NATIVE_EXCLUDED_RANGE):
        node.kernel.put(1, 1, reason=reason)
    node.look(0)
    assert not node.shown()


def test_who_is_enrolled_by_now_will_come_by_a_tunnel() -> None:
    node = Node()
    node.kernel.put(1, 1, PEER.addresses[0])  # type: ignore[arg-type]
    node.look(0)
    assert not node.shown(mesh(PEER))
    assert node.shown(mesh(PEER.in_phase(Phase.ABSENT)))


def test_it_has_the_name_that_the_mesh_state_knows() -> None:
    node, absent = Node(), replace(PEER, phase=Phase.ABSENT)
    node.kernel.put(1, 1, absent.addresses[0])  # type: ignore[arg-type]
    node.look(0)
    (row,) = node.clients.rows(mesh(absent))[NAME]
    assert row.workload == "default/b"


def test_of_many_those_seen_last_are_shown() -> None:
    node = Node()
    node.kernel.put(1, 1)
    node.look(0)
    for number in range(SHOWN):
        node.kernel.put(1, 1, IPv4Address("198.51.100.0") + number)
    node.look(30)
    assert len(node.shown()) == SHOWN
    assert {seconds for _, _, seconds in node.shown()} == {0.0}


def test_what_cannot_be_read_leaves_what_was_known() -> None:
    node = Node()
    node.kernel.put(1, 1)
    node.look(0)
    node.kernel.error = OSError(9, "Bad file descriptor")
    node.look(5)
    assert node.shown() == [("192.0.2.7", 1, 5.0)]
