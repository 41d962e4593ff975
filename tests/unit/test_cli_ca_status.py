"""`nodeseal ca status`: on the service's machine, and on a node."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeseal.authority import server, state_keys
from nodeseal.authority.node_certificates import sign_node
from nodeseal.authority.proof import Caller
from nodeseal.authority.renewal import renew
from nodeseal.authority.server import Server, is_own_address
from nodeseal.authority.service import Service
from nodeseal.authority.state_keys import StateKeys
from nodeseal.authority.tls import server_context
from nodeseal.cli import table
from nodeseal.cli.ca import status
from nodeseal.cli.main import main
from nodeseal.contracts.authority import ACTIVE, IMPAIRED, STANDBY, CaCertificateEnd, Health, RefusedCount
from nodeseal.mesh.address import ApplicationAddress
from support.ca_service import IDLE, WEB, Asker, Place, RefusedRequest, new_key, running
from support.patience import wait_for

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Place.make(tmp_path, made=datetime.now(UTC) - timedelta(days=3), listen=[f"127.0.0.1:{port}"])


@dataclass
class Asked:
    """What the command said."""

    level: int
    says: dict[str, Any]


@pytest.fixture
def ask(place: Place, capsys: pytest.CaptureFixture[str]) -> Callable[..., Asked]:
    def ask(*words: str) -> Asked:
        level = main(["ca", "status", "--config", str(place.config), "-o", "json", *words])
        return Asked(level, json.loads(capsys.readouterr().out))

    return ask


def test_all_is_well_then_somebody_is_away_then_nobody_issues(place: Place, ask: Callable[..., Asked]) -> None:
    with running(place) as service:
        node1 = service.asker.joined("node1", place.token("node1"))
        node1.certificate(WEB)
        with pytest.raises(RefusedRequest):
            node1.certificate(IDLE)
        found = wait_for(lambda: now if (now := ask()).says["valid"] == 2 else None, "the service has counted")
        assert (found.level, found.says["level"]) == (0, "ok")
        (one,) = found.says["services"]
        assert (one["address"], one["state"]) == (f"https://127.0.0.1:{service.asker.port}", "active")
        assert datetime.fromisoformat(one["since"]) <= datetime.now(UTC)
        assert [row["role"] for row in found.says["certificates"]] == ["intermediate", "root"]
        assert (found.says["nodes"], found.says["issued_last_hour"], found.says["waiting"]) == (1, 2, 0)
        assert found.says["refused"] == [{"word": "identity-not-enrolled", "count": 1}]
        found = ask("https://127.0.0.1:1")
        assert found.level == 1
        assert found.says["warnings"][0].startswith("nobody answers at https://127.0.0.1:1: ")
    found = ask()
    assert (found.level, found.says["services"][0]["state"]) == (2, "away")
    assert found.says["errors"][0] == "no process issues; start one: nodeseal ca serve"
    # What the store and the CA's directory say.
    assert (found.says["nodes"], found.says["valid"], found.says["waiting"]) == (1, 2, None)
    assert [row["role"] for row in found.says["certificates"]] == ["intermediate", "root"]


def test_one_that_stands_by_is_well_beside_one_that_issues(place: Place, ask: Callable[..., Asked]) -> None:
    with running(place) as first:
        place.configure()
        with running(place, active=False) as second:
            here, there = (f"https://127.0.0.1:{one.asker.port}" for one in (first, second))
            place.configure(listen=[here.removeprefix("https://")])
            found = ask(there)
            assert (found.level, [one["state"] for one in found.says["services"]]) == (0, ["active", "standby"])
            first.kill()
            wait_for(lambda: ask(there).says["services"][1]["state"] == "active", "it has taken over")
            assert ask(there).level == 1


def test_ca_that_ends_soon_is_a_warning_and_one_that_is_broken_an_error(
    place: Place, ask: Callable[..., Asked], tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    renew(tmp_path / "ca", now=now - timedelta(days=2), lifetime=timedelta(days=2, hours=2))
    with running(place):
        found = wait_for(lambda: now if (now := ask()).level == 1 else None, "it is told")
        assert "intermediate" in found.says["warnings"][0]
        (tmp_path / "ca" / "intermediate.key").rename(tmp_path / "away")
        found = wait_for(lambda: now if (now := ask()).level == 2 else None, "it is told")
        assert found.says["services"][0]["state"] == "impaired"
        assert "intermediate.key" in found.says["errors"][0]


def test_node_asks_by_its_agents_configuration(
    place: Place, ask: Callable[..., Asked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(place) as service:
        agent = tmp_path / "agent.yaml"
        ca = {
            "service": [f"https://127.0.0.1:{service.asker.port}"],
            "trust_domain": "example.org",
            "pin": ["0" * 64, service.asker.pin],
            "keep": str(tmp_path / "keep"),
        }
        agent.write_text(json.dumps({"node": "node1", "mesh": "mesh", "ca": ca}))
        assert ask("--agent", str(agent)).level == 0  # it has not joined yet
        node1 = service.asker.joined("node1", place.token("node1"))
        assert node1.shown is not None
        certificate, key = node1.shown
        (tmp_path / "keep").mkdir()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        (tmp_path / "keep" / "node.pem").write_text(certificate + pem)
        assert ask("--agent", str(agent)).says["services"][0]["state"] == "active"
        agent.write_text(json.dumps({"node": "node1", "mesh": "mesh", "ca": ca | {"pin": "0" * 64}}))
        found = ask("--agent", str(agent))
        assert found.level == 2
        assert service.asker.pin in found.says["services"][0]["why"]
    agent.write_text(json.dumps({"node": "node1", "mesh": "mesh", "ca": "ca"}))
    assert main(["ca", "status", "--agent", str(agent)]) == 2
    assert "has no certificate service" in capsys.readouterr().err


def test_service_that_never_ran_is_one_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca", "status", "--config", str(place.config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{place.state} yet; start one: nodeseal ca serve")
    assert not place.state.exists()


# ---- who is told what

WHOLE = Health(
    state=IMPAIRED,
    since=NOW,
    trust_domain="example.org",
    certificates=[
        CaCertificateEnd(role="intermediate", not_after=NOW + timedelta(days=20)),
        CaCertificateEnd(role="root", not_after=NOW + timedelta(days=3000)),
    ],
    version="0.1.0",
    problems=["the CA directory /etc/nodeseal/ca is not used as it is: others can read the key in "
              "/etc/nodeseal/ca/intermediate.key: its mode is 0644"],
    warnings=["the CA's intermediate (/etc/nodeseal/ca/intermediate.pem) expires at 2026-03-21 12:00Z: renew it: "
              "nodeseal ca renew /etc/nodeseal/ca"],
    issued=70_123,
    refused=[RefusedCount(word=f"word-{number}", count=number) for number in range(8)],
    waiting=1_234,
    nodes=1_200,
    issued_last_hour=2_345,
    valid=60_000,
)  # fmt: skip


def test_stranger_is_told_nothing_of_paths_versions_and_numbers() -> None:
    told = WHOLE.for_strangers()
    assert told == Health(state=IMPAIRED, since=NOW, trust_domain="example.org", certificates=WHOLE.certificates)


def test_stranger_is_told_less_by_one_that_issues_and_by_one_that_stands_by(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked from an address that is not the service's own."""
    monkeypatch.setattr(server, "is_own_address", lambda _transport: False)
    state_keys.prepare(place.state)
    keys = StateKeys.load(place.state, "example.org", NOW)

    class Issues:
        def health(self) -> Health:
            return WHOLE

        def node_of(self, certificate: bytes | None) -> str | None:
            return "node1" if certificate is not None else None

        def node_known(self, caller: Caller) -> str | None:
            return self.node_of(caller.certificate)

    async def scenario() -> list[Health]:
        standby = Health(state=STANDBY, since=NOW, trust_domain="example.org", version="0.1.0")
        https = Server(server_context(keys), standby, 10)
        port = https.listen(ApplicationAddress.parse("127.0.0.1:0")).port
        asker = Asker(port, keys.pin)
        key = new_key()
        signed = sign_node(keys.nodes, "example.org", "node1", key.public_key(), lifetime=timedelta(days=1), now=NOW)
        node = Asker(port, keys.pin, (signed.public_bytes(Encoding.PEM).decode(), key))
        found = [await asyncio.to_thread(asker.health)]
        https.service = cast(Service, Issues())
        found += [await asyncio.to_thread(one.health) for one in (asker, node)]
        await https.stop()
        return found

    standby, stranger, node = asyncio.run(scenario())
    assert (standby.state, standby.version) == (STANDBY, "")
    assert stranger == WHOLE.for_strangers()
    assert node == WHOLE


@pytest.mark.parametrize(
    ("peer", "own", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("10.0.0.2", "10.0.0.1", False),
        ("fd00::2", "fd00::1", False),
        ("", "", False),
    ],
)
def test_only_this_machine_is_this_machine(peer: str, own: str, expected: bool) -> None:
    class Transport:
        def get_extra_info(self, name: str) -> tuple[str, int]:
            return ({"peername": peer, "sockname": own}[name], 1)

    assert is_own_address(Transport()) is expected  # type: ignore[arg-type]


def test_nobody_is_not_this_machine() -> None:
    assert not is_own_address(None)


@pytest.mark.parametrize("columns", [100, 10_000])
def test_for_a_person(columns: int, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "width", lambda: columns)
    standby = Health(state=STANDBY, since=NOW - timedelta(days=3), trust_domain="example.org", version="0.1.0")
    asked = [
        ("https://10.0.0.1:15018", WHOLE),
        ("https://10.0.0.2:15018", standby),
        ("https://ca.example.org:15018", "Connection refused"),
    ]
    shown = status.text(status.describe(asked, NOW))
    assert max(map(len, shown.splitlines())) <= columns
    golden(f"ca_status_{columns}.txt", shown + "\n")
    stranger = status.describe([("https://10.0.0.1:15018", WHOLE.for_strangers())], NOW)
    assert (stranger.level, stranger.nodes, stranger.refused) == ("error", None, None)
    assert stranger.errors == ["the service is impaired; it says why on its own machine"]
    assert status.describe([("x", Health(state=ACTIVE))], NOW).level == "ok"
