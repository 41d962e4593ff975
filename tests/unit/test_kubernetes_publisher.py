"""Publishing while the API server fails; tests/kubernetes has a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import Key
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.publisher import Publisher
from nodeseal.sources.source import SourceAwayError

BUSY = RefusedError(503, "", "it has too much to do", 1.0)
AWAY = AwayError("nobody is there")


class FailingApi:
    """`asked`: how often."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0

    async def get_raw(self, _resource: object, _key: Key) -> bytes:
        self.asked += 1
        raise self.error


class FakeFollowed:
    def __init__(self, watching_since: float | None) -> None:
        self.watching_since = watching_since
        self.items: dict[Key, Any] = {}


class World:
    def __init__(self, error: Exception, watching_since: float | None) -> None:
        self.api = FailingApi(error)
        self.followed = FakeFollowed(watching_since)
        self.now = 1000.0
        followed = cast("Followed[Any]", self.followed)
        holder = Holder("boot", Path("/run/nodeseal"))
        self.publisher = Publisher(
            cast("Api", self.api), "node1", holder, "1", followed, followed, clock=lambda: self.now, rand=lambda: 0.5
        )

    def publish(self) -> None:
        with pytest.raises(SourceAwayError, match=str(self.api.error)):
            asyncio.run(self.publisher.publish([], None))


@pytest.mark.parametrize("error", [BUSY, AWAY])
def test_server_that_fails_is_not_asked_again_at_once_though_its_watches_go_on(error: Exception) -> None:
    world = World(error, 1.0)
    for _ in range(5):
        world.publish()
    assert world.api.asked == 1
    world.now += 1.5
    world.publish()
    assert world.api.asked == 2


@pytest.mark.parametrize("watched_before", [None, 1.0])
def test_server_that_is_watched_again_is_asked_at_once(watched_before: float | None) -> None:
    world = World(AWAY, watched_before)
    world.publish()
    world.publish()
    assert world.api.asked == 1
    world.followed.watching_since = None
    world.publish()
    assert world.api.asked == 1
    world.followed.watching_since = 2.0
    world.publish()
    assert world.api.asked == 2
    world.publish()
    assert world.api.asked == 2
