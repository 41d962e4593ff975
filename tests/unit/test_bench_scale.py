"""The bench of scale: its mesh states, its options and its tables."""

from __future__ import annotations

import argparse
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from bench.errors import BenchError
from bench.scale.__main__ import _parser, read_sizes
from bench.scale.parts import Sizes
from bench.scale.probes import LineWatch, Waits, log_time
from bench.scale.report import number, terminal_report
from bench.scale.state import FarWorkload, far_publications, far_state, near_state

from nodeseal.documents.bulk import read_bulk
from nodeseal.documents.document import MAX_BYTES
from nodeseal.mesh.model import Mode, Phase, WorkloadName
from nodeseal.sources.directory.source import load
from nodeseal_lab.plan import Pod

COUNT = 250


def options(*argv: str) -> argparse.Namespace:
    return _parser().parse_args(argv)


def test_far_state_is_a_mesh_state_with_half_of_it_enrolled(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("trust_domain: example.org\n")
    (tmp_path / "far.json").write_bytes(far_state(COUNT, strict=7))
    (tmp_path / "enrolled").mkdir()
    for name, content in far_publications(COUNT):
        (tmp_path / "enrolled" / name).write_bytes(content)
    mesh = load(tmp_path)
    assert len(mesh.workloads) == COUNT
    assert sum(workload.phase is Phase.ENROLLED for workload in mesh.workloads.values()) == COUNT // 2
    strict = [workload.address for workload in mesh.workloads.values() if workload.mode is Mode.STRICT]
    assert strict == [IPv4Address("10.128.0.7")]


def test_one_workload_can_be_missing_from_a_publication(tmp_path: Path) -> None:
    everyone, without = (dict(far_publications(COUNT, without=gone)) for gone in (None, 0))
    changed = [name for name in everyone if everyone[name] != without[name]]
    first = FarWorkload(0)
    assert changed == [f"{first.node}.yaml"]
    assert f"{first.namespace}/{first.name}".encode() not in without[changed[0]]


def test_far_state_stays_under_the_limit_of_a_file_and_has_the_bulk_form() -> None:
    assert len(far_state(50_000)) < MAX_BYTES
    for count in (0, COUNT):
        assert len(read_bulk(far_state(count)).lists["workloads"]) == count


def test_near_state_names_who_is_wanted(tmp_path: Path) -> None:
    pods = [Pod(name, "node1", f"netns-{name}", IPv4Address(f"10.77.1.{n}"), True) for n, name in enumerate("ab", 10)]
    (tmp_path / "mesh.yaml").write_text("trust_domain: example.org\n" + near_state(pods, {"b"}))
    workloads = load(tmp_path).workloads
    assert [workloads[WorkloadName("default", name)].wanted for name in "ab"] == [False, True]
    assert workloads[WorkloadName("default", "a")].netns == "netns-a"


def test_waits_are_milliseconds_in_order() -> None:
    waits = Waits.of([0.003, 0.001, 0.002, 0.1])
    assert waits.to_json() == {"count": 4, "p50": 2.0, "p99": 100.0, "longest": 100.0}
    assert Waits.of([]).to_json() == {"count": 0, "p50": None, "p99": None, "longest": None}


def test_lines_of_a_log_tell_when_they_were_written(tmp_path: Path) -> None:
    now = time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))
    assert log_time("2026-01-31 12:00:00,250 INFO nodeseal.agent: text") == now + 0.25


def test_watch_sees_only_lines_that_come_after_it_began(tmp_path: Path) -> None:
    log = tmp_path / "core.log"
    log.write_text("2026-01-31 12:00:00,000 INFO one\n")
    watch = LineWatch(log)
    with pytest.raises(BenchError, match="no line"):
        watch.wait("INFO", 0)
    with log.open("a") as file:
        file.write("2026-01-31 12:00:01,000 INFO two\n2026-01-31 12:00:02,000 INFO three\n")
    first = watch.wait("INFO", 0)
    assert watch.last("INFO", 2) == first + 1
    with pytest.raises(BenchError, match="expected 3"):
        watch.last("INFO", 3)


def test_options_change_single_sizes_of_a_run() -> None:
    assert read_sizes(options()) == (Sizes(), ("enrol", "rest", "mesh"))
    sizes, parts = read_sizes(options("--quick", "--mesh", "70", "--only", "mesh"))
    assert (sizes.mesh, sizes.workloads, parts) == (70, 20, ("mesh",))
    assert read_sizes(options("--tunnels", "400"))[0].servers == 2


@pytest.mark.parametrize(
    "argv", [["--workloads", "0"], ["--workloads", "500"], ["--enrol", "201"], ["--tunnels", "90000"], ["--only", "x"]]
)
def test_options_that_cannot_be_are_refused(argv: list[str]) -> None:
    with pytest.raises(BenchError, match=argv[0]):
        read_sizes(options(*argv))


def test_tables_fit_a_hundred_columns() -> None:
    wait = {"p50": 12345.6, "p99": 12345.6, "longest": 12345.6}
    sides = ("node1", "node2")
    rest = dict.fromkeys(("agent_pss_mb", "core_pss_mb", "agent_cpu_ms_per_s", "core_cpu_ms_per_s"), 12345.6)
    names = ("seconds", "agent_cpu_s", "core_main_cpu_s")
    names += tuple(f"{process}_{what}_mb" for process in ("agent", "core") for what in ("pss_before", "peak", "pss"))
    spent = dict.fromkeys(names, 1234.5)
    felt = dict.fromkeys(("requests_ms", "connections_ms", "decisions_ms", "loop_wait_ms"), wait)
    step = {"seconds": 123.4, "agent_cpu_ms_each": 123.4, "core_cpu_ms_each": 123.4, "loop_wait_ms": wait}
    step |= {"agent_pss_before_mb": 123.4, "agent_pss_mb": 123.4}
    result = {
        "enrol": {"workloads": 100, "enrol": step, "unenrol": step},
        "rest": {
            "nothing_enrolled": dict.fromkeys(sides, rest),
            "enrolled": dict.fromkeys(sides, rest),
            "connected": {**dict.fromkeys(sides, rest), "connections": 10_000, "tunnels": dict.fromkeys(sides, 4000)},
        },
        "mesh": {"workloads": 50_000, "file_mb": 7.4, "at_rest": felt, "lost_connections": 0}
        | {
            name: {**dict.fromkeys(sides, spent), "felt": felt} for name in ("apply", "one_workload", "one_publication")
        },
    }
    text = terminal_report(result)
    assert "10000 connections" in text
    assert max(map(len, text.splitlines())) <= 100
    assert terminal_report({}) == ""


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (None, 0.123, 1.234, 12.34, 1234.5)] == ["-", "0.12", "1.23", "12.3", "1234"]
