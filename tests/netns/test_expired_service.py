"""Everything of a certificate service has expired: its root, its intermediate, the workloads' certificates and a node's
own. Another CA takes their place, and no process is restarted for it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeseal.authority.node_certificates import sign_node
from nodeseal.authority.state_keys import StateKeys
from nodeseal.local.run_directory import NODE_CERTIFICATE
from nodeseal_lab import certificate_service
from nodeseal_lab.plan import TRUST_DOMAIN
from support.anchors import make_ca, root_of
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.publications import trusts

NODES = ("node1", "node2")
PODS = ("shipper", "pipeline")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("expired"), issuer="service") as lab:
        yield lab


def put_ca(lab: RunningLab, ca: Path) -> None:
    """As the page says, at the service."""
    for name in ("intermediate.key", "intermediate.pem", "root.pem"):
        shutil.copy(ca / name, lab.directory / "ca")


def service_pid(lab: RunningLab) -> int | None:
    (service,) = [one for one in lab.lab.processes.records() if one.role == certificate_service.SERVICE]
    return service.pid if service.alive else None


def words(lab: RunningLab, node: str) -> set[str]:
    return {problem["word"] for problem in lab.status(node)["problems"]}


def works(programs: Programs, address: Address) -> bool:
    with contextlib.suppress(OSError):
        return echoes(programs.dial("shipper", address, timeout=2))
    return False


def expire_node_certificate(lab: RunningLab, node: str) -> None:
    """Its agent is away meanwhile, as for days."""
    lab.kill_agent(node)
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    nodes = StateKeys.load(lab.directory / "ca-state", TRUST_DOMAIN, now).nodes
    lifetime = timedelta(days=1)
    cert = sign_node(nodes, TRUST_DOMAIN, node, key.public_key(), lifetime=lifetime, now=now - 3 * lifetime)
    pem = cert.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (lab.run_dir(node) / NODE_CERTIFICATE).write_bytes(pem)


def test_everything_that_has_expired_is_replaced_with_nothing_restarted(
    lab: RunningLab, programs: Programs, tmp_path: Path
) -> None:
    soon = timedelta(seconds=20)
    short = make_ca(tmp_path / "short", root_lifetime=soon, intermediate_lifetime=soon)
    put_ca(lab, short)
    wait_for(lambda: "was read anew" in (lab.directory / "ca.log").read_text(), "the service issues by the short root")
    service = service_pid(lab)
    server = programs.serve("pipeline")
    for node in NODES:
        # An agent that starts has its workloads' certificates issued anew.
        lab.restart_agent(node)
        wait_for(lambda node=node: trusts(lab, node) == {root_of(short).key[:32]}, f"{node} trusts the short root")
    expire_node_certificate(lab, "node2")
    wait_for(lambda: not has_certificate(lab, "shipper"), "all has expired")
    lab.start_agent("node2")
    lab.kill_core("node1")
    wait_for(lambda: "node-unproven" in words(lab, "node2"), "node2 says that it needs a token")
    assert not works(programs, server.address)

    agents = [lab.agent_pid(node) for node in NODES]
    new = make_ca(tmp_path / "new")
    put_ca(lab, new)
    mesh = str(lab.directory / "mesh")
    assert lab.command("trust", "add", "--force", str(new / "root.pem"), "--mesh", mesh).returncode == 0
    for node in NODES:
        wait_for(lambda node=node: root_of(new).key[:32] in trusts(lab, node), f"{node} trusts the new root")
    wait_for(lambda: has_certificate(lab, "shipper"), "node1 has certificates again")
    assert not has_certificate(lab, "pipeline")
    (problem,) = [one for one in lab.status("node2")["problems"] if one["word"] == "node-unproven"]
    assert "its own has expired at" in problem["text"]
    assert "`nodeseal ca token create --node node2` on the service" in problem["remedy"]

    config = str(lab.directory / "ca.yaml")
    made = lab.command("ca", "token", "create", "--node", "node2", "--config", config, "-o", "json")
    (lab.run_dir("node2") / "token").write_text(json.loads(made.stdout)["token"])
    wait_for(lambda: works(programs, server.address), "they talk again")
    assert lab.outbound(programs.dial("shipper", server.address))["mtls"]
    wait_for(lambda: "node-unproven" not in words(lab, "node2"), "node2 has joined")
    wait_for(lambda: lab.command("trust", "status", "--mesh", mesh).returncode == 0, "the new root alone is trusted")
    assert (service_pid(lab), [lab.agent_pid(node) for node in NODES]) == (service, agents)
    assert {node: trusts(lab, node) for node in NODES} == {node: {root_of(new).key[:32]} for node in NODES}


def has_certificate(lab: RunningLab, pod: str) -> bool:
    """One that is valid."""
    found = lab.workload(pod)["certificate"]
    return found is not None and found["remaining_seconds"] > 0
