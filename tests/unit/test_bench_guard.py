"""The guard against performance regressions: what callgrind wrote, what changed, and the program that is counted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from bench.build import TRAFFIC, build_traffic
from bench.callgrind import Profile, count_instructions, missing_features, parse_profile
from bench.counts import (
    Change,
    Counts,
    Record,
    changes,
    differences,
    not_recorded,
    number,
    per_unit,
    read_record,
    table,
    write_record,
)
from bench.errors import BenchError
from bench.guard import LOADS, RECORD, Load, counts_of, failure_line, judge, judge_listener

PROFILE = """\
# callgrind format
version: 1
cmd:  ./traffic requests_1 1000
positions: line
events: Ir
summary: 0


ob=/somewhere/build/guard/traffic
fl=/somewhere/cext/src/flow/relay.c
fn=flow_relay
10 100
fi=/somewhere/cext/src/base/link.h
20 7
fe=/somewhere/cext/src/flow/relay.c
11 3
cob=/usr/lib/libc.so.6
cfi=./malloc/malloc.c
cfn=malloc
calls=2 0
12 5000
13 1

fl=bench/instructions/kernel.c
fn=__wrap_recv
30 9

ob=/usr/lib/libc.so.6
fl=./malloc/malloc.c
fn=malloc
0 5000

ob=/usr/lib/libcrypto.so.3
fl=???
fn=0x0000000000243440
0 40
ob=/usr/lib/libnghttp2.so.14.24.1
fn=nghttp2_session_mem_recv
0 20
ob=???
fn=0x1
0 8

totals: 5188
"""

COUNTS = Counts("request", 1000, 100, 600, 200, 80, 20, 4.0, {"recv": 8.0, "send": 4.0})


def test_instructions_are_sorted_by_where_they_are_spent() -> None:
    parts = parse_profile(PROFILE).parts("bench/instructions/")
    assert parts == {"own": 111, "openssl": 40, "nghttp2": 20, "libc": 5000, "other": 8}


def test_what_a_callee_cost_is_not_counted_twice() -> None:
    assert parse_profile(PROFILE).instructions.total() == 5188


def test_allocations_are_the_calls_of_the_allocator() -> None:
    assert parse_profile(PROFILE).allocations == 2


def test_profile_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(BenchError, match="5188 of 5189 instructions"):
        parse_profile(PROFILE.replace("totals: 5188", "totals: 5189"))


def test_profile_without_a_total_is_refused() -> None:
    with pytest.raises(BenchError, match="cannot read callgrind's output"):
        parse_profile("")


def test_processor_features_that_are_missing_are_named() -> None:
    assert missing_features("flags\t\t: aes pclmulqdq avx2 bmi1 bmi2 fma f16c movbe") == []
    assert missing_features("model name : x\nflags : aes pclmulqdq bmi1 fma f16c movbe") == ["avx2", "bmi2"]


def test_figures_are_per_unit() -> None:
    parts = {"own": 1000, "openssl": 5004, "nghttp2": 0, "libc": 0, "other": 0}
    counts = per_unit("MB", 10, parts, {"recv": 20, "send": 5}, allocations=1)
    assert (counts.total, counts.own, counts.openssl) == (600, 100, 500)
    assert (counts.calls, counts.system_calls, counts.allocations) == ({"recv": 2.0, "send": 0.5}, 2.5, 0.1)


def test_change_within_the_limit_is_none() -> None:
    assert changes({"a": COUNTS}, {"a": replace(COUNTS, total=1050, own=95, calls={"recv": 8.6, "send": 4.0})}) == []


@pytest.mark.parametrize("figure", ["total", "own", "libc", "allocations"])
def test_rise_over_the_limit_is_told(figure: str) -> None:
    now = replace(COUNTS, **{figure: getattr(COUNTS, figure) * 1.2})
    (change,) = changes({"a": COUNTS}, {"a": now})
    assert (change.figure, change.rose) == (figure, True)


def test_system_calls_that_rose_are_named() -> None:
    (change,) = changes({"a": COUNTS}, {"a": replace(COUNTS, calls={"recv": 8.0, "send": 5.0, "splice": 1.0})})
    assert str(change) == (
        "a: system calls per request rose from 12.00 to 14.00 (16.7%): send 4.00 to 5.00, splice 0.00 to 1.00"
    )


def test_fall_is_no_rise() -> None:
    (change,) = changes({"a": COUNTS}, {"a": replace(COUNTS, own=90)})
    assert not change.rose
    assert str(change) == "a: instructions of our own code per request fell from 100.00 to 90.00 (10.0%)"


def test_rise_from_nothing_is_told() -> None:
    before = replace(COUNTS, allocations=0.0)
    assert changes({"a": before}, {"a": replace(before, allocations=0.01)}) == []
    (change,) = changes({"a": before}, {"a": replace(before, allocations=1.0)})
    assert str(change) == "a: allocations per request rose from 0.00 to 1.00"


def test_small_part_of_a_library_may_move() -> None:
    before = replace(COUNTS, nghttp2=10)
    assert changes({"a": before}, {"a": replace(before, nghttp2=19)}) == []


def test_load_without_recorded_figures_is_named() -> None:
    assert changes({}, {"a": COUNTS}) == []
    assert not_recorded([], ["a"]) == ["a"]
    assert "-" in table({}, {"a": COUNTS})


def test_other_versions_are_named() -> None:
    assert differences({"gcc": "12", "OpenSSL": "3.0"}, {"gcc": "12", "OpenSSL": "3.5"}) == "OpenSSL 3.0 (here 3.5)"
    assert differences({"gcc": "12"}, {"gcc": "12"}) == ""


def test_failure_says_where_to_look_and_how_to_accept() -> None:
    line = failure_line(Change("requests_1", "own", "request", 3000, 3300), "OpenSSL 3.0 (here 3.5)")
    assert line == (
        "guard: requests_1: instructions of our own code per request rose from 3,000 to 3,300 (10.0%), more than 5%; "
        "recorded with OpenSSL 3.0 (here 3.5). See where: callgrind_annotate build/guard/callgrind.requests_1.out. "
        "To accept it: .venv/bin/python -m bench.guard --record"
    )


def test_numbers_are_readable() -> None:
    assert [number(value) for value in (1234567, 12.0, 0.061)] == ["1,234,567", "12.00", "0.06"]


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record("x86_64", {"gcc": "12"}, {"a": COUNTS})
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record


def test_missing_record_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is missing: record the figures with --record"):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": "x", "versions": {}, "loads": {"a": {"unit": 1}}}'])
def test_broken_record_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BenchError, match=r"^[^\n]*write it anew with --record$"):
        read_record(tmp_path / "record.json")


def test_a_rise_fails_and_a_fall_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Record("x86_64", {}, {"a": COUNTS})
    assert judge(recorded, Record("x86_64", {}, {"a": replace(COUNTS, own=80)})) == 0
    assert "please record it" in capsys.readouterr().out
    assert judge(recorded, Record("x86_64", {}, {"a": replace(COUNTS, own=120)})) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_load_that_was_never_recorded_fails() -> None:
    assert judge(Record("x86_64", {}, {}), Record("x86_64", {}, {"a": COUNTS})) == 1


@pytest.mark.parametrize(("more", "status"), [(19, 0), (21, 1)])
def test_listener_to_events_may_cost_two_percent(more: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of our own code: what the libraries take differs from run to run."""
    watched = replace(COUNTS, own=COUNTS.own + more, libc=COUNTS.libc * 2, total=COUNTS.total * 2)
    assert judge_listener({"connections": COUNTS, "watched_connections": watched}) == status
    out, err = capsys.readouterr()
    assert f"{more / 10:+.1f}%" in (err if status else out)


def test_figures_of_another_machine_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    here = Record("aarch64", {}, {"a": replace(COUNTS, own=1000)})
    assert judge(Record("x86_64", {}, {"a": COUNTS}), here) == 0
    assert "not compared: the figures were recorded on x86_64, this is aarch64" in capsys.readouterr().out


def test_the_repository_has_figures_for_every_load() -> None:
    recorded = read_record(RECORD)
    assert {name: counts.unit for name, counts in recorded.loads.items()} == {load.name: load.unit for load in LOADS}


def test_the_program_knows_every_load_and_no_other() -> None:
    source = (TRAFFIC / "traffic.c").read_text()
    assert re.findall(r'\{"(\w+)", [A-Z]+,', source) == [load.name for load in LOADS]


# ---- the real program; compiled without optimisation, which is a regression that every reader can believe ----

needs_valgrind = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("valgrind") is None, reason="gcc or valgrind is not installed"
)


@pytest.fixture(scope="module")
def slow_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_traffic(tmp_path_factory.mktemp("guard"), ["-O0"])


@needs_valgrind
@pytest.mark.parametrize("load", [load.name for load in LOADS])
def test_traffic_arrives(load: str, slow_program: Path) -> None:
    done = subprocess.run([slow_program, load, "9"], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert (said["load"], said["units"]) == (load, 9)
    assert said["system_calls"]["recv"] >= 9


@needs_valgrind
def test_slower_code_is_caught(slow_program: Path, tmp_path: Path) -> None:
    load = Load("requests_1", "request", 40)
    run = count_instructions(slow_program, load.name, load.units, tmp_path / "callgrind.out")
    moved = changes(read_record(RECORD).loads, {load.name: counts_of(load, run)})
    assert ("own", True) in {(change.figure, change.rose) for change in moved}


@needs_valgrind
def test_load_that_does_not_exist_is_one_clear_line(slow_program: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"^nonsense: usage: "):
        count_instructions(slow_program, "nonsense", 1, tmp_path / "callgrind.out")


def test_empty_profile_counts_nothing() -> None:
    assert sum(Profile().parts("bench/").values()) == 0
