"""The cores of the tests have as many worker threads as was asked for: see support/options.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.lab import RunningLab
from support.options import expected_workers

pytestmark = pytest.mark.fast

NODES = ("node1", "node2")


def worker_threads(lab: RunningLab, node: str) -> list[str]:
    """The names of the core's threads that move bytes."""
    tasks = Path(f"/proc/{lab.core_pid(node)}/task").glob("*/comm")
    return [name for task in tasks if (name := task.read_text().strip()).startswith("worker-")]


@pytest.mark.parametrize("node", NODES)
def test_cores_have_the_asked_number_of_workers(lab: RunningLab, node: str) -> None:
    assert lab.core_stats(node).workers == expected_workers()
    assert len(worker_threads(lab, node)) == expected_workers()
