"""`nodeseal ca`, as an operator uses it in the life of a CA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.cli.ca import show
from nodeseal.cli.main import main
from nodeseal.contracts.output import CaDescription

FOUND = {
    "directory": "/etc/nodeseal/ca",
    "trust_domain": "example.org",
    "usable": True,
    "why": None,
    "certificates": [
        {
            "role": "root",
            "file": "root.pem",
            "subject": "CN=nodeseal root d17c8457",
            "trust_domain": "example.org",
            "not_before": "2026-03-01T11:55:00+00:00",
            "not_after": "2036-02-27T12:00:00+00:00",
            "days_left": 3300,
            "sha256": "9c05d9feb092cbb96b35b1b782df12833c8369eb287d9936748204b7eb48e71b",
            "serial": "5fd4a0ffd5a1f8d4a12e7f0e3ab96f7de0c16a38",
            "path_length": 1,
            "key_type": "p384",
            "key": None,
        },
        {
            "role": "intermediate",
            "file": "intermediate.pem",
            "subject": "CN=nodeseal intermediate 7f9fe405",
            "trust_domain": "example.org",
            "not_before": "2026-03-01T11:55:00+00:00",
            "not_after": "2027-03-01T12:00:00+00:00",
            "days_left": 15,
            "sha256": "468bcf6602cf26afceb4c3d054bd02149d816084d1f315d301fad2440b792932",
            "serial": "1aa0f62d31b0c55a0f5f6d7d1b4f9c2a70e4d6b1",
            "path_length": 0,
            "key_type": "p256",
            "key": "intermediate.key",
        },
    ],
    "keys": {"root.key": False, "intermediate.key": True, "intermediate-next.key": True},
    "warnings": [
        "the CA's intermediate (/etc/nodeseal/ca/intermediate.pem) expires in 15 days, at 2027-03-01 12:00Z: nodeseal "
        "ca renew where the CA's root.key is, or nodeseal ca request /etc/nodeseal/ca FILE here"
    ],
}


class Cli:
    """Runs `nodeseal ca` and reads what it says as JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> dict[str, Any]:
        assert main(["ca", *map(str, arguments), "-o", "json"]) == 0
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def refused(self, *arguments: object) -> str:
        assert main(["ca", *map(str, arguments)]) == 1
        out = self._capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)
        return out.err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_show_for_a_person(golden: Callable[[str, str], None]) -> None:
    golden("ca_show.txt", show.text(msgspec.convert(FOUND, CaDescription)))


def test_show_of_what_cannot_be_used(golden: Callable[[str, str], None]) -> None:
    root = {**FOUND["certificates"][0], "key": "root.key", "days_left": -1}  # type: ignore[index]
    keys = {"root.key": True, "intermediate.key": False, "intermediate-next.key": False}
    why = "/ca/root.pem expired at 2036-02-27 12:00:00Z; put a new certificate and its key there"
    found = {**FOUND, "certificates": [root], "usable": False, "why": why, "keys": keys}
    golden("ca_show_expired.txt", show.text(msgspec.convert(found, CaDescription)))


def test_key_that_cannot_be_used_is_not_said_to_be_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "ca"
    assert main(["ca", "init", str(directory)]) == 0
    (directory / "root.key").unlink()
    (directory / "intermediate.key").chmod(0o644)
    capsys.readouterr()
    assert main(["ca", "show", str(directory)]) == 0
    out = capsys.readouterr().out
    keys = [line.removeprefix("  key          ") for line in out.splitlines() if line.startswith("  key  ")]
    assert keys == ["not here", "intermediate.key is here and cannot be used"]
    assert f"an agent cannot use it: others can read the key in {directory}/intermediate.key" in " ".join(out.split())


def test_renewal_at_home(cli: Cli, tmp_path: Path) -> None:
    cli("init", tmp_path / "ca", "--trust-domain", "example.com")
    before = cli("show", tmp_path / "ca")["certificates"][1]
    made = cli("renew", tmp_path / "ca")
    after = cli("show", tmp_path / "ca")["certificates"][1]
    assert (made["trust_domain"], made["sha256"]) == ("example.com", after["sha256"])
    assert after["sha256"] != before["sha256"]


def test_offline_root(cli: Cli, tmp_path: Path) -> None:
    home, node, asked, signed = (tmp_path / name for name in ("home", "node", "a.csr", "a.pem"))
    cli("init", home)
    node.mkdir(mode=0o700)
    (node / "root.pem").write_bytes((home / "root.pem").read_bytes())
    request = cli("request", node, asked)
    assert cli("show", node)["keys"] == {"root.key": False, "intermediate.key": False, "intermediate-next.key": True}
    answer = cli("sign", home, asked, signed)
    assert answer["key_sha256"] == request["key_sha256"]
    taken = cli("renew", node, "--certificate", signed)
    assert (taken["sha256"], taken["key_sha256"]) == (answer["sha256"], request["key_sha256"])
    shown = cli("show", node)
    assert (shown["usable"], shown["certificates"][1]["sha256"]) == (True, answer["sha256"])


def test_nothing_is_written_over(cli: Cli, tmp_path: Path) -> None:
    cli("init", tmp_path / "ca")
    cert = tmp_path / "ca" / "intermediate.pem"
    before = cert.read_bytes()
    assert cli.refused("request", tmp_path / "ca", cert).startswith(f"nodeseal: {cert} exists already; ")
    cli("request", tmp_path / "ca", tmp_path / "a.csr")
    assert "exists already" in cli.refused("sign", tmp_path / "ca", tmp_path / "a.csr", cert)
    assert cert.read_bytes() == before


@pytest.mark.parametrize("command", ["show", "renew"])
def test_directory_that_is_not_there_is_one_line(cli: Cli, tmp_path: Path, command: str) -> None:
    assert str(tmp_path / "none") in cli.refused(command, tmp_path / "none")


def test_renewal_without_the_roots_key_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    cli("init", tmp_path / "ca")
    (tmp_path / "ca" / "root.key").unlink()
    line = cli.refused("renew", tmp_path / "ca")
    for command in ("nodeseal ca request", "nodeseal ca sign", "nodeseal ca renew"):
        assert command in line


def test_lines_for_a_person_say_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, file = tmp_path / "ca", tmp_path / "a.csr"
    main(["ca", "init", str(directory)])
    capsys.readouterr()
    assert main(["ca", "request", str(directory), str(file)]) == 0
    first, key, there, here = capsys.readouterr().out.splitlines()
    assert first == f"wrote {file}; the key stays in {directory}"
    assert there == "sign it where the root's key is: nodeseal ca sign DIR a.csr FILE"
    assert here == f"then, here: nodeseal ca renew {directory} --certificate FILE"
    assert main(["ca", "sign", str(directory), str(file), str(tmp_path / "a.pem")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{key}: is that what `nodeseal ca request` printed?"
