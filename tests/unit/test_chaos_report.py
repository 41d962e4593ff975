"""What a chaos run says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from chaos.report import LAST_EVENTS, Finding, Logged, Report, to_json, to_text


@pytest.fixture
def report() -> Report:
    """Of a run that found nothing."""
    return Report(
        seed=7,
        seconds=600.0,
        events={"agent-kill": 12, "core-upgrade": 9},
        opened=5416,
        closed=1552,
        long_lived=1000,
        messages=232_790,
        bytes=98_800_000,
        slowest_ms=2210,
        excused_cut=3864,
        excused_failed=2,
        frames=592_978,
        frames_lost=2112,
        open_frames=122_702,
        rounds=100,
        generations=20,
        history=[Logged(float(at), f"event {at}") for at in range(20)],
    )


@pytest.fixture
def broken(report: Report) -> Report:
    """Of one that found something of each kind."""
    whats = ("cut", "failed", "wrong", "stuck", "plaintext", "watch", "leak", "event")
    report.findings = [Finding(12.5 + number, what, f"{what} here") for number, what in enumerate(whats)]
    return report


def test_report_that_passed(report: Report, golden: Callable[[str, str], None]) -> None:
    assert report.passed
    golden("chaos_passed.txt", to_text(report) + "\n")


def test_report_that_failed(broken: Report, golden: Callable[[str, str], None]) -> None:
    assert not broken.passed
    golden("chaos_failed.txt", to_text(broken) + "\n")


def test_report_of_a_run_that_was_not_made_to_its_end(report: Report) -> None:
    report.complete = False
    assert not report.passed
    assert "not made to its end" in to_text(report)


def test_json_has_the_numbers_and_the_first_finding(broken: Report) -> None:
    value = json.loads(json.dumps(to_json(broken)))
    assert value["passed"] is False
    assert value["counts"]["cut outside core crashes"] == 2
    assert value["counts"]["plaintext sightings"] == 1
    assert value["first"]["what"] == "cut"
    assert [event["text"] for event in value["first"]["events"]][-1] == "event 12"
    assert "history" not in value


def test_events_after_a_finding_are_not_before_it(broken: Report) -> None:
    before = broken.before(broken.findings[0])
    assert [logged.at for logged in before] == list(range(13 - LAST_EVENTS, 13))


def test_many_findings_are_not_all_shown(report: Report) -> None:
    report.findings = [Finding(1.0, "cut", f"number {number}") for number in range(50)]
    text = to_text(report)
    assert "... and 40 more" in text
    assert "number 49" not in text


@pytest.mark.parametrize("what", ["cut", "failed", "wrong", "stuck", "plaintext", "watch", "leak", "event"])
def test_any_finding_fails_the_run_and_is_counted(report: Report, what: str) -> None:
    report.findings = [Finding(1.0, what, "here")]
    assert not report.passed
    assert sum(to_json(report)["counts"].values()) == 1
