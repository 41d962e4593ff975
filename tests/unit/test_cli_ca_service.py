"""`nodeseal ca` beside the certificate service: tokens, what was issued, backups. And its configuration."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority import service_config
from nodeseal.authority.audit_file import STANDARD_OUTPUT
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Entry, Issued, Kind, Ledger
from nodeseal.authority.service import Lifetimes, Limits
from nodeseal.cli import table
from nodeseal.cli.main import main
from support.ca_service import WEB, Place, RefusedRequest, running
from support.process import nodeseal_command

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


def fill(place: Place, count: int = 3) -> None:
    """With certificates."""
    place.state.mkdir(mode=0o700)
    with Ledger(place.state) as ledger:
        for number in range(count):
            node = number == 0
            one = Issued(
                serial=f"{0x5B6E0F3A9C41D27788F0A1B2C3D4E5F60718293A + number:x}",
                kind=Kind.NODE if node else Kind.WORKLOAD,
                node=f"node{number}",
                identity=f"spiffe://example.org/node/node{number}" if node else f"{WEB}-{number}",
                key_sha256=number.to_bytes(32),
                issued=NOW + timedelta(minutes=number),
                not_after=NOW + timedelta(days=1),
                reason="join" if node else "renewal",
                credential="token 0f3a9c41d277" if node else "certificate 5b6e0f3a9c41d27788f0a1b2c3d4e5f60718293a",
            )
            ledger.record([Entry(one)], NOW)


def ca(place: Place, *words: str) -> int:
    return main(["ca", *words, "--config", str(place.config)])


@pytest.mark.parametrize("columns", [100, 10_000])
def test_what_was_issued_for_a_person(
    place: Place,
    columns: int,
    golden: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "width", lambda: columns)
    fill(place)
    assert ca(place, "issued", "--limit", "2") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    golden(f"ca_issued_{columns}.txt", out)


def test_what_was_issued_is_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    fill(place)
    for words, nodes in (
        (["--node", "node1"], ["node1"]),
        (["--identity", f"{WEB}-2"], ["node2"]),
        (["--serial", "5B:6E:0F"], ["node2", "node1", "node0"]),
        (["--serial", "ff"], []),
    ):
        assert ca(place, "issued", *words, "-o", "json") == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["node"] for row in found["certificates"]] == nodes
        assert found["count"] == len(nodes)


def test_all_that_is_valid_is_listed_for_a_script(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it: it may be what is to be revoked."""
    fill(place, 150)
    now = datetime.now(UTC)
    with Ledger(place.state) as ledger:
        for number in range(120):
            one = Issued(
                f"{number + 1:x}", Kind.WORKLOAD, "node9", WEB, number.to_bytes(31), now, now + timedelta(hours=1),
                "first", "certificate 1",
            )  # fmt: skip
            ledger.record([Entry(one)], now)
    assert ca(place, "issued", "--valid", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["count"], len(found["certificates"])) == (120, 120)
    assert ca(place, "issued", "--valid", "--node", "node1") == 0
    assert capsys.readouterr().out == "no such certificate was issued\n"
    assert ca(place, "issued", "--valid") == 0
    assert capsys.readouterr().out.endswith("20 more: --limit, or nodeseal ca export\n")


def test_everything_is_exported_in_both_forms(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    fill(place, 150)
    assert ca(place, "export") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ca(place, "export", "--format", "csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows == lines
    assert len(rows) == 150
    assert ca(place, "issued", "--limit", "1", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["certificates"] == lines[:1]


def test_token_is_shown_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert ca(place, "token", "create", "--node", "node1") == 0
    token, _empty, about, pin = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"nodeseal-join-[\w-]{43}", token)
    assert re.fullmatch(r"the token [0-9a-f]{12} is for the node node1, once, until \d{4}-\d\d-\d\d \d\d:\d\dZ", about)
    assert re.match(r"service key SHA-256 [0-9a-f]{64}: ", pin)
    assert ca(place, "token", "list") == 0
    listed = capsys.readouterr().out
    assert about.split()[2] in listed
    assert token not in listed


def test_tokens_for_a_person(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert ca(place, "token", "list") == 0
    assert capsys.readouterr().out == "no tokens; make one: nodeseal ca token create --node NAME\n"
    with Ledger(place.state) as ledger:
        for hour, node in enumerate(("node2", "node1")):
            ledger.make_token(node, timedelta(hours=1), NOW + timedelta(hours=hour))
    assert ca(place, "token", "list") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "NODE", "STATE", "CREATED", "EXPIRES", "USED", "OR", "REVOKED"]
    assert [row.partition("  ")[2] for row in rows] == [
        "node1  expired  2026-03-01 13:00Z  2026-03-01 14:00Z  -",
        "node2  expired  2026-03-01 12:00Z  2026-03-01 13:00Z  -",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["token", "create", "--node", "no/node"], "--node 'no/node': a node's name in the mesh state is expected"),
        (["token", "create", "--node", "n", "--ttl", "1"], "--ttl: a duration such as 30s, 10m, 24h or 7d is expected"),
        (["token", "create", "--node", "n", "--ttl", "0s"], "--ttl 0s: from 1s to 30d is expected"),
        (["token", "create", "--node", "n", "--ttl", "999999999d"], "--ttl 999999999d: from 1s to 30d is expected"),
        (["token", "revoke", "nosuch"], "there is no open token nosuch; see `nodeseal ca token list`"),
        (["token", "revoke"], "either IDs or --all is expected"),
    ],
)
def test_wrong_uses_are_one_line(place: Place, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ca(place, *words) in (1, 2)
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1


# ---- the configuration


def test_configuration_has_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "ca.yaml"
    file.write_text("ca: ca\nmesh: /mesh\n")
    found = service_config.load(file)
    assert (found.directories, found.state) == (
        service_config.DirectoryConfig(tmp_path / "ca", Path("/mesh")),
        Path("/var/lib/nodeseal/ca"),
    )
    assert [str(one) for one in found.listen] == ["0.0.0.0:15018"]
    assert (found.lifetimes, found.limits) == (Lifetimes(), Limits())
    assert (found.audit, found.retention) == (found.state / "audit.jsonl", timedelta(days=90))


def test_documented_settings_are_the_defaults(tmp_path: Path) -> None:
    """Those in the module's text, which has all of them."""
    text = re.sub(r" +#.*", "", (service_config.__doc__ or "").split("\n\n")[1])
    file = tmp_path / "ca.yaml"
    file.write_text(text)
    found = service_config.load(file)
    assert [str(one) for one in found.listen] == ["0.0.0.0:15018"]
    assert (found.lifetimes, found.limits, found.retention) == (Lifetimes(), Limits(), timedelta(days=90))
    assert found.audit == found.state / "audit.jsonl"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mesh: m", ":1: ca: expected a path, found nothing"),
        ("ca: c\nmesh: m\nlisten: [example.org:1]", ":3: listen[0]: expected an address with a port, such as 0.0.0.0"),
        ("ca: c\nmesh: m\nlisten: ['::1:1']", ":3: listen[0]: expected an address with a port, such as 0.0.0.0"),
        ("ca: c\nmesh: m\nlisten: []", ":3: listen: "),
        (
            "ca: c\nmesh: m\ncertificate_lifetime: 9s",
            ":3: certificate_lifetime: expected a duration from 10s to 365d, found 9s",
        ),
        ("ca: c\nmesh: m\nnode_lifetime: 1s", ":3: node_lifetime: expected a duration from 1m to 365d, found 1s"),
        ("ca: c\nmesh: m\nlimits: {node_burst: 0}", ":3: limits.node_burst: expected a number from 1 to 1,000,000"),
        ("ca: c\nmesh: m\nlimits: {x: 0}", ":3: limits.x: expected only "),
        ("ca: c\nmesh: m\nmash: 1", ":3: mash: expected 'mesh', found the unknown field 'mash'"),
    ],
)
def test_configuration_that_is_wrong_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "ca.yaml"
    file.write_text(text)
    with pytest.raises(AuthorityError) as caught:
        service_config.load(file)
    assert str(caught.value).startswith(f"{file}{line}")
    assert len(str(caught.value).splitlines()) == 1


def test_configuration_in_a_cluster_has_its_defaults(tmp_path: Path) -> None:
    """Those in the module's text, which has all of them."""
    file = tmp_path / "ca.yaml"
    file.write_text("kubernetes: {}\n")
    found = service_config.load(file)
    assert found.audit == STANDARD_OUTPUT
    text = re.sub(r" +#.*", "", (service_config.__doc__ or "").partition("takes the place of `ca` and `mesh`:")[2])
    file.write_text(text.partition("Relative paths")[0])
    assert service_config.load(file) == found
    with pytest.raises(AuthorityError, match="this certificate service is Kubernetes'"):
        _ = found.directories
    file.write_text("kubernetes: {trust_domain: prod.example, make: false, secret: s}\naudit: a\nstate: st\n")
    found = service_config.load(file)
    assert isinstance(found.place, service_config.ClusterConfig)
    assert (found.place.trust_domain, found.place.make, found.place.secret) == ("prod.example", False, "s")
    assert found.audit == tmp_path / "st" / "a"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kubernetes: {}\nca: c", ":2: ca: expected "),
        ("kubernetes: {}\nmesh: m", ":2: mesh: expected "),
        ("kubernetes: 1", ":1: kubernetes: expected a mapping, found the number 1"),
        ("kubernetes: {secret: A}", ":1: kubernetes.secret: expected the name of an object, found 'A'"),
        ("kubernetes: {trust_domain: A}", ":1: kubernetes.trust_domain: expected a trust domain"),
        ("kubernetes: {make: perhaps}", ":1: kubernetes.make: expected true or false, found 'perhaps'"),
        ("kubernetes: {agent: a}", ":1: kubernetes.agent: expected 'agents', found the unknown field 'agent'"),
        ("kubernetes: {}\nbundle_endpoint: {}", ":2: bundle_endpoint: expected none beside `kubernetes`, found one"),
    ],
)
def test_configuration_in_a_cluster_that_is_wrong_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "ca.yaml"
    file.write_text(text)
    with pytest.raises(AuthorityError) as caught:
        service_config.load(file)
    assert str(caught.value).startswith(f"{file}{line}")
    assert len(str(caught.value).splitlines()) == 1


# ---- docs/certificate-service.md


def section(title: str) -> str:
    text = (ROOT / "docs" / "certificate-service.md").read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_table_of_settings_is_what_there_is() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section("Run it"), re.MULTILINE)
    named = {name.removeprefix("limits.") for row, _default in rows for name in re.findall(r"`([\w.]+)`", row)}
    text = (service_config.__doc__ or "").split("\n\n")[1]
    assert named == set(re.findall(r"^ +(\w+):(?! *$)", text, re.MULTILINE))


def test_backup_is_brought_back_as_it_is_written(tmp_path: Path) -> None:
    """Every command of the page, in its order, with the paths of this test."""
    place = Place.make(tmp_path)
    backup, restore = re.findall(r"^```\n(.*?)^```$", section("Backup and restore"), re.MULTILINE | re.DOTALL)
    *steps, serve = restore.splitlines()
    assert serve == "nodeseal ca serve --config /etc/nodeseal/ca.yaml"

    def follow(lines: list[str]) -> None:
        for line in lines:
            words = line.replace("/var/lib/nodeseal/ca", str(place.state)).replace("/backup", str(tmp_path)).split()
            if words[0] == "nodeseal":
                words = [*nodeseal_command(), *words[1:], "--config", str(place.config)]
            subprocess.run(words, check=True, capture_output=True)

    with running(place) as service:
        node1 = service.asker.joined("node1", place.token("node1"))
        later = place.token("node2")
        follow(backup.splitlines())
        service.asker.join("node2", later)
        lost = node1.certificate(WEB)
        pin = service.asker.pin
    follow(steps)
    with running(place) as service:
        assert service.asker.pin == pin
        node1.port = service.asker.port
        kept = node1.certificate(WEB)
        with pytest.raises(RefusedRequest, match="token-revoked"):
            service.asker.join("node2", later)
        known = {row["serial"] for row in place.command("issued")["certificates"]}
        assert kept.serial in known
        assert lost.serial not in known
    shutil.rmtree(tmp_path / "state.broken")
