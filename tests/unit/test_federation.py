"""Federated trust domains: in files, in decisions, and their bundles."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode, urlsafe_b64decode
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.creation import init_authority
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.spiffe_bundle import SpiffeBundle, read_bundle, read_jwks, write_jwks
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.issuer import IssuerError
from nodeseal.mesh.address import OriginalDestination, TunnelAddress
from nodeseal.mesh.decide import Allow, Deny, Plaintext, Route, Tunnel, inbound_tunnel, outbound
from nodeseal.mesh.federated import FEDERATED, BundleEndpoint, Federated, Profile
from nodeseal.mesh.model import Mesh, MeshError, Phase, WorkloadName
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused
from nodeseal.mesh.spiffe import PathId, SpiffeId
from nodeseal.node.federation import Federation
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError
from support.agent_fakes import FakeIssuer, workload
from support.anchors import make_ca, root_of
from support.bundle_server import bundle_of
from support.certificates import self_signed

STATE = {
    "trust_domain": "example.org",
    "workloads": [
        {"name": "web", "node": "node1", "address": "10.0.0.1"},
        {"name": "db", "node": "node2", "address": "10.0.0.2", "trust_domain": "other.org"},
    ],
    "federated": [{"trust_domain": "other.org", "bundle_file": "/etc/other.pem"}],
}
ONE_WAY = "one of 'bundle', 'bundle_file', 'bundle_endpoint' and 'bundle_from_workload_api'"
URL = "https://other.example/bundle.json"
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


def test_after_a_domain_was_left_its_workloads_are_refused_and_its_addresses_are_outside(tmp_path: Path) -> None:
    """As docs/federation.md says: what is dialled there from then on leaves in plaintext."""
    left = mesh_of(tmp_path, federated=[], workloads=STATE["workloads"][:1])
    web, here = WorkloadName("default", "web"), TunnelAddress(ip_address("10.0.0.1"), 80)
    answer = inbound_tunnel(left, web, DB, ip_address("10.0.0.2"), here)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.WRONG_TRUST_DOMAIN
    way = outbound(left, web, OriginalDestination(ip_address("10.0.0.2"), 80), established=False)
    assert isinstance(way, Route)
    assert [one.why for one in way.endpoints if isinstance(one, Plaintext)] == [WhyPlaintext.DESTINATION_NOT_IN_MESH]


def test_bundle_without_keys_keeps_a_domains_addresses_closed(tmp_path: Path) -> None:
    """As docs/federation.md says: they are dialled by tunnels still, and no anchor verifies anybody there."""
    mesh = mesh_of(tmp_path, federated=[{"trust_domain": "other.org", "bundle": '{"keys": []}'}])
    enrolled = mesh.with_phases({WorkloadName("default", "db"): Phase.ENROLLED})
    way = outbound(
        enrolled, WorkloadName("default", "web"), OriginalDestination(ip_address("10.0.0.2"), 80), established=False
    )
    assert isinstance(way, Route)
    assert [type(one) for one in way.endpoints] == [Tunnel]
    federation = Federation(tmp_path)
    asyncio.run(federation.take(enrolled))
    assert federation.bundles == {}
    assert [problem.word.value for problem in federation.problems()] == ["bundle-empty"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"federated": []}, "workloads[1].trust_domain: expected one that the mesh is 'federated' with, found"),
        ({"federated": [{"trust_domain": "other.org"}]}, f"federated[0]: expected {ONE_WAY}, found none of them"),
        (
            {"federated": [{"trust_domain": "other.org", "bundle": "x", "bundle_file": "/x"}]},
            f"federated[0]: expected {ONE_WAY}, found bundle and bundle_file",
        ),
        (
            {"federated": [{"trust_domain": "other.org", "bundle": "x", "bundle_from_workload_api": True}]},
            f"federated[0]: expected {ONE_WAY}, found bundle and bundle_from_workload_api",
        ),
        ({"federated": [{"trust_domain": "other.org", "bundle_from_workload_api": False}]}, f"expected {ONE_WAY}"),
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


def with_identity(**fields: Any) -> list[dict[str, Any]]:
    return [STATE["workloads"][0], {"name": "db", "node": "node2", "address": "10.0.0.2", **fields}]


def test_workload_of_a_federated_domain_may_have_any_identity(tmp_path: Path) -> None:
    theirs = PathId("other.org", "/billing/api")
    mesh = mesh_of(tmp_path, workloads=with_identity(identity=str(theirs)))
    db = mesh.workloads[WorkloadName("default", "db")]
    assert db.identity("example.org") == theirs
    assert db.in_phase(Phase.ENROLLED).identity("example.org") == theirs
    assert Mesh.from_difference(decode_difference(encode_difference(mesh.as_difference()))) == mesh
    for peer, allowed in ((theirs, True), (DB, False), (PathId("other.org", "/billing/web"), False)):
        answer = inbound_tunnel(
            mesh,
            WorkloadName("default", "web"),
            peer,
            ip_address("10.0.0.2"),
            TunnelAddress(ip_address("10.0.0.1"), 80),
        )
        assert isinstance(answer, Allow if allowed else Deny)


def test_identity_of_five_parts_is_not_bound_to_the_workloads_namespace(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path, workloads=with_identity(identity="spiffe://other.org/ns/prod/sa/db"))
    db = mesh.workloads[WorkloadName("default", "db")]
    assert db.identity("example.org") == SpiffeId("other.org", "prod", "db")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"identity": "spiffe://third.org/db"},
            "identity: expected an id of a trust domain that the mesh is 'federated'",
        ),
        ({"identity": "spiffe://example.org/db"}, "identity: expected an id of a trust domain that"),
        ({"identity": "spiffe://example.org/ns/default/sa/db"}, "identity: expected an id of a trust domain that"),
        ({"identity": "spiffe://other.org"}, "identity: expected a SPIFFE id of another trust domain"),
        ({"identity": "spiffe://other.org/../db"}, "identity: expected a SPIFFE id of another trust domain"),
        ({"identity": "other.org/db"}, "identity: expected a SPIFFE id of another trust domain"),
        (
            {"identity": "spiffe://other.org/db", "trust_domain": "other.org"},
            "trust_domain: expected nothing, as 'identity' says it",
        ),
        (
            {"identity": "spiffe://other.org/db", "service_account": "db"},
            "service_account: expected nothing, as 'identity' says it",
        ),
    ],
)
def test_mistakes_in_identities_are_told(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(MeshStateError) as caught:
        mesh_of(tmp_path, workloads=with_identity(**fields))
    assert f"workloads[1].{problem}" in str(caught.value)


def test_identities_that_contradict_a_model_are_refused() -> None:
    one = workload("db", None)
    theirs = PathId("other.org", "/db")
    for changes in ({"spiffe_id": theirs}, {"spiffe_id": theirs, "trust_domain": "third.org"}):
        with pytest.raises(MeshError, match="is of another trust domain than"):
            Mesh.build("example.org", [replace(one, **changes)])
    own = PathId("example.org", "/db")
    with pytest.raises(MeshError, match="is of the mesh's own trust domain"):
        Mesh.build("example.org", [replace(one, spiffe_id=own, trust_domain="example.org")])


def test_workload_of_another_domain_is_not_enrolled_here() -> None:
    async def story() -> None:
        with pytest.raises(IssuerError, match="is of another trust domain than example"):
            await Credentials(FakeIssuer()).issue(PathId("other.org", "/billing/api"))

    asyncio.run(story())


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
        b'{"keys": 7}',
        b'{"keys": [7]}',
        b'{"keys": [], "spiffe_sequence": -1}',
        b'{"keys": [], "spiffe_sequence": 18446744073709551616}',
        b'{"keys": [], "spiffe_sequence": true}',
        b'{"keys": [], "spiffe_sequence": "7"}',
        b'{"keys": [], "spiffe_refresh_hint": 7.5}',
        b'{"keys": [], "spiffe_refresh_hint": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"x" * (256 * 1024 + 1),
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_bundle_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(AuthorityError) as caught:
        read_bundle(data, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        jwks(),
        jwks({"use": "jwt-svid"}),
        jwks({"use": "x509-svid"}),
        jwks({"use": "x509-svid", "x5c": ["MAA="]}),
        jwks({"use": "x509-svid", "x5c": []}),
        jwks({"use": "x509-svid", "x5c": 7}),
    ],
)
def test_bundle_without_a_usable_key_trusts_nobody(data: bytes) -> None:
    """SPIFFE Trust Domain and Bundle, 4.1.3: all that was published before is revoked."""
    assert read_bundle(data, "it") == ""


def test_key_that_cannot_be_used_harms_no_other(tmp_path: Path) -> None:
    one = root_of(make_ca(tmp_path / "a", trust_domain="other.org"))
    good = json.loads(bundle_of(one.pem))["keys"][0]
    assert read_bundle(jwks({"use": "x509-svid", "x5c": ["MAA="]}, good, good), "it") == one.pem


@pytest.mark.parametrize("kind", list(KeyKind))
def test_bundle_that_is_written_is_read_again(tmp_path: Path, kind: KeyKind) -> None:
    init_authority(tmp_path / "ca", trust_domain="other.org", now=datetime.now(UTC), kind=kind)
    root = root_of(tmp_path / "ca").pem
    data = write_jwks(root + root, 12, 300)
    assert read_jwks(data, "it") == SpiffeBundle(root, 12, 300)
    (key,) = json.loads(data)["keys"]
    of = {KeyKind.P256: ("EC", "P-256", 32), KeyKind.P384: ("EC", "P-384", 48), KeyKind.ED25519: ("OKP", "Ed25519", 32)}
    assert (key["use"], key["kty"], key["crv"]) == ("x509-svid", *of[kind][:2])
    assert all(len(urlsafe_b64decode(key[name] + "==")) == of[kind][2] for name in {"x", "y"} & key.keys())


ENDPOINT_ID = "spiffe://other.org/spire/server"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"bundle_endpoint": {"url": URL, "profile": "https_web"}},
            Federated("other.org", endpoint=BundleEndpoint(URL, Profile.WEB)),
        ),
        (
            {"bundle_file": "/b", "bundle_endpoint": {"url": URL, "profile": "https_web", "ca_file": "/etc/ca.pem"}},
            Federated("other.org", "", "/b", BundleEndpoint(URL, Profile.WEB, ca_file="/etc/ca.pem")),
        ),
        (
            {"bundle": "x", "bundle_endpoint": {"url": URL, "profile": "https_spiffe", "spiffe_id": ENDPOINT_ID}},
            Federated("other.org", "x", "", BundleEndpoint(URL, Profile.SPIFFE, ENDPOINT_ID)),
        ),
        (
            {
                "bundle_endpoint": {
                    "url": URL,
                    "profile": "https_spiffe",
                    "spiffe_id": "spiffe://example.org/ns/a/sa/bundles",
                }
            },
            Federated(
                "other.org", endpoint=BundleEndpoint(URL, Profile.SPIFFE, "spiffe://example.org/ns/a/sa/bundles")
            ),
        ),
        ({"bundle_from_workload_api": True}, Federated("other.org", from_workload_api=True)),
    ],
)
def test_ways_to_a_bundle(tmp_path: Path, entry: dict[str, Any], expected: Federated) -> None:
    mesh = mesh_of(tmp_path, federated=[{"trust_domain": "other.org", **entry}])
    assert mesh.of(FEDERATED) == {"other.org": expected}
    assert Mesh.from_difference(decode_difference(encode_difference(mesh.as_difference()))) == mesh


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ({"url": URL}, ".profile: expected https_web or https_spiffe, found nothing"),
        ({"url": URL, "profile": "web"}, ".profile: expected https_web or https_spiffe"),
        ({"profile": "https_web"}, ".url: expected a URL that begins with https://"),
        ({"url": "http://other.example/", "profile": "https_web"}, ".url: expected a URL that begins with https://"),
        ({"url": "https://me@other.example/", "profile": "https_web"}, ".url: expected a URL"),
        ({"url": "https:///bundle", "profile": "https_web"}, ".url: expected a URL"),
        ({"url": "https://other.example:port/", "profile": "https_web"}, ".url: expected a URL"),
        ({"url": "https://other.example/ x", "profile": "https_web"}, ".url: expected a URL"),
        ({"url": URL, "profile": "https_spiffe"}, ".spiffe_id: expected the SPIFFE id of the endpoint"),
        ({"url": URL, "profile": "https_spiffe", "spiffe_id": "spiffe://other.org"}, ".spiffe_id: expected the SPIFFE"),
        (
            {"url": URL, "profile": "https_web", "spiffe_id": ENDPOINT_ID},
            ".spiffe_id: expected nothing, as the profile",
        ),
        (
            {"url": URL, "profile": "https_spiffe", "spiffe_id": ENDPOINT_ID, "ca_file": "/x"},
            ".ca_file: expected nothing, as the profile is https_spiffe",
        ),
        (
            {"url": URL, "profile": "https_spiffe", "spiffe_id": ENDPOINT_ID},
            ": expected 'bundle' or 'bundle_file' beside it: the first one of other.org, by which it is known",
        ),
        (
            {"url": URL, "profile": "https_spiffe", "spiffe_id": "spiffe://third.org/bundles"},
            ".spiffe_id: expected an id of a trust domain that the mesh is 'federated' with",
        ),
        ({"url": URL, "profile": "https_web", "token": "x"}, ".token: expected"),
    ],
)
def test_mistakes_of_endpoints_are_told(tmp_path: Path, endpoint: dict[str, Any], problem: str) -> None:
    with pytest.raises(MeshStateError) as caught:
        mesh_of(tmp_path, federated=[{"trust_domain": "other.org", "bundle_endpoint": endpoint}])
    assert f"federated[0].bundle_endpoint{problem}" in str(caught.value)
