"""The demo's report and its comparison of the host: what is printed, and what counts as left behind."""

from __future__ import annotations

import io
import os
import signal

import pytest

from nodeseal_lab.demo.host_state import HostState
from nodeseal_lab.demo.report import WIDTH, CheckFailed, Report
from nodeseal_lab.interruption import signals_interrupt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_of(out: io.StringIO) -> Report:
    report = Report(out=out)
    report.say("The demo")
    report.step("a", "First")
    report.did("Something is done. " * 10)
    report.proved("It holds. " * 20)
    report.failed(CheckFailed("a check " * 20, expected="this " * 40, seen="that " * 40))
    return report


def test_report_fits_100_columns() -> None:
    out = io.StringIO()
    report_of(out)
    assert max(len(line) for line in out.getvalue().splitlines()) <= WIDTH


def test_report_is_plain_text_when_piped() -> None:
    out = io.StringIO()
    report_of(out)
    assert "\x1b" not in out.getvalue()


def test_report_has_colour_on_a_terminal() -> None:
    out = Terminal()
    report_of(out)
    assert "\x1b[32mok\x1b[0m" in out.getvalue()


def test_quiet_report_prints_nothing_and_keeps_the_checks() -> None:
    out = io.StringIO()
    report = Report(out=out, quiet=True)
    report.step("a", "First")
    report.proved("it holds")
    assert out.getvalue() == ""
    assert report.rows()[0].checks == ["it holds"]


def test_failure_says_what_was_expected_and_seen() -> None:
    out = io.StringIO()
    report = Report(out=out)
    report.step("c", "Enrolment")
    with pytest.raises(CheckFailed) as failure:
        report.check("no card number on the wire", False, expected="0 packets", seen="2")
    report.failed(failure.value)
    lines = out.getvalue().splitlines()
    assert lines[-4:] == [
        "FAILED in (c) Enrolment",
        "    check:    no card number on the wire",
        "    expected: 0 packets",
        "    seen:     2",
    ]


def test_check_that_holds_says_nothing() -> None:
    out = io.StringIO()
    Report(out=out).check("fine", True, expected=1, seen=1)
    assert out.getvalue() == ""


def test_unchanged_host_has_no_changes() -> None:
    state = HostState({"routes": frozenset({"default via 10.0.0.1"})})
    assert state.changes(HostState({"routes": frozenset({"default via 10.0.0.1"})})) == []


def test_changes_name_what_came_and_what_went() -> None:
    before = HostState({"routes": frozenset({"a", "b"})})
    after = HostState({"routes": frozenset({"b", "c"}), "mounts": frozenset({"m"})})
    assert before.changes(after) == ["mounts: + m", "routes: - a", "routes: + c"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_interrupts(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(number)


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_interrupt():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_in_a_forked_child_ends_the_child_without_unwinding() -> None:
    with signals_interrupt():
        pid = os.fork()
        if pid == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
