"""Events on pods: one for each thing that is wrong, however often it is seen, and slowly."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from nodeseal.kubernetes.api import AwayError, RefusedError
from nodeseal.kubernetes.objects import Meta, Pod
from nodeseal.sources.kubernetes import pod_events
from nodeseal.sources.kubernetes.pod_events import PodEvents, event_of
from support.agent_fakes import until

POD = Pod(Meta("web", "shop", "u1"))
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


class FakeApi:
    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.made: list[dict[str, Any]] = []
        self.asked = 0

    async def create(self, _resource: object, namespace: str, value: dict[str, Any]) -> bytes:
        assert namespace == "shop"
        self.asked += 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        self.made.append(value)
        return b""


def run(api: FakeApi, *told: list[tuple[Pod, str]], asked: int) -> None:
    async def story() -> None:
        fake: Any = api
        events = PodEvents(fake, "node1")
        task = asyncio.create_task(events.run())
        for problems in told:
            before = api.asked
            events.tell(problems)
            await until(lambda before=before: api.asked > before or not events._waiting.qsize())  # type: ignore[misc]
        await until(lambda: api.asked >= asked)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert api.asked == asked

    asyncio.run(story())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_events, "_EVERY_S", 0.0)


def test_what_is_seen_again_is_told_once() -> None:
    api = FakeApi()
    run(api, [(POD, "it is wrong")], [(POD, "it is wrong"), (POD, "this too")], [(POD, "it is wrong")], asked=2)
    assert [one["note"] for one in api.made] == ["it is wrong", "this too"]


def test_event_has_the_same_name_whichever_agent_makes_it() -> None:
    one, other = (event_of(POD, "it is wrong", node, NOW) for node in ("node1", "node2"))
    assert one["metadata"] == other["metadata"]
    assert event_of(POD, "another", "node1", NOW)["metadata"] != one["metadata"]
    assert one["eventTime"] == "2026-01-02T03:04:05.000678Z"


def test_one_that_a_former_agent_has_made_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    run(FakeApi(RefusedError(409, "AlreadyExists", "it exists")), [(POD, "it is wrong")], asked=1)
    assert not caplog.records


def test_right_that_is_missing_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    refusals = [RefusedError(403, "Forbidden", "the agent may not create events") for _ in range(2)]
    run(FakeApi(*refusals), [(POD, "a"), (POD, "b")], asked=2)
    (record,) = caplog.records
    assert record.getMessage() == "no Event can be made on pods: the agent may not create events"


def test_what_could_not_be_told_is_told_when_it_is_seen_again() -> None:
    api = FakeApi(AwayError("nobody is there"))
    run(api, [(POD, "a")], [(POD, "a")], asked=2)
    assert [one["note"] for one in api.made] == ["a"]


def test_thousand_pods_with_a_mistake_are_no_thousand_that_wait() -> None:
    async def story() -> None:
        fake: Any = FakeApi()
        events = PodEvents(fake, "node1")
        events.tell((Pod(Meta(f"web-{n}", "shop", f"u{n}")), "it is wrong") for n in range(5000))
        assert events._waiting.qsize() == pod_events._MOST_WAITING
        assert len(events._told) == pod_events._MOST_WAITING

    asyncio.run(story())
