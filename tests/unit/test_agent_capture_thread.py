"""The thread in which everything is captured, when many workloads come at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from nodeseal.capture.node import NodeCapture
from nodeseal.enrolment.capture_thread import CaptureThread
from support.agent_fakes import workload


class Recorder:
    """What is asked of capture, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def enrol(self, target: Any) -> str:
        self.calls.append(f"enrol {target.name}")
        return str(target.name)

    def park(self, captured: str, *, on: bool, native: bool) -> None:
        del on, native
        self.calls.append(f"park {captured}")

    def close(self) -> None:
        self.calls.append("close")


def test_first_of_many_is_complete_before_the_last_begins() -> None:
    async def story() -> list[str]:
        recorder = Recorder()
        thread = CaptureThread(cast("NodeCapture", recorder))

        async def one(name: str) -> None:
            captured = await thread.enrol(workload(name, "/run/netns/any"))
            await thread.park(captured, on=True, native=True)

        await asyncio.gather(*(one(f"w{number}") for number in range(50)))
        thread.close()
        return recorder.calls

    calls = asyncio.run(story())
    assert calls.index("park default/w0") < calls.index("enrol default/w10")
    assert len([one for one in calls if one.startswith("park")]) == 50
