"""When a node has what a rollout may rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from nodeseal.enrolment.failure import Failure
from nodeseal.mesh.model import Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyNotEnrolled
from nodeseal.node import readiness
from nodeseal.node.readiness import Readiness

CORE = "its core is not ready"
NAME = WorkloadName("apps", "shipper")


@dataclass
class Enrolled:
    name: WorkloadName
    wanted_state: Workload | None
    phase: Phase = Phase.ABSENT
    failure: Failure | None = None


def workload(**changes: object) -> Workload:
    wanted = Workload(NAME, "shipper", "node1", (ip_address("10.0.0.1"),), "shipper", True, Mode.PERMISSIVE)
    return replace(wanted, **changes)


def in_a_loop(test: Callable[[Readiness], Awaitable[None]]) -> None:
    async def body() -> None:
        await test(Readiness())

    asyncio.run(body())


def failed(reason: WhyNotEnrolled) -> Failure:
    return Failure(reason, "it failed", 0.0)


def test_needs_a_state_of_the_source_and_a_core() -> None:
    async def body(ready: Readiness) -> None:
        assert ready.why_not([], core=None) == "it has no mesh state of its source yet"
        ready.synced()
        assert ready.why_not([], core=CORE) == CORE
        assert ready.why_not([], core=None) is None

    in_a_loop(body)


def test_names_whom_it_waits_for() -> None:
    async def body(ready: Readiness) -> None:
        ready.synced()
        one = Enrolled(NAME, workload())
        assert ready.why_not([one], core=None) == "not enrolled yet: apps/shipper"
        one.phase = Phase.JOINING
        assert ready.why_not([one], core=None) == "not enrolled yet: apps/shipper"
        one.phase = Phase.ENROLLED
        assert ready.why_not([one], core=None) is None

    in_a_loop(body)


@pytest.mark.parametrize("wanted", [None, workload(wanted=False), workload(netns=None)])
def test_does_not_wait_for_what_is_not_asked_for(wanted: Workload | None) -> None:
    async def body(ready: Readiness) -> None:
        ready.synced()
        assert ready.why_not([Enrolled(NAME, wanted)], core=None) is None

    in_a_loop(body)


def test_one_that_never_can_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(ready: Readiness) -> None:
        ready.synced()
        one = Enrolled(NAME, workload(), failure=failed(WhyNotEnrolled.FAILED))
        assert ready.why_not([one], core=None) is not None
        monkeypatch.setattr(readiness, "PATIENCE_S", 0.0)
        assert ready.why_not([one], core=None) is None

    in_a_loop(body)


def test_what_the_agent_before_had_enrolled_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.0)

    async def body(ready: Readiness) -> None:
        ready.adopted = frozenset({NAME})
        ready.synced()
        one = Enrolled(NAME, workload(), failure=failed(WhyNotEnrolled.FAILED))
        assert ready.why_not([one], core=None) == "not enrolled yet: apps/shipper"
        one.failure = failed(WhyNotEnrolled.NAMESPACE_GONE)
        assert ready.why_not([one], core=None) is None

    in_a_loop(body)


def test_stays_ready() -> None:
    async def body(ready: Readiness) -> None:
        ready.synced()
        assert ready.why_not([], core=None) is None
        assert ready.why_not([Enrolled(NAME, workload())], core=CORE) is None

    in_a_loop(body)
