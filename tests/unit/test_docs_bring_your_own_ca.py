"""docs/bring-your-own-ca.md, followed to the letter: only its directories are others."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.daemon.composition import issuer_of
from nodeseal.identity.issuer import Svid
from nodeseal.local import config
from nodeseal.local.config import Config
from nodeseal.local.issuers import ServiceCa, WorkloadApiCa
from nodeseal.mesh.spiffe import SpiffeId

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bring-your-own-ca.md"
SHIPPER = SpiffeId("example.org", "default", "shipper")
SIEM = SpiffeId("example.org", "other", "siem")

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def blocks(kind: str) -> list[str]:
    """The page's fenced blocks of a kind, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == kind]


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """The page's commands were run, but for the mount."""
    for text in blocks(""):
        lines = [line for line in text.splitlines() if not line.startswith("mount ")]
        script = "\n".join(lines).replace("/run/certificates", f"{tmp_path}/certificates")
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    return tmp_path


def configured(directory: Path, text: str) -> Config:
    path = directory / "agent.yaml"
    text = text.replace("/run/certificates", f"{directory}/certificates")
    path.write_text(text.replace("/etc/nodeseal", str(directory)))
    return config.load(path)


def issue(settings: Config, *identities: SpiffeId) -> list[Svid]:
    async def story() -> list[Svid]:
        issuer = issuer_of(settings)
        await issuer.begin()
        try:
            return [await issuer.issue(identity) for identity in identities]
        finally:
            await issuer.close()

    return asyncio.run(story())


def test_delivered_certificate_is_used(followed: Path) -> None:
    (svid,) = issue(configured(followed, blocks("yaml")[0]), SHIPPER)
    assert (svid.identity, svid.delivered) == (SHIPPER, True)


def test_one_namespace_has_another_issuer(followed: Path) -> None:
    init_authority(followed / "ca", trust_domain="example.org", now=datetime.now(UTC))
    shipper, siem = issue(configured(followed, blocks("yaml")[1]), SHIPPER, SIEM)
    assert (shipper.delivered, siem.delivered) == (True, False)
    assert shipper.anchor != siem.anchor


def test_configuration_of_the_service_can_be_read(tmp_path: Path) -> None:
    ca = configured(tmp_path, blocks("yaml")[2]).ca
    assert isinstance(ca, ServiceCa)
    assert ca.token_file == tmp_path / "token"


def test_configuration_of_a_workload_api_can_be_read(tmp_path: Path) -> None:
    ca = configured(tmp_path, blocks("yaml")[3]).ca
    assert ca == WorkloadApiCa(Path("/run/spire/agent/public/api.sock"), "example.org")
