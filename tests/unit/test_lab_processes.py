"""Records of processes, and ending just those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nodeseal_lab.processes import MARKER, ProcessRecord, ProcessTable, find_by_marker, start_time

READ_FOREVER = "import sys; print('ready', flush=True); sys.stdin.read()"
IGNORES_SIGTERM = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); sys.stdin.read()"
)


@contextmanager
def process(code: str = READ_FOREVER, marker: str | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = dict(os.environ) | ({MARKER: marker} if marker else {})
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def test_record_is_on_disk_before_the_process_runs(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path / "processes")
    record = table.new_record("app siem", ["siem"])
    assert list(table.records()) == [record]
    assert record.pid is None


def test_no_directory_means_no_records(tmp_path: Path) -> None:
    assert list(ProcessTable(tmp_path / "processes").records()) == []


def test_unreadable_record_is_left_out(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    record = table.new_record("app siem", ["siem"])
    (tmp_path / "broken.json").write_text('{"id": ')
    (tmp_path / "other.json").write_text(json.dumps(["no", "record"]))
    assert list(table.records()) == [record]


def test_ending_takes_process_and_record_away(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    with process() as child:
        record = table.running_as(table.new_record("app siem", ["siem"]), child.pid)
        assert record.alive
        assert table.end([record]) == []
        assert not record.alive
    assert list(table.records()) == []


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeseal_lab.processes.GRACE_SECONDS", 0.2)
    table = ProcessTable(tmp_path)
    with process(IGNORES_SIGTERM) as child:
        record = table.running_as(table.new_record("app siem", ["siem"]), child.pid)
        assert table.end([record]) == []
        assert not record.alive


def test_other_process_with_the_same_pid_is_spared(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    with process() as child:
        record = table.running_as(table.new_record("app siem", ["siem"]), child.pid)
        assert record.start is not None
        stale = replace(record, start=record.start - 1)
        assert table.end([stale]) == []
        assert child.poll() is None
    assert list(table.records()) == []


def test_record_without_pid_finds_its_process_by_the_marker(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    record = table.new_record("app siem", ["siem"])
    with process(marker=record.id) as child:
        assert find_by_marker(record.id) == [child.pid]
        assert table.end([record]) == []
        assert start_time(child.pid) is None
    assert list(table.records()) == []


def test_record_of_a_process_that_never_started_just_goes(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    record = table.new_record("app siem", ["siem"])
    assert table.end([record]) == []
    assert list(table.records()) == []


def test_forget_ended_keeps_those_that_run(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    with process() as child:
        running = table.running_as(table.new_record("exec shipper", ["sh"]), child.pid)
        ended = ProcessRecord("ended", "exec shipper", ("sh",), child.pid, (running.start or 0) + 1)
        (tmp_path / "ended.json").write_text(
            json.dumps({"id": "ended", "role": ended.role, "argv": ["sh"], "pid": ended.pid, "start": ended.start})
        )
        table.forget_ended()
        assert list(table.records()) == [running]


def test_zombie_counts_as_ended() -> None:
    with process() as child:
        pid = child.pid
        child.kill()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert start_time(pid) is None


def test_own_start_time_is_known() -> None:
    assert start_time(os.getpid()) is not None
