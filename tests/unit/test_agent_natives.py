"""Native connections: why they are in plaintext, and which are ended when the mesh state changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from nodeseal.capture import constants
from nodeseal.capture.natives import Native, Owner
from nodeseal.mesh.model import Mesh, Mode, Phase
from nodeseal.node import natives
from nodeseal.node.natives import NativeConnections
from support.agent_fakes import FakeCapture, mesh, status_of, until, workload

HERE = workload("a", None, phase=Phase.ENROLLED)
STRICT = replace(HERE, mode=Mode.STRICT)
PEER = workload("b", None, node="node2", phase=Phase.ENROLLED)
ABSENT = PEER.in_phase(Phase.ABSENT)
OWN, FAR, STRANGER = HERE.addresses[0], PEER.addresses[0], IPv4Address("192.0.2.7")


def native(
    far: Any = STRANGER, *, inbound: bool = True, reason: int = constants.NATIVE_DECIDED, cookie: int = 1
) -> Native:
    ends = ((far, 40000), (OWN, 80)) if inbound else ((OWN, 40000), (far, 80))
    return Native(cookie, Owner(1), inbound, reason, *ends, 0)


@pytest.mark.parametrize(
    ("state", "connection", "word"),
    [
        (mesh(HERE), native(), "source-not-in-mesh"),
        (mesh(HERE, ABSENT), native(FAR), "source-not-enrolled"),
        (mesh(HERE, PEER), native(FAR), "opened-before-enrolment"),
        (mesh(HERE), native(inbound=False), "destination-not-in-mesh"),
        (mesh(HERE, ABSENT), native(FAR, inbound=False), "destination-not-enrolled"),
        (mesh(HERE, PEER), native(FAR, inbound=False), "opened-before-enrolment"),
        (mesh(STRICT), native(), None),
        (mesh(HERE), native(reason=constants.NATIVE_EXCLUDED_PORT), "excluded-port"),
        (mesh(HERE), native(reason=constants.NATIVE_EXCLUDED_RANGE), "excluded-range"),
        (mesh(HERE), native(reason=constants.NATIVE_NODE), "from-node"),
        (mesh(HERE), native(reason=constants.NATIVE_OPEN), "open-on-failure"),
        (mesh(HERE), native(inbound=False, reason=constants.NATIVE_OUTSIDE), "outside-mesh"),
        (mesh(HERE), native(inbound=False, reason=constants.NATIVE_MARK), "application-mark"),
        (None, native(), None),
        (mesh(HERE), native(reason=99), None),
    ],
)
def test_why_it_is_in_plaintext(state: Mesh | None, connection: Native, word: str | None) -> None:
    assert natives.why(state, HERE.key, connection) == word


@pytest.mark.parametrize(
    ("state", "connection", "word"),
    [
        (mesh(STRICT), native(), "strict"),
        (mesh(STRICT, PEER), native(FAR), "strict"),
        (mesh(HERE, PEER), native(FAR), None),
        (mesh(HERE, PEER), native(FAR, inbound=False), None),
        (mesh(STRICT), native(inbound=False), None),
        (mesh(STRICT), native(reason=constants.NATIVE_EXCLUDED_PORT), None),
        (mesh(STRICT), native(reason=constants.NATIVE_NODE), None),
        (mesh(), native(), None),
        (None, native(), None),
    ],
)
def test_what_is_to_be_ended(state: Mesh | None, connection: Native, word: str | None) -> None:
    """A peer's enrolment ends nothing, nor does what merely leads nowhere."""
    assert natives.refusal(state, HERE.key, connection) == word


class Kept:
    """The native connections of one workload that is in place."""

    def __init__(self, *connections: Native) -> None:
        self.capture = FakeCapture()
        self.capture.native = {str(HERE.key): {one.cookie: one for one in connections}}
        captured = status_of(target=status_of(name=str(HERE.key)))
        self.mesh = mesh(HERE)
        self.now = 100.0
        self.connections = NativeConnections(
            self.capture,  # type: ignore[arg-type]
            {HERE.key: status_of(installed=status_of(captured=captured))},
            lambda: self.mesh,
            clock=lambda: self.now,
        )

    @property
    def ended(self) -> int:
        return self.capture.log.count(f"capture.end_native {HERE.key}")


def test_change_ends_what_is_refused_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natives, "_AGAIN_S", [number / 20 for number in range(600)])
    kept = Kept(native(), native(inbound=False, cookie=2), native(cookie=3))

    async def story() -> None:
        kept.connections.look_again()
        kept.mesh = mesh(STRICT)
        kept.connections.look_again()
        await until(lambda: kept.ended == 2, "two are ended")
        # Allowed just before, and established only now.
        kept.capture.native[str(HERE.key)][4] = native(cookie=4)
        await until(lambda: kept.ended == 3, "one more is ended")
        kept.connections.stop()

    asyncio.run(story())
    assert set(kept.capture.native[str(HERE.key)]) == {2}
    kept.now += 2
    (told,) = kept.connections.refusals()
    assert (told.kind, told.direction, told.reason, told.count) == ("plaintext", "inbound", "strict", 3)
    assert (told.source, told.last_ms) == (str(STRANGER), 2000)
    rows = asyncio.run(kept.connections.rows())
    assert (rows[str(HERE.key)].open, rows[str(HERE.key)].ended) == (1, 3)
    kept.now += 86400
    assert kept.connections.refusals() == []


def test_the_same_state_again_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natives, "_AGAIN_S", (0.0,))
    kept = Kept(native())
    kept.mesh = mesh(STRICT)

    async def story() -> None:
        kept.connections.look_again()
        await until(lambda: kept.ended == 1, "it is ended")
        kept.capture.native[str(HERE.key)][5] = native(cookie=5)
        kept.connections.look_again()
        await asyncio.sleep(0.05)
        assert kept.ended == 1

    asyncio.run(story())


def test_refusals_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natives, "_REFUSALS_KEPT", 3)
    kept = Kept(*(native(STRANGER + number, cookie=number) for number in range(10)))
    kept.mesh = mesh(STRICT)
    asyncio.run(kept.connections.check())
    assert kept.ended == 10
    assert len(kept.connections.refusals()) == 3
