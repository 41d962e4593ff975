"""The files that the lab writes for its agents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from nodeseal.mesh.model import Mode
from nodeseal.sources.directory.source import load
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import Lab
from nodeseal_lab.mesh_state import change_workloads, federated_file, write_agent_config, write_mesh
from nodeseal_lab.plan import Plan, TrustDomainRequest
from nodeseal_lab.trust_domains import mesh_of, write_meshes


def test_mesh_can_be_loaded(tmp_path: Path) -> None:
    write_mesh(tmp_path, Plan.build())
    mesh = load(tmp_path)
    assert {str(key): workload.wanted for key, workload in mesh.workloads.items()} == {
        "default/shipper": True,
        "default/siem": True,
        "default/pipeline": True,
        "default/intruder": False,
    }
    assert [str(key) for service in mesh.services.values() for key in service.endpoints] == ["default/pipeline"]


def test_every_pod_has_an_identity_of_its_own(tmp_path: Path) -> None:
    write_mesh(tmp_path, Plan.build())
    mesh = load(tmp_path)
    identities = {str(workload.identity(mesh.trust_domain)) for workload in mesh.workloads.values()}
    assert "spiffe://example.org/ns/default/sa/pipeline" in identities
    assert len(identities) == 4


def test_change_is_seen_in_the_mesh(tmp_path: Path) -> None:
    write_mesh(tmp_path, Plan.build())
    change_workloads(tmp_path, {"pipeline": {"mode": "strict"}, "intruder": {"enrolled": True}})
    by_name = {key.name: workload for key, workload in load(tmp_path).workloads.items()}
    assert by_name["pipeline"].mode is Mode.STRICT
    assert by_name["intruder"].wanted
    assert by_name["siem"].mode is Mode.PERMISSIVE


def test_change_keeps_what_was_added_by_hand(tmp_path: Path) -> None:
    write_mesh(tmp_path, Plan.build())
    path = tmp_path / "workloads.yaml"
    content = yaml.safe_load(path.read_text())
    content["workloads"].append({"name": "vm", "node": "node9", "address": "10.9.9.9"})
    path.write_text(yaml.safe_dump(content))
    change_workloads(tmp_path, {"siem": {"enrolled": False}})
    assert yaml.safe_load(path.read_text())["workloads"][-1]["name"] == "vm"


PARTNER = "partner.example"


def federated(directory: Path) -> Plan:
    plan = Plan.build(trust_domains=[TrustDomainRequest("node2", PARTNER)])
    (directory / "mesh").parent.mkdir(exist_ok=True)
    write_meshes(directory, plan)
    return plan


@pytest.mark.parametrize(("own", "other"), [("example.org", PARTNER), (PARTNER, "example.org")])
def test_meshes_of_two_trust_domains_have_each_others_workloads_as_such(tmp_path: Path, own: str, other: str) -> None:
    federated(tmp_path)
    mesh = load(mesh_of(tmp_path, own))
    assert (mesh.trust_domain, mesh.trust_domains) == (own, {own, other})
    assert {key.name: workload.identity(own).trust_domain for key, workload in mesh.workloads.items()} == {
        "shipper": "example.org",
        "siem": "example.org",
        "pipeline": PARTNER,
        "intruder": PARTNER,
    }
    assert [str(key) for service in mesh.services.values() for key in service.endpoints] == ["default/pipeline"]
    assert (mesh_of(tmp_path, own) / "enrolled").resolve() == tmp_path / "mesh" / "enrolled"


@pytest.mark.parametrize(("own", "left"), [("example.org", {"shipper", "siem"}), (PARTNER, {"pipeline", "intruder"})])
def test_without_one_file_two_trust_domains_are_not_federated(tmp_path: Path, own: str, left: set[str]) -> None:
    federated(tmp_path)
    (other,) = {"example.org", PARTNER} - {own}
    (mesh_of(tmp_path, own) / federated_file(other)).unlink()
    mesh = load(mesh_of(tmp_path, own))
    assert mesh.trust_domains == {own}
    assert {key.name for key in mesh.workloads} == left


def test_change_of_a_workload_is_in_the_meshes_of_all_trust_domains_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lab = Lab(Plan.build("x", trust_domains=[TrustDomainRequest("node2", PARTNER)]), tmp_path)
    lab.directory.mkdir()
    write_meshes(lab.directory, lab.plan)
    lab._change(("pipeline", "siem"), {"mode": "strict"})
    for domain in lab.plan.trust_domains:
        strict = {key.name for key, one in load(lab.mesh_of(domain)).workloads.items() if one.mode is Mode.STRICT}
        assert strict == {"pipeline", "siem"}
    (lab.mesh / federated_file(PARTNER)).unlink()
    lab._change(("pipeline",), {"mode": "permissive"})
    by_name = {key.name: one for key, one in load(lab.mesh_of(PARTNER)).workloads.items()}
    assert by_name["pipeline"].mode is Mode.PERMISSIVE


def test_change_of_a_workload_that_was_removed_by_hand_says_so(tmp_path: Path) -> None:
    write_mesh(tmp_path, Plan.build())
    with pytest.raises(LabError, match=r"workloads.yaml: it has no workload 'web' any more"):
        change_workloads(tmp_path, {"web": {"enrolled": True}})


@pytest.mark.parametrize("text", ["workloads: [", "[]", "workloads: 5", "workloads: [{}]", ""])
def test_file_broken_by_hand_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "workloads.yaml"
    path.write_text(text)
    with pytest.raises(LabError, match=r"workloads.yaml: cannot read the lab's workloads .*correct it by hand"):
        change_workloads(tmp_path, {"siem": {"enrolled": True}})
    assert path.read_text() == text


def test_agent_config_points_at_its_own_directory(tmp_path: Path) -> None:
    node = Plan.build().nodes[0]
    write_agent_config(tmp_path / "agent.yaml", node, mesh=Path("/m"), ca="/c")
    config = yaml.safe_load((tmp_path / "agent.yaml").read_text())
    assert (config["node"], config["run_dir"], config["mesh"], config["ca"]) == ("node1", str(tmp_path), "/m", "/c")
