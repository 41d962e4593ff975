"""Workloads, services and certificates for lone cores (bench.lone), and what is read from their listeners."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

from bench.certificates import issue_svid, make_authority
from bench.errors import BenchError
from bench.lone import LoneCore
from bench.wire import RESPONSE_SIZE
from nodeseal.authority.signer import Signer
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.model import Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal_lab.plan import TRUST_DOMAIN


def lone_workload(name: str, address: str) -> Workload:
    """default/<name>, enrolled, with that service account."""
    key = WorkloadName("default", name)
    return Workload(key, name, "node1", (IPv4Address(address),), None, True, Mode.PERMISSIVE, Phase.ENROLLED)


def lone_service(name: str, address: str, port: ServicePort, server: Workload) -> Service:
    """default/<name>, with one workload behind it."""
    return Service(WorkloadName("default", name), (IPv4Address(address),), (port,), (server.key,))


@contextlib.contextmanager
def issuing() -> Iterator[Signer]:
    """A CA of the block."""
    with tempfile.TemporaryDirectory() as directory:
        yield Signer.load(make_authority(Path(directory) / "ca"), datetime.now(UTC))


def certify(core: LoneCore, key: int, workload: Workload, signer: Signer) -> Callable[[], None]:
    """Gives the core a certificate of the workload, and again whenever what is returned is called: tunnels that were
    open take no new streams then."""
    identity = workload.identity(TRUST_DOMAIN)
    svid = issue_svid(signer, identity)
    core.ask(CoreClient.trust_bundles, TRUST_DOMAIN, {TRUST_DOMAIN: signer.bundle_pem})

    def give() -> None:
        core.ask(
            CoreClient.workload_credentials,
            key,
            identity,
            chain_pem=svid.chain_pem,
            private_key=svid.key,
            bundle_pem=signer.bundle_pem,
        )

    give()
    return give


def receive_answer(stream: socket.socket) -> None:
    """All of one answer to bench.wire.REQUEST. Raises BenchError, OSError."""
    left = RESPONSE_SIZE
    while left > 0:
        part = len(stream.recv(left))
        if part == 0:
            raise BenchError("a connection ended before its answer")
        left -= part
