"""`nodeseal revoke`, as an operator uses it on a mesh directory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nodeseal.cli.main import main
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError

STATE = """\
trust_domain: example.org
workloads:
- {name: web, node: node1, address: 10.0.0.1, service_account: web}
- {name: web-2, node: node2, address: 10.0.0.2, service_account: web}
- {name: db, node: node1, address: 10.0.0.3, service_account: db}
"""
WEB, DB = "spiffe://example.org/ns/default/sa/web", "spiffe://example.org/ns/default/sa/db"


class Mesh:
    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "mesh.yaml").write_text(STATE)
        self._capsys = capsys

    def __call__(self, *arguments: object) -> dict[str, Any]:
        assert main(["revoke", *map(str, arguments), "--mesh", str(self.directory), "-o", "json"]) == 0
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def shown(self, *arguments: object) -> str:
        assert main(["revoke", *map(str, arguments), "--mesh", str(self.directory)]) == 0
        return self._capsys.readouterr().out

    def refused(self, *arguments: object) -> str:
        assert main(["revoke", *map(str, arguments), "--mesh", str(self.directory)]) != 0
        out = self._capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)
        return out.err

    @property
    def keys(self) -> set[str]:
        return set(map(str, load(self.directory).of(REVOCATIONS)))


@pytest.fixture
def mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mesh:
    return Mesh(tmp_path / "mesh", capsys)


def test_identity_is_revoked_once_and_taken_back(mesh: Mesh) -> None:
    assert mesh.shown("identity", WEB, "--reason", "leaked") == f"revoked identity {WEB} in {mesh.directory}\n"
    assert mesh.shown("identity", WEB) == f"it is revoked in {mesh.directory} already\n"
    (row,) = mesh("list")["revoked"]
    assert (row["what"], row["name"], row["reason"], row["identities"]) == ("identity", WEB, "leaked", [WEB])
    assert row["since"].endswith("Z")
    assert "leaked" in mesh.shown("list")
    assert mesh.shown("identity", WEB, "--undo") == f"no longer revoked identity {WEB} in {mesh.directory}\n"
    assert mesh.keys == set()
    assert not (mesh.directory / "revocations.json").exists()
    assert "is not revoked in" in mesh.refused("identity", WEB, "--undo")
    assert mesh.shown("list") == f"nothing is revoked in {mesh.directory}\n"


def test_identity_of_another_domain_may_have_any_path(mesh: Mesh) -> None:
    theirs = "spiffe://other.org/billing/api"
    assert mesh.shown("identity", theirs) == f"revoked identity {theirs} in {mesh.directory}\n"
    assert mesh.keys == {f"identity {theirs}"}
    assert mesh.shown("identity", theirs, "--undo").startswith(f"no longer revoked identity {theirs} ")


def test_slip_in_an_identity_of_the_own_domain_is_told(mesh: Mesh) -> None:
    """It would revoke nobody."""
    (mesh.directory / "by-hand.yaml").write_text("revocations:\n- identity: spiffe://example.org/default/web\n")
    with pytest.raises(MeshStateError, match=r"revocations\[0\].identity: expected a SPIFFE id such as"):
        load(mesh.directory)


def test_node_is_revoked_with_the_identities_that_are_its_alone(mesh: Mesh) -> None:
    answer = mesh("node", "node1")
    assert answer["revoked"][0]["identities"] == [DB]
    assert answer["notes"] == [f"not revoked: {WEB}, which workloads on node2 have too"]
    # As of then: what becomes of the mesh state changes nothing.
    (mesh.directory / "mesh.yaml").write_text(STATE.replace("node: node1", "node: node2"))
    assert mesh("list")["revoked"][0]["identities"] == [DB]
    assert mesh("node", "node1", "--undo")["restored"][0]["name"] == "node1"
    assert mesh.keys == set()
    assert "no workload on the node node3" in mesh.refused("node", "node3")


def issued(*serials: str, node: str = "node1", count: int | None = None) -> str:
    """As `nodeseal ca issued -o json` prints it."""
    rows = [{"serial": serial, "node": node, "kind": "workload"} for serial in serials]
    return json.dumps({"certificates": rows, "count": len(rows) if count is None else count})


def test_node_is_revoked_with_what_was_issued_to_it(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "issued.json"
    file.write_text(issued("aa", "bb"))
    mesh("node", "node1", "--reason", "stolen")
    (row,) = mesh("node", "node1", "--issued", file)["revoked"]
    assert (row["serials"], row["identities"], row["reason"]) == (2, [DB], "stolen")
    # Again, when more is known: what is known by then stays.
    monkeypatch.setattr("sys.stdin", io.StringIO(issued("bb", "cc")))
    answer = mesh("node", "node1", "--issued", "-")
    assert (answer["revoked"][0]["serials"], answer["restored"]) == (3, [])
    assert mesh("node", "node1", "--issued", file)["revoked"] == []
    assert mesh.shown("list").endswith(f"node1 ({DB}, 3 certificates)  {row['since']}  stolen\n")
    (found,) = load(mesh.directory).of(REVOCATIONS).values()
    assert list(found.serials) == [0xAA, 0xBB, 0xCC]
    # Another command takes back what it has revoked, and not this.
    assert "the serial number aa is not revoked" in mesh.refused("serial", "aa", "--undo")
    assert mesh.shown("serial", "aa") == f"revoked serial aa in {mesh.directory}\n"
    mesh("node", "node1", "--undo")
    assert mesh.keys == {"serial aa"}


def test_node_and_what_was_issued_to_it_are_revoked_at_once(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "issued.json"
    file.write_text(issued("aa"))
    assert mesh.shown("node", "node1", "--issued", file) == (
        f"revoked node node1 and 1 certificate in {mesh.directory}\n"
        f"not revoked, but for the certificates that are: {WEB}, which workloads on node2 have too\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (issued("aa", count=7), "lists 1 of 7 certificates; ask for all of them: leave out --limit"),
        (issued("aa", node="node2"), "lists the certificate aa of the node 'node2'; list those of node1: nodeseal ca"),
        (issued("zz"), "'zz' is no serial number in hexadecimal digits"),
        ("", "has no serial number; look whether what should have written it has failed"),
        ("{", "is not what `nodeseal ca issued -o json` prints: "),
        ('{"certificates": ' + "[" * 100_000, "is not what `nodeseal ca issued -o json` prints: "),
    ],
)
def test_list_of_what_was_issued_that_is_wrong_revokes_nothing(mesh: Mesh, tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "issued.json"
    file.write_text(text)
    assert why in mesh.refused("node", "node1", "--issued", file)
    assert mesh.keys == set()


def test_serial_numbers_come_from_what_was_issued_as_well(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "issued.json"
    file.write_text(issued("aa", "bb", node="node2"))
    assert mesh("serial", "--file", file)["revoked"][0]["serials"] == 2
    mesh("serial", "--file", file, "--undo")
    assert mesh.keys == set()


def test_serial_numbers_are_revoked_and_taken_back_one_by_one(mesh: Mesh, tmp_path: Path) -> None:
    assert mesh("serial", "00:AA", "bb", "--reason", "lost")["revoked"][0]["serials"] == 2
    assert mesh("serial", "aa")["revoked"] == []
    assert [row["name"] for row in mesh("serial", "aa", "cc")["revoked"]] == ["cc"]
    answer = mesh("serial", "aa", "--undo")
    assert (answer["restored"][0]["serials"], answer["revoked"][0]["name"]) == (2, "bb")
    assert mesh.keys == {"serial bb", "serial cc"}
    assert [row["reason"] for row in mesh("list")["revoked"] if row["name"] == "bb"] == ["lost"]
    mesh("serial", "bb", "cc", "--undo")
    assert mesh.keys == set()
    assert "the serial number bb is not revoked" in mesh.refused("serial", "bb", "--undo")


def test_serial_numbers_of_another_trust_domain_are_others(mesh: Mesh) -> None:
    mesh("serial", "aa")
    mesh("serial", "aa", "--trust-domain", "other.org")
    assert mesh.keys == {"serial aa", "serial aa@other.org"}
    mesh("serial", "aa", "--undo")
    assert mesh.keys == {"serial aa@other.org"}


def test_100_000_serial_numbers_come_from_a_file(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "serials.txt"
    file.write_text("".join(f"{(1 << 150) + number:040x}\n" for number in range(100_000)))
    assert mesh.shown("serial", "--file", file) == f"revoked 100000 serial numbers in {mesh.directory}\n"
    (revocation,) = load(mesh.directory).of(REVOCATIONS).values()
    assert len(revocation.serials) == 100_000
    assert "100000 of them" in mesh.shown("list")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("identity", "web"), "does not start with spiffe://"),
        (("identity", "spiffe://example.org/default/web"), "is not of the form spiffe://<trust domain>/ns/"),
        (("serial", "zz"), "'zz' is no serial number in hexadecimal digits"),
        (("serial",), "name serial numbers, or a --file with some"),
        (("serial", "--file", "/none"), "cannot read /none: No such file or directory"),
        (("serial", "aa", "--trust-domain", "A"), "trust domain 'A' is not"),
        (("identity", WEB, "--reason", "x" * 201), "give one line of at most 200 characters"),
        (("identity", WEB, "--reason", "a\nb"), "give one line of at most 200 characters"),
    ],
)
def test_what_cannot_be_revoked_is_told(mesh: Mesh, arguments: tuple[str, ...], why: str) -> None:
    assert why in mesh.refused(*arguments)
    assert mesh.keys == set()


def test_what_another_file_revokes_is_left_to_who_wrote_that(mesh: Mesh) -> None:
    (mesh.directory / "by-hand.yaml").write_text(f"revocations:\n- identity: {WEB}\n")
    assert mesh.shown("identity", WEB) == f"it is revoked in {mesh.directory} already\n"
    assert "take it out of the file that has it" in mesh.refused("identity", WEB, "--undo")
