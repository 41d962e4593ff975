"""A pod that arrives before the cluster is known to the agent: it is not taken for one that nobody wants."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.objects import Meta, Namespace, Pod
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.arrival import Arrival
from nodeseal.sources.kubernetes.following import Following, Settings


def test_pods_that_are_listed_before_their_namespaces_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = False
    monkeypatch.setattr(Following, "is_known", property(lambda _self: known))

    async def story() -> None:
        nonlocal known
        settings = Settings("cluster.local", "nodeseal-system", "node1", tmp_path, None)
        following = Following(cast("Api", object()), settings)
        pods, namespaces = cast("Any", following.pods.pods), cast("Any", following.pods.namespaces)
        pods["shop", "web"] = Pod(Meta(name="web", namespace="shop", uid="u1"))
        arrival = Arrival(WorkloadName("shop", "web"), "u1", "sandbox", "/run/netns/web")
        waiting = asyncio.create_task(following.expect(arrival))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        namespaces["", "shop"] = Namespace(Meta(name="shop", labels={"nodeseal.io/enrol": "true"}))
        known = True
        assert await waiting == arrival.name

    asyncio.run(story())


def test_pod_whose_namespace_has_not_been_told_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Following, "is_known", property(lambda _self: True))

    async def story() -> None:
        settings = Settings("cluster.local", "nodeseal-system", "node1", tmp_path, None)
        following = Following(cast("Api", object()), settings)
        pods, namespaces = cast("Any", following.pods.pods), cast("Any", following.pods.namespaces)
        arrival = Arrival(WorkloadName("shop", "web"), "u1", "sandbox", "/run/netns/web")
        waiting = asyncio.create_task(following.expect(arrival))
        await asyncio.sleep(0)
        pods["shop", "web"] = Pod(Meta(name="web", namespace="shop", uid="u1"))
        following._pods_changed({("shop", "web")})
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        namespaces["", "shop"] = Namespace(Meta(name="shop", labels={"nodeseal.io/enrol": "true"}))
        following._namespaces_changed({("", "shop")})
        assert await waiting == arrival.name

    asyncio.run(story())
