"""Which ends of connections a chaos run excuses."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.ledger import LISTING_SECONDS, SERVER_GRACE, Ledger

NODES = {"10.77.1.10": "node1", "10.77.2.10": "node2", "fd77::1": "node3"}
CLIENT, SERVER = "10.77.1.10:40000", "10.77.2.10:8080"


def incident(number: int = 1, *, at: float, began: float, what: str = "cut", side: str = "client") -> dict[str, Any]:
    """Of a connection from node1 to node2."""
    return {
        "at": at,
        "began": began,
        "what": what,
        "side": side,
        "group": "steady",
        "connection": number,
        "local": CLIENT if side == "client" else SERVER,
        "remote": SERVER if side == "client" else CLIENT,
        "detail": "Connection reset by peer",
    }


@pytest.fixture
def ledger() -> Ledger:
    """A core of node1 was killed at 100."""
    ledger = Ledger(NODES)
    ledger.core_killed("node1", 100.0, None).until = 100.02
    return ledger


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_what_ran_through_a_killed_core_may_be_cut(node: str) -> None:
    ledger = Ledger(NODES)
    ledger.core_killed(node, 100.0, None)
    ledger.enter(incident(at=100.1, began=5.0))
    assert ledger.violations == []
    assert ledger.excused == {"cut": 1}


@pytest.mark.parametrize(
    ("at", "began"),
    [
        (99.9, 5.0),  # before the core was killed
        (100.1, 100.05),  # it began afterwards: it waits for the next core
    ],
)
def test_anything_else_may_not(ledger: Ledger, at: float, began: float) -> None:
    ledger.enter(incident(at=at, began=began))
    assert ledger.count("cut") == 1
    assert ledger.excused == {}


def test_core_of_another_node_is_no_excuse() -> None:
    ledger = Ledger(NODES)
    ledger.core_killed("node3", 100.0, None)
    ledger.enter(incident(at=100.1, began=5.0))
    assert ledger.count("cut") == 1


def test_connection_of_an_older_core_may_not_be_cut() -> None:
    ledger = Ledger(NODES)
    ledger.core_killed("node1", 100.0, frozenset({"10.77.1.10:40001"}))
    ledger.enter(incident(1, at=100.1, began=5.0))
    assert ledger.count("cut") == 1
    # Too young to have been listed.
    ledger.enter(incident(2, at=100.1, began=100.0 - LISTING_SECONDS))
    assert ledger.excused == {"cut": 1}


def test_connection_that_the_core_carried_may_be_cut() -> None:
    ledger = Ledger(NODES)
    ledger.core_killed("node1", 100.0, frozenset({CLIENT}))
    ledger.enter(incident(1, at=100.1, began=5.0))
    assert ledger.violations == []


def test_server_may_see_it_begin_later(ledger: Ledger) -> None:
    ledger.enter(incident(at=103.0, began=100.0 + SERVER_GRACE, side="server"))
    assert ledger.violations == []


def test_core_may_take_connections_until_it_has_ended(ledger: Ledger) -> None:
    ledger.enter(incident(1, at=100.03, began=100.015))
    assert ledger.violations == []


def test_connection_counts_once(ledger: Ledger) -> None:
    ledger.enter(incident(at=100.1, began=5.0))
    ledger.enter(incident(at=100.2, began=5.1, side="server"))
    assert ledger.excused == {"cut": 1}
    ledger.enter(incident(2, at=50.0, began=5.0))
    ledger.enter(incident(2, at=50.1, began=5.0, side="server"))
    assert ledger.count("cut") == 1


def test_end_without_an_excuse_counts_whatever_the_other_says(ledger: Ledger) -> None:
    ledger.enter(incident(at=100.1, began=5.0, side="server"))
    ledger.enter(incident(at=99.0, began=5.0))
    assert ledger.count("cut") == 1


def test_while_nothing_runs_new_connections_may_fail() -> None:
    ledger = Ledger(NODES)
    ledger.nothing_runs("node2", 100.0)
    assert ledger.down() == {"node2"}
    ledger.enter(incident(1, at=130.0, began=120.0, what="failed"))
    ledger.runs_again("node2", 140.0)
    assert ledger.down() == set()
    ledger.enter(incident(2, at=150.0, began=139.0, what="failed"))
    assert ledger.violations == []
    ledger.enter(incident(3, at=150.0, began=141.0, what="failed"))
    assert ledger.count("failed") == 1
    assert ledger.excused == {"failed": 2}


def test_what_is_lost_or_repeated_has_no_excuse(ledger: Ledger) -> None:
    ledger.enter(incident(at=100.1, began=5.0, what="wrong"))
    assert ledger.count("wrong") == 1


def test_first_violation_is_the_earliest(ledger: Ledger) -> None:
    ledger.add(50.0, "plaintext", "one")
    ledger.add(20.0, "cut", "two")
    first = ledger.first()
    assert first is not None
    assert first.detail == "two"
    assert Ledger({}).first() is None
