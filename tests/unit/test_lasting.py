"""Parts of the agent that run for as long as it does."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from nodeseal.node import lasting as lasting_module
from nodeseal.node.lasting import lasting


class PanicException(BaseException):
    """As cryptography's Rust raises it."""


def test_part_that_fails_begins_again_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lasting_module, "_FIRST_S", 0.01)
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("a mistake")
        if len(tries) == 2:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3600))
                raise KeyError("another")
        if len(tries) == 3:
            raise PanicException

    with caplog.at_level(logging.ERROR):
        asyncio.run(lasting("clock", work))
    assert len(tries) == 4
    assert [record.message for record in caplog.records] == [
        "the part 'clock' of the agent has failed, and begins again"
    ] * 3


def test_part_that_is_cancelled_is_over() -> None:
    async def story() -> None:
        task = asyncio.create_task(lasting("sleep", lambda: asyncio.sleep(3600)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_node_has_no_other_parts() -> None:
    text = Path(lasting_module.__file__).with_name("node.py").read_text(encoding="utf-8")
    assert text.count("create_task(") == text.count("create_task(lasting(") == 1
