"""`nodeseal mesh check`, which a pipeline runs before a mesh state reaches any node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeseal.cli.main import main
from support.namespaces import needs_root

GOOD = """\
trust_domain: example.org
workloads:
- {name: web, node: node1, address: 10.0.0.1, netns: web, enrolled: true}
- {name: db, node: node2, address: 10.0.0.2, netns: db, enrolled: true}
services:
- {name: front, address: 10.96.0.1, ports: [{port: 80, target_port: 8080}], endpoints: [web]}
"""
BAD = """\
workloads:
- {name: web, node: node1, address: 10.0.0.999}
- {name: db, node: node2, address: 10.0.0.2, mood: bad}
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    directory = tmp_path / "mesh"
    directory.mkdir()
    (directory / "mesh.yaml").write_text(GOOD)
    return directory


def test_good_state(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mesh", "check", str(mesh)]) == 0
    out = capsys.readouterr()
    assert out.out == f"{mesh}: good: trust domain example.org, nodes 2, workloads 2, services 1\n"
    assert out.err == ""
    assert main(["mesh", "check", str(mesh), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "problems": [],
        "trust_domain": "example.org",
        "nodes": 2,
        "workloads": 2,
        "services": 1,
    }


def test_the_bulk_form_is_read_too(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workloads = [{"name": f"w{n}", "node": "node3", "address": f"10.0.1.{n}"} for n in range(1, 4)]
    (mesh / "more.json").write_text(json.dumps({"workloads": workloads}))
    assert main(["mesh", "check", str(mesh)]) == 0
    assert "nodes 3, workloads 5, services 1" in capsys.readouterr().out
    (mesh / "more.json").write_text(json.dumps({"workloads": [{**workloads[0], "mood": "bad"}]}, indent=1))
    assert main(["mesh", "check", str(mesh)]) == 1
    place = f"{mesh}/more.json:7: workloads[0].mood: expected 'mode', found the unknown field 'mood'"
    assert capsys.readouterr().out.splitlines()[0] == place


def test_everything_that_is_wrong_is_told_with_its_place(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mesh / "more.yaml").write_text(BAD)
    (mesh / "torn.yaml").write_text("workloads: [")
    assert main(["mesh", "check", f"{mesh}/"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{mesh}/more.yaml:2: workloads[0].address: expected an IPv4 or IPv6 address, found ")
    assert lines[1].startswith(f"{mesh}/more.yaml:3: workloads[1].mood: expected 'mode', found the unknown field")
    assert lines[2].startswith(f"{mesh}/torn.yaml:")
    assert len(lines) == 3


def test_what_concerns_several_files_is_told(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mesh / "more.yaml").write_text("workloads:\n- {name: web, node: node3, address: 10.0.0.3}\n")
    assert main(["mesh", "check", str(mesh), "-o", "json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    (problem,) = answer["problems"]
    assert (problem["file"], problem["line"], problem["field"]) == ("more.yaml", 2, "workloads[0].name")


def test_address_that_two_workloads_claim_is_told(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mesh / "more.yaml").write_text("workloads:\n- {name: other, node: node3, addresses: [10.0.0.3, 10.0.0.2]}\n")
    assert main(["mesh", "check", str(mesh)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{mesh}: workloads: expected an address used once, found 10.0.0.2 of default/db and of default/other: "
        "it counts for neither"
    )


@pytest.mark.parametrize("name", ["nosuch", "file"])
def test_what_is_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "file").write_text(GOOD)
    assert main(["mesh", "check", str(tmp_path / name)]) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path / name}: expected a directory that can be read, found ")


def test_empty_directory_is_no_mesh_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mesh", "check", str(tmp_path)]) == 1
    assert "trust_domain" in capsys.readouterr().out


@needs_root
def test_needs_no_root(mesh: Path) -> None:
    for path in (mesh, *mesh.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search")
    done = subprocess.run(
        [*user, *reads, sys.executable, "-m", "nodeseal", "mesh", "check", str(mesh)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
