"""When an agent of a lab is started again: the supervisor's rules, with processes and a clock of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from nodeseal_lab.errors import LabError
from nodeseal_lab.supervisor import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, STABLE_SECONDS, Keeper, supervise

LONGEST = LONGEST_DELAY_SECONDS * 1.2
"""With the spread of a Backoff."""


class Agents:
    """Stands in for a node's agents: processes that wait until they are ended."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.refuse = False
        self.lived = threading.Event()

    def running(self) -> int | None:
        return next((child.pid for child in self.children if child.poll() is None), None)

    def start(self) -> int:
        if self.refuse:
            raise LabError("the namespace is gone")
        # It must not become a pytest's worth of memory: only sys is imported.
        child = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        self.children.append(child)
        self.lived.set()
        return child.pid

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.communicate()


@pytest.fixture
def agents() -> Iterator[Agents]:
    agents = Agents()
    yield agents
    agents.end()


@pytest.fixture
def keeper(agents: Agents) -> Iterator[Keeper]:
    keeper = Keeper("node1", agents.running, agents.start)
    yield keeper
    if keeper.handle >= 0:
        os.close(keeper.handle)


def end_watched(keeper: Keeper, agents: Agents, now: float) -> None:
    agents.end()
    keeper.ended(now)


def test_running_agent_is_adopted(keeper: Keeper, agents: Agents) -> None:
    agents.start()
    keeper.look(0.0)
    assert keeper.handle >= 0
    assert len(agents.children) == 1


def test_agent_that_ended_is_started_again_after_a_moment(keeper: Keeper, agents: Agents) -> None:
    agents.start()
    keeper.look(0.0)
    end_watched(keeper, agents, 100.0)
    keeper.look(100.0)
    assert keeper.handle < 0
    keeper.look(100.0 + FIRST_DELAY_SECONDS * 1.2)
    assert keeper.handle >= 0
    assert len(agents.children) == 2


def test_agent_that_ends_at_once_is_started_ever_more_rarely(keeper: Keeper, agents: Agents) -> None:
    now, waits = 0.0, []
    for _ in range(12):
        began = now
        while keeper.handle < 0:
            keeper.look(now)
            now += 0.01
        waits.append(now - began)
        end_watched(keeper, agents, now)
    assert waits[2] > waits[1] * 1.2
    assert LONGEST_DELAY_SECONDS * 0.7 < waits[-1] <= LONGEST + 0.1


def test_agent_that_lived_for_long_is_started_again_soon(keeper: Keeper, agents: Agents) -> None:
    now = 0.0
    for _ in range(8):
        keeper.look(now + LONGEST)
        end_watched(keeper, agents, now + LONGEST)
        now += LONGEST
    keeper.look(now + LONGEST)
    end_watched(keeper, agents, now + LONGEST + STABLE_SECONDS)
    keeper.look(now + LONGEST + STABLE_SECONDS + FIRST_DELAY_SECONDS * 1.2)
    assert keeper.handle >= 0


def test_start_that_fails_is_tried_again_later(keeper: Keeper, agents: Agents) -> None:
    agents.refuse = True
    with pytest.raises(LabError):
        keeper.look(0.0)
    keeper.look(0.0)
    agents.refuse = False
    keeper.look(FIRST_DELAY_SECONDS * 1.2)
    assert keeper.handle >= 0


def test_supervision_ends_when_told_and_leaves_the_agent(keeper: Keeper, agents: Agents) -> None:
    told, tell = os.pipe()
    try:
        thread = threading.Thread(target=supervise, args=([keeper], told, lambda: False))
        thread.start()
        assert agents.lived.wait(20)
        os.write(tell, b"\n")
        thread.join(20)
        assert not thread.is_alive()
        assert agents.running() is not None
    finally:
        os.close(told)
        os.close(tell)


def test_supervision_ends_with_the_lab(keeper: Keeper) -> None:
    told, tell = os.pipe()
    try:
        supervise([keeper], told, lambda: True)
    finally:
        os.close(told)
        os.close(tell)
    assert keeper.handle < 0
