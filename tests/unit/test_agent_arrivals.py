"""Pods that come and go by the network plugin: on a node with a real core process and a mesh state in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nodeseal.capture.errors import CaptureError
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.local.pod_start import PodStart, Wait
from nodeseal.mesh.model import Mesh, Phase, WorkloadName
from nodeseal.node.arrivals import Answer, Outcome, Refused
from nodeseal.node.node import Node
from nodeseal.sources.arrival import Arrival, ArrivalError
from support.agent_fakes import FakeCapture, FakeIssuer, agent_config, fake_spawn, mesh, until, workload
from support.core_client import ask
from support.memory_source import MemoryMesh, MemorySource

NAME = WorkloadName("default", "shipper")
PATIENCE_S = 30.0


class PodSource(MemorySource):
    """One that knows pods: who arrives is put into the mesh state, as long as the test does not say otherwise."""

    kept_back = False
    refusal: str | None = None

    async def expect(self, arrival: Arrival, present: Mesh | None) -> WorkloadName | None:
        if self.refusal is not None:
            raise ArrivalError(self.refusal)
        if arrival.name.namespace != "default":
            return None
        if not self.kept_back:
            self.put(workload(arrival.name.name, arrival.netns))
        return arrival.name

    async def depart(self, arrival: Arrival) -> None:
        self.put(workload(arrival.name.name, None))

    def put(self, *workloads: Any) -> None:
        self._memory.put(mesh(*workloads))


class Place:
    """A run directory, and a mesh state of which the node's source knows nothing yet."""

    def __init__(self, tmp_path: Path) -> None:
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir(mode=0o700)
        self.memory = MemoryMesh(mesh())
        self.netns = tmp_path / "netns"
        self.netns.touch()
        self.capture = FakeCapture()
        self.cores: list[Any] = []

    def arrival(self, name: WorkloadName = NAME, netns: Path | None = None) -> Arrival:
        return Arrival(name, "uid-1", "sandbox-1", str(netns or self.netns))

    @contextlib.asynccontextmanager
    async def node(self, kind: type[MemorySource] = PodSource, **changes: Any) -> AsyncIterator[tuple[Node, Any]]:
        source = kind(self.memory, "node1", self.run_dir)
        config = agent_config(self.run_dir.parent / "mesh", run_dir=self.run_dir, **changes)
        node = Node(
            config,
            FakeIssuer(),
            source,
            self.capture,  # type: ignore[arg-type]
            source_at=self.memory.source_at,
            start_core=self._start,
        )
        await node.begin()
        try:
            yield node, source
        finally:
            await node.end()

    def _start(self, *arguments: Any) -> Any:
        core = fake_spawn(*arguments)
        self.cores.append(core)
        return core

    def end(self) -> None:
        with contextlib.suppress(CoreError):
            ask(self.run_dir, CoreClient.stop)
        for core in self.cores:
            core.wait(timeout=20)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.end()


def play(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


def test_arrival_is_answered_when_the_pod_is_captured_and_published(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, _source):
            assert await node.arrivals.arrive(place.arrival(), PATIENCE_S) is Answer.ENROLLED
            assert place.memory.publications["node1"].names == {NAME}
            assert "capture.enrol shipper" in place.capture.log
            assert node.mesh is not None
            assert node.mesh.workloads[NAME].phase in (Phase.JOINING, Phase.ENROLLED)

    play(story())


def test_a_pod_that_is_not_wanted_is_answered_at_once(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, _source):
            other = place.arrival(WorkloadName("kube-system", "coredns"))
            assert await node.arrivals.arrive(other, PATIENCE_S) is Answer.NOT_WANTED

    play(story())


def test_a_source_that_knows_no_pods_is_answered_for_by_its_mesh_state(place: Place) -> None:
    async def story() -> None:
        place.memory.put(mesh(workload("shipper", place.netns)))
        async with place.node(MemorySource) as (node, _source):
            await until(lambda: NAME in node.enrolments, "read")
            other = place.arrival(WorkloadName("default", "stranger"))
            assert await node.arrivals.arrive(other, PATIENCE_S) is Answer.NOT_WANTED
            assert await node.arrivals.arrive(place.arrival(), PATIENCE_S) is Answer.ENROLLED

    play(story())


def test_arrival_waits_for_a_mesh_state_that_comes_later(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, source):
            source.kept_back = True
            waiting = asyncio.create_task(node.arrivals.arrive(place.arrival(), PATIENCE_S))
            await until(lambda: node.enrolments._waiting, "somebody waits")
            assert not waiting.done()
            source.put(workload("shipper", place.netns))
            assert await waiting is Answer.ENROLLED
            assert not node.enrolments._waiting

    play(story())


def test_another_namespace_of_the_same_name_is_not_taken_for_it(place: Place, tmp_path: Path) -> None:
    """A sandbox that is made again under the same pod: the enrolment of the former one is no answer."""

    async def story() -> None:
        async with place.node() as (node, source):
            await node.arrivals.arrive(place.arrival(), PATIENCE_S)
            source.kept_back = True
            (tmp_path / "second").touch()
            again = place.arrival(netns=tmp_path / "second")
            waiting = asyncio.create_task(node.arrivals.arrive(again, PATIENCE_S))
            await until(lambda: node.enrolments._waiting, "somebody waits")
            assert not waiting.done()
            source.put(workload("shipper", tmp_path / "second"))
            assert await waiting is Answer.ENROLLED
            installed = node.enrolments[NAME].installed
            assert installed is not None
            assert installed.captured.target.netns == str(tmp_path / "second")

    play(story())


def refused(outcome: Outcome) -> str:
    assert isinstance(outcome, Refused)
    return outcome.why


def test_refusals_say_what_is_in_the_way(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, source):
            source.refusal = 'pods "shipper" is forbidden: get on pods'
            assert refused(await node.arrivals.arrive(place.arrival(), 0.3)) == source.refusal
            source.refusal = None
            source.kept_back = True
            why = refused(await node.arrivals.arrive(place.arrival(), 0.05))
            assert why == "in memory did not have the workload default/shipper"
            source.kept_back = False
            place.capture.failures["enrol"] = CaptureError("no room in the map")
            assert refused(await node.arrivals.arrive(place.arrival(), 0.3)) == "no room in the map"

    play(story())


def test_a_failed_enrolment_is_tried_again_while_the_pod_waits(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, _source):
            place.capture.failures["enrol"] = CaptureError("not yet")
            waiting = asyncio.create_task(node.arrivals.arrive(place.arrival(), PATIENCE_S))
            await until(lambda: NAME in node.enrolments and node.enrolments[NAME].failure is not None, "failed")
            place.capture.failures.clear()
            assert await waiting is Answer.ENROLLED

    play(story())


def test_a_pod_that_departs_is_neither_published_nor_captured(place: Place) -> None:
    """Also by a source that goes on to name the namespace, which is still there."""

    async def story() -> None:
        place.memory.put(mesh(workload("shipper", place.netns)))
        async with place.node(MemorySource) as (node, _source):
            await until(lambda: NAME in node.enrolments and node.enrolments[NAME].phase is Phase.ENROLLED, "enrolled")
            assert node.arrivals.is_enrolled(str(place.netns))
            await node.arrivals.depart(place.arrival())
            assert place.memory.publications["node1"].names == frozenset()
            assert not node.arrivals.is_enrolled(str(place.netns))
            assert place.capture.log[-1] == "capture.release default/shipper"
            node.enrolments.wake()
            assert await node.arrivals.arrive(place.arrival(), PATIENCE_S) is Answer.ENROLLED

    play(story())


def test_departure_without_a_namespace_or_of_a_stranger_is_passed_over(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, _source):
            await node.arrivals.arrive(place.arrival(), PATIENCE_S)
            await MemorySource.depart(node.source, place.arrival())  # type: ignore[arg-type]
            for netns in ("", "/run/netns/nobody"):
                await node.arrivals.depart(replace(place.arrival(WorkloadName("other", "one")), netns=netns))

    play(story())


def test_110_pods_arrive_at_once(place: Place, tmp_path: Path) -> None:
    async def story() -> None:
        async with place.node() as (node, source):
            source.kept_back = True
            names = [f"pod-{number}" for number in range(110)]
            for name in names:
                (tmp_path / name).touch()
            arrivals = [place.arrival(WorkloadName("default", name), tmp_path / name) for name in names]
            waiting = [asyncio.create_task(node.arrivals.arrive(one, PATIENCE_S)) for one in arrivals]
            source.put(*(workload(name, tmp_path / name) for name in names))
            assert set(await asyncio.gather(*waiting)) == {Answer.ENROLLED}
            assert len(place.memory.publications["node1"].names) == 110

    play(story())


def test_arrival_waits_for_a_source_that_cannot_say_yet(place: Place) -> None:
    async def story() -> None:
        async with place.node() as (node, source):
            source.refusal = "not yet"
            waiting = asyncio.create_task(node.arrivals.arrive(place.arrival(), PATIENCE_S))
            await asyncio.sleep(0)
            source.refusal = None
            assert await waiting is Answer.ENROLLED

    play(story())


def test_answer_comes_behind_the_publication(place: Place) -> None:
    """The source gives it back: other nodes can have it."""

    async def story() -> None:
        async with place.node() as (node, _source):
            assert await node.arrivals.arrive(place.arrival(), PATIENCE_S) is Answer.ENROLLED
            assert node.mesh_state.present is not None
            assert node.mesh_state.present.workloads[NAME].phase is Phase.ENROLLED

    play(story())


def test_answer_can_wait_until_the_other_nodes_have_had_their_time(place: Place) -> None:
    async def story() -> None:
        changes = {"settle": timedelta(milliseconds=300), "pod_start": PodStart(wait=Wait.SETTLED)}
        async with place.node(**changes) as (node, _source):
            waiting = asyncio.create_task(node.arrivals.arrive(place.arrival(), PATIENCE_S))
            await until(lambda: NAME in node.enrolments and node.enrolments[NAME].phase is Phase.JOINING, "joining")
            assert not waiting.done()
            assert await waiting is Answer.ENROLLED
            assert node.enrolments[NAME].phase is Phase.ENROLLED

    play(story())


def test_what_a_core_had_before_is_no_word_of_the_source(place: Place) -> None:
    """An agent that has taken over knows the mesh state of the one before: a pod may be newer."""

    async def story() -> None:
        place.memory.put(mesh(workload("other", place.netns)))
        async with place.node(MemorySource) as (node, _source):
            await until(lambda: node.epoch > 0 and not node.pusher.busy, "pushed")
        place.memory.put(mesh(workload("other", place.netns), workload("shipper", place.netns)))
        async with place.node(MemorySource) as (node, _source):
            assert await node.arrivals.arrive(place.arrival(), PATIENCE_S) is Answer.ENROLLED

    play(story())
