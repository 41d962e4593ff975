"""What a command shows while it waits: a line on a terminal, and nothing elsewhere."""

from __future__ import annotations

import io
import threading

import pytest

from nodeseal.cli import progress


class Terminal(io.StringIO):
    """Standard error that is a terminal; `told` once something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        self.told.set()
        return written


def test_what_takes_long_is_shown_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.01)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.waiting("trying what this machine has"):
        assert terminal.told.wait(20)
    text = terminal.getvalue()
    assert text.startswith("\r\x1b[Ktrying what this machine has, 0 s")
    assert text.endswith("\r\x1b[K")


def test_what_is_quick_leaves_the_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 3600.0)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.waiting("waiting"):
        pass
    assert terminal.getvalue() == ""


def test_a_failure_ends_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.01)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())

    def fails() -> None:
        with progress.waiting("waiting"):
            assert terminal.told.wait(20)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fails()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    monkeypatch.setattr("sys.stderr", output := io.StringIO())
    before = threading.active_count()
    with progress.waiting("waiting"):
        assert threading.active_count() == before
    assert output.getvalue() == ""
