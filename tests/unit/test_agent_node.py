"""The node: from the mesh state to a real core process (with a stand-in for its compiled part), and across restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.api import connections_view, operations, status_view
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.workload import CaptureTarget
from nodeseal.contracts import core as contract
from nodeseal.contracts.connections import ConnectionFilter, Connections, Refused, RefusedFilter
from nodeseal.contracts.status import Decisions, ProblemRow, Status, WorkloadRow
from nodeseal.cores import distribution, link, supervisor
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.process import CoreOptions
from nodeseal.daemon import reporter as reporter_module
from nodeseal.daemon.reporter import Reporter, report_of
from nodeseal.enrolment.workload import Enrolment
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.trust import TrustBundle
from nodeseal.local import generations, run_directory
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.revocation import Revocation, revoked_identity, revoked_node, revoked_serials
from nodeseal.mesh.revoked import of_identity, of_serial, unpacked
from nodeseal.mesh.trust import Need, Trust
from nodeseal.mesh.trust_anchor import TrustAnchor
from nodeseal.node import lasting, revocations, start_steps, vigil
from nodeseal.node import node as node_module
from nodeseal.node.node import Node
from nodeseal.node.problems import row_of
from nodeseal.sources.source import Concern, MeshStateError, NodeReport, StateProblem
from support.agent_fakes import (
    TRUST,
    FakeCapture,
    FakeIssuer,
    ScriptedSource,
    agent_config,
    fake_spawn,
    mesh,
    until,
    workload,
)
from support.anchors import make_ca, root_of
from support.certificates import make_crl
from support.core_client import BlockingClient, ask
from support.memory_source import MemoryMesh, MemorySource
from support.mesh_places import KINDS, MemoryPlace, place_of

SHIPPER = WorkloadName("default", "shipper")
PIPELINE = WorkloadName("default", "pipeline")


class World:
    """A run directory, a place for the mesh state and one workload of this node; nodes come and go."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir(mode=0o700)
        self.place = place_of(kind, tmp_path)
        self.netns = tmp_path / "netns"
        self.netns.touch()
        self.config = agent_config(tmp_path / "mesh", ca=tmp_path / "ca", run_dir=self.run_dir)
        self.shipper = workload("shipper", self.netns)
        self.remote = workload("pipeline", None, node="node2", phase=Phase.ENROLLED)
        self.issuer = FakeIssuer()
        self.captures: list[FakeCapture] = []
        self.core: Any = None
        self.cores: list[Any] = []

    def state(self, *workloads: Workload) -> Mesh:
        return mesh(*(workloads or (self.shipper, self.remote)))

    def source(self, *items: Mesh | MeshStateError) -> ScriptedSource:
        """The node's, with these states first."""
        return ScriptedSource(self.place.source(self.config.node, self.run_dir), *items)

    @property
    def published(self) -> set[str] | None:
        """What this node says is enrolled."""
        return self.place.published(self.config.node)

    @contextlib.asynccontextmanager
    async def node(self, *items: Mesh | MeshStateError, capture: FakeCapture | None = None, **options: Any) -> Any:
        """A running node that follows these states first; its core stays when it goes. `options` as for Node."""
        source = self.source(*items)
        fake = capture if capture is not None else FakeCapture()
        self.captures.append(fake)
        node = Node(
            self.config,
            self.issuer,
            source,
            fake,  # type: ignore[arg-type]
            source_at=self.place.source_at,
            start_core=self.start_core,
            now=lambda: self.issuer.now,
            **options,
        )
        try:
            await node.begin()
        except BaseException:
            node.close()
            raise
        try:
            yield node, source
        finally:
            await node.end()

    def start_core(self, run_dir: Path, options: CoreOptions, generation: int) -> Any:
        self.core = fake_spawn(run_dir, options, generation)
        self.cores.append(self.core)
        return self.core

    def asks(self, method: Callable[[CoreClient], Coroutine[Any, Any, Any]]) -> Any:
        """One call on a control connection of the test's own."""
        return ask(self.run_dir, method)

    def end(self, patience: float = 20) -> None:
        """Ends the cores that were started here. Those before the last were retired; one that was not, as when its
        test failed, is ended and fails the test."""
        with contextlib.suppress(CoreError):
            self.asks(CoreClient.stop)
        deadline = time.monotonic() + patience
        left = []
        for core in self.cores:
            try:
                core.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                core.kill()
                core.wait()
                left.append(core.pid)
        self.cores.clear()
        assert not left, f"cores that nobody had ended: {left}"


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    made.end()


def play(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


async def enrolled(node: Node) -> Enrolment:
    await until(lambda: SHIPPER in node.enrolments and node.enrolments[SHIPPER].phase is Phase.ENROLLED, "enrolled")
    await until(lambda: node.mesh is not None and node.mesh.workloads[SHIPPER].phase is Phase.ENROLLED, "a new model")
    await until(lambda: not node.pusher.busy, "pushed")
    return node.enrolments[SHIPPER]


def problem(text: str) -> MeshStateError:
    where = "workloads.yaml:3: workloads[0].address: expected an IPv4 address"
    return MeshStateError([StateProblem(f"{where}, found {text}")])


def test_cores_of_a_test_that_failed_do_not_stay(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            node.core.retire_older = nothing
            await operations.upgrade_core(node)

    play(story())
    cores = list(world.cores)
    assert len(cores) == 2
    with pytest.raises(AssertionError, match=rf"nobody had ended: \[{cores[0].pid}\]"):
        world.end(patience=5)
    assert [core.poll() is not None for core in cores] == [True, True]


def test_wanted_workload_becomes_enrolled_published_and_known_to_the_core(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            hello = world.asks(CoreClient.hello)
            assert [(one.name, one.roles) for one in hello.workloads] == [(SHIPPER, (0, 1, 2))]
            assert hello.epoch == node.epoch
            model = world.asks(CoreClient.mesh_read)
            assert model.workloads[SHIPPER].phase is Phase.ENROLLED
            assert model.workloads[PIPELINE].phase is Phase.ENROLLED
            assert world.published == {"default/shipper"}

    play(story())


def test_workloads_of_other_nodes_are_not_touched(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state(world.remote)) as (node, _source):
            await until(lambda: node.mesh is not None)
            assert node.enrolments == {}

    play(story())


def test_own_publication_does_not_decide_the_phase(world: World) -> None:
    async def story() -> None:
        unwanted = replace(world.shipper, wanted=False, phase=Phase.ENROLLED)
        async with world.node(world.state(unwanted)) as (node, _source):
            await until(lambda: node.mesh is not None)
            assert node.mesh.workloads[SHIPPER].phase is Phase.ABSENT

    play(story())


def test_stale_publication_of_a_former_run_is_corrected_at_once(world: World) -> None:
    async def story() -> None:
        await world.place.publish("node1", world.shipper)
        async with world.node():
            assert world.published == set()

    play(story())


def test_bad_edit_leaves_the_last_good_state_and_is_shown_until_corrected(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            epoch = node.epoch
            source.put(problem("'10.0.0.999'"))
            await until(lambda: node.mesh_state.failure is not None)
            status = await status_view.status(node)
            assert "workloads.yaml:3" in status.mesh.error
            assert status.mesh.error_since
            assert status.workloads[0].enrolled
            assert node.epoch == epoch
            source.put(world.state())
            await until(lambda: node.mesh_state.failure is None)
            assert (await status_view.status(node)).mesh.error is None

    play(story())


def test_state_of_another_trust_domain_is_not_used(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            source.put(Mesh.build("other.org", [world.shipper]))
            await until(lambda: node.mesh_state.failure is not None)
            assert "expected example.org" in str(node.mesh_state.failure.error)
            assert node.mesh.trust_domain == "example.org"

    play(story())


def test_source_that_breaks_is_shown_and_followed_again(world: World) -> None:
    class Breaking(ScriptedSource):
        broken = False

        async def changes(self) -> Any:
            if not self.broken:
                self.broken = True
                raise OSError("no inotify instance left")
            async for item in super().changes():
                yield item

    async def story() -> None:
        async with world.node() as (node, _source):
            node.mesh_state.source = Breaking(world.source(), world.state())
            for task in node._tasks:
                if task.get_name() == "mesh":
                    task.cancel()
            node._tasks.append(asyncio.create_task(node.mesh_state.follow(node._take, node.publication.heal)))
            await until(lambda: node.mesh_state.failure is not None)
            assert "no inotify instance left" in str(node.mesh_state.failure.error)
            await enrolled(node)

    play(story())


async def problems_of(node: Node) -> list[tuple[str, str | None]]:
    """(word, what it is about) of what the status says is wrong; the stand-in of the core always has met a limit."""
    found = (await status_view.status(node)).problems
    return [(one.word, one.about) for one in found if one.word != "limit-reached"]


def test_first_state_that_is_bad_is_not_called_a_last_good_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with world.node(problem("'x'")) as (node, source):
            await until(lambda: node.mesh_state.failure is not None)
            assert (await status_view.status(node)).mesh.in_force == "none"
            assert await problems_of(node) == [("no-mesh-state", None)]
            assert "there never was a good one: nothing is enrolled: workloads.yaml:3" in caplog.text
            source.put(world.state())
            await enrolled(node)
            source.put(problem("'x'"))
            await until(lambda: node.mesh_state.failure is not None)
            assert (await status_view.status(node)).mesh.in_force == "former"
            assert await problems_of(node) == [("mesh-state", None)]

    play(story())


def test_bad_publication_does_not_pass_for_a_state_that_is_not_used(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    text = "enrolled/node2.yaml: enrolled: expected workloads of node2, found default/shipper"
    bad = MeshStateError([StateProblem(text, Concern.PUBLICATION)])

    async def story() -> None:
        async with world.node(world.state(), bad) as (node, _source):
            await until(lambda: node.mesh_state.failure is not None)
            assert (await status_view.status(node)).mesh.in_force == "present"
            await enrolled(node)
            assert await problems_of(node) == [("publication", None)]
        assert "is used, but something is wrong in it: enrolled/node2.yaml" in caplog.text
        assert "not used" not in caplog.text

    play(story())


def test_agent_that_starts_says_what_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start_steps, "_LONG_S", 0.0)
    caplog.set_level(logging.INFO)

    async def story() -> None:
        compiled = asyncio.Event()
        capture = FakeCapture()
        monkeypatch.setattr(capture, "prepare", compiled.wait)
        node = Node(
            world.config,
            world.issuer,
            world.source(world.state()),
            capture,  # type: ignore[arg-type]
            source_at=world.place.source_at,
            start_core=world.start_core,
        )
        beginning = asyncio.create_task(node.begin())
        await until(lambda: (node.starting.doing or "").startswith("preparing capture"))
        status = await status_view.status(node)
        assert status.agent.starting.doing.startswith("preparing capture")
        assert status.agent.starting.seconds >= 0
        (wrong,) = status.problems
        assert (wrong.word, wrong.level) == ("agent-starting", "warning")
        assert wrong.text.startswith("the agent is starting: preparing capture")
        with pytest.raises(start_steps.StartingError, match="the agent is starting: preparing capture"):
            node.starting.check()
        await until(lambda: "still starting: preparing capture" in caplog.text)
        compiled.set()
        await beginning
        node.starting.check()
        await enrolled(node)
        ready = await status_view.status(node)
        assert ready.agent.starting is None
        assert "compiled if they were not before) took " in caplog.text
        await node.end()

    play(story())


def test_renamed_node_withdraws_what_it_published_before(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_module, "_PUBLICATION_CHECK_S", 0.01)

    async def story() -> None:
        await enrol_and_go(world)
        world.config = replace(world.config, node="renamed")
        capture = left_behind(world)
        moved = replace(world.shipper, node="renamed")
        async with world.node(world.state(moved, world.remote), capture=capture) as (node, _source):
            await enrolled(node)
            await until(lambda: world.place.published("node1") is None, "the former publication is gone")
            await until(lambda: len(run_directory.remembered_publications(world.run_dir)) == 1)
            assert await problems_of(node) == []
            await until(lambda: world.published == {"default/shipper"})
        assert "withdrew the publication of node1" in caplog.text

    play(story())


def test_workload_whose_node_is_misspelt_is_named_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vigil, "LOOK_S", 0.01)
    monkeypatch.setattr(vigil, "PATIENCE_S", 0.0)

    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            source.publishers = {"node1": None, "node2": None}
            assert await problems_of(node) == []
            source.put(world.state(replace(world.shipper, node="nod1"), world.remote))
            await until(lambda: SHIPPER not in node.enrolments, "it has left")
            expected = [("node-unknown", "nod1"), ("was-enrolled", "default/shipper")]
            assert await problems_of(node) == expected
            await until(lambda: "was-enrolled: default/shipper was enrolled on this node (node1)" in caplog.text)
            source.put(world.state())
            await enrolled(node)
            assert await problems_of(node) == []

    play(story())


def test_enrolment_that_does_not_come_to_its_end_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "PATIENCE_S", 0.0)

    async def story() -> None:
        capture, goes_on = FakeCapture(), asyncio.Event()
        enrol = capture.enrol

        async def hangs(what: Workload) -> Any:
            await goes_on.wait()
            return await enrol(what)

        monkeypatch.setattr(capture, "enrol", hangs)
        async with world.node(world.state(), capture=capture) as (node, source):
            source.publishers = {"node2": None}
            await until(lambda: SHIPPER in node.enrolments)
            assert await problems_of(node) == [("not-enrolled", "default/shipper")]
            goes_on.set()
            await enrolled(node)
            assert await problems_of(node) == []

    play(story())


def test_node_with_another_ca_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "PATIENCE_S", 0.0)

    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            assert world.place.trust("node1") == TRUST
            source.publishers = {"node2": Trust(frozenset({"2" * 32}), "2" * 32)}
            assert await problems_of(node) == [("other-ca", "node2")]

    play(story())


def test_former_publication_that_stays_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_PUBLICATION_CHECK_S", 0.01)

    async def story() -> None:
        await enrol_and_go(world)
        world.config = replace(world.config, node="renamed")
        async with world.node(world.state(world.remote)) as (node, _source):
            with world.place.failing("read-only"):
                await until(lambda: list(node.former.problems()))
                assert ("former-publication", None) in await problems_of(node)
            await until(lambda: world.place.published("node1") is None)
            await until(lambda: not list(node.former.problems()))

    play(story())


def test_publication_that_cannot_be_written_is_told_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_PUBLICATION_CHECK_S", 0.01)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            with world.place.failing("full"):
                await until(
                    lambda: ("not-published", None) in [(one.word, one.about) for one in node.publication.problems()]
                )
                world.place.empty("node1")
            await until(lambda: world.published == {"default/shipper"}, "written again")
            await until(lambda: not list(node.publication.problems()))

    play(story())


def test_agent_starts_while_its_source_is_away_and_publishes_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_PUBLICATION_CHECK_S", 0.01)
    world = World(tmp_path, MemoryPlace.kind)
    assert isinstance(world.place, MemoryPlace)
    memory = world.place.memory

    async def story() -> None:
        memory.away = True
        async with world.node(world.state()) as (node, _source):
            assert ("not-published", None) in [(one.word, one.about) for one in node.publication.problems()]
            memory.away = False
            await until(lambda: world.published is not None, "published")
            await until(lambda: not list(node.publication.problems()))

    try:
        play(story())
    finally:
        world.end()


class Told(MemorySource):
    """One that has a place for reports."""

    takes_reports = True

    def __init__(self, run_dir: Path) -> None:
        super().__init__(MemoryMesh(), "node1", run_dir)
        self.reports: list[NodeReport] = []

    def report(self, report: NodeReport) -> None:
        self.reports.append(report)


def test_source_that_takes_reports_is_told_how_the_node_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(reporter_module, "_PROBLEMS_S", 0.05)
    told = Told(world.run_dir)

    async def story() -> None:
        lacking = workload("lacking", world.run_dir / "no-such-namespace")
        unwanted = workload("unwanted", None, wanted=False)
        async with world.node(world.state(world.shipper, lacking, unwanted)) as (node, _source):
            reporter = Reporter(node, told)
            reporter.start()
            await until(lambda: any(one.enrolled == 1 for one in told.reports), "what is enrolled is told")
            assert (told.reports[-1].enrolled, told.reports[-1].wanted) == (1, 2)
            assert ("not-enrolled", "default/lacking") in [(one.word, one.about) for one in told.reports[-1].problems]
            await reporter.stop()
            count = len(told.reports)
            await asyncio.sleep(0.05)
            assert len(told.reports) == count

    play(story())


def test_number_of_enrolled_workloads_is_reported_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(reporter_module, "_PROBLEMS_S", 1000.0)
    told = Told(world.run_dir)

    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            reporter = Reporter(node, told)
            reporter.start()
            await until(lambda: [(one.enrolled, one.wanted) for one in told.reports] == [(1, 1)], "it is told")
            source.put(world.state(replace(world.shipper, wanted=False)))
            await until(lambda: [(one.enrolled, one.wanted) for one in told.reports][1:] == [(0, 0)], "and so is this")
            await reporter.stop()

    play(story())


def test_what_concerns_other_nodes_is_not_reported() -> None:
    def row(word: ProblemWord, about: str | None = None) -> ProblemRow:
        return row_of(Problem(word, "text", "remedy", about))

    own = WorkloadRow(workload="default/a", address="10.0.0.1", addresses=["10.0.0.1", "10.0.0.2"], wanted=True)
    rows = [
        row(ProblemWord.CORE_DOWN),
        row(ProblemWord.PEER_NOT_ENROLLED, "node2"),
        row(ProblemWord.ADDRESS_CLAIMED_TWICE, "10.0.0.9"),
        row(ProblemWord.ADDRESS_CLAIMED_TWICE, "10.0.0.2"),
    ]
    report = report_of(Status("node1", workloads=[own], problems=rows))
    assert (report.enrolled, report.wanted) == (0, 1)
    assert [(one.word, one.about) for one in report.problems] == [
        (ProblemWord.CORE_DOWN, None),
        (ProblemWord.ADDRESS_CLAIMED_TWICE, "10.0.0.2"),
    ]


def test_source_that_has_no_place_for_reports_costs_nothing(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            before = asyncio.all_tasks()
            reporter = Reporter(node, source)
            reporter.start()
            assert asyncio.all_tasks() == before
            await reporter.stop()

    play(story())


def test_workload_that_is_not_enrolled_is_a_problem_with_its_name(world: World) -> None:
    async def story() -> None:
        gone = workload("gone", world.run_dir / "no-such-namespace")
        nowhere = workload("nowhere", None)
        unwanted = workload("unwanted", None, wanted=False)
        async with world.node(world.state(world.shipper, gone, nowhere, unwanted)) as (node, _source):
            await enrolled(node)
            await until(lambda: node.enrolments[gone.key].failure is not None)
            assert await problems_of(node) == [("not-enrolled", "default/gone"), ("not-enrolled", "default/nowhere")]

    play(story())


def test_workload_taken_out_of_the_state_stays_in_the_model_until_it_has_left(world: World) -> None:
    async def story() -> None:
        capture = FakeCapture()
        async with world.node(world.state(), capture=capture) as (node, source):
            await enrolled(node)
            capture.failures["stop_new"] = CaptureError("not yet")
            source.put(world.state(world.remote))
            await until(lambda: node.mesh.workloads[SHIPPER].phase is Phase.LEAVING)
            assert not node.mesh.workloads[SHIPPER].wanted
            capture.failures.clear()
            node.enrolments[SHIPPER].wake()
            await until(lambda: SHIPPER not in node.enrolments)
            assert SHIPPER not in node.mesh.workloads

    play(story())


def test_model_keeps_the_address_that_was_captured_until_the_workload_has_moved(world: World) -> None:
    async def story() -> None:
        capture = FakeCapture()
        async with world.node(world.state(), capture=capture) as (node, source):
            await enrolled(node)
            capture.failures["stop_new"] = CaptureError("not yet")
            source.put(world.state(replace(world.shipper, addresses=(IPv4Address("10.7.7.7"),)), world.remote))
            await until(lambda: node.enrolments[SHIPPER].phase is Phase.LEAVING)
            assert node.mesh.workloads[SHIPPER].address == world.shipper.address
            capture.failures.clear()
            node.enrolments[SHIPPER].wake()
            await until(lambda: node.mesh.workloads[SHIPPER].address == IPv4Address("10.7.7.7"))
            await enrolled(node)

    play(story())


def test_changed_mode_takes_effect_in_the_model_at_once(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            source.put(world.state(replace(world.shipper, mode=Mode.STRICT), world.remote))
            await until(lambda: node.mesh.workloads[SHIPPER].mode is Mode.STRICT)
            assert node.mesh.workloads[SHIPPER].phase is Phase.ENROLLED

    play(story())


def test_status_names_all_addresses(world: World) -> None:
    async def story() -> None:
        dual = replace(world.shipper, addresses=(IPv6Address("fd00::1"), IPv4Address("10.0.0.1")))
        async with world.node(world.state(dual)) as (node, _source):
            await until(lambda: node.enrolments)
            (row,) = (await status_view.status(node)).workloads
            assert (row.address, row.addresses) == ("fd00::1", ["fd00::1", "10.0.0.1"])

    play(story())


def test_one_workloads_failure_does_not_disturb_another(world: World) -> None:
    async def story() -> None:
        gone = workload("gone", world.run_dir / "no-such-namespace")
        async with world.node(world.state(world.shipper, gone)) as (node, _source):
            await enrolled(node)
            await until(lambda: node.enrolments[gone.key].failure is not None)
            rows = {row.workload: row for row in (await status_view.status(node)).workloads}
            assert rows["default/gone"].reason == "namespace-gone"
            assert rows["default/gone"].retry_seconds is not None
            assert rows["default/shipper"].enrolled

    play(story())


def test_agent_that_goes_leaves_core_and_publication(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)

    play(story())
    assert [one.roles for one in world.asks(CoreClient.hello).workloads] == [(0, 1, 2)]
    assert world.published == {"default/shipper"}


def left_behind(world: World, phase: str = "capturing") -> FakeCapture:
    """What capture finds after an agent that enrolled the shipper has gone."""
    capture = FakeCapture()
    target = CaptureTarget(str(SHIPPER), str(world.netns), world.shipper.addresses)
    capture.left_behind = [capture.make(target, phase)]
    return capture


async def enrol_and_go(world: World) -> int:
    async with world.node(world.state()) as (node, _source):
        await enrolled(node)
    return int(node.epoch)


def test_next_agent_adopts_without_touching_the_enrolment(world: World) -> None:
    async def story() -> None:
        epoch = await enrol_and_go(world)
        capture = left_behind(world)
        async with world.node(world.state(), capture=capture) as (node, _source):
            assert node.enrolments[SHIPPER].phase is Phase.ENROLLED
            # The same sockets that the core listens on.
            roles = capture.left_behind[0].listeners
            inodes = [os.fstat(fd).st_ino for _role, fd in sorted(roles.items())]
            theirs = world.asks(lambda client: client.listeners(1))
            assert [os.fstat(fd).st_ino for _role, fd in sorted(theirs.items())] == inodes
            for fd in theirs.values():
                os.close(fd)
            await until(lambda: node.enrolments[SHIPPER].installed.credential is not None, "a certificate to renew")
            assert node.epoch >= epoch
            hello = world.asks(CoreClient.hello)
            assert [one.key for one in hello.workloads] == [1]
        assert not [line for line in capture.log if "stop_new" in line or "enrol" in line or "release" in line]

    play(story())


def test_changed_trust_anchors_reach_the_core_at_once(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            one = await enrolled(node)
            world.issuer.trust("bundle and another root")
            await until(lambda: node.context.trust.given.pem == "bundle and another root")
            assert world.issuer.issued == [one.installed.identity]

    play(story())


def test_trust_anchors_of_the_mesh_state_reach_the_core_and_are_told(world: World, tmp_path: Path) -> None:
    own, new = root_of(make_ca(tmp_path / "own")), root_of(make_ca(tmp_path / "new"))
    world.issuer.anchor = own.key
    world.issuer.bundle = TrustBundle.read("example.org", own.pem)

    def state(*anchors: TrustAnchor) -> Mesh:
        return Mesh.build("example.org", [world.shipper], trust_anchors=anchors)

    async def story() -> None:
        async with world.node(state()) as (node, source):
            one = await enrolled(node)
            assert world.place.trust("node1") == Trust.of([own.key], own.key, ())
            source.put(state(own, new))
            both = Trust.of([own.key, new.key], own.key, ())
            await until(lambda: world.place.trust("node1") == both, "the node tells of both")
            assert node.context.trust.given.fingerprints == {own.key, new.key}
            assert world.issuer.issued == [one.installed.identity]

    play(story())


def test_certificate_of_an_anchor_that_is_gone_is_replaced_at_once(world: World, tmp_path: Path) -> None:
    own, new = root_of(make_ca(tmp_path / "own")), root_of(make_ca(tmp_path / "new"))
    world.issuer.anchor = own.key
    world.issuer.bundle = TrustBundle.read("example.org", own.pem)

    def state(*anchors: TrustAnchor) -> Mesh:
        return Mesh.build("example.org", [world.shipper], trust_anchors=anchors)

    async def story() -> None:
        async with world.node(state(own, new)) as (node, source):
            one = await enrolled(node)
            world.issuer.anchor = new.key
            world.issuer.bundle = TrustBundle.read("example.org", new.pem)
            world.issuer.trust(new.pem)
            until_then = int(one.installed.credential.svid.not_after.timestamp()) + 1
            needed = Trust.of([own.key, new.key], new.key, [Need(own.key[:32], until_then)])
            await until(lambda: world.place.trust("node1") == needed, "the node tells what it needs")
            assert len(world.issuer.issued) == 1
            source.put(state(new))
            await until(lambda: len(world.issuer.issued) == 2, "a certificate of the new anchor")
            alone = Trust.of([new.key], new.key, ())
            await until(lambda: world.place.trust("node1") == alone, "the node needs the new one only")

    play(story())


def test_anchor_that_verifies_nobody_is_a_problem(world: World, tmp_path: Path) -> None:
    own = root_of(make_ca(tmp_path / "own"))
    world.issuer.anchor = own.key
    world.issuer.bundle = TrustBundle.read("example.org", own.pem)
    nothing = TrustAnchor.read("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")

    async def story() -> None:
        async with world.node(Mesh.build("example.org", [world.shipper], trust_anchors=[own, nothing])) as (node, _):
            await enrolled(node)
            assert [word for word, _about in await problems_of(node)] == ["trust-anchor-unusable"]
            assert node.context.trust.given.fingerprints == {own.key}

    play(story())


def revoking(world: World, *revocations: Revocation) -> Mesh:
    return Mesh.build("example.org", [world.shipper, world.remote], revocations=revocations)


def test_what_the_mesh_state_revokes_reaches_the_core(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            one = await enrolled(node)
            assert node.core.current is not None
            given = node._revoker._given
            await until(lambda: given_digests(node) == set(), "the core is told that nothing is revoked")
            source.put(revoking(world, revoked_identity(one.installed.identity, "leaked"), revoked_serials([5])))
            both = {of_identity(one.installed.identity), of_serial("example.org", 5)}
            await until(lambda: given_digests(node) == both, "the core knows both")
            assert await problems_of(node) == [("identity-revoked", "default/shipper")]
            source.put(revoking(world, revoked_serials([5])))
            await until(lambda: given_digests(node) == {of_serial("example.org", 5)}, "one is taken back")
            assert await problems_of(node) == []
            assert given is not None

    def given_digests(node: Node) -> set[str] | None:
        given = node._revoker._given.get(node.core.incarnation)
        return None if given is None else unpacked(given)

    play(story())


def test_nothing_is_issued_for_a_revoked_identity_or_on_a_revoked_node(world: World) -> None:
    late = workload("late", world.netns, addresses=(IPv4Address("10.77.1.99"),))
    identity = late.identity("example.org")

    async def story() -> None:
        state = Mesh.build("example.org", [world.shipper], revocations=[revoked_identity(identity, "leaked")])
        async with world.node(state) as (node, source):
            await enrolled(node)
            for one, why in (
                (revoked_identity(identity, "leaked"), f"{identity} is revoked (leaked)"),
                (revoked_node("node1", ()), "the node node1 is revoked"),
            ):
                source.put(Mesh.build("example.org", [world.shipper, late], revocations=[one]))
                await until(lambda why=why: why in (node.revocations.why_not_issued(identity) or ""), why)
                with pytest.raises(IssuerError, match=re.escape(why)):
                    await node.context.credentials.issue(identity)
            source.put(Mesh.build("example.org", [world.shipper]))
            await until(lambda: node.revocations.why_not_issued(identity) is None, "it is taken back")
            assert (await node.context.credentials.issue(identity)).svid.identity == identity

    play(story())


def test_revocation_lists_are_followed_and_what_they_said_stays(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "LOOK_S", 0.01)
    path = tmp_path / "partner.crl"
    path.write_bytes(make_crl(5))
    world.config = replace(world.config, crls=(path,))

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)

            def count() -> int:
                return len(node._revoker._given.get(node.core.incarnation, b"")) // 16

            await until(lambda: count() == 1, "the core knows of the certificate")
            draft = tmp_path / "draft"
            draft.write_bytes(make_crl(5, 6))
            draft.replace(path)
            await until(lambda: count() == 2, "the list is read anew")
            path.write_text("nonsense")
            word = "revocation-list-unread"
            await until(lambda: [one.word.value for one in node.revocations.problems()] == [word])
            assert count() == 2
            path.unlink()
            await asyncio.sleep(0.05)
            assert count() == 2

    play(story())


def test_slow_issuer_delays_neither_a_core_nor_workloads_that_have_certificates(world: World) -> None:
    """Not even when all certificates are due, and a new workload waits for its first."""
    late = workload("late", world.netns, addresses=(IPv4Address("10.77.1.99"),))

    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            world.issuer.answers.clear()
            world.issuer.now += timedelta(hours=1, minutes=30)
            node.enrolments[SHIPPER].wake()
            await until(lambda: world.issuer.asked == 2, "a renewal is under way")
            source.put(world.state(world.shipper, world.remote, late))
            await until(lambda: world.issuer.asked == 3, "a first certificate is asked for")
            first = node.core.pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: node.core.pid not in (first, None) and node.core.ready, "another core")
            await until(lambda: world.asks(CoreClient.hello).workloads, "it has a workload")
            await until(lambda: world.asks(CoreClient.hello).workloads[0].roles == (0, 1, 2), "with its listeners")
            status = await status_view.status(node)
            assert {row.workload: row.enrolled for row in status.workloads} == {
                "default/late": False,
                "default/shipper": True,
            }
            world.issuer.answers.set()
            await until(lambda: node.enrolments[late.key].phase is Phase.ENROLLED, "the late one as well")
            await until(lambda: node.enrolments[SHIPPER].installed.credential.svid.serial != "1", "renewed")

    play(story())


def test_epoch_grows_across_restarts_of_the_agent(world: World) -> None:
    async def story() -> None:
        epoch = await enrol_and_go(world)
        strict = replace(world.shipper, mode=Mode.STRICT)
        async with world.node(world.state(strict, world.remote), capture=left_behind(world)) as (node, _source):
            await until(lambda: node.epoch > epoch)
            assert world.asks(CoreClient.hello).epoch == node.epoch

    play(story())


def test_next_agent_with_a_bad_state_keeps_what_the_core_had(world: World) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        async with world.node(problem("'x'"), capture=left_behind(world)) as (node, _source):
            await until(lambda: node.mesh_state.failure is not None)
            assert node.enrolments[SHIPPER].phase is Phase.ENROLLED
            assert world.asks(CoreClient.mesh_read).workloads[PIPELINE] == world.remote

    play(story())


def test_next_agent_lets_a_workload_leave_that_is_no_longer_wanted(world: World) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        capture = left_behind(world)
        state = world.state(replace(world.shipper, wanted=False), world.remote)
        async with world.node(state, capture=capture) as (node, _source):
            await until(lambda: node.enrolments[SHIPPER].installed is None)
        assert capture.log[-2:] == ["capture.stop_new default/shipper", "capture.release default/shipper"]

    play(story())


def test_next_agent_goes_on_draining(world: World) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        capture = left_behind(world, "leaving")
        state = world.state(replace(world.shipper, wanted=False), world.remote)
        async with world.node(state, capture=capture) as (node, _source):
            await until(lambda: node.enrolments[SHIPPER].installed is None)
        assert "capture.release default/shipper" in capture.log

    play(story())


def test_workload_that_only_the_core_has_is_removed_from_it(world: World) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        async with world.node(problem("'x'")):
            assert world.asks(CoreClient.hello).workloads == ()

    play(story())


def test_after_the_loss_of_agent_and_core_enrolled_workloads_are_enrolled_from_the_start(world: World) -> None:
    """From the publication: no moment in which plaintext of an enrolled peer would be accepted."""

    async def story() -> None:
        world.place.put(world.shipper)
        await world.place.publish("node1", world.shipper)
        async with world.node(capture=left_behind(world)) as (node, source):
            assert node.enrolments[SHIPPER].phase is Phase.ENROLLED
            await until(lambda: len(world.asks(CoreClient.hello).workloads) == 1)
            (held,) = world.asks(CoreClient.hello).workloads
            assert str(held.identity) == "spiffe://example.org/ns/default/sa/shipper"
            assert (await source.load()).workloads[SHIPPER].phase is Phase.ENROLLED

    play(story())


def test_core_that_dies_is_replaced_and_gets_everything_back(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            first, epoch = node.core.pid, node.epoch
            os.kill(first, signal.SIGKILL)
            await until(lambda: node.core.pid not in (first, None) and node.core.ready, "another core")
            await until(lambda: [one.roles for one in world.asks(CoreClient.hello).workloads] == [(0, 1, 2)])
            model = world.asks(CoreClient.mesh_read)
            assert model.workloads[SHIPPER].phase is Phase.ENROLLED
            assert world.asks(CoreClient.hello).epoch > epoch
            assert node.enrolments[SHIPPER].phase is Phase.ENROLLED

    play(story())


def test_files_of_a_core_that_was_killed_with_its_agent_are_removed(world: World) -> None:
    async def story() -> None:
        world.run_dir.mkdir(exist_ok=True)
        for path in (generations.lock_path(world.run_dir, 1), generations.socket_path(world.run_dir, 1)):
            path.touch()
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            assert generations.known(world.run_dir) == [2]

    play(story())


def test_files_of_a_core_that_died_as_it_started_are_removed(world: World) -> None:
    start = world.start_core

    def fail_once(run_dir: Path, options: CoreOptions, generation: int) -> Any:
        if generation == 2:
            generations.lock_path(run_dir, generation).touch()
            raise CoreError("the core did not start: it said nothing")
        return start(run_dir, options, generation)

    world.start_core = fail_once  # type: ignore[method-assign]

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            first = node.core.pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: node.core.pid not in (first, None) and node.core.ready, "another core")
            assert generations.known(world.run_dir) == [3]

    play(story())


def test_failed_start_leaves_no_core(world: World) -> None:
    async def story() -> None:
        capture = FakeCapture()
        capture.failures["prepare"] = CaptureError("bcc is missing")
        with pytest.raises(CaptureError, match="bcc is missing"):
            async with world.node(capture=capture):
                pass
        assert capture.log == ["capture.forget"]

    play(story())
    with pytest.raises(CoreGone):
        CoreClient.newest(world.run_dir)
    assert run_directory.remembered_publications(world.run_dir) == []


def test_failed_start_leaves_an_adopted_core_alone(world: World) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        capture = left_behind(world)
        capture.failures["prepare"] = CaptureError("bcc is missing")
        with pytest.raises(CaptureError):
            async with world.node(capture=capture):
                pass

    play(story())
    assert len(world.asks(CoreClient.hello).workloads) == 1


def test_core_of_another_trust_domain_is_not_adopted(world: World) -> None:
    world.start_core(world.run_dir, CoreOptions(1, "other.org"), 1)

    async def story() -> None:
        with pytest.raises(CoreError, match=r"trust domain other\.org"):
            async with world.node():
                pass

    play(story())


def test_connections_carry_the_names_of_both_ends(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            answer = await connections_view.page(node, ConnectionFilter(), None)
            assert answer == Connections(node="node1", trust_domain="example.org")
            refused = await connections_view.refused(node, RefusedFilter())
            assert refused == Refused(node="node1", trust_domain="example.org")
            row = {"id": 1, "workload": "default/shipper", "direction": "outbound", "state": "closed", "mtls": True}
            row |= {"source": f"{world.shipper.address}:4000", "destination": f"{world.remote.address}:80"}
            row |= {"endpoint": f"{world.remote.address}:80", "bytes_sent": 1, "bytes_received": 2, "age_ms": 2500}
            row |= {"closed_ms": 500, "peer": "spiffe://x", "tls": "TLSv1.3", "reason": ""}
            seen = connections_view.through_core(node.mesh, contract.Connection(**row), 1)
            assert (seen.source_workload, seen.destination_workload) == ("default/shipper", "default/pipeline")
            assert (seen.age_seconds, seen.closed_seconds, seen.reason) == (2.5, 0.5, None)

    play(story())


def test_status_says_what_decisions_take(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            core = (await status_view.status(node)).core
            assert core.decisions == Decisions(asked=7, cached=30, p50_us=40.96, p99_us=98.304)

    play(story())


def test_status_says_when_the_core_does_not_run(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            node.core._spawn = lambda *_arguments: (_ for _ in ()).throw(CoreError("no memory"))
            os.kill(node.core.pid, signal.SIGKILL)
            await until(lambda: node.core.error == "no memory")
            core = (await status_view.status(node)).core
            assert (core.pid, core.state, core.error, core.crashes) == (None, "not-running", "no memory", 1)
            with pytest.raises(CoreGone):
                await connections_view.page(node, ConnectionFilter(), None)

    play(story())


def test_control_connection_that_was_lost_is_made_again(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            node.core.current._client._ordinary.channel._connection.shutdown(socket.SHUT_RDWR)
            with pytest.raises(CoreGone):
                await node.core.call(CoreClient.stats)
            await node.core.call(CoreClient.stats)

    play(story())


def test_publication_that_somebody_emptied_is_written_again(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            world.place.empty("node1")
            # What the source then sees: this node's workload is not published.
            source.put(world.state())
            await until(lambda: world.published == {"default/shipper"}, "the publication is written again")

    play(story())


@pytest.mark.parametrize("was_wanted", [False, True])
def test_workload_that_moved_to_another_node_is_what_that_node_publishes(world: World, was_wanted: bool) -> None:
    """Taken for absent, it would be sent plaintext although it is enrolled over there."""
    here = replace(world.shipper, wanted=was_wanted)
    there = replace(world.shipper, node="node2", addresses=(IPv4Address("10.77.2.99"),), phase=Phase.ENROLLED)

    async def story() -> None:
        async with world.node(world.state(here, world.remote)) as (node, source):
            await until(lambda: node.mesh is not None, "a first model")
            if was_wanted:
                await enrolled(node)
            source.put(world.state(there, world.remote))
            await until(lambda: node.mesh.workloads[SHIPPER] == there, "the other node's word counts")

    play(story())


# ---- many at once


def test_pushes_that_wait_are_covered_by_one(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            enrolment = await enrolled(node)
            began: list[int] = []
            effective = node.pusher._effective

            def noting() -> Mesh | None:
                began.append(node.pusher._asked)
                return effective()

            node.pusher._effective = noting
            enrolment.phase = Phase.LEAVING
            await asyncio.gather(*(node.push() for _ in range(50)))
            # The first went its way at once; the second took the other forty-nine along.
            assert len(began) == 2

    play(story())


def test_push_takes_along_what_changed_before_it_was_asked_for(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            enrolment = await enrolled(node)
            first = asyncio.create_task(node.push())
            await asyncio.sleep(0)
            enrolment.phase = Phase.LEAVING
            await node.push()
            await first
            known = world.asks(CoreClient.mesh_read)
            assert known is not None
            assert known.workloads[SHIPPER].phase is Phase.LEAVING

    play(story())


def test_namespace_that_goes_is_noticed_although_the_enrolment_sleeps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_NAMESPACE_CHECK_S", 0.05)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            world.netns.unlink()
            await until(lambda: "capture.release default/shipper" in world.captures[-1].log, "released")

    play(story())


def test_enrolled_workload_is_not_woken_for_its_namespace(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            enrolment = await enrolled(node)
            await until(lambda: not enrolment._changed.is_set(), "asleep")
            enrolment.wake_if_gone()
            assert not enrolment._changed.is_set()
            world.netns.unlink()
            enrolment.wake_if_gone()
            assert enrolment._changed.is_set()

    play(story())


def test_upgraded_core_has_everything_and_the_one_before_ends_when_it_is_done(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            before = world.core
            done = await operations.upgrade_core(node)
            assert (done.before.pid, done.pid, done.workloads) == (before.pid, node.core.pid, 1)
            assert done.generation == done.before.generation + 1
            hello = world.asks(CoreClient.hello)
            assert [(one.name, one.roles) for one in hello.workloads] == [(SHIPPER, (0, 1, 2))]
            assert world.asks(CoreClient.mesh_read).workloads[SHIPPER].phase is Phase.ENROLLED
            await until(lambda: before.poll() is not None, "the core before has ended")
            await until(lambda: not node.core.older, "its end was noticed")
            assert generations.known(world.run_dir) == [done.generation]
            assert (await status_view.status(node)).core.crashes == 0

    play(story())


def test_failed_upgrade_leaves_the_core_that_runs(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            spawn, node.core._spawn = (
                node.core._spawn,
                lambda *_arguments: (_ for _ in ()).throw(CoreError("no memory")),
            )
            pid = node.core.pid
            with pytest.raises(CoreError, match="no memory"):
                await operations.upgrade_core(node)
            assert (node.core.pid, node.core.ready, node.core.error) == (pid, True, None)
            node.core._spawn = spawn
            assert (await operations.upgrade_core(node)).before.pid == pid

    play(story())


def test_older_core_gets_the_mesh_state_until_it_ends(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, source):
            await enrolled(node)
            older = node.core.current
            node.core.retire_older = nothing  # it stays
            await operations.upgrade_core(node)
            source.put(world.state(world.shipper))
            await until(lambda: PIPELINE not in node.mesh.workloads)
            generation = older.generation

            def workloads() -> set[WorkloadName]:
                with BlockingClient.of(world.run_dir, generation) as client:
                    return set(client.mesh_read().workloads)

            await until(lambda: workloads() == {SHIPPER}, "the older core knows as well")
            await older.call(CoreClient.stop)

    play(story())


def test_agents_that_start_beside_a_core_that_drains_tell_both_what_they_know(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor.CoreSupervisor, "retire_older", lambda _self: nothing())  # it stays
    monkeypatch.setattr(distribution, "_RESEND_S", 0.01)

    def asks(generation: int, method: Callable[[CoreClient], Coroutine[Any, Any, Any]]) -> Any:
        with BlockingClient.of(world.run_dir, generation) as client:
            return client.ask(method)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            await operations.upgrade_core(node)
            await until(lambda: not node.pusher.busy)
            older = node.core.older[0].generation
        # What both cores have is what the state says: nothing is new to the current one.
        for _restart in range(2):
            epoch = asks(older, CoreClient.hello).epoch
            async with world.node(world.state(), capture=left_behind(world)) as (node, source):
                await until(lambda: node.pusher._knows(node.core.older[0]), "the older core was told")
                assert asks(older, CoreClient.hello).epoch == epoch + 1
        async with world.node(world.state(), capture=left_behind(world)) as (node, source):
            source.put(world.state(world.shipper))
            await until(lambda: PIPELINE not in node.mesh.workloads)
            generations = (older, node.core.current.generation)
            for generation in generations:
                await until(lambda one=generation: PIPELINE not in asks(one, CoreClient.mesh_read).workloads)
            await until(lambda: not node.pusher.busy)
            assert asks(node.core.current.generation, CoreClient.hello).epoch == node.epoch
            await node.core.older[0].call(CoreClient.stop)
        assert "did not take the mesh state" not in caplog.text

    play(story())


def test_agent_that_comes_in_the_middle_of_an_upgrade_finishes_it(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            node.core.retire_older = nothing
            older = world.core
            await operations.upgrade_core(node)
        async with world.node(world.state(), capture=left_behind(world)) as (node, _source):
            await until(lambda: older.poll() is not None, "the older core has been retired and has ended")
            await enrolled(node)
            assert [one.roles for one in world.asks(CoreClient.hello).workloads] == [(0, 1, 2)]

    play(story())


def test_core_of_another_build_is_replaced_by_the_next_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        older = world.core
        monkeypatch.setattr(generations, "build", lambda: "0.2.0+abc")
        async with world.node(world.state(), capture=left_behind(world)) as (node, _source):
            await until(lambda: older.poll() is not None, "the core before has ended")
            assert node.core.current.build == "0.2.0+abc"
            assert not (await status_view.status(node)).core.outdated
            await until(lambda: [one.roles for one in world.asks(CoreClient.hello).workloads] == [(0, 1, 2)])

    play(story())


def test_agent_whose_own_core_does_not_start_is_not_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        older = world.core
        monkeypatch.setattr(generations, "build", lambda: "0.2.0+abc")
        start, failing = world.start_core, [True]

        def start_core(run_dir: Path, options: CoreOptions, generation: int) -> Any:
            if failing:
                raise CoreError("the core did not start: no library")
            return start(run_dir, options, generation)

        world.start_core = start_core  # type: ignore[method-assign]
        async with world.node(world.state(), capture=left_behind(world)) as (node, _source):
            await enrolled(node)
            expected = "the core that is installed has not taken over: the core did not start: no library"
            await until(lambda: node.unready() == expected, "it says why it is not ready")
            assert node.core.pid == older.pid
            failing.clear()
            await operations.upgrade_core(node)
            await until(lambda: node.unready() is None, "it is ready")

    play(story())


def test_agent_is_ready_once_it_has_what_it_should(world: World) -> None:
    async def story() -> None:
        async with world.node() as (node, source):
            assert node.unready() == "it has no mesh state of its source yet"
            source.put(world.state())
            await enrolled(node)
            await until(lambda: node.unready() is None, "it is ready")
            assert (await status_view.status(node)).agent.unready is None

    play(story())


def test_core_that_speaks_another_protocol_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        await enrol_and_go(world)
        older = world.core
        monkeypatch.setattr(link, "SPOKEN", range(contract.PROTOCOL + 1, contract.PROTOCOL + 2))
        monkeypatch.setenv("NODESEAL_TEST_PROTOCOL", str(contract.PROTOCOL + 1))
        async with world.node(world.state(), capture=left_behind(world)) as (node, _source):
            await until(lambda: older.poll() is not None, "the core before has ended")
            await until(lambda: [one.roles for one in world.asks(CoreClient.hello).workloads] == [(0, 1, 2)])
            assert node.core.pid != older.pid

    play(story())


def test_oldest_core_ends_when_the_node_runs_out_of_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_MEMORY_CHECK_S", 0.01)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            monkeypatch.setattr(supervisor, "available_memory", lambda: (100, 100))
            older = node.core.current
            await node.core.upgrade()
            older.retired = True  # as it says while it has connections
            await asyncio.sleep(0.1)
            assert node.core.older == [older]
            seen: list[int] = []

            def unseen() -> tuple[int, int]:
                seen.append(1)
                raise OSError("too many open files")

            monkeypatch.setattr(supervisor, "available_memory", unseen)
            await until(lambda: len(seen) > 1, "it is looked at again")
            monkeypatch.setattr(supervisor, "available_memory", lambda: (4, 100))
            await until(lambda: not node.core.older, "it has ended")

    play(story())


def test_core_that_ends_is_replaced_also_after_its_watch_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "_FIRST_S", 0.01)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            recent, failed = node.core._recent_crashes, []

            def fails(within: float) -> int:
                if not failed:
                    failed.append(1)
                    raise ZeroDivisionError
                return recent(within)

            monkeypatch.setattr(node.core, "_recent_crashes", fails)
            world.core.kill()
            await until(lambda: bool(failed) and node.core.current is not None, "another core runs")

    play(story())


async def nothing() -> None:
    """In the place of retire_older."""


def test_absence_of_an_agent_is_shown_with_what_was_not_enrolled_meanwhile(world: World) -> None:
    late = workload("late", world.netns, addresses=(IPv4Address("10.77.1.99"),))

    async def story() -> None:
        await enrol_and_go(world)
        async with world.node(
            world.state(world.shipper, world.remote, late), capture=left_behind(world), last_seen=time.time() - 60
        ) as (node, source):
            await until(lambda: node.absence.missed is not None)
            absence = (await status_view.status(node)).agent.absence
            assert absence.not_enrolled == ["default/late"]
            assert 60 <= absence.seconds < 120
            # What comes later was missed by nobody.
            source.put(
                world.state(world.shipper, late, workload("later", None, addresses=(IPv4Address("10.77.1.98"),)))
            )
            await until(lambda: WorkloadName("default", "later") in node.enrolments)
            assert (await status_view.status(node)).agent.absence.not_enrolled == ["default/late"]

    play(story())


def test_first_agent_of_a_node_tells_of_no_absence(world: World) -> None:
    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            assert (await status_view.status(node)).agent.absence is None

    play(story())


def test_agent_gives_signs_of_life(world: World) -> None:
    signs: list[None] = []

    async def story() -> None:
        async with world.node(world.state(), sign_of_life=lambda: signs.append(None)) as (node, _source):
            await enrolled(node)
            assert len(signs) == 1
        assert len(signs) == 2

    play(story())


def test_core_that_crashes_in_a_loop_is_started_later_and_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float) -> None:
        waits.append(delay)
        await sleep(0)

    async def story() -> None:
        async with world.node(world.state()) as (node, _source):
            await enrolled(node)
            monkeypatch.setattr(supervisor.asyncio, "sleep", noted)
            for number in range(1, 7):
                pid = node.core.pid
                os.kill(pid, signal.SIGKILL)
                while node.core.pid in (pid, None) or not node.core.ready:
                    await sleep(0.01)
                assert node.core.describe().crashes == number
            monkeypatch.setattr(supervisor.asyncio, "sleep", sleep)
            delays = [delay for delay in waits if delay != supervisor._MEMORY_CHECK_S and delay < 5]
            assert delays[:3] == [0.0, 0.0, 0.0]
            assert 0.4 <= delays[3] < delays[4] < delays[5] <= 2.4

    play(story())
