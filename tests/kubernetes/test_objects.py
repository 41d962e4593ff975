"""Single objects of a real API server: made, read, changed in each way, and taken away."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec import field

from nodeseal.kubernetes.api import Api, RefusedError
from nodeseal.kubernetes.objects import Key, KubernetesObject, Resource
from support.api_server import ApiServer


class ConfigMap(KubernetesObject, frozen=True):
    data: dict[str, str] = field(default_factory=dict)


MAPS = Resource("", "v1", "configmaps", ConfigMap)
NEVER_MADE = Resource("nodeseal.test", "v1", "nothings", ConfigMap)

_numbers = itertools.count()


@pytest.fixture
def key() -> Key:
    """Of an object that only one test has."""
    return "default", f"map-{next(_numbers)}"


def a_map(key: Key, **data: str) -> dict[str, Any]:
    metadata = {"namespace": key[0], "name": key[1]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def data_of(api: Api, key: Key) -> dict[str, str] | None:
    found = await api.get(MAPS, key)
    return found.data if found is not None else None


def test_object_is_made_once(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        assert await api.get(MAPS, key) is None
        await api.create(MAPS, "default", a_map(key, a="1"))
        assert await data_of(api, key) == {"a": "1"}
        with pytest.raises(RefusedError) as raised:
            await api.create(MAPS, "default", a_map(key))
        assert raised.value.exists

    server.play(story)


def test_applied_fields_come_and_go_and_those_of_others_stay(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        await api.apply(MAPS, key, a_map(key, a="1", b="1"), manager="one")
        await api.apply(MAPS, key, a_map(key, c="2"), manager="two")
        await api.apply(MAPS, key, a_map(key, a="3"), manager="one")
        assert await data_of(api, key) == {"a": "3", "c": "2"}

    server.play(story)


def test_replacing_what_somebody_changed_is_a_conflict(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        await api.create(MAPS, "default", a_map(key, a="1"))
        stale = a_map(key, a="2")
        stale["metadata"]["resourceVersion"] = "1"
        with pytest.raises(RefusedError) as raised:
            await api.replace(MAPS, key, stale)
        assert raised.value.conflict
        await api.replace(MAPS, key, a_map(key, b="2"))
        assert await data_of(api, key) == {"b": "2"}

    server.play(story)


def test_merge_takes_a_field_away(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        await api.create(MAPS, "default", a_map(key, a="1", b="1"))
        await api.merge(MAPS, key, {"data": {"a": None}})
        assert await data_of(api, key) == {"b": "1"}

    server.play(story)


def test_object_is_taken_away_once(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        await api.create(MAPS, "default", a_map(key))
        assert await api.delete(MAPS, key)
        assert not await api.delete(MAPS, key)
        assert await api.get(MAPS, key) is None

    server.play(story)


def test_kind_that_the_server_does_not_have_is_no_missing_object(server: ApiServer, key: Key) -> None:
    async def story(api: Api) -> None:
        for asked in (api.get(NEVER_MADE, key), api.delete(NEVER_MADE, key)):
            with pytest.raises(RefusedError, match=r"no nothings\.nodeseal\.test of version v1: install or upgrade"):
                await asked

    server.play(story)


def test_names_do_not_lead_elsewhere(server: ApiServer) -> None:
    async def story(api: Api) -> None:
        assert await api.get(MAPS, ("default", "../configmaps/kube-root-ca.crt")) is None
        assert await api.get(MAPS, ("default", "kube-root-ca.crt?x=")) is None

    server.play(story)
