"""What the differential suite takes for a difference, and what it says of one."""

from __future__ import annotations

import errno

import pytest

from differential import table
from differential.case import Case, Notice, judge
from differential.observation import Observation, Seconds, compare, named, outcome
from differential.setting import INWARD, MESH, Setting


def test_the_page_is_not_stale() -> None:
    assert table.text() == table.PAGE.read_text(), "make reference"


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [(0.0, 0.3, True), (0.0, 0.31, False), (3.0, 1.0, True), (1.0, 3.1, False), (60.0, 127.0, True)],
)
def test_times_are_near_by_a_slack_or_a_multiple(one: float, other: float, *, near: bool) -> None:
    assert Seconds(one).near(other) is near
    assert Seconds(other).near(one) is near


def test_a_key_that_one_has_not_seen_differs() -> None:
    (difference,) = compare({"a": 1}, {"a": 1, "b": 2})
    assert str(difference) == "b: with nodeseal 'nothing of the kind', without 2"
    (difference,) = compare({"a": 1, "b": 2}, {"a": 1})
    assert str(difference) == "b: with nodeseal 2, without 'nothing of the kind'"


def test_outcomes_are_named_as_applications_see_them() -> None:
    def fail(error: OSError) -> None:
        raise error

    assert outcome(lambda: None) == "ok"
    assert outcome(lambda: fail(OSError(errno.EHOSTUNREACH, ""))) == "EHOSTUNREACH"
    assert outcome(lambda: fail(TimeoutError(errno.ETIMEDOUT, ""))) == "ETIMEDOUT"
    assert outcome(lambda: fail(TimeoutError("timed out"))) == "timed out"
    assert named(0) == "ok"


SEEN: Observation = {"connect()": "ok", "time": Seconds(0.0)}
OTHER: Observation = {"connect()": "ECONNREFUSED", "time": Seconds(3.0)}


def judged(enrolled: Observation, plain: Observation, *wanted: str) -> tuple[str, bool]:
    return judge(compare(enrolled, plain), wanted, enrolled, plain)


def test_what_does_not_differ_is_well() -> None:
    assert judged(SEEN, SEEN) == ("", True)


def test_a_difference_is_told_in_words_with_both_values() -> None:
    complaint, chance = judged(SEEN, OTHER)
    assert "differs: connect(): with nodeseal 'ok', without 'ECONNREFUSED'" in complaint
    assert "differs: time: with nodeseal 0.000 s, without 3.000 s" in complaint
    assert not chance


def test_only_times_differ_by_chance() -> None:
    complaint, chance = judged(SEEN | {"time": Seconds(9.0)}, SEEN)
    assert complaint
    assert chance


def test_a_difference_that_is_noticed_is_well() -> None:
    assert judged(SEEN, OTHER, "connect()", "time")[0] == ""


def test_a_notice_of_what_is_gone_fails() -> None:
    complaint, chance = judged(SEEN, SEEN, "connect()")
    assert "does not differ any more: connect() is 'ok' in both labs" in complaint
    assert not chance


def test_a_notice_is_of_the_relations_and_families_that_it_names() -> None:
    notice = Notice("time", "late", "why", where=(MESH,), versions=(4,))
    assert [notice.holds(Setting(one, version)) for one in (MESH, INWARD) for version in (4, 6)] == [True, *[False] * 3]


def test_a_case_runs_again_while_only_times_differ() -> None:
    runs = iter([(SEEN, SEEN | {"time": Seconds(9.0)}), (SEEN, SEEN)])
    case = Case(lambda _world: {}, (Setting(MESH, 4),))
    case.check(lambda _function, _setting: next(runs), Setting(MESH, 4))
    assert next(runs, None) is None
    with pytest.raises(pytest.fail.Exception):
        case.check(lambda _function, _setting: (SEEN, OTHER), Setting(MESH, 4))
