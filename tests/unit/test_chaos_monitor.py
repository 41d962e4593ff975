"""When a node on which all was killed counts as back: from then on nothing may fail there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chaos.monitor import is_back
from nodeseal.contracts.status import Status

STARTING = {"doing": "looking for cores that run", "since": "2026-11-29T23:11:15+00:00", "seconds": 0.1}
ENROLLED = {"workload": "default/pipeline", "wanted": True, "enrolled": True}


def status(*workloads: dict[str, Any], starting: dict[str, Any] | None = None, core: str = "running") -> Status:
    answer = {"node": "node1", "agent": {"starting": starting}, "core": {"state": core}, "workloads": list(workloads)}
    return msgspec.convert(answer, Status)


def test_node_with_all_that_is_wanted_is_back() -> None:
    unwanted = {"workload": "default/rover", "wanted": False, "enrolled": False}
    assert is_back(status(ENROLLED, unwanted))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(status(starting=STARTING), id="starting"),
        pytest.param(status(ENROLLED, core="starting"), id="core"),
        pytest.param(status(ENROLLED, {**ENROLLED, "enrolled": False}), id="workload"),
    ],
)
def test_node_that_lacks_something_is_not(answer: Status) -> None:
    assert not is_back(answer)
