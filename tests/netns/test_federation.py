"""Two meshes of different trust domains that are federated: each verifies the other's workloads by the other's bundle,
in both directions."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal_lab import trust_domains
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import federated_file
from support.anchors import make_ca
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

OTHER = "other.org"


def jwks(root: Path) -> str:
    """A SPIFFE bundle of the certificate in a file, beside a key for other tokens."""
    der = x509.load_pem_x509_certificate(root.read_bytes()).public_bytes(Encoding.DER)
    keys: list[dict[str, Any]] = [{"use": "jwt-svid", "kty": "EC"}]
    keys.append({"use": "x509-svid", "kty": "EC", "x5c": [b64encode(der).decode()]})
    return json.dumps({"keys": keys, "spiffe_sequence": 1, "spiffe_refresh_hint": 300})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """node2 with `pipeline` is of other.org, with a CA and a mesh directory of its own; node1 is of example.org. Both
    see what the other publishes. node1 has the other's bundle as a JWKS."""
    with running_lab(tmp_path_factory.mktemp("federation"), trust_domains=[f"node2:{OTHER}"]) as lab:
        write_atomically(bundle_of(lab), jwks(trust_domains.ca_of(lab.directory, OTHER) / "root.pem"))
        yield lab


def bundle_of(lab: RunningLab) -> Path:
    return trust_domains.bundle_of(lab.directory, OTHER)


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
    (lab.lab.mesh / federated_file(OTHER)).unlink()
    wait_for(lambda: not works(programs, "pipeline", server.address), "it is refused")
    # Over the tunnel that there was, or over a new one.
    refused = {row["reason"] for row in lab.refused("node1")}
    assert refused & {"wrong-trust-domain", "peer is of another trust domain"}


def words(lab: RunningLab) -> list[str]:
    return [problem["word"] for problem in lab.status("node1")["problems"]]
