"""One core at a time reads a ring of parked SYNs, whatever becomes of cores: against stand-ins for capture and core."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeseal.capture.listeners import PARKED
from nodeseal.capture.workload import CaptureTarget
from nodeseal.cores.client import CoreError, CoreGone
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.installed import Installed
from nodeseal.enrolment.ring import settle_ring
from nodeseal.mesh.model import Connect
from nodeseal.mesh.spiffe import SpiffeId
from support.agent_fakes import FakeCapture, FakeCore, workload


class World:
    """What is installed for a workload with a ring; `log` is what happened, in order."""

    def __init__(self, netns: Path) -> None:
        self.log: list[str] = []
        self.capture = FakeCapture(self.log)
        self.core = FakeCore(self.log)
        self.context: Any = Context(None, self.core, self.capture, None, None, 0.0)  # type: ignore[arg-type]
        self.wanted = workload("shipper", netns)
        captured = self.capture.make(CaptureTarget("default/shipper", str(netns), self.wanted.addresses))
        captured.listeners[PARKED] = os.open("/dev/null", os.O_RDONLY)
        identity = SpiffeId("example.org", "default", "shipper")
        self.installed = Installed(self.wanted, 7, identity, captured, self.core.incarnation)

    def settle(self, connect: Connect | None = Connect.TRUTHFUL) -> list[str]:
        """What happens; `connect`: the mesh state's."""
        self.log.clear()
        self.core.calls.clear()
        wanted = workload("shipper", self.wanted.netns, connect=connect)
        asyncio.run(settle_ring(self.context, self.installed, wanted))
        return list(self.log)

    def next_core(self, *, before: FakeCore | None = None) -> None:
        """Another core is the present one; `before`: the one before goes on."""
        if before is not None:
            self.core.older[self.core.incarnation] = before
        self.core.incarnation += 1
        self.installed.key += 1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.capture.close()


PARK, UNPARK = "capture.park default/shipper", "capture.unpark default/shipper"


def test_parking_begins_when_the_core_has_the_ring(world: World) -> None:
    assert world.settle() == ["core.workload_listen", PARK]
    assert world.core.calls[0][1] == (7, {PARKED: world.installed.captured.listeners[PARKED]})
    assert world.settle() == []


def test_the_default_is_the_nodes(world: World) -> None:
    world.context.connect = Connect.EARLY
    assert world.settle(None) == []
    world.context.connect = Connect.TRUTHFUL
    assert world.settle(None) == ["core.workload_listen", PARK]
    assert world.settle(Connect.EARLY) == [UNPARK, "core.workload_unlisten"]


def test_parking_ends_before_the_ring_is_taken_away_and_can_begin_again(world: World) -> None:
    world.settle()
    assert world.settle(Connect.EARLY) == [UNPARK, "core.workload_unlisten"]
    assert world.settle(Connect.EARLY) == []
    assert world.settle() == ["core.workload_listen", PARK]


def test_the_core_before_lets_go_first(world: World) -> None:
    world.settle()
    before = FakeCore(world.log)
    world.next_core(before=before)
    assert world.settle() == ["core.workload_unlisten", "core.workload_listen"]
    assert before.calls[0][:2] == ("workload_unlisten", (7, PARKED))
    assert world.core.calls[0][1][0] == 8


def test_a_core_that_died_leaves_what_is_parked_to_the_next(world: World) -> None:
    world.settle()
    world.next_core()
    assert world.settle() == ["core.workload_listen"]
    assert world.installed.captured.parking


def test_a_core_that_dies_as_it_is_asked_holds_nobody_up(world: World) -> None:
    world.settle()
    before = FakeCore(world.log)
    before.failures["workload_unlisten"] = CoreGone("it ended")
    world.next_core(before=before)
    assert world.settle() == ["core.workload_listen"]


def test_a_core_before_that_does_not_let_go_stops_parking_until_it_does(world: World) -> None:
    world.settle()
    before = FakeCore(world.log)
    before.failures["workload_unlisten"] = CoreError("no answer")
    world.next_core(before=before)
    assert world.settle() == [UNPARK]
    assert world.settle() == []
    before.failures.clear()
    assert world.settle() == ["core.workload_unlisten", "core.workload_listen", PARK]


def test_a_core_that_refuses_the_ring_accepts_early(world: World) -> None:
    world.core.failures["workload_listen"] = CoreError("no room")
    assert world.settle() == []
    assert not world.installed.captured.parking
    world.core.failures.clear()
    assert world.settle() == ["core.workload_listen", PARK]


def test_a_core_of_a_former_protocol_never_gets_it(world: World) -> None:
    world.settle()
    before = FakeCore(world.log)
    world.next_core(before=before)
    world.core.reads_rings = False
    assert world.settle() == [UNPARK, "core.workload_unlisten"]
    assert world.settle() == []


def test_a_backend_without_a_ring_accepts_early(world: World) -> None:
    os.close(world.installed.captured.listeners.pop(PARKED))
    assert world.settle() == []


def test_a_workload_that_leaves_keeps_what_it_has(world: World) -> None:
    world.settle()
    world.installed.captured.phase = "leaving"
    world.next_core()
    assert world.settle() == ["core.workload_listen"]
    assert world.installed.captured.parking


def test_a_workload_that_leaves_begins_nothing(world: World) -> None:
    world.installed.captured.phase = "leaving"
    assert world.settle() == []
