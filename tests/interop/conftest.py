"""Fixtures of the tests against peers that we did not write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeseal_lab.mesh_state import change_workloads
from support.agent import use_compiled
from support.lab import RunningLab, running_lab
from support.pods import compiled
from support.programs import Programs

PODS = ("edge:node1:plain", "gate:node2:plain", "probe:node1")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """The lab's usual pods with their programs and IPv6, and two for peers that are not ours: `edge` on node1, `gate`
    on node2. Both are known workloads that no agent of ours enrols. Connections are accepted early, so that tests have
    them before the peer says what they make it say; those of `probe` on node1 are not. Tests leave pipeline and edge as
    they are."""
    with (
        use_compiled(compiled(), tmp_path_factory.mktemp("bpf") / "compiled.json"),
        running_lab(
            tmp_path_factory.mktemp("interop"),
            more_pods=PODS,
            with_apps=True,
            ipv6=True,
            settings={"connect": "early"},
        ) as lab,
    ):
        change_workloads(lab.lab.mesh, {"probe": {"connect": "truthful"}})
        yield lab


@pytest.fixture
def programs(lab: RunningLab) -> Iterator[Programs]:
    with Programs(lab) as programs:
        yield programs
