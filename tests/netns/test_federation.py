"""Two meshes of different trust domains that are federated: each verifies the other's workloads by the other's bundle,
in both directions."""

from __future__ import annotations

import contextlib
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal_lab.files import write_atomically
from support.anchors import make_ca
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

OTHER = "other.org"
NODES = ("node1", "node2")


def jwks(root: Path) -> str:
    """A SPIFFE bundle of the certificate in a file, beside a key for other tokens."""
    der = x509.load_pem_x509_certificate(root.read_bytes()).public_bytes(Encoding.DER)
    keys: list[dict[str, Any]] = [{"use": "jwt-svid", "kty": "EC"}]
    keys.append({"use": "x509-svid", "kty": "EC", "x5c": [b64encode(der).decode()]})
    return json.dumps({"keys": keys, "spiffe_sequence": 1, "spiffe_refresh_hint": 300})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """node2 with `pipeline` is of other.org, with a CA and a mesh directory of its own; node1 is of example.org. Both
    see what the other publishes."""
    with running_lab(tmp_path_factory.mktemp("federation")) as lab:
        ours, theirs = lab.directory / "mesh", lab.directory / "other-mesh"
        lab.kill_agent("node2")
        assert lab.command("cleanup", "--run-dir", str(lab.run_dir("node2"))).returncode == 0
        ca = make_ca(lab.directory / "other-ca", trust_domain=OTHER)
        shutil.copytree(ours, theirs, ignore=shutil.ignore_patterns("enrolled"))
        (theirs / "enrolled").symlink_to(ours / "enrolled")
        write_atomically(bundle_of(lab), jwks(ca / "root.pem"))
        federate(ours, {"trust_domain": OTHER, "bundle_file": str(bundle_of(lab))}, "node2")
        own_root = (lab.directory / "ca" / "root.pem").read_text()
        federate(theirs, {"trust_domain": "example.org", "bundle": own_root}, "node1")
        write_atomically(theirs / "mesh.yaml", f"trust_domain: {OTHER}\n")
        lab.start_agent("node2", mesh=str(theirs), ca=str(ca))
        wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled in its own domain")
        yield lab


def bundle_of(lab: RunningLab) -> Path:
    return lab.directory / "other.json"


def federate(mesh: Path, domain: dict[str, str], node: str) -> None:
    """The workloads of `node` are of that domain."""
    write_atomically(mesh / "federated.yaml", yaml.safe_dump({"federated": [domain]}))
    workloads = yaml.safe_load((mesh / "workloads.yaml").read_text())
    for one in workloads["workloads"]:
        if one["node"] == node:
            one["trust_domain"] = domain["trust_domain"]
    write_atomically(mesh / "workloads.yaml", yaml.safe_dump(workloads))


def works(programs: Programs, source: str, address: Address) -> bool:
    with contextlib.suppress(OSError):
        return echoes(programs.dial(source, address, timeout=3))
    return False


def test_workloads_of_two_domains_talk_both_ways(lab: RunningLab, programs: Programs) -> None:
    for source, target, peer in (
        ("shipper", "pipeline", f"spiffe://{OTHER}/ns/default/sa/pipeline"),
        ("pipeline", "shipper", "spiffe://example.org/ns/default/sa/shipper"),
    ):
        server = programs.serve(target)
        wait_for(lambda source=source, server=server: works(programs, source, server.address), f"{source} gets there")
        client = programs.dial(source, server.address)
        assert echoes(client)
        row = lab.outbound(client)
        assert (row["mtls"], row["peer"]) == (True, peer)


def test_bundle_of_the_peers_own_domain_is_what_counts(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """Both ways: the client's node verifies the server by it, the server's node the client."""
    good = bundle_of(lab).read_text()
    another = make_ca(tmp_path / "another", trust_domain=OTHER)
    to_them, to_us = programs.serve("pipeline"), programs.serve("shipper")
    write_atomically(bundle_of(lab), jwks(another / "root.pem"))
    wait_for(lambda: not works(programs, "shipper", to_them.address), "node1 takes no certificate of theirs")
    wait_for(lambda: not works(programs, "pipeline", to_us.address), "in either direction")
    # That the own domain's anchor has signed does not help, nor does it harm those of the own domain.
    assert any("not trusted" in row["reason"] for row in lab.refused("node1"))
    write_atomically(bundle_of(lab), "nonsense")
    wait_for(lambda: "bundle-unread" in words(lab), "the bundle cannot be read, and what it said before counts")
    assert not works(programs, "shipper", to_them.address)
    write_atomically(bundle_of(lab), good)
    wait_for(lambda: works(programs, "shipper", to_them.address), "their certificates are taken again")
    wait_for(lambda: works(programs, "pipeline", to_us.address), "in both directions")
    assert "bundle-unread" not in words(lab)


def test_domain_that_is_not_federated_any_more_is_refused(lab: RunningLab, programs: Programs) -> None:
    """Last in this file."""
    server = programs.serve("shipper")
    wait_for(lambda: works(programs, "pipeline", server.address), "it is federated with")
    federated, workloads = lab.directory / "mesh" / "federated.yaml", lab.directory / "mesh" / "workloads.yaml"
    content = yaml.safe_load(workloads.read_text())
    for one in content["workloads"]:
        one.pop("trust_domain", None)
    write_atomically(workloads, yaml.safe_dump(content))
    federated.unlink()
    wait_for(lambda: not works(programs, "pipeline", server.address), "it is refused")
    # Over the tunnel that there was, or over a new one.
    refused = {row["reason"] for row in lab.refused("node1")}
    assert refused & {"wrong-trust-domain", "peer is of another trust domain"}


def words(lab: RunningLab) -> list[str]:
    return [problem["word"] for problem in lab.status("node1")["problems"]]
