"""Nodes whose workloads' certificates another tool writes into a directory, and replaces while they run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.linux.inotify import file_system_type
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal_lab.plan import TRUST_DOMAIN
from support.connection import echoes
from support.issued import issue
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

TMPFS = 0x01021994  # linux/magic.h
PODS = ("shipper", "siem", "pipeline")


class Tool:
    """Writes certificates of its own CA."""

    def __init__(self, directory: Path) -> None:
        self.certificates = directory / "certificates"
        init_authority(directory / "ca-of-the-tool", trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
        self._signer = Signer.load(directory / "ca-of-the-tool", datetime.now(UTC))

    def write(self, pod: str) -> str:
        """The next certificate of a pod, one file after the other; its serial number."""
        identity = SpiffeId(TRUST_DOMAIN, "default", pod)
        svid = issue(self._signer, identity, lifetime=timedelta(hours=1), now=datetime.now(UTC))
        place = self.certificates / "default" / pod
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = {"tls.crt": svid.chain_pem, "tls.key": svid.key.pem(), "ca.crt": self._signer.bundle_pem}
        for name, text in files.items():
            (place / f".{name}").write_text(text)
            (place / f".{name}").chmod(0o600)
            (place / f".{name}").replace(place / name)
        return svid.serial


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    tool = Tool(tmp_path_factory.mktemp("tool"))
    for pod in PODS:
        tool.write(pod)
    tool.certificates.chmod(0o700)
    return tool


@pytest.fixture(scope="module")
def lab(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    settings = {"ca": {"delivered": str(tool.certificates), "trust_domain": TRUST_DOMAIN}}
    with running_lab(tmp_path_factory.mktemp("delivered"), settings=settings) as lab:
        yield lab


def test_certificate_is_replaced_under_a_connection_that_feels_nothing(
    lab: RunningLab, programs: Programs, tool: Tool
) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
    following = tool.write("pipeline")
    wait_for(lambda: lab.workload("pipeline")["certificate"]["serial"] == following, "it has the next certificate")
    assert echoes(client)
    again = programs.dial("shipper", server.address)
    assert echoes(again)
    assert lab.outbound(again)["mtls"]


def test_keys_on_a_disk_are_told_by_each_node(lab: RunningLab, tool: Tool) -> None:
    if file_system_type(tool.certificates) == TMPFS:
        pytest.skip("the temporary directory is on a tmpfs here")
    for node in ("node1", "node2"):
        wait_for(lambda node=node: lab.status(node)["problems"], f"{node} has looked")
        (problem,) = lab.status(node)["problems"]
        assert problem["word"] == "keys-on-disk"
        assert problem["text"] == f"private keys are on a disk: {tool.certificates} is on no tmpfs"
