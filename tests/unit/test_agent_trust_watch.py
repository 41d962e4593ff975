"""What a node tells of the trust anchors that its connections need."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from nodeseal.cores.client import CoreError, CoreGone
from nodeseal.mesh.trust import Need
from nodeseal.node.trust_watch import TrustWatch

OWN, OLD, FOREIGN = "aa" * 32, "bb" * 32, "cc" * 32


class Core:
    """One that answers the same each time, or fails."""

    def __init__(self, answer: dict[str, int] | CoreError | None) -> None:
        self.answer = answer

    async def call(self, method: Any) -> dict[str, int] | None:
        assert method.__name__ == "anchors"
        if isinstance(self.answer, CoreError):
            raise self.answer
        return self.answer


class World:
    """A node that issues by OWN, trusts OLD as well, and has no certificate."""

    def __init__(self, *cores: Core) -> None:
        given: Any = SimpleNamespace(given=SimpleNamespace(fingerprints={OWN, OLD}))
        links: Any = SimpleNamespace(links=lambda: list(cores))
        credentials: Any = SimpleNamespace(anchor=OWN)
        self._watch = TrustWatch(links, given, credentials, {}, lambda: datetime.now(UTC))  # type: ignore[arg-type]

    def look(self) -> bool:
        return asyncio.run(self._watch.look())

    @property
    def needs(self) -> tuple[Need, ...] | None:
        told = self._watch.published()
        assert told is not None
        return told.needs


def test_nothing_is_said_before_the_cores_were_asked() -> None:
    world = World(Core({}))
    assert world.needs is None
    assert world.look()
    assert world.needs == ()
    assert not world.look()


def test_connections_of_all_cores_count_for_the_anchors_of_the_own_domain() -> None:
    world = World(
        Core({OWN[:32]: 40, OLD[:32]: 3, FOREIGN[:32]: 9}), Core({OLD[:32]: 4}), Core(CoreGone("it has ended"))
    )
    world.look()
    assert world.needs == (Need(OLD[:32], 0, 7),)


def test_tunnels_without_connections_need_nothing() -> None:
    world = World(Core({OLD[:32]: 0}))
    world.look()
    assert world.needs == ()


def test_number_is_told_again_when_half_of_them_have_gone() -> None:
    core = Core({OLD[:32]: 473})
    world = World(core)
    world.look()
    assert world.needs == (Need(OLD[:32], 0, 500),)
    core.answer = {OLD[:32]: 251}
    assert not world.look()
    core.answer = {OLD[:32]: 250}
    assert world.look()
    assert world.needs == (Need(OLD[:32], 0, 300),)
    core.answer = {}
    assert world.look()
    assert world.needs == ()


@pytest.mark.parametrize("answer", [None, CoreError("it does not answer")], ids=["too old", "silent"])
def test_nobody_knows_while_a_core_does_not_say(answer: CoreError | None) -> None:
    silent = Core({})
    world = World(Core({OLD[:32]: 1}), silent)
    world.look()
    silent.answer = answer
    assert world.look()
    assert world.needs is None
