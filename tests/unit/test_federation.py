"""Federated trust domains: in files, in decisions, and their bundles."""

from __future__ import annotations

import json
from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.spiffe_bundle import read_bundle
from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.mesh.address import OriginalDestination, TunnelAddress
from nodeseal.mesh.decide import Allow, Deny, Route, Tunnel, inbound_tunnel, outbound
from nodeseal.mesh.federated import FEDERATED, Federated
from nodeseal.mesh.model import Mesh, MeshError, Phase, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError
from support.anchors import make_ca, root_of
from support.certificates import self_signed

STATE = {
    "trust_domain": "example.org",
    "workloads": [
        {"name": "web", "node": "node1", "address": "10.0.0.1"},
        {"name": "db", "node": "node2", "address": "10.0.0.2", "trust_domain": "other.org"},
    ],
    "federated": [{"trust_domain": "other.org", "bundle_file": "/etc/other.pem"}],
}
DB = SpiffeId("other.org", "default", "default")


def mesh_of(tmp_path: Path, **changes: Any) -> Mesh:
    (tmp_path / "mesh.json").write_text(json.dumps(STATE | changes))
    return load(tmp_path)


def test_workload_of_a_federated_domain_is_known_by_its_own_identity(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path)
    assert mesh.of(FEDERATED) == {"other.org": Federated("other.org", bundle_file="/etc/other.pem")}
    assert mesh.trust_domains == {"example.org", "other.org"}
    db = WorkloadName("default", "db")
    enrolled = mesh.with_phases({db: Phase.ENROLLED})
    answer = outbound(
        enrolled,
        WorkloadName("default", "web"),
        OriginalDestination(ip_address("10.0.0.2"), 80),
        established=False,
    )
    assert isinstance(answer, Route)
    (way,) = answer.endpoints
    assert isinstance(way, Tunnel)
    assert way.identity == DB
    assert Mesh.from_difference(decode_difference(encode_difference(mesh.as_difference()))) == mesh


@pytest.mark.parametrize(
    ("peer", "source", "allowed"),
    [
        (DB, "10.0.0.2", True),
        (DB, "10.9.9.9", True),  # at no workload's address its domain is what counts
        (SpiffeId("example.org", "default", "default"), "10.0.0.2", False),  # theirs is of the other domain
        (SpiffeId("third.org", "default", "default"), "10.9.9.9", False),
    ],
)
def test_peers_of_federated_domains_may_come(tmp_path: Path, peer: SpiffeId, source: str, allowed: bool) -> None:
    answer = inbound_tunnel(
        mesh_of(tmp_path),
        WorkloadName("default", "web"),
        peer,
        ip_address(source),
        TunnelAddress(ip_address("10.0.0.1"), 80),
    )
    assert isinstance(answer, Allow if allowed else Deny)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"federated": []}, "workloads[1].trust_domain: expected one that the mesh is 'federated' with, found"),
        ({"federated": [{"trust_domain": "other.org"}]}, "federated[0]: expected either 'bundle' or 'bundle_file'"),
        (
            {"federated": [{"trust_domain": "other.org", "bundle_file": "a.pem"}]},
            "federated[0].bundle_file: expected a path from /",
        ),
        ({"federated": [{"trust_domain": "A", "bundle": "x"}]}, "federated[0].trust_domain: expected 1 to 255"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(MeshStateError) as caught:
        mesh_of(tmp_path, **changes)
    assert problem in str(caught.value)


def test_mesh_is_not_federated_with_itself(tmp_path: Path) -> None:
    own = {"trust_domain": "example.org", "bundle": "x"}
    with pytest.raises(MeshStateError, match="expected another one than the mesh's own"):
        mesh_of(tmp_path, federated=[*STATE["federated"], own])
    with pytest.raises(MeshError, match="cannot be federated with"):
        Mesh.build("example.org", (), federated=[Federated("example.org", "x")])


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_bundles_are_pem_or_jwks(tmp_path: Path) -> None:
    one, other = (root_of(make_ca(tmp_path / name, trust_domain="other.org")) for name in ("a", "b"))
    assert read_bundle((one.pem + other.pem).encode(), "it") == one.pem + other.pem

    def key(pem: str, use: str = "x509-svid") -> dict[str, Any]:
        der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
        return {"use": use, "kty": "EC", "x5c": [b64encode(der).decode()]}

    data = jwks(key(one.pem), key(other.pem, "jwt-svid"), {"use": "jwt-svid"})
    assert read_bundle(data, "it") == one.pem
    leaf = self_signed(tmp_path)[0].read_text()
    assert read_bundle(jwks(key(leaf), key(other.pem)), "it") == other.pem


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        jwks(),
        jwks({"use": "jwt-svid"}),
        jwks({"use": "x509-svid"}),
        jwks({"use": "x509-svid", "x5c": ["MAA="]}),
        jwks({"use": "x509-svid", "x5c": []}),
        b'{"keys": [7]}',
        b"[" * 100_000,
        b"x" * (256 * 1024 + 1),
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_bundle_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(AuthorityError) as caught:
        read_bundle(data, "it")
    assert "\n" not in str(caught.value)
