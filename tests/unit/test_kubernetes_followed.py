"""Following objects while the API server behaves otherwise than it should; tests/kubernetes has a real one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from nodeseal.kubernetes import followed as followed_module
from nodeseal.kubernetes.api import AwayError, Change, ChangeType, Listing, RefusedError
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import NAMESPACES, Key, Meta, Namespace
from support.agent_fakes import until

Step = Sequence[Change[Namespace]] | Exception | float
"""What a watch tells, raises, or waits for (in seconds)."""


def namespace(name: str, **labels: str) -> Namespace:
    return Namespace(metadata=Meta(name=name, labels=labels))


def added(name: str, version: str, **labels: str) -> Change[Namespace]:
    return Change(ChangeType.ADDED, version, ("", name), namespace(name, **labels))


class PlayedApi:
    """Answers lists from `listed`, and each watch by the next of `watches`; then watches are silent."""

    def __init__(self, listed: list[Namespace], *watches: Sequence[Step]) -> None:
        self.listed = listed
        self.watches: Iterator[Sequence[Step]] = iter(watches)
        self.asked: list[str] = []

    async def list_all(self, _resource: object, _selectors: Mapping[str, str]) -> Listing[Namespace]:
        self.asked.append("list")
        return Listing(list(self.listed), "10", {})

    async def watch(
        self, _resource: object, version: str, _selectors: Mapping[str, str], _seconds: int = 0
    ) -> AsyncGenerator[list[Change[Namespace]], None]:
        self.asked.append(version)
        silent: Sequence[Step] = [[], 3600.0]
        for step in next(self.watches, silent):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield list(step)


def play(
    api: PlayedApi, done: Callable[[Followed[Namespace]], bool], changed: Callable[[set[Key]], None] = lambda _: None
) -> Followed[Namespace]:
    """Followed until `done`."""

    async def tell(keys: set[Key]) -> None:
        changed(keys)

    async def whole() -> Followed[Namespace]:
        fake: Any = api
        found = Followed(fake, NAMESPACES, tell)
        task = asyncio.create_task(found.run())
        await until(lambda: task.done() or done(found))
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        return found

    return asyncio.run(whole())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_module, "_FIRST_S", 0.01)
    monkeypatch.setattr(followed_module, "_LONGEST_S", 0.08)


def test_failure_of_whoever_is_told_ends_nothing_and_is_told_again() -> None:
    told: list[set[Key]] = []

    def changed(keys: set[Key]) -> None:
        told.append(keys)
        if len(told) == 1:
            raise RuntimeError("a mistake")

    api = PlayedApi([namespace("a")], [[], [added("b", "11")], 3600.0])
    play(api, lambda found: len(found.items) == 2 and len(told) == 3, changed)
    assert told == [{("", "a")}, {("", "a")}, {("", "b")}]


def test_watch_that_ends_at_once_again_and_again_is_begun_ever_more_seldom() -> None:
    delays: list[float] = []
    api = PlayedApi([], *([[]] for _ in range(6)))

    def seen(found: Followed[Namespace]) -> bool:
        if found.problem is not None:
            delays.append(found._backoff._next)
        return len(api.asked) >= 7

    found = play(api, seen)
    assert api.asked[0] == "list"
    assert max(delays) > 0.04
    assert found is not None


def test_it_says_when_a_watch_that_tells_nothing_ends_as_soon_as_it_has_begun() -> None:
    found = play(PlayedApi([], *([[]] for _ in range(1000))), lambda found: found.problem is not None)
    assert found.problem == "the API server ends the watch as soon as it has begun"


def test_it_is_well_as_soon_as_the_server_watches_again() -> None:
    problems: list[str | None] = []
    api = PlayedApi([], [AwayError("nobody is there")])

    def seen(found: Followed[Namespace]) -> bool:
        problems.append(found.problem)
        return found.problem is None and len(api.asked) == 3

    play(api, seen)
    assert "nobody is there" in problems


def test_watch_that_lasted_and_broke_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_module, "_SHORT_S", 0.05)
    problems: set[str | None] = set()
    api = PlayedApi([], [[], 0.2, AwayError("has been silent")])

    def seen(found: Followed[Namespace]) -> bool:
        problems.add(found.problem)
        return len(api.asked) == 3

    play(api, seen)
    assert problems == {None}
    assert api.asked == ["list", "10", "10"]


@pytest.mark.parametrize("reason", ["Expired", "ResourceVersionTooLarge"])
def test_version_that_the_server_does_not_have_makes_a_new_list(reason: str) -> None:
    api = PlayedApi([], [RefusedError(504, reason, "no such version")])
    play(api, lambda _found: len(api.asked) >= 4)
    assert api.asked[:4] == ["list", "10", "list", "10"]


def test_version_that_is_refused_again_and_again_is_given_up() -> None:
    """As client-go does: an API server may say "internal error" of a version for ever."""
    api = PlayedApi([], *([RefusedError(500, "InternalError", "PrevKv=nil")] for _ in range(3)))
    play(api, lambda _found: len(api.asked) >= 6)
    assert api.asked[:6] == ["list", "10", "10", "10", "list", "10"]


def test_version_is_kept_while_the_agent_may_not_watch() -> None:
    api = PlayedApi([], *([RefusedError(403, "Forbidden", "no")] for _ in range(5)))
    play(api, lambda _found: len(api.asked) >= 6)
    assert api.asked[:6] == ["list", *["10"] * 5]


def test_server_cannot_silence_it_for_long() -> None:
    api = PlayedApi([], [RefusedError(429, "TooManyRequests", "later", 1e9)])
    play(api, lambda _found: len(api.asked) >= 3)


def test_interval_grows_though_lists_go_well() -> None:
    backoffs: list[float] = []
    api = PlayedApi([], *([RefusedError(410, "Expired", "too old")] for _ in itertools.repeat(None, 5)))

    def seen(found: Followed[Namespace]) -> bool:
        backoffs.append(found._backoff._next)
        return len(api.asked) >= 12

    play(api, seen)
    assert max(backoffs) == 0.08


def gone() -> RefusedError:
    return RefusedError(410, "Expired", "the version is too old")


def test_version_that_is_too_old_after_the_server_was_away_is_listed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_module, "_LONGEST_S", 3600.0)
    api = PlayedApi([namespace("a")], *([AwayError("nobody is there")] for _ in range(4)), [gone()], [[], 3600.0])

    async def whole() -> Followed[Namespace]:
        fake: Any = api

        async def tell(_keys: set[Key]) -> None:
            pass

        found = Followed(fake, NAMESPACES, tell)
        found.restore([namespace("old")], "5")
        assert found.items == {("", "old"): namespace("old")}
        task = asyncio.create_task(found.run())
        await until(found.synced.is_set)
        await until(lambda: found.watching)
        assert found._backoff._next <= 0.04
        task.cancel()
        await asyncio.wait([task])
        return found

    found = asyncio.run(whole())
    assert api.asked == ["5"] * 5 + ["list", "10"]
    assert found.items == {("", "a"): namespace("a")}


def test_list_whose_version_is_refused_time_and_again_is_asked_for_ever_more_seldom() -> None:
    delays: list[float] = []
    api = PlayedApi([], *([gone()] for _ in range(8)))

    def seen(found: Followed[Namespace]) -> bool:
        delays.append(found._backoff._next)
        return len(api.asked) >= 12

    play(api, seen)
    assert max(delays) > 0.04


def test_list_that_takes_longer_than_its_version_lives_is_begun_ever_more_seldom() -> None:
    class SlowApi(PlayedApi):
        async def list_all(self, _resource: object, _selectors: Mapping[str, str]) -> Listing[Namespace]:
            self.asked.append("list")
            raise gone()

    delays: list[float] = []
    api = SlowApi([])

    def seen(found: Followed[Namespace]) -> bool:
        delays.append(found._backoff._next)
        return len(api.asked) >= 5

    play(api, seen)
    assert max(delays) > 0.04


def test_what_is_restored_is_followed_from_its_version() -> None:
    api = PlayedApi([], [[], [added("b", "11")], 3600.0])

    async def whole() -> None:
        fake: Any = api
        told: list[set[Key]] = []

        async def tell(keys: set[Key]) -> None:
            told.append(keys)

        found = Followed(fake, NAMESPACES, tell)
        items = found.items
        found.restore([namespace("a")], "10")
        assert items is found.items
        task = asyncio.create_task(found.run())
        await until(lambda: len(items) == 2)
        assert found.synced.is_set()
        assert told == [{("", "b")}]
        assert found.version == "11"
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(whole())
    assert api.asked == ["10"]
