"""Options and fixtures that every suite shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeseal.capture.backends.backend import Choice
from support import options
from support.api_server import HELM, PROGRAMS
from support.namespaces import needs_root
from support.schedule import FilesTogether

HERE = Path(__file__).parent
KUBERNETES = HERE / "kubernetes"
IN_NAMESPACES = (HERE / "netns", HERE / "differential", HERE / "interop")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
    for option in options.ALL:
        option.add(parser)


def without_kubernetes() -> str:
    """Why tests/kubernetes is left out, in one line; "" when it is not."""
    programs = [*(PROGRAMS / "bin" / name for name in ("etcd", "kube-apiserver", "kubectl")), HELM]
    missing = [str(path) for path in programs if not path.exists()]
    if not missing:
        return ""
    return (
        f"NOT TESTED WITH KUBERNETES (tests/kubernetes): without {', '.join(missing)}: install Go 1.26 or later, "
        "from go.dev/dl, and `make test` builds what is missing (6 minutes, once)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if why := without_kubernetes():
        terminalreporter.write_line(why, red=True, bold=True)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("NODESEAL_TEST_ALL") and (why := without_kubernetes()):
        raise pytest.UsageError(why)
    for option in options.ALL:
        option.take(config)
    for marker in (
        "alone: measures what other tests disturb, or disturbs them; `make test` runs it while no other runs",
        "both_backends: `make test` runs it over iptables too",
        "ebpf_only(reason): about what only the eBPF backend has; says what that is",
        "fast: `make test FAST=1` runs it; all of unit is",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if without_kubernetes():
        left_out = [item for item in items if item.path.parent == KUBERNETES]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.path.parent != KUBERNETES]
    for item in items:
        if item.path.parent in IN_NAMESPACES:
            item.add_marker(needs_root)
        elif item.path.parent == KUBERNETES:
            continue
        else:
            item.add_marker(pytest.mark.fast)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if options.BACKEND.asked() is not Choice.EBPF and (marker := item.get_closest_marker("ebpf_only")):
        pytest.skip(f"eBPF only: {marker.args[0]}")


def pytest_report_header() -> list[str]:
    how = "what an agent chooses here" if options.WORKERS.asked() is None else "as asked"
    return [
        f"worker threads of a core: {options.expected_workers()} ({how})",
        f"capture by {options.BACKEND.asked().value}",
        f"nodes with the rules of {options.NODE_RULES.asked() or 'nobody'}",
    ]


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: tests wait more than they work; there are not enough files for many more."""
    return min(2 * len(os.sched_getaffinity(0)), 16)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether | None:
    """Unless --dist asks for another way."""
    return FilesTogether(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): compares `text` with golden/<name> beside the test's file, or writes it (--update-golden)."""

    def compare(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}; see --update-golden"

    return compare
