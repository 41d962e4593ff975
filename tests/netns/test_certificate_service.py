"""Nodes that get their workloads' certificates from the certificate service, also while it is away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from nodeseal_lab import certificate_service
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.process import end_process
from support.programs import Programs


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("service"), issuer="service") as lab:
        yield lab


def issued(lab: RunningLab) -> list[dict[str, Any]]:
    done = lab.command("ca", "issued", "--config", str(lab.directory / "ca.yaml"), "-o", "json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["certificates"]
    return rows


def serial(lab: RunningLab, pod: str) -> str:
    return str(lab.workload(pod)["certificate"]["serial"])


def words(lab: RunningLab, node: str) -> list[str]:
    return [problem["word"] for problem in lab.status(node)["problems"]]


def talks(lab: RunningLab, programs: Programs) -> None:
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


def test_each_node_has_the_certificates_of_its_own_workloads_from_the_service(
    lab: RunningLab, programs: Programs
) -> None:
    talks(lab, programs)
    by_node = {(row["node"], row["identity"]) for row in issued(lab) if row["kind"] == "workload"}
    assert by_node == {(lab.node_of(pod), lab.identity(pod)) for pod in ("shipper", "siem", "pipeline")}
    assert serial(lab, "pipeline") in {row["serial"] for row in issued(lab)}


def test_nobody_notices_that_the_service_is_away_and_agents_restart_meanwhile(
    lab: RunningLab, programs: Programs
) -> None:
    """Last in this file: the service is another process afterwards."""
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client)
    (service,) = [one for one in lab.lab.processes.records() if one.role == certificate_service.SERVICE]
    assert service.pid is not None
    end_process(service.pid, signal.SIGKILL)
    lab.restart_agent("node2")
    wait_for(lambda: "ca-away" in words(lab, "node2"), "the agent says that its issuer is away")
    assert lab.workload("pipeline")["enrolled"]
    assert echoes(client)
    talks(lab, programs)
    certificate_service.start(lab.directory, lab.lab.plan, lab.lab.processes)
    wait_for(lambda: words(lab, "node2") == [], "it has a certificate of the service again")
    assert serial(lab, "pipeline") in {row["serial"] for row in issued(lab)}
    joined = [row["node"] for row in issued(lab) if row["kind"] == "node"]
    assert sorted(joined) == ["node1", "node2"], "the agent that restarted did not join again"
    talks(lab, programs)
