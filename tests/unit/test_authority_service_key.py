"""The certificate service's own key, rotated as docs/certificate-service.md says it, with nothing restarted."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nodeseal.authority import state_keys
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.state_keys import ServiceKeys
from nodeseal.contracts.authority import CERTIFICATES, CertificateRequest
from nodeseal.identity.service_client import ServiceAway, ServiceClient, ServiceRefused
from nodeseal.local.issuers import ServiceCa
from support.ca_service import Place, Running, running
from support.patience import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "certificate-service.md"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


def takes(service: Running, *pins: str, anchor: Path | None = None) -> bool:
    """Whether an agent that knows the service so is answered. One that stands by answers as well."""

    async def ask() -> bool:
        address = f"https://127.0.0.1:{service.asker.port}"
        client = ServiceClient(ServiceCa((address,), "example.org", pins, anchor, None, None))
        try:
            await client.ask(CERTIFICATES, CertificateRequest(identity="x", csr="x"))
        except ServiceRefused:
            return True
        except ServiceAway as away:
            return "(standby)" in str(away)
        else:
            return True
        finally:
            await client.close()

    return asyncio.run(ask())


def test_page_is_followed_and_no_agent_is_left_out(place: Place, tmp_path: Path) -> None:
    """Every command of it, in its order; agents ask meanwhile, the one that issues and the one that stands by."""
    text = PAGE.read_text().partition("\n## Rotate the service's key\n")[2].partition("\n## ")[0]
    following, setting, switch, back, end = re.findall(r"^```(?:yaml)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    def follow(lines: str) -> str:
        lines = lines.replace("/var/lib/nodeseal/ca", str(place.state)).replace("/backup", str(tmp_path))
        lines = re.sub(r"^(nodeseal .*)$", rf"\1 --config {place.config}", lines, flags=re.MULTILINE)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-ec", lines], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
        ).stdout

    with running(place) as first, running(place, active=False) as second:
        old = first.asker.pin
        (new,) = re.findall(r"^next key +([0-9a-f]{64})$", follow(following), re.MULTILINE)
        pins = yaml.safe_load(setting.replace("PRESENT", old).replace("NEXT", new))["ca"]["pin"]
        assert pins == [old, new]
        anchor = tmp_path / "anchors.pem"
        anchor.write_text(follow("nodeseal ca key show --certificates"))
        services = (first, second)
        for one in services:
            assert takes(one, old)
            assert takes(one, *pins)
            assert takes(one, anchor=anchor)
            assert not takes(one, new)

        def all_use(key: str, other: str) -> bool:
            assert all(takes(one, *pins) for one in services), "no agent that knows both is ever left out"
            return all(takes(one, key) and not takes(one, other) for one in services)

        follow(switch)
        wait_for(lambda: all_use(new, old), "the next key is used")
        assert all(takes(one, anchor=anchor) for one in services)
        to_old, to_new = back.splitlines()
        follow(to_old)
        wait_for(lambda: all_use(old, new), "the former key is used again")
        follow(to_new)
        wait_for(lambda: all_use(new, old), "the next key is used")
        assert old not in follow(end)
        assert old in first.log.read_text()
        assert not (tmp_path / "nodeseal-ca-rotated" / "service-former.pem").exists()
        for service in services:
            assert service.process.poll() is None
    with running(place) as restarted:
        assert restarted.asker.pin == new


def test_key_that_cannot_be_read_leaves_the_present_one_and_is_told(place: Place) -> None:
    with running(place) as service:
        pin, path = service.asker.pin, place.state / "service.pem"
        whole = path.read_bytes()
        path.unlink()
        path.write_text("nothing")
        path.chmod(0o600)
        wait_for(lambda: service.asker.health().state == "impaired", "it is told")
        (problem,) = service.asker.health().problems
        assert problem.startswith("the service goes on with the key that it has: ")
        path.write_bytes(whole)
        wait_for(lambda: service.asker.health().state == "active", "it is well again")
        assert service.asker.pin == pin


def test_next_key_is_made_once_and_used_once(place: Place) -> None:
    place.token("node1")
    keys = [place.command("key", "next") for _ in range(2)]
    assert keys[0] == keys[1]
    made = place.command("token", "create", "--node", "node1")
    assert (made["service_sha256"], made["next_sha256"]) == (keys[0]["service_sha256"], keys[0]["next_sha256"])
    switched = place.command("key", "switch")
    assert switched == {
        "service_sha256": keys[0]["next_sha256"],
        "next_sha256": None,
        "former_sha256": keys[0]["service_sha256"],
    }
    with pytest.raises(AuthorityError, match=r"there is no next key in .*: nodeseal ca key next"):
        state_keys.switch(place.state)
    place.command("key", "next")
    with pytest.raises(AuthorityError, match=r"service-next\.pem waits already"):
        state_keys.switch(place.state, back=True)
    assert {path.stat().st_mode & 0o777 for path in place.state.glob("*.pem")} == {0o600}


@pytest.mark.parametrize("calls", range(1, 4))
def test_switch_that_is_ended_in_the_middle_leaves_a_key_and_can_be_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    place.token("node1")
    keys = place.command("key", "next")
    done = 0

    def ends(call: object) -> object:
        def made(*arguments: object, **more: object) -> object:
            nonlocal done
            done += 1
            if done == calls:
                raise KeyboardInterrupt
            return call(*arguments, **more)  # type: ignore[operator]

        return made

    with monkeypatch.context() as killed:
        killed.setattr(os, "link", ends(os.link))
        killed.setattr(Path, "replace", ends(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            state_keys.switch(place.state)
    found = ServiceKeys.read(place.state)
    assert (found.present.pin, found.former) == (keys["service_sha256"], None)
    state_keys.switch(place.state)
    found = ServiceKeys.read(place.state)
    assert found.present.pin == keys["next_sha256"]
    assert found.former is not None
    assert found.former.pin == keys["service_sha256"]
    assert not [path.name for path in place.state.iterdir() if path.name.startswith(".")], "a copy of a key is left"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
def test_what_root_makes_in_the_services_directory_is_the_services(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    os.chown(place.state, 65534, 65534)
    place.token("node1")
    place.command("key", "next")
    place.command("key", "switch")
    assert {(path.name, path.stat().st_uid) for path in place.state.iterdir()} == {
        (name, 65534) for name in ("issued.db", "nodes.pem", "service.pem", "service-former.pem")
    }
