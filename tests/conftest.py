"""Options and fixtures that every suite shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeseal.capture.backends.backend import Choice
from support import backend, node_rules, workers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
    parser.addoption(
        "--workers",
        metavar="N",
        help=f"worker threads of every core in netns and interop, 1 to {workers.WORKERS_MAX} (default: "
        f"${workers.ENVIRONMENT}, or what an agent chooses)",
    )
    parser.addoption(
        "--backend",
        metavar="NAME",
        help=f"what captures in netns and interop, {' or '.join(backend.NAMES)} (default: ${backend.ENVIRONMENT}, or "
        "ebpf)",
    )
    parser.addoption(
        "--node-rules",
        metavar="KIND",
        help="netfilter rules of other programs on the nodes of netns' and interop's labs, one of "
        f"{', '.join(node_rules.NODE_RULES)} (default: ${node_rules.ENVIRONMENT}, or none)",
    )


def pytest_configure(config: pytest.Config) -> None:
    asked = config.getoption("--workers")
    try:
        if asked is not None:
            os.environ[workers.ENVIRONMENT] = str(workers.parse_workers(asked))
        workers.asked_workers()
    except ValueError as error:
        where = workers.ENVIRONMENT if asked is None else "--workers"
        raise pytest.UsageError(f"{where}: {error}") from error
    wanted = config.getoption("--backend")
    try:
        if wanted is not None:
            os.environ[backend.ENVIRONMENT] = backend.parse_backend(wanted).value
        backend.asked_backend()
    except ValueError as error:
        where = backend.ENVIRONMENT if wanted is None else "--backend"
        raise pytest.UsageError(f"{where}: {error}") from error
    rules = config.getoption("--node-rules")
    try:
        if rules is not None:
            os.environ[node_rules.ENVIRONMENT] = node_rules.parse_node_rules(rules)
        node_rules.asked_node_rules()
    except ValueError as error:
        where = node_rules.ENVIRONMENT if rules is None else "--node-rules"
        raise pytest.UsageError(f"{where}: {error}") from error
    config.addinivalue_line("markers", "both_backends: `make test` runs it over iptables too")
    config.addinivalue_line("markers", "ebpf_only(reason): about what only the eBPF backend has; says what that is")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if backend.asked_backend() is not Choice.EBPF and (marker := item.get_closest_marker("ebpf_only")):
        pytest.skip(f"eBPF only: {marker.args[0]}")


def pytest_report_header() -> list[str]:
    how = "what an agent chooses here" if workers.asked_workers() is None else "as asked"
    return [
        f"worker threads of a core: {workers.expected_workers()} ({how})",
        f"capture by {backend.asked_backend().value}",
        f"nodes with the rules of {node_rules.asked_node_rules() or 'nobody'}",
    ]


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
