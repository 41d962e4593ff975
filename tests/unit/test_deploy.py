"""What is in deploy/, as the programs that it is for understand it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ca_service import WEB, Place, running

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
AGENT, SERVICE = DEPLOY / "nodeseal-agent.service", DEPLOY / "nodeseal-ca.service"
NOBODY = 65534


@pytest.mark.parametrize("unit", [AGENT, SERVICE], ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    """Every line of it: what systemd does not know it says, and then leaves out."""
    copy = tmp_path / unit.name
    command = shutil.which("true")
    copy.write_text(unit.read_text().replace("/opt/nodeseal/bin/nodeseal", str(command)))
    verify = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("[Service]", "[Service]\nKillMode=proces"))
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert "kill mode" in done.stderr


def settings(path: Path) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit["Service"]


def test_end_of_the_agent_leaves_the_cores_alone() -> None:
    """They are processes of the same unit."""
    service = settings(AGENT)
    assert (service["KillMode"], service["OOMPolicy"], service["Restart"]) == ("process", "continue", "always")


def test_certificate_service_is_confined_as_far_as_systemd_can_tell() -> None:
    """The scale is from 0 to 10, and what has no settings is at 9.6. It needs the network, which costs 0.5."""
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=16", str(SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"exposure level for nodeseal-ca\.service: 1\.\d OK", done.stdout)


@pytest.fixture
def place_of_another() -> Iterator[Place]:
    """Where the user of a service has all that is its own."""
    directory = Path(tempfile.mkdtemp(prefix="nodeseal-test-"))
    try:
        place = Place.make(directory)
        place.state.mkdir(mode=0o700)
        directory.chmod(0o755)
        for path in (place.root / "ca", *(place.root / "ca").iterdir(), place.state):
            os.chown(path, NOBODY, NOBODY)
        yield place
    finally:
        shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_certificate_service_needs_nothing_of_roots(place_of_another: Place) -> None:
    """As its unit has it: a user of its own, no capabilities, none to be had; with a second one that stands by. What
    root makes beside it can be used by it."""
    place = place_of_another
    confined = (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all",
    )  # fmt: skip
    token = place.token("node1")
    with running(place, prefix=confined) as first, running(place, active=False, prefix=confined) as second:
        node1 = first.asker.joined("node1", token)
        assert node1.certificate(WEB).identity == WEB
        assert second.asker.health().state == "standby"
        place.command("key", "next")
        place.command("key", "switch")
    with running(place, prefix=confined) as again:
        again.asker.joined("node1", place.token("node1"))
    backup = place.root / "backup"
    assert "issued.db" in place.command("backup", str(backup))["files"]
    assert {path.stat().st_uid for path in place.state.iterdir()} == {NOBODY}
