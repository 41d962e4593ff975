"""What cext/include_graph.py says of the C core's sources, and of others that break its rules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cext" / "include_graph.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("include_graph", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


include_graph = load()


def faults_of(sources: Path, files: dict[str, list[str]]) -> list[str]:
    """The faults of files that include these headers."""
    for name, headers in files.items():
        (sources / name).parent.mkdir(exist_ok=True)
        lines = (f"#include <{header}>" if header.startswith("sys/") else f'#include "{header}"' for header in headers)
        (sources / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return list(include_graph.faults(sources))


def test_the_core_keeps_the_rules() -> None:
    assert list(include_graph.faults(include_graph.SOURCES)) == []


def test_a_circle_is_told_with_its_way(tmp_path: Path) -> None:
    files = {
        "flow/relay.h": ["flow/flow.h"],
        "flow/flow.h": [],
        "flow/flow.c": ["flow/flow.h", "flow/tunnel.h"],
        "flow/tunnel.h": [],
        "flow/tunnel.c": ["flow/tunnel.h", "flow/relay.h"],
    }
    assert faults_of(tmp_path, files) == ["a circle: flow/flow -> flow/tunnel -> flow/relay -> flow/flow"]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (
            {"wire/names.c": ["loop/sockets.h"], "loop/sockets.h": []},
            "wire/names includes loop/sockets, of a folder above its own",
        ),
        ({"wire/names.c": ["sys/socket.h"]}, "wire/names.c includes sys/socket.h: sockets are not for wire/"),
        (
            {"flow/relay.c": ["flow/stream.h"], "flow/stream.h": ["wire/h2.h"], "wire/h2.h": []},
            "flow/relay.c reaches wire/h2.h: HTTP/2 is not for it",
        ),
    ],
)
def test_each_rule_has_its_fault(files: dict[str, list[str]], fault: str, tmp_path: Path) -> None:
    assert faults_of(tmp_path, files) == [fault]


def test_what_includes_its_own_header_and_those_below_is_right(tmp_path: Path) -> None:
    files = {"loop/turns.c": ["loop/turns.h", "base/link.h", "sys/epoll.h"], "loop/turns.h": [], "base/link.h": []}
    assert faults_of(tmp_path, files) == []
