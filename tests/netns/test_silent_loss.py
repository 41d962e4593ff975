"""Mutual TLS that is lost by a slip is named on every node that can know it, and monitoring is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import yaml

from nodeseal.authority.creation import init_authority
from nodeseal_lab.files import write_atomically
from nodeseal_lab.lab import TRUST_DOMAIN
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.process import nodeseal
from support.programs import Programs

PATIENCE_S = 60.0  # what stands for ten seconds is told
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("loss")) as lab:
        yield lab


@pytest.fixture(autouse=True)
def all_is_well(lab: RunningLab) -> None:
    """Each test begins with what the one before has put right."""
    for node in NODES:
        wait_for(lambda node=node: check(lab, node)[0] == 0, f"all is well on {node}", PATIENCE_S)


def check(lab: RunningLab, node: str) -> tuple[int, str]:
    """(exit status, the line) of `status --check`."""
    result = nodeseal("status", "--check", "--run-dir", str(lab.run_dir(node)))
    assert result.stdout.count("\n") == 1
    return result.returncode, result.stdout


def problems(lab: RunningLab, node: str) -> dict[str, str]:
    """Word -> text."""
    return {one["word"]: one["text"] for one in lab.status(node)["problems"]}


def told(lab: RunningLab, node: str, word: str) -> str:
    """Waits until the node says it, in its status, its log and to monitoring; the text."""
    text: str = wait_for(lambda: problems(lab, node).get(word), f"{node} says {word}", PATIENCE_S)
    shown = nodeseal("status", "--run-dir", str(lab.run_dir(node))).stdout
    assert f"{word}: {text}" in " ".join(shown.split())
    log = lab.run_dir(node) / "agent.log"
    wait_for(lambda: f"{word}: {text}" in log.read_text(), f"the log of {node} says {word}")
    exit_status, _line = check(lab, node)
    assert exit_status > 0
    return text


def echoed(programs: Programs, address: tuple[str, int]) -> bool:
    """Whether shipper reaches the server there."""
    try:
        connection = programs.dial("shipper", address)
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    except OSError:
        return False


def test_misspelt_node(lab: RunningLab) -> None:
    path = lab.lab.mesh / "workloads.yaml"
    good = path.read_text()
    state = yaml.safe_load(good)
    for workload in state["workloads"]:
        if workload["name"] == "pipeline":
            workload["node"] = "noed2"
    write_atomically(path, yaml.safe_dump(state, sort_keys=False))
    for node in NODES:
        assert "default/pipeline enrolled on node noed2" in told(lab, node, "node-unknown")
        assert check(lab, node)[0] == 2
    assert told(lab, "node2", "was-enrolled").startswith("default/pipeline was enrolled on this node (node2)")
    assert "was-enrolled" not in problems(lab, "node1")
    lab.restart_agent("node2")
    assert told(lab, "node2", "was-enrolled").startswith("default/pipeline was enrolled on this node (node2)")
    # The publication that lists it still is bad for a moment, the state is not.
    assert "is not used" not in (lab.run_dir("node1") / "agent.log").read_text()
    write_atomically(path, good)


def test_mesh_directory_copied_without_publications(lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "mesh"
    shutil.copytree(lab.lab.mesh, copy, ignore=shutil.ignore_patterns("enrolled"))
    lab.restart_agent("node2", mesh=str(copy))
    assert "default/pipeline enrolled on node node2" in told(lab, "node1", "node-unknown")
    text = told(lab, "node2", "node-unknown")
    assert "default/shipper, default/siem enrolled on node node1" in text
    assert f"{copy}/enrolled" in text
    lab.restart_agent("node2", mesh=str(lab.lab.mesh))


def test_nodes_with_different_cas(
    lab: RunningLab, programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("ca") / "ca"
    init_authority(other, trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
    lab.restart_agent("node2", ca=str(other))
    for node in NODES:
        assert "nodes node1 and node2 have different CAs" in told(lab, node, "other-ca").replace(
            "nodes node2 and node1", "nodes node1 and node2"
        )
        assert check(lab, node)[0] == 2
    server = programs.serve("pipeline")
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        programs.dial("shipper", server.address).recv(1)
    assert told(lab, "node1", "handshake-failed").startswith("default/shipper: no tunnel to 10.77.2.10:")
    dialled = {"kind": "handshake", "destination": "10.77.2.10:15008"}
    (row,) = lab.refused("node1", direction="outbound", workload="default/shipper", **dialled)
    assert row["reason"] == "peer certificate is of a CA that is not trusted here"
    (row,) = lab.refused("node2", direction="inbound", workload="default/pipeline", **dialled)
    assert row["reason"] == "peer refused this workload's certificate: it does not trust its CA"
    assert row["source_workload"] == "default/shipper"
    # The remedy that is named, on agents that run.
    roots = [lab.directory / "ca" / "root.pem", other / "root.pem"]
    both = "".join(path.read_text() for path in roots)
    for path in roots:
        write_atomically(path, both)
    for node in NODES:
        wait_for(lambda node=node: "other-ca" not in problems(lab, node), "each trusts the other", PATIENCE_S)
    wait_for(lambda: echoed(programs, server.address), "connections between them work", PATIENCE_S)
    lab.restart_agent("node2", ca=str(lab.directory / "ca"))
    wait_for(lambda: "other-ca" not in problems(lab, "node1"), "the CAs are one again", PATIENCE_S)
    # What failed is told for ten minutes.
    assert check(lab, "node1")[0] == 1
