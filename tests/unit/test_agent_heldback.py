"""When packets were last kept from leaving in plaintext, told by their count."""

from __future__ import annotations

from nodeseal.contracts.status import HeldPackets
from nodeseal.node.held_back import HeldBack


def test_the_time_counts_from_when_the_count_grew() -> None:
    now = [100.0]
    held = HeldBack(lambda: now[0])
    assert held.shown(0) == HeldPackets(packets=0, last_seconds=None)
    assert held.shown(3) == HeldPackets(packets=3, last_seconds=0.0)
    now[0] = 130.0
    assert held.shown(3) == HeldPackets(packets=3, last_seconds=30.0)
    assert held.shown(4) == HeldPackets(packets=4, last_seconds=0.0)
