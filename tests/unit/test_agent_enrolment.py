"""One workload's way in and out, step by step, against stand-ins for capture and core."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CaptureError
from nodeseal.capture.listeners import HBONE, INBOUND, OUTBOUND
from nodeseal.capture.workload import Addresses
from nodeseal.cores.client import CoreError
from nodeseal.cores.trust_pusher import TrustPusher
from nodeseal.enrolment import workload as workload_module
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.workload import Enrolment
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.limits import LimitChanges, Limits
from nodeseal.mesh.model import Connect, Mode, OnFailure, Phase, Workload, WorkloadName
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled
from nodeseal.sources.source import PublicationError
from support.agent_fakes import FakeCapture, FakeCore, FakeIssuer, FakeNode, until, workload

NAME = WorkloadName("default", "shipper")
FOREVER = 3600.0


def remove(path: Path) -> None:
    """The namespace goes; here a file stands for it."""
    path.unlink()


class World:
    """An enrolment with everything around it; `log` is what happened, in order."""

    def __init__(self, netns: Path, settle: float) -> None:
        self.netns = netns
        self.log: list[str] = []
        self.capture = FakeCapture(self.log)
        self.core = FakeCore(self.log)
        self.issuer = FakeIssuer()
        self.node = FakeNode(self.log)
        self.now = self.issuer.now
        context: Any = Context(
            self.node,
            self.core,  # type: ignore[arg-type]
            self.capture,  # type: ignore[arg-type]
            Credentials(self.issuer, now=lambda: self.now, rand=lambda: 0.5),
            TrustPusher(self.core, lambda: self.issuer.bundle),  # type: ignore[arg-type]
            settle,
            now=lambda: self.now,
            rand=lambda: 0.5,
        )
        self.enrolment = Enrolment(NAME, context)
        self.node.enrolment = self.enrolment

    def given(self, method: str) -> list[tuple[Any, ...]]:
        """With what the core was asked by this method."""
        return [args for name, args, _rest in self.core.calls if name == method]

    def wants(self, **changes: Any) -> Workload:
        wanted = workload("shipper", self.netns, **changes)
        self.enrolment.update(wanted)
        return wanted

    def settle(self, seconds: float) -> None:
        self.enrolment.context.settle = seconds
        self.enrolment.wake()

    async def phase(self, phase: Phase) -> None:
        await until(lambda: self.enrolment.phase is phase, f"phase {phase.value}")

    async def failure(self) -> None:
        await until(lambda: self.enrolment.failure is not None, "failure")


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns"
    path.touch()
    yield path
    gc.collect()


def run(netns: Path, story: Callable[[World], Awaitable[None]], *, settle: float = 0.0) -> World:
    """Plays a story with the enrolment's driver running beside it."""

    async def play() -> World:
        world = World(netns, settle)
        driver = asyncio.create_task(world.enrolment.drive())
        # The driver of a workload that nobody knows ends at once; a story begins by wanting something.
        try:
            await story(world)
        finally:
            world.enrolment.stop()
            await driver
            world.capture.close()
        return world

    return asyncio.run(asyncio.wait_for(play(), 60))


def test_enrolling_prepares_the_core_then_captures_then_publishes(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)

    assert run(netns, story).log == [
        "core.workload_add",
        "core.workload_limits",
        "core.trust_bundles",
        "core.workload_credentials",
        "capture.enrol shipper",
        "core.workload_listen",
        "push joining",
        "publish with",
        "push enrolled",
    ]


def limits_given(world: World) -> list[Limits]:
    return [arguments[1] for name, arguments, *_rest in world.core.calls if name == "workload_limits"]


def test_limits_of_the_mesh_state_go_before_those_of_the_node_and_change_live(netns: Path) -> None:
    node = Limits()

    async def story(world: World) -> None:
        world.wants(limits=LimitChanges(connections=7))
        await world.phase(Phase.ENROLLED)
        assert limits_given(world) == [replace(node, connections=7)]
        world.log.clear()
        world.wants(limits=LimitChanges(memory=0))
        await until(lambda: len(limits_given(world)) == 2)
        assert limits_given(world)[1] == replace(node, memory=0)
        world.wants()
        await until(lambda: len(limits_given(world)) == 3)
        assert limits_given(world)[2] == node

    log = run(netns, story).log
    assert "core.workload_add" not in log
    assert "core.workload_listen" not in log


def test_a_core_that_a_former_agent_filled_is_told_the_limits(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        assert world.enrolment.installed is not None
        world.enrolment.installed.limits = None  # as after an adoption: nobody knows what it was told
        world.enrolment.wake()
        await until(lambda: len(limits_given(world)) == 2)

    run(netns, story)


def test_joining_lasts_until_the_others_had_time(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.JOINING)
        world.wants(wanted=True, service_account="shipper")
        assert world.enrolment.why()[0] is WhyNotEnrolled.JOINING
        world.settle(0)
        await world.phase(Phase.ENROLLED)

    run(netns, story, settle=FOREVER)


def test_joining_is_not_over_before_it_could_be_published(netns: Path) -> None:
    async def story(world: World) -> None:
        world.node.publish_error = PublicationError("cannot publish: read-only file system")
        world.wants()
        await world.failure()
        assert world.enrolment.phase is Phase.JOINING
        assert "read-only" in (world.enrolment.why()[1] or "")
        world.node.publish_error = None
        world.enrolment.wake()
        await world.phase(Phase.ENROLLED)
        assert world.enrolment.why() == (None, None)

    run(netns, story)


def test_family_that_is_not_captured_is_told(netns: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.capture.addresses = Addresses(uncaptured=("fd00::1", "fd00::2"))
        world.wants()
        await world.phase(Phase.ENROLLED)
        reason, detail = world.enrolment.why()
        assert reason is None
        assert detail == (
            "connections over IPv6 are not captured: it has fd00::1, fd00::2, but no IPv6 address in the mesh state"
        )
        assert detail in caplog.text

    run(netns, story)


@pytest.mark.parametrize(
    ("astray", "word"),
    [
        (Addresses(unattributed=("10.0.0.9",)), ProblemWord.ADDRESS_NOT_ATTRIBUTED),
        (Addresses(absent=("10.0.0.9",)), ProblemWord.ADDRESS_ABSENT),
    ],
)
def test_addresses_that_are_not_as_the_mesh_state_has_them_are_named(
    netns: Path, astray: Addresses, word: ProblemWord
) -> None:
    async def story(world: World) -> None:
        world.capture.addresses = astray
        world.wants()
        await world.phase(Phase.ENROLLED)
        (problem,) = world.enrolment.problems()
        assert problem.word is word
        assert "10.0.0.9" in problem.text

    run(netns, story)


def test_further_addresses_come_and_go_in_place(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        before = list(world.log)
        primary = world.enrolment.installed.workload.address
        for addresses in ((primary, IPv4Address("10.9.9.9")), (primary,)):
            world.wants(addresses=addresses)
            await until(lambda given=addresses: world.enrolment.installed.workload.addresses == given)
            assert world.enrolment.phase is Phase.ENROLLED
        done = [line.split()[0] for line in world.log[len(before) :]]
        assert done == ["capture.enrol", "core.workload_addresses", "push"] * 2

    run(netns, story)


def test_what_comes_to_the_namespace_later_is_covered(netns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_module, "LOOK_AGAIN_S", 0.01)

    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        enrolled = world.log.count("capture.enrol shipper")
        world.capture.changed = True
        await until(lambda: world.log.count("capture.enrol shipper") > enrolled)


def test_connections_that_are_early_although_somebody_asked_are_told(netns: Path) -> None:
    def told(world: World) -> list[str]:
        return [problem.word for problem in world.enrolment.problems()]

    async def story(world: World) -> None:
        world.wants(connect=Connect.TRUTHFUL)  # and there is no ring
        await world.phase(Phase.ENROLLED)
        assert told(world) == [ProblemWord.CONNECT_EARLY]
        world.enrolment.context.connect = Connect.TRUTHFUL
        world.wants(connect=Connect.EARLY)
        assert told(world) == []
        world.wants()
        assert told(world) == [ProblemWord.CONNECT_EARLY]
        world.enrolment.context.connect = None
        assert told(world) == []

    run(netns, story)


def test_unwanted_workload_is_left_alone(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants(wanted=False)
        await asyncio.sleep(0)
        assert world.enrolment.why() == (WhyNotEnrolled.NOT_WANTED, None)

    assert run(netns, story).log == []


def test_workload_without_namespace_says_so(netns: Path) -> None:
    async def story(world: World) -> None:
        world.enrolment.update(workload("shipper", None))
        await asyncio.sleep(0)
        assert world.enrolment.why()[0] is WhyNotEnrolled.NO_NETNS

    assert run(netns, story).log == []


def test_leaving_withdraws_first_and_keeps_capturing_until_the_others_had_time(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.enrolment.context.settle = FOREVER
        world.log.clear()
        world.wants(wanted=False)
        await world.phase(Phase.LEAVING)
        await until(lambda: "push leaving" in world.log)
        assert world.log == ["publish without", "push leaving"]
        world.settle(0)
        await world.phase(Phase.ABSENT)

    assert run(netns, story).log[2:] == [
        "capture.stop_new default/shipper",
        "core.workload_unlisten",
        "core.stats",
        "core.workload_forget",
        "capture.release default/shipper",
        "push absent",
    ]


def test_live_connections_hold_the_release_back(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.core.live = 3
        world.wants(wanted=False)
        await until(lambda: "core.stats" in world.log)
        assert world.enrolment.installed is not None
        assert world.enrolment.installed.draining
        assert world.enrolment.why()[0] is WhyNotEnrolled.LEAVING
        world.core.live = 0
        world.enrolment.wake()
        await world.phase(Phase.ABSENT)

    run(netns, story)


def test_draining_workload_that_is_wanted_again_is_captured_again(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.core.live = 1
        world.wants(wanted=False)
        await until(lambda: "core.stats" in world.log)
        world.log.clear()
        world.core.calls.clear()
        world.wants()
        await world.phase(Phase.ENROLLED)
        # The outbound listener never went away; the core gets the other two anew.
        (listen,) = [call for call in world.core.calls if call[0] == "workload_listen"]
        assert sorted(listen[1][1]) == [1, 2]

    world = run(netns, story)
    assert "capture.release default/shipper" not in world.log
    assert "core.workload_add" not in world.log


def test_leaving_workload_that_is_wanted_again_joins_again(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.enrolment.context.settle = FOREVER
        world.wants(wanted=False)
        await world.phase(Phase.LEAVING)
        world.wants()
        await world.phase(Phase.JOINING)

    assert "capture.stop_new default/shipper" not in run(netns, story).log


def test_failed_withdrawal_keeps_the_workload_enrolled(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.node.publish_error = PublicationError("cannot publish")
        world.wants(wanted=False)
        await world.failure()
        assert world.enrolment.phase is Phase.ENROLLED

    assert "capture.stop_new default/shipper" not in run(netns, story).log


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CaptureError("no CAP_BPF"), WhyNotEnrolled.FAILED),
        (AddressInUseError("address in use: 10.0.0.1:15008"), WhyNotEnrolled.ADDRESS_IN_USE),
        (AddressNotFoundError("address not found: fd00::1"), WhyNotEnrolled.ADDRESS_MISMATCH),
        (AddressNotReadyError("address not ready: fd00::1 is still looked for"), WhyNotEnrolled.PENDING),
        (RuntimeError("a defect"), WhyNotEnrolled.FAILED),
    ],
)
def test_capture_that_fails_leaves_nothing_and_says_why(netns: Path, error: Exception, reason: WhyNotEnrolled) -> None:
    async def story(world: World) -> None:
        world.capture.failures["enrol"] = error
        world.wants()
        await world.failure()
        assert world.enrolment.why() == (reason, str(error))
        assert world.enrolment.phase is Phase.ABSENT
        assert world.log[-1] == "core.workload_remove"
        world.capture.failures.clear()
        world.enrolment.wake()
        await world.phase(Phase.ENROLLED)
        assert world.enrolment.failure is None

    run(netns, story)


def test_namespace_that_is_gone_says_so(netns: Path) -> None:
    async def story(world: World) -> None:
        remove(netns)
        world.wants()
        await world.failure()
        assert world.enrolment.why()[0] is WhyNotEnrolled.NAMESPACE_GONE

    assert run(netns, story).log == []


def test_core_that_refuses_the_listeners_undoes_the_capture(netns: Path) -> None:
    async def story(world: World) -> None:
        world.core.failures["workload_listen"] = CoreError("no")
        world.wants()
        await world.failure()
        assert world.enrolment.installed is None
        assert world.log[-2:] == ["capture.stop_new default/shipper", "capture.release default/shipper"]

    run(netns, story)


def test_nothing_begins_without_a_certificate(netns: Path) -> None:
    async def story(world: World) -> None:
        world.issuer.error = IssuerError("the intermediate has expired")
        world.wants()
        await world.failure()
        assert "expired" in (world.enrolment.why()[1] or "")

    assert run(netns, story).log == []


def test_issuer_that_fails_is_asked_later_and_later(netns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def story(world: World) -> None:
        wait = world.enrolment._wait

        async def noted(seconds: float | None) -> None:
            if seconds is not None and world.enrolment.failure is not None:
                waits.append(seconds)
                seconds = 0
            await wait(seconds)

        monkeypatch.setattr(world.enrolment, "_wait", noted)
        world.issuer.error = IssuerError("it is away")
        world.wants()
        await until(lambda: len(waits) >= 4)
        assert world.enrolment.why() == (WhyNotEnrolled.FAILED, "it is away")
        world.issuer.error = None
        await world.phase(Phase.ENROLLED)

    run(netns, story)
    assert [round(seconds) for seconds in waits[:4]] == [1, 2, 4, 8]


def test_workload_that_waits_for_its_first_certificate_can_be_given_up(netns: Path) -> None:
    async def story(world: World) -> None:
        world.issuer.answers.clear()
        world.wants()
        await until(lambda: world.issuer.asked == 1)
        world.wants(wanted=False)
        await until(lambda: not world.enrolment.certificate.request.waiting, "nobody waits any more")
        world.issuer.answers.set()
        world.wants()
        await world.phase(Phase.ENROLLED)
        assert world.issuer.asked == 2

    run(netns, story)


def test_workload_leaves_while_the_issuer_has_not_answered(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.issuer.answers.clear()
        world.now += timedelta(hours=1, seconds=1)
        world.enrolment.wake()
        await until(lambda: world.issuer.asked == 2)
        world.wants(wanted=False)
        await world.phase(Phase.ABSENT)

    run(netns, story)


def test_namespace_lost_while_enrolled_leaves_at_once(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.core.live = 5
        world.enrolment.context.settle = FOREVER
        world.log.clear()
        remove(netns)
        world.enrolment.wake()
        await world.failure()

    assert run(netns, story).log == [
        "publish without",
        "capture.stop_new default/shipper",
        "core.workload_forget",
        "capture.release default/shipper",
        "push absent",
    ]


def test_namespace_made_anew_is_enrolled_anew(netns: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(netns)
        world.log.clear()
        world.enrolment.wake()
        await until(lambda: "push enrolled" in world.log)

    log = run(netns, story).log
    assert log.index("capture.release default/shipper") < log.index("capture.enrol shipper")


def test_changed_address_leaves_without_draining_and_enrols_anew(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.core.live = 5
        world.log.clear()
        world.wants(addresses=(IPv4Address("10.9.9.9"),))
        await until(lambda: "push enrolled" in world.log)
        assert world.enrolment.installed is not None
        assert world.enrolment.installed.workload.address == IPv4Address("10.9.9.9")

    assert "capture.release default/shipper" in run(netns, story).log


def test_changed_service_account_gets_new_credentials_in_place(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.wants(service_account="other")
        await until(lambda: world.enrolment.installed and world.enrolment.installed.workload.service_account == "other")
        assert str(world.issuer.issued[-1]) == "spiffe://example.org/ns/default/sa/other"
        await until(lambda: world.log[-1].startswith("push"))

    assert run(netns, story).log == ["core.workload_credentials", "push enrolled"]


def test_certificate_is_renewed_when_due(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.now += timedelta(hours=1, seconds=1)
        world.issuer.now = world.now
        world.enrolment.wake()
        await until(lambda: len(world.issuer.issued) == 2)
        await until(lambda: world.log[-1] == "core.workload_credentials")
        assert world.enrolment.installed is not None
        assert world.enrolment.installed.credential is not None
        assert world.enrolment.installed.credential.renew_at > world.now

    run(netns, story)


def test_changed_trust_anchors_are_given_to_the_core_without_a_certificate(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        assert world.given("trust_bundles") == [("example.org", {"example.org": "bundle"})]
        world.log.clear()
        world.issuer.trust("bundle and another root")
        world.enrolment.wake()
        await until(lambda: world.log == ["core.trust_bundles"])
        assert world.given("trust_bundles")[-1] == ("example.org", {"example.org": "bundle and another root"})
        world.wants(service_account="other")  # a step more: once was enough
        await until(lambda: world.log[-1].startswith("push"))
        assert len(world.given("trust_bundles")) == len(world.issuer.issued) == 2

    run(netns, story)


def test_certificate_of_a_trust_anchor_that_is_none_any_more_is_replaced_at_once(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.issuer.bundle = TrustBundle("example.org", "another root", frozenset({"2" * 64}))
        world.enrolment.wake()
        await until(lambda: world.log == ["core.trust_bundles", "core.workload_credentials"])
        # Though the issuer goes on with the former anchor: once for each change.
        world.enrolment.wake()
        await asyncio.sleep(0.01)
        assert len(world.issuer.issued) == 2

    run(netns, story)


def test_trust_anchors_that_the_core_does_not_take_are_told_and_given_again(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.issuer.trust("nonsense")
        world.core.failures["trust_bundles"] = CoreError("the trust bundle cannot be read")
        world.enrolment.wake()
        await until(lambda: world.enrolment.certificate.failure is not None)
        assert world.enrolment.why()[1] == "trust anchors not given to the core: the trust bundle cannot be read"
        world.core.failures.clear()
        world.enrolment._renew_not_before = 0
        world.enrolment.wake()
        await until(lambda: world.enrolment.certificate.failure is None)
        assert world.given("trust_bundles")[-1] == ("example.org", {"example.org": "nonsense"})

    run(netns, story)


def test_certificate_that_failed_is_tried_at_once_when_the_issuer_has_changed(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.issuer.error = IssuerError("its CA has expired")
        world.now += timedelta(hours=3)
        world.enrolment.wake()
        await until(lambda: world.enrolment.certificate.failure is not None)
        asked = world.issuer.asked
        world.issuer.error = None
        world.enrolment.wake()
        await asyncio.sleep(0.01)
        assert world.issuer.asked == asked
        world.enrolment.certificate.retry()
        world.enrolment.wake()
        await until(lambda: world.enrolment.certificate.failure is None)

    run(netns, story)


def test_new_core_gets_the_trust_anchors_before_credentials(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.core.incarnation = 2
        world.enrolment.wake()
        await until(lambda: "moved on" in world.log)
        given = [line for line in world.log if line in ("core.trust_bundles", "core.workload_credentials")]
        assert given == ["core.trust_bundles", "core.workload_credentials"]

    run(netns, story)


def test_changed_trust_anchors_go_to_an_older_core_with_a_certificate(netns: Path) -> None:
    async def story(world: World) -> None:
        world.core.trust_apart = False
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.issuer.trust("bundle and another root")
        world.enrolment.wake()
        await until(lambda: world.log == ["core.workload_credentials"])
        assert world.enrolment.installed is not None
        assert world.enrolment.installed.bundle is not None
        assert world.enrolment.installed.bundle.pem == "bundle and another root"
        world.wants(service_account="other")  # a step more: once was enough
        await until(lambda: world.log[-1].startswith("push"))
        assert len(world.issuer.issued) == 3

    run(netns, story)


def test_failed_renewal_is_shown_and_tried_again(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.now += timedelta(hours=1, seconds=1)
        world.issuer.error = IssuerError("the intermediate has expired")
        world.enrolment.wake()
        await until(lambda: world.enrolment.certificate.failure is not None)
        assert world.enrolment.phase is Phase.ENROLLED
        reason, detail = world.enrolment.why()
        assert (reason, detail) == (None, "certificate not renewed: the intermediate has expired")
        world.issuer.error = None
        world.issuer.now = world.now
        await until(lambda: world.enrolment.certificate.failure is None, "renewed at the next try")

    run(netns, story)


def test_new_core_gets_the_workload_and_the_kept_listeners(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        listeners = dict(world.capture.captured["default/shipper"].listeners)
        world.core.ready = False
        world.core.incarnation = 2
        world.enrolment.wake()
        await asyncio.sleep(0)
        world.log.clear()
        world.core.calls.clear()
        world.core.ready = True
        world.enrolment.wake()
        await until(lambda: "core.workload_listen" in world.log)
        assert world.core.calls[-1][1][1] == listeners
        assert len(world.issuer.issued) == 1  # the one it has will do

    assert run(netns, story).log[:6] == [
        "core.workload_add",
        "core.workload_limits",
        "core.trust_bundles",
        "core.workload_credentials",
        "capture.take_listeners default/shipper",
        "core.workload_listen",
    ]


def test_choice_for_failures_changes_in_place(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.wants(on_failure=OnFailure.OPEN)
        await until(lambda: world.enrolment.installed.workload.on_failure is OnFailure.OPEN)

    assert run(netns, story).log[0] == "capture.configure default/shipper"


def test_changed_ports_of_a_process_are_captured_anew(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants(host=HostPlace("/vector.slice", (PortRange(9000, 9000),)))
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        changed = HostPlace("/vector.slice", (PortRange(9001, 9001),))
        world.wants(host=changed)
        await until(lambda: world.enrolment.installed.workload.host == changed)

    assert run(netns, story).log[0] == "capture.enrol shipper"


def listened(world: World) -> list[set[int]]:
    return [set(arguments[1]) for name, arguments, *_rest in world.core.calls if name == "workload_listen"]


def test_the_shared_port_waits_until_the_core_knows_all_processes_of_the_node(netns: Path) -> None:
    async def story(world: World) -> None:
        world.node.neighbours_behind = True
        world.wants(host=HostPlace("/vector.slice"))
        await world.phase(Phase.ENROLLED)
        assert listened(world) == [{OUTBOUND, INBOUND}]
        world.node.neighbours_behind = False
        world.enrolment.wake()
        await until(lambda: len(listened(world)) == 2)
        assert listened(world)[1] == {HBONE}

    run(netns, story)


def test_a_pod_waits_for_no_process_of_the_node(netns: Path) -> None:
    async def story(world: World) -> None:
        world.node.neighbours_behind = True
        world.wants()
        await world.phase(Phase.ENROLLED)
        assert listened(world) == [{OUTBOUND, INBOUND, HBONE}]

    run(netns, story)


def test_a_pod_that_becomes_a_process_leaves_first(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.wants(host=HostPlace("/vector.slice"))
        await until(
            lambda: world.enrolment.installed is not None and world.enrolment.installed.workload.host is not None
        )

    log = run(netns, story).log
    assert log.index("capture.release default/shipper") < log.index("capture.enrol shipper")


def test_nothing_is_enrolled_while_there_is_no_core(netns: Path) -> None:
    async def story(world: World) -> None:
        world.core.ready = False
        world.core.error = "the core did not start"
        world.wants()
        await asyncio.sleep(0)
        assert world.enrolment.why() == (WhyNotEnrolled.PENDING, "the core did not start")
        world.core.ready = True
        world.enrolment.wake()
        await world.phase(Phase.ENROLLED)

    run(netns, story)


def test_failed_release_is_tried_again_without_handing_over(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.capture.failures["release"] = CaptureError("cannot remove a rule")
        world.wants(wanted=False)
        await world.failure()
        assert world.enrolment.installed is not None
        assert world.enrolment.installed.removing
        world.log.clear()
        world.capture.failures.clear()
        world.enrolment.wake()
        await world.phase(Phase.ABSENT)

    assert "core.workload_add" not in run(netns, story).log


def test_workload_removed_from_the_mesh_state_leaves_and_is_forgotten(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.enrolment.update(None)
        await until(lambda: world.enrolment.finished)

    assert run(netns, story).log[-1] == "push absent"


def test_stopping_leaves_everything_in_place(netns: Path) -> None:
    async def story(world: World) -> None:
        world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()

    assert run(netns, story).log == []


def test_changed_mode_reaches_the_core_without_touching_the_enrolment(netns: Path) -> None:
    async def story(world: World) -> None:
        wanted = world.wants()
        await world.phase(Phase.ENROLLED)
        world.log.clear()
        world.enrolment.update(replace(wanted, mode=Mode.STRICT))
        await until(lambda: world.log)

    assert run(netns, story).log == ["push enrolled"]
