"""Nodes that get their workloads' certificates from the certificate service, also while it is away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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


def test_node_that_is_revoked_with_all_that_was_issued_to_it_is_cut_off_until_that_is_taken_back(
    lab: RunningLab, programs: Programs
) -> None:
    """The commands of docs/revoke.md for a node, as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "revoke.md").read_text()
    *_others, revoke, issued_too, undo = re.findall(r"^```\n(.+)\n```$", page, re.MULTILINE)

    def shell(line: str) -> str:
        line = line.replace("nodeseal ca issued", f"nodeseal ca issued --config {lab.directory / 'ca.yaml'}")
        environment = {**os.environ, "NODESEAL_RUN_DIR": str(lab.run_dir("node2"))}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    node = next(one for one in ("node1", "node2") if lab.node_of("shipper") == one)
    assert node in revoke
    server = programs.serve("pipeline")
    assert echoes(programs.dial("shipper", server.address))
    before = {row["serial"] for row in issued(lab) if row["node"] == node}
    assert f"revoked node {node}" in shell(revoke)
    assert re.search(rf"revoked node {node} and {len(before)} certificates", shell(issued_too))
    (row,) = json.loads(shell("nodeseal revoke list -o json"))["revoked"]
    assert (row["name"], row["serials"]) == (node, len(before))

    def works() -> bool:
        with contextlib.suppress(OSError):
            return echoes(programs.dial("shipper", server.address, timeout=3))
        return False

    wait_for(lambda: not works(), "no new connection is made")
    log = lab.run_dir(node) / "agent.log"
    before_restart = log.stat().st_size
    lab.restart_agent(node)  # which asks for certificates anew

    def is_refused() -> bool:
        # By the service, or by the agent itself, which has read the mesh state first.
        return "revoked" in log.read_bytes()[before_restart:].decode().partition("not renewed: ")[2].partition("\n")[0]

    wait_for(is_refused, "the node gets no certificate")
    assert {row["serial"] for row in issued(lab) if row["node"] == node} == before
    shell(undo)
    wait_for(works, "the node's workloads talk again")
    wait_for(lambda: words(lab, node) == [], "nothing is wrong any more")


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
