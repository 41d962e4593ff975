"""docs/lab.md, what there is to try with identities, followed literally: rotate the root, revoke a workload, a second
trust domain."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.pages import Machine, commands_of
from support.patience import wait_for

PAGE = Path(__file__).parents[2] / "docs" / "lab.md"
MESH = "/run/nodeseal-lab/lab/mesh"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


def rows(machine: Machine, command: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(machine.does(f"{command} -o json"))[name]
    return found


def test_root_is_rotated_under_a_client(machine: Machine) -> None:
    up, client, make, add, status, issue, again, remove = commands_of(PAGE, "### Rotate the root")
    machine.does(up)
    running = machine.begins(client)
    machine.does(make)
    machine.does(add)
    old, new = (row["sha256"] for row in rows(machine, "nodeseal trust list", "anchors"))
    wait_for(lambda: machine(status).returncode == 0, "every node has both")
    assert list(json.loads(machine.does(f"{status} -o json"))["issuers"]) == [old[:32]]
    assert "issues by it" in machine(remove.replace("OLD", old)).stderr

    machine.does(issue)
    issuers = {new[:32]: ["node1", "node2"]}
    wait_for(lambda: json.loads(machine(f"{again} -o json").stdout)["issuers"] == issuers, "both issue by the new one")
    wait_for(lambda: machine(remove.replace("OLD", old)).returncode == 0, "nothing needs the old root")
    assert [row["sha256"] for row in rows(machine, "nodeseal trust list", "anchors")] == [new]
    machine.does("nodeseal lab exec shipper -- curl -sS http://pipeline:8080/")
    assert running.poll() is None
    running.terminate()
    answers = set(running.communicate(timeout=30)[0].splitlines())
    assert answers == {"pipeline: ready"}


def test_workload_is_revoked_and_taken_back(machine: Machine) -> None:
    revoke, ask, connections, listed, undo, again = commands_of(PAGE, "### Revoke a workload")
    machine.does("nodeseal lab up")
    machine.does(ask)
    machine.does(revoke)
    wait_for(lambda: machine(ask).returncode != 0, "shipper is refused")
    assert "Failed to connect" in machine(ask).stderr
    refused = {(row["node"], row["reason"]) for row in rows(machine, connections, "refused")}
    assert {node for node, reason in refused if "revoked" in reason} == {"node1", "node2"}
    assert "its key leaked" in machine.does(listed)
    machine.does(undo)
    wait_for(lambda: machine(again).stdout == "pipeline: ready\n", "shipper is answered again")


def test_two_trust_domains_are_federated_and_are_not(machine: Machine) -> None:
    up, ask, connections, part, refused, why, join, again, status = commands_of(PAGE, "### A second trust domain")
    assert "partner.example" in machine.does(up)
    assert machine.does(ask) == "pipeline: ready\n"
    ids = {(row["node"], row["peer"]) for row in rows(machine, connections, "connections")}
    assert ids == {
        ("node1", "spiffe://partner.example/ns/default/sa/pipeline"),
        ("node2", "spiffe://example.org/ns/default/sa/shipper"),
    }
    machine.does(part)
    wait_for(lambda: machine(refused).returncode != 0, "node2 refuses shipper")
    assert "Failed to connect" in machine(refused).stderr
    reasons = {row["reason"] for row in rows(machine, why, "refused") if row["node"] == "node2"}
    assert reasons & {"wrong-trust-domain", "peer is of another trust domain"}
    machine.does(join)
    wait_for(lambda: machine(again).stdout == "pipeline: ready\n", "they are federated again")
    assert "partner.example/mesh: each node trusts" in machine.does(status)
    told = machine("nodeseal trust status").stderr
    theirs = "/run/nodeseal-lab/lab/domains/partner.example/mesh"
    assert told == f"nodeseal: the nodes of this machine follow several: say --mesh {theirs} or --mesh {MESH}\n"


@pytest.mark.parametrize("issuer", ["embedded", "service"])
def test_lab_of_two_trust_domains_is_a_lab_like_others(machine: Machine, issuer: str) -> None:
    """Enrolment, modes, agents that are started again, and one lab of a name."""
    ask = "nodeseal lab exec shipper -- curl -sS http://pipeline:8080/"
    up = f"nodeseal lab up --issuer {issuer} --nodes 3 --pod ledger:node3 --trust-domain node3:partner.example"
    machine.does(up)
    assert "a lab named 'lab' is up already" in machine(up).stderr
    nodes = rows(machine, "nodeseal lab status", "nodes")
    assert [node["trust_domain"] for node in nodes] == ["example.org", "example.org", "partner.example"]
    machine.does("nodeseal lab unenrol ledger shipper")
    machine.does("nodeseal lab enrol ledger shipper")
    machine.does("nodeseal lab mode ledger strict")
    machine.does(ask)
    before = nodes[2]["agent_pid"]
    machine.does(f"kill -{signal.SIGKILL} {before}")

    def started_again() -> bool:
        pid = rows(machine, "nodeseal lab status", "nodes")[2]["agent_pid"]
        return pid not in (None, before)

    wait_for(started_again, "the supervisor starts the agent again")
    (ledger,) = (pod for pod in rows(machine, "nodeseal lab status", "pods") if pod["name"] == "ledger")
    assert ledger["identity"] == "spiffe://partner.example/ns/default/sa/ledger"
    # Nobody listens there: refused by its kernel, through a tunnel between the domains.
    assert "Failed to connect" in machine("nodeseal lab exec shipper -- curl -sS http://ledger:8080/").stderr
    peers = {row["peer"] for row in rows(machine, "nodeseal connections", "connections")}
    assert "spiffe://partner.example/ns/default/sa/ledger" in peers
