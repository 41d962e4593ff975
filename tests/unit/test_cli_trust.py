"""`nodeseal trust`, as an operator uses it on a mesh directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeseal.cli.main import main
from nodeseal.linux.lock_file import LockFile
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.revocation import REVOCATIONS, Revocation, RevocationKey
from nodeseal.mesh.trust import Need, Trust
from nodeseal.mesh.trust_anchor import MOST_ANCHORS, TRUST_ANCHORS, TrustAnchor
from nodeseal.sources.directory import writer
from nodeseal.sources.directory.publications import publish
from nodeseal.sources.directory.source import load
from support.anchors import make_ca, renewed_root, root_of
from support.certificates import self_signed

STATE = """\
trust_domain: example.org
workloads:
- {name: web, node: node1, address: 10.0.0.1, netns: web, enrolled: true}
- {name: db, node: node2, address: 10.0.0.2, netns: db, enrolled: true}
- {name: old, node: node3, address: 10.0.0.3}
"""
FAR = 1 << 32


class Mesh:
    """A mesh directory of two nodes, and two CAs: that of today and the next."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = tmp_path / "mesh"
        self.directory.mkdir()
        (self.directory / "mesh.yaml").write_text(STATE)
        self.today, self.next = make_ca(tmp_path / "today"), make_ca(tmp_path / "next")
        self.old, self.new = root_of(self.today), root_of(self.next)
        self._capsys = capsys

    def says(self, node: str, issuer: TrustAnchor, *has: TrustAnchor, needs: tuple[Need, ...] | None = ()) -> None:
        """A node publishes this."""
        trust = Trust.of([one.key for one in has], issuer.key, needs)
        publish(self.directory, node, [WorkloadName("default", "web")] if node == "node1" else [], trust)

    def __call__(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        command = ["trust", *map(str, arguments), "--mesh", str(self.directory), "-o", "json"]
        assert main(command) == status
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def shown(self, *arguments: object, status: int = 0) -> str:
        assert main(["trust", *map(str, arguments), "--mesh", str(self.directory)]) == status
        return self._capsys.readouterr().out

    def refused(self, *arguments: object) -> str:
        assert main(["trust", *map(str, arguments), "--mesh", str(self.directory)]) == 1
        out = self._capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)
        return out.err

    @property
    def anchors(self) -> set[str]:
        return set(load(self.directory).of(TRUST_ANCHORS))

    @property
    def revoked(self) -> Mapping[RevocationKey, Revocation]:
        return load(self.directory).of(REVOCATIONS)

    def listed_as_revoked(self) -> str:
        assert main(["revoke", "list", "--mesh", str(self.directory)]) == 0
        return self._capsys.readouterr().out


@pytest.fixture
def mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mesh:
    found = Mesh(tmp_path, capsys)
    for node in ("node1", "node2"):
        found.says(node, found.old, found.old)
    return found


def test_added_anchors_are_part_of_the_mesh_state(mesh: Mesh) -> None:
    answer = mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    assert [row["sha256"] for row in answer["added"]] == [mesh.old.key, mesh.new.key]
    assert mesh.anchors == {mesh.old.key, mesh.new.key}
    rows = mesh("list")["anchors"]
    assert {row["sha256"]: (row["trust_domain"], row["days_left"]) for row in rows} == {
        mesh.old.key: ("example.org", 3649),
        mesh.new.key: ("example.org", 3649),
    }
    assert mesh.old.key in mesh.shown("list")


def test_one_that_is_there_is_not_added_twice(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem")
    answer = mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    assert [row["sha256"] for row in answer["added"]] == [mesh.new.key]
    assert [row["sha256"] for row in answer["present"]] == [mesh.old.key]
    assert mesh.anchors == {mesh.old.key, mesh.new.key}


def test_first_anchor_must_not_take_trust_away_from_the_root_in_use(mesh: Mesh) -> None:
    line = mesh.refused("add", mesh.next / "root.pem")
    assert f"node1, node2 would be trusted by nobody: the root {mesh.old.key[:16]}" in line
    assert mesh.anchors == set()
    mesh("add", "--force", mesh.next / "root.pem")
    assert mesh.anchors == {mesh.new.key}


def test_what_is_no_trust_anchor_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    other = make_ca(tmp_path / "other", trust_domain="other.org")
    assert "it is of the trust domain other.org, not of example.org" in mesh.refused("add", other / "root.pem")
    application, key = self_signed(tmp_path)
    assert "is no trust anchor: it has no key usage" in mesh.refused("add", application)
    assert "holds no certificate" in mesh.refused("add", key)
    assert "No such file" in mesh.refused("add", tmp_path / "none.pem")
    assert mesh.anchors == set()


def test_expired_anchor_needs_force(mesh: Mesh, tmp_path: Path) -> None:
    day = timedelta(days=1)
    ca = make_ca(tmp_path / "past", ago=3 * day, root_lifetime=day, intermediate_lifetime=day)
    assert " expired at " in mesh.refused("add", mesh.today / "root.pem", ca / "root.pem")
    mesh("add", "--force", mesh.today / "root.pem", ca / "root.pem")
    assert root_of(ca).key in mesh.anchors


def test_anchor_that_is_not_valid_yet_needs_force(mesh: Mesh, tmp_path: Path) -> None:
    future = renewed_root(mesh.next, begins=timedelta(days=2))
    (tmp_path / "future.pem").write_text(future.pem)
    assert " is not valid before " in mesh.refused("add", mesh.today / "root.pem", tmp_path / "future.pem")
    mesh("add", "--force", mesh.today / "root.pem", tmp_path / "future.pem")
    assert future.key in mesh.anchors


@pytest.mark.parametrize(
    ("extension", "fault"),
    [
        (
            x509.NameConstraints([x509.UniformResourceIdentifier("other.org")], None),
            "has name constraints that do not allow spiffe://example.org",
        ),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), "is not for clients and servers"),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), "has an unknown critical extension"),
    ],
)
def test_anchor_by_which_cores_verify_nobody_is_refused(
    mesh: Mesh, tmp_path: Path, extension: x509.ExtensionType, fault: str
) -> None:
    (tmp_path / "odd.pem").write_text(renewed_root(mesh.next, (extension, True)).pem)
    assert f"is no trust anchor: it {fault}" in mesh.refused("add", mesh.today / "root.pem", tmp_path / "odd.pem")
    assert f"is no trust anchor: it {fault}" in mesh.refused("add", "--force", tmp_path / "odd.pem")


def test_root_and_its_renewal_are_two_anchors(mesh: Mesh, tmp_path: Path) -> None:
    """Same name, same key."""
    renewed = renewed_root(mesh.today)
    (tmp_path / "renewed.pem").write_text(renewed.pem)
    mesh("add", mesh.today / "root.pem", tmp_path / "renewed.pem")
    assert mesh.anchors == {mesh.old.key, renewed.key}
    mesh("remove", "--force", mesh.old.key)
    assert mesh.anchors == {renewed.key}
    assert list(map(str, mesh.revoked)) == [f"anchor {mesh.old.key}"]


def test_number_of_anchors_is_bounded(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [renewed_root(mesh.next, lifetime=timedelta(days=1 + number)) for number in range(MOST_ANCHORS)]
    (tmp_path / "many.pem").write_text("".join(one.pem for one in many))
    refused = mesh.refused("add", mesh.today / "root.pem", tmp_path / "many.pem")
    assert f"would have {MOST_ANCHORS + 1} trust anchors, and at most {MOST_ANCHORS} are possible" in refused
    mesh("add", "--force", tmp_path / "many.pem")
    assert len(mesh.anchors) == MOST_ANCHORS
    mesh.says("node1", mesh.old, mesh.old, *many)
    mesh.says("node2", mesh.old, mesh.old, *many)
    assert not any(one["has"] is False for anchor in mesh("status", status=1)["anchors"] for one in anchor["nodes"])
    (mesh.directory / "more.json").write_text(json.dumps({"trust_anchors": [{"pem": mesh.old.pem}]}))
    assert main(["mesh", "check", str(mesh.directory)]) == 1
    assert f"expected at most {MOST_ANCHORS} trust anchors in all files, found one more" in capsys.readouterr().out


def test_symbolic_link_is_not_replaced(mesh: Mesh, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("trust_anchors: []\n")
    (mesh.directory / "trust.yaml").symlink_to(elsewhere)
    assert "trust.yaml is a symbolic link, which this command would" in mesh.refused("add", mesh.today / "root.pem")
    assert (mesh.directory / "trust.yaml").is_symlink()
    assert elsewhere.read_text() == "trust_anchors: []\n"


def test_forced_removal_that_cannot_be_written_cuts_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    replace = writer.replace

    def full(path: Path, text: str | None) -> None:
        if path.name == "trust.yaml":
            raise writer.WriteError(f"cannot write {path}: No space left on device; nothing was changed")
        replace(path, text)

    monkeypatch.setattr(writer, "replace", full)
    assert "No space left on device; nothing was changed" in mesh.refused("remove", "--force", mesh.old.key)
    assert mesh.anchors == {mesh.old.key, mesh.new.key}
    assert mesh.revoked == {}


def test_status_says_of_each_node_whether_it_has_each_anchor(mesh: Mesh) -> None:
    assert mesh("status") == {
        "mesh": str(mesh.directory),
        "complete": True,
        "anchors": [],
        "issuers": {mesh.old.key[:32]: ["node1", "node2"]},
        "lingering": {},
    }
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    mesh.says("node1", mesh.old, mesh.old, mesh.new)
    found = mesh("status", status=1)
    assert not found["complete"]
    assert {row["sha256"]: {one["node"]: one["has"] for one in row["nodes"]} for row in found["anchors"]} == {
        mesh.old.key: {"node1": True, "node2": True},
        mesh.new.key: {"node1": True, "node2": False},
    }
    assert "1 of 2, not node2" in mesh.shown("status", status=1)
    mesh.says("node2", mesh.old, mesh.old, mesh.new)
    assert mesh("status")["complete"]


def test_status_names_nodes_that_still_trust_what_was_removed(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    mesh("remove", mesh.old.key, "--force")
    mesh.says("node1", mesh.new, mesh.new)
    mesh.says("node2", mesh.new, mesh.old, mesh.new)
    found = mesh("status", status=1)
    assert (found["complete"], found["lingering"]) == (False, {mesh.old.key[:32]: ["node2"]})
    said = f"node2: still trusts the root {mesh.old.key[:16]}, which is no trust anchor any more"
    assert said in mesh.shown("status", status=1)
    mesh.says("node2", mesh.new, mesh.new)
    assert mesh("status")["lingering"] == {}


def test_node_that_says_nothing_is_named(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem")
    (mesh.directory / "enrolled" / "node2.yaml").unlink()
    assert "1 of 2, not node2" in mesh.shown("status", status=1)
    assert "node2: has not said what it needs" in mesh.refused("remove", mesh.old.key)


def test_anchor_is_removed_when_nothing_needs_it(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    assert "node1, node2: issues by it; wait, or" in mesh.refused("remove", mesh.old.key)
    mesh.says("node1", mesh.new, mesh.old, mesh.new, needs=(Need(mesh.old.key[:32], FAR),))
    mesh.says("node2", mesh.new, mesh.old, mesh.new)
    assert "node1: has certificates of it until 2106-02-07 06:28Z; wait, or" in mesh.refused("remove", mesh.old.key)
    mesh.says("node1", mesh.new, mesh.old, mesh.new, needs=(Need(mesh.old.key[:32], 1000),))
    mesh.says("node2", mesh.new, mesh.old, mesh.new, needs=(Need(mesh.old.key[:32], 1000, 30),))
    listed = f"'nodeseal connections --live --anchor {mesh.old.key[:16]}' lists them there; wait, or"
    assert f"is needed: node2: has up to 30 connections by it; {listed}" in mesh.refused("remove", mesh.old.key)
    needing = {one["node"]: (one["connections"], one["needs"]) for one in mesh("status")["anchors"][0]["nodes"]}
    assert needing == {"node1": (0, None), "node2": (30, "has connections by it")}
    assert "node2: has up to 30 connections by it" in mesh.shown("status")
    mesh.says("node2", mesh.new, mesh.old, mesh.new, needs=(Need(mesh.old.key[:32], FAR, 1),))
    both = "node2: has certificates of it until 2106-02-07 06:28Z, and up to 1 connection by it; "
    assert both + listed in mesh.refused("remove", mesh.old.key)
    mesh.says("node2", mesh.new, mesh.old, mesh.new)
    answer = mesh("remove", mesh.old.key[:8])
    assert [row["sha256"] for row in answer["removed"]] == [mesh.old.key]
    assert mesh.anchors == {mesh.new.key}
    assert mesh.revoked == {}
    assert "no trust anchor begins with" in mesh.refused("remove", mesh.old.key)


def test_publication_with_a_time_that_there_is_none_of_keeps_nobody_from_removing(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    for node in ("node1", "node2"):
        mesh.says(node, mesh.new, mesh.old, mesh.new, needs=(Need(mesh.old.key[:32], 999_999_999_999),))
    refused = mesh.refused("remove", mesh.old.key)
    assert "node1, node2: has certificates of it until 9999-12-31 00:00Z; wait, or" in refused
    mesh("remove", mesh.old.key, "--force")
    assert mesh.anchors == {mesh.new.key}


def test_nodes_of_a_federated_trust_domain_have_nothing_to_do_with_it(mesh: Mesh, tmp_path: Path) -> None:
    """Their publications are in the mesh directory, with the root of their own CA."""
    theirs = root_of(make_ca(tmp_path / "theirs", trust_domain="partner.example"))
    entry = {"name": "far", "node": "node9", "address": "10.9.0.1", "enrolled": True, "trust_domain": "partner.example"}
    federated = {"trust_domain": "partner.example", "bundle": theirs.pem}
    (mesh.directory / "partner.json").write_text(json.dumps({"federated": [federated], "workloads": [entry]}))
    mesh.says("node9", theirs, theirs, needs=None)
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    for node in ("node1", "node2"):
        mesh.says(node, mesh.new, mesh.old, mesh.new)
    found = mesh("status")
    assert found["complete"]
    assert found["issuers"] == {mesh.new.key[:32]: ["node1", "node2"]}
    assert {one["node"] for row in found["anchors"] for one in row["nodes"]} == {"node1", "node2"}
    mesh("remove", mesh.old.key)
    assert mesh.anchors == {mesh.new.key}


def test_anchor_that_is_needed_is_removed_by_force(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    answer = mesh("remove", mesh.old.key, "--force")
    assert [(one["node"], one["needs"]) for one in answer["needed"]] == [
        ("node1", "issues by it"),
        ("node2", "issues by it"),
    ]
    assert mesh.anchors == {mesh.new.key}
    assert list(map(str, mesh.revoked)) == [f"anchor {mesh.old.key}"]


def test_anchor_that_is_added_again_is_revoked_no_more(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    assert "are cut" in mesh.shown("remove", mesh.old.key, "--force")
    assert mesh.old.key[:16] in mesh.listed_as_revoked()
    mesh("add", mesh.today / "root.pem")
    assert mesh.anchors == {mesh.old.key, mesh.new.key}
    assert mesh.revoked == {}
    assert "nothing is revoked" in mesh.listed_as_revoked()


def test_what_forced_removals_have_left_is_forgotten_after_a_year(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem", mesh.next / "root.pem")
    entries = [
        {"anchor": "aa" * 32, "since": "2020-01-01T00:00:00Z"},
        {"anchor": "bb" * 32, "since": "9999-01-01T00:00:00Z"},
        {"serials": ["5"], "since": "2020-01-01T00:00:00Z"},
    ]
    (mesh.directory / "revocations.json").write_text(json.dumps({"revocations": entries}))
    mesh("remove", mesh.old.key, "--force")
    assert set(map(str, mesh.revoked)) == {f"anchor {'bb' * 32}", "serial 5", f"anchor {mesh.old.key}"}


def test_file_goes_with_the_last_anchor(mesh: Mesh) -> None:
    mesh("add", mesh.today / "root.pem")
    mesh("remove", mesh.old.key, "--force")
    assert mesh.revoked == {}
    assert not (mesh.directory / "trust.yaml").exists()
    assert "each node trusts the root.pem of its own CA" in mesh.shown("list")


@pytest.mark.parametrize("name", ["", "9c05", "ffffffffffffffff"])
def test_anchor_has_to_be_named_well(mesh: Mesh, name: str) -> None:
    mesh("add", mesh.today / "root.pem")
    assert "trust anchor" in mesh.refused("remove", name)


def test_anchor_of_another_file_is_left_to_who_wrote_that(mesh: Mesh) -> None:
    by_hand = {"trust_anchors": [{"pem": mesh.new.pem}]}
    (mesh.directory / "by-hand.json").write_text(json.dumps(by_hand))
    mesh("add", mesh.today / "root.pem")
    assert mesh.anchors == {mesh.old.key, mesh.new.key}
    assert "is not in" in mesh.refused("remove", mesh.new.key, "--force")
    assert mesh.revoked == {}
    assert mesh.anchors == {mesh.old.key, mesh.new.key}


def test_nothing_is_written_beside_a_broken_mesh_state(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    (mesh.directory / "more.yaml").write_text("workloads: [")
    assert main(["trust", "add", str(mesh.today / "root.pem"), "--mesh", str(mesh.directory)]) == 1
    assert "more.yaml" in capsys.readouterr().err
    assert not (mesh.directory / "trust.yaml").exists()


def test_one_writes_at_a_time(mesh: Mesh) -> None:
    lock = LockFile(mesh.directory / ".writer.lock")
    try:
        assert "another command" in mesh.refused("add", mesh.today / "root.pem")
    finally:
        lock.release()
    mesh("add", mesh.today / "root.pem")


def test_places_of_mistakes_in_the_file_are_told(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    (mesh.directory / "trust.yaml").write_text("trust_anchors:\n- pem: nonsense\n- {}\n- {pem: x, name: y}\n")
    assert main(["mesh", "check", str(mesh.directory)]) == 1
    lines = [line.removeprefix(f"{mesh.directory}/") for line in capsys.readouterr().out.splitlines()]
    expected = "expected one certificate in PEM form, found something else"
    assert lines == [
        f"trust.yaml:2: trust_anchors[0].pem: {expected}",
        "trust.yaml:3: trust_anchors[1].pem: expected one certificate in PEM form, found nothing",
        f"trust.yaml:4: trust_anchors[2].pem: {expected}",
        "trust.yaml:4: trust_anchors[2].name: expected only pem, found the unknown field 'name'",
    ]
