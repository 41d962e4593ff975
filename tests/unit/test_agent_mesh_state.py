"""The mesh state is followed again after whatever ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from nodeseal.mesh.model import Mesh
from nodeseal.node import mesh_state as module
from nodeseal.node.mesh_state import MeshState
from support.agent_fakes import TRUST_DOMAIN, mesh


class FailingSource:
    """Gives a state, and fails."""

    def __init__(self, *, gives: bool) -> None:
        self._gives = gives

    async def changes(self) -> AsyncIterator[Mesh]:
        if self._gives:
            yield mesh()
        raise RuntimeError("slipped")

    def describe(self) -> str:
        return "a source"


def pauses(monkeypatch: pytest.MonkeyPatch, source: FailingSource) -> list[float]:
    """Of the first eight times."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        if len(found) == 8:
            raise asyncio.CancelledError

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    state = MeshState(cast("Any", source), "node1", TRUST_DOMAIN, "an issuer")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(state.follow(nothing, nothing))
    return found


def test_source_that_fails_at_once_is_asked_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses(monkeypatch, FailingSource(gives=False))[-1] > 40


def test_one_failure_now_and_then_does_not_make_the_next_pause_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(pauses(monkeypatch, FailingSource(gives=True))) < 2
