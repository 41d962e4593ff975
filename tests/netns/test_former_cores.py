"""Cores of the three protocols before this one, out of git: this version's client asks them everything that it asks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.contracts import core as contract
from nodeseal.cores.client import CoreClient
from nodeseal.linux.control_socket import close_all
from nodeseal.local import generations
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from support.former import build, is_there
from support.issued import issue
from support.patience import wait_for

COMMITS = {
    4: "1008fd92d61c6873226de42afc9d7f68408b281f",
    5: "1cdbd50530ca9a52f8ffdff7216087dfb3a07747",
    6: "804a03be05cc9222057a050cc6acf6e1bcc9fd52",
}
"""By protocol: a commit whose core speaks it."""

LIMITS = Limits(connections=5, memory=1 << 20, new_connections=7)

pytestmark = pytest.mark.skipif(
    not all(map(is_there, COMMITS.values())), reason="no git history here that has the former versions"
)


def workload(name: str, *addresses: str) -> Workload:
    parsed = tuple(IPv6Address(one) if ":" in one else IPv4Address(one) for one in addresses)
    return Workload(WorkloadName("default", name), name, "node1", parsed, None, True, Mode.STRICT, Phase.ENROLLED)


@pytest.fixture(params=COMMITS)
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def run_dir(protocol: int, tmp_path: Path) -> Iterator[Path]:
    """Where a core runs that speaks the protocol."""
    source, run_dir = tmp_path / "former", tmp_path / "run"
    source.mkdir()
    run_dir.mkdir()
    command = [sys.executable, "-m", "nodeseal", "core", "--run-dir", str(run_dir), "--trust-domain", "example.org"]
    core = subprocess.Popen(command, env=build(COMMITS[protocol], source), cwd=tmp_path)
    try:
        wait_for(lambda: generations.running(run_dir) and generations.socket_path(run_dir, 1).exists(), "a core runs")
        yield run_dir
    finally:
        core.send_signal(signal.SIGTERM)
        core.wait(20)


def test_former_core_is_asked_all_that_it_knows(protocol: int, run_dir: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    init_authority(tmp_path / "ca", trust_domain="example.org", now=now)
    signer = Signer.load(tmp_path / "ca", now)
    own = workload("shipper", "127.0.0.1", "::1")
    identity = own.identity("example.org")
    svid = issue(signer, identity, lifetime=timedelta(hours=1), now=now)
    others = [workload(f"w{n}", str(IPv4Address(0x0A000001 + n))) for n in range(2 * contract.MESH_PART)]
    before, after = Mesh.build("example.org", [own, *others]), Mesh.build("example.org", [own])

    async def story() -> None:
        client = CoreClient.newest(run_dir)
        assert (await client.hello()).protocol == protocol
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        await client.workload_add(1, own.key, identity, own.addresses, netns_fd=namespace)
        os.close(namespace)
        await client.workload_limits(1, LIMITS)
        pems = {"chain_pem": svid.chain_pem, "private_key": svid.key, "bundle_pem": signer.bundle_pem}
        await client.workload_credentials(1, identity, **pems)
        if protocol >= contract.TRUST_APART_SINCE:
            await client.trust_bundles("example.org", {"example.org": signer.bundle_pem, "other.org": "not for it"})
        assert await client.revocations(["0" * 31 + "1"], whole=True) is None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await client.workload_listen(1, {0: listener.fileno()})
            given = await client.listeners(1)
            assert [os.fstat(fd).st_ino for fd in given.values()] == [os.fstat(listener.fileno()).st_ino]
            close_all(given.values())
        await client.mesh(before, 1)
        assert await client.mesh_change(before, after, 2, base=1)
        assert await client.mesh_read() == after
        assert await client.connections(contract.Connections()) == ([], None)
        assert await client.refusals() == []
        core, (row,) = await client.stats()
        assert (core.epoch, row.workload) == (2, str(own.key))
        assert row.limits == (LIMITS if protocol >= contract.LIMITS_SINCE else Limits(0, 0, 0))
        (known,) = (await client.hello()).workloads
        assert (known.name, known.identity, known.addresses, known.roles) == (own.key, identity, own.addresses, (0,))
        assert await client.live() == (0, 0)
        await client.workload_unlisten(1, 0)
        await client.workload_remove(1)
        await client.retire(None)
        client.close()

    asyncio.run(story())
    wait_for(lambda: not generations.running(run_dir), "the core has ended by itself")
