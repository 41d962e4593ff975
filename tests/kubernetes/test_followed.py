"""Objects of a real API server, listed and followed: pages, bookmarks, a server that is away, a version that is
forgotten, and rights that are missing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nodeseal.kubernetes import api as api_module
from nodeseal.kubernetes.api import Api, Change, ChangeType, RefusedError
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import NAMESPACES, PODS, Key, Namespace
from support.agent_fakes import until
from support.api_server import ApiServer

_numbers = itertools.count()


@pytest.fixture
def label() -> str:
    """Of the namespaces of one test."""
    return f"test{next(_numbers)}"


def make(server: ApiServer, name: str, label: str, **labels: str) -> None:
    body = {"metadata": {"name": name, "labels": {"test": label, **labels}}}
    server.ask("POST", "/api/v1/namespaces", body)


def relabel(server: ApiServer, name: str, **labels: str | None) -> None:
    body = {"metadata": {"labels": labels}}
    server.ask("PATCH", f"/api/v1/namespaces/{name}", body, "application/merge-patch+json")


class Watcher:
    """Namespaces with a label, followed; what was told of them."""

    def __init__(self, api: Api, label: str) -> None:
        self.told: list[set[Key]] = []
        self.followed: Followed[Namespace] = Followed(
            api, NAMESPACES, self._changed, {"labelSelector": f"test={label}"}
        )

    async def _changed(self, keys: set[Key]) -> None:
        self.told.append(keys)

    def labels(self, name: str) -> dict[str, str] | None:
        found = self.followed.items.get(("", name))
        return None if found is None else found.metadata.labels


def following(server: ApiServer, label: str, story: Callable[[Watcher], Awaitable[None]]) -> None:
    async def whole(api: Api) -> None:
        watcher = Watcher(api, label)
        task = asyncio.create_task(watcher.followed.run())
        await until(watcher.followed.synced.is_set, "the first list")
        await story(watcher)
        task.cancel()

    server.play(whole)


def test_list_comes_in_pages(server: ApiServer, label: str) -> None:
    names = {f"{label}-{number}" for number in range(7)}
    for name in sorted(names):
        make(server, name, label)

    async def story(api: Api) -> None:
        for page in (1, 3, 7, 500):
            listing = await api.list_all(NAMESPACES, {"labelSelector": f"test={label}"}, page)
            assert sorted(item.metadata.name for item in listing.items) == sorted(names)
            assert listing.version
            assert not listing.unread

    server.play(story)


def test_changes_come_as_they_happen(server: ApiServer, label: str) -> None:
    make(server, f"{label}-a", label)

    async def story(watcher: Watcher) -> None:
        assert watcher.told == [{("", f"{label}-a")}]
        await asyncio.to_thread(make, server, f"{label}-b", label)
        await until(lambda: watcher.labels(f"{label}-b") is not None, "the new one")
        await asyncio.to_thread(relabel, server, f"{label}-b", enrol="true")
        await until(lambda: (watcher.labels(f"{label}-b") or {}).get("enrol") == "true", "its label")
        await asyncio.to_thread(relabel, server, f"{label}-a", test=None)
        await until(lambda: watcher.labels(f"{label}-a") is None, "the one that is not selected any more")
        assert watcher.followed.problem is None

    following(server, label, story)


def test_what_does_not_concern_the_agent_is_no_change(server: ApiServer, label: str) -> None:
    make(server, f"{label}-a", label)

    async def story(watcher: Watcher) -> None:
        before = len(watcher.told)
        finalizers = {"metadata": {"finalizers": ["nodeseal.test/none"]}}
        path = f"/api/v1/namespaces/{label}-a"
        await asyncio.to_thread(server.ask, "PATCH", path, finalizers, "application/merge-patch+json")
        await asyncio.to_thread(make, server, f"{label}-b", label)
        await until(lambda: watcher.labels(f"{label}-b") is not None, "the next one")
        assert watcher.told[before:] == [{("", f"{label}-b")}]

    following(server, label, story)


def test_server_that_was_away_is_followed_from_where_it_stopped(server: ApiServer, label: str) -> None:
    make(server, f"{label}-a", label)

    async def story(watcher: Watcher) -> None:
        await asyncio.to_thread(server.stop)
        await until(lambda: watcher.followed.problem is not None, "the problem is told")
        assert watcher.labels(f"{label}-a") is not None
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(make, server, f"{label}-b", label)
        await until(lambda: watcher.labels(f"{label}-b") is not None, "what has changed since")
        assert watcher.followed.problem is None
        assert watcher.told == [{("", f"{label}-a")}, {("", f"{label}-b")}]

    following(server, label, story)


def test_forgotten_version_makes_a_new_list(server: ApiServer, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(server, f"{label}-a", label)
    make(server, f"{label}-b", label)
    lists = []
    list_all = api_module.Api.list_all

    async def counting(self: Api, *arguments: Any) -> Any:
        lists.append(arguments)
        return await list_all(self, *arguments)

    monkeypatch.setattr(api_module.Api, "list_all", counting)

    async def story(watcher: Watcher) -> None:
        await asyncio.to_thread(server.stop)
        await until(lambda: watcher.followed.problem is not None, "the server is away")
        watcher.followed._version = "1"  # compacted, or before what the server's cache begins with
        await asyncio.to_thread(server.compact)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.ask, "DELETE", f"/api/v1/namespaces/{label}-b")
        await asyncio.to_thread(server.ask, "PUT", f"/api/v1/namespaces/{label}-b/finalize", _finalized(f"{label}-b"))
        await until(lambda: watcher.labels(f"{label}-b") is None, "the new list lacks what is gone")
        assert len(lists) == 2
        assert watcher.labels(f"{label}-a") is not None

    following(server, label, story)


def _finalized(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"finalizers": []}}


def test_quiet_watch_gets_bookmarks(server: ApiServer, label: str) -> None:
    """One a minute, and one right before the end."""
    make(server, label, label)

    async def story(api: Api) -> None:
        listing = await api.list_all(NAMESPACES, {"labelSelector": f"test={label}"})
        changes: list[Change[Namespace]] = []
        await asyncio.to_thread(make, server, f"{label}-other", "another")
        async for some in api.watch(NAMESPACES, listing.version, {"labelSelector": f"test={label}"}, seconds=20):
            changes += some
        assert {change.type for change in changes} == {ChangeType.BOOKMARK}
        assert all(change.version for change in changes)

    server.play(story)


def test_right_that_is_missing_is_named(server: ApiServer) -> None:
    server.add_user("nobody", "nobody-of-the-test")

    async def story(api: Api) -> None:
        with pytest.raises(RefusedError) as refused:
            await api.list_all(PODS, {})
        assert refused.value.code == 403
        assert str(refused.value).startswith(
            "the agent may not list pods: give its service account the verb list on pods (pods is forbidden: "
        )

    server.play(story, "nobody-of-the-test")


def test_token_that_the_server_does_not_take_is_told(server: ApiServer) -> None:
    async def story(api: Api) -> None:
        with pytest.raises(RefusedError, match=r"^the API server does not take the agent's token \(Unauthorized\)$"):
            await api.list_all(PODS, {})

    server.play(story, "another")
