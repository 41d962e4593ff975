"""`nodeseal ca serve` as a SPIFFE bundle endpoint for other trust domains."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import LiveSigner
from nodeseal.authority.published_bundle import PublishedBundle
from nodeseal.authority.service_config import load
from nodeseal.authority.spiffe_bundle import SpiffeBundle, read_jwks
from nodeseal.identity.bundle_endpoint import BundleEndpointError
from nodeseal.mesh.federated import BundleEndpoint, Profile
from nodeseal.mesh.trust_anchor import TrustAnchor
from support.anchors import make_ca, root_of
from support.bundle_server import fetched
from support.ca_service import Place, Running, running
from support.patience import wait_for

ID = "spiffe://example.org/nodeseal/bundle-endpoint"
HINT = "90s"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path, bundle_endpoint={"listen": ["127.0.0.1:0"], "refresh_hint": HINT})


@pytest.fixture
def service(place: Place) -> Iterator[Running]:
    with running(place) as service:
        yield service


def port_of(service: Running) -> int:
    match = re.search(r"the bundle endpoint is at 127\.0\.0\.1:(\d+), with the id (\S+)", service.log.read_text())
    assert match is not None
    assert match[2] == ID
    return int(match[1])


def endpoint(service: Running, path: str = "") -> BundleEndpoint:
    return BundleEndpoint(f"https://127.0.0.1:{port_of(service)}/{path}", Profile.SPIFFE, ID)


def given(service: Running, anchors: str) -> SpiffeBundle:
    """Once it has a certificate, and the mesh state was read."""

    def found() -> SpiffeBundle | None:
        try:
            return read_jwks(fetched(endpoint(service), anchors), "it")
        except BundleEndpointError:
            return None

    return wait_for(found, "a bundle")


def anchors_of(text: str) -> set[str]:
    return {one + "-----END CERTIFICATE-----\n" for one in text.split("-----END CERTIFICATE-----\n") if one}


def test_others_get_the_anchors_of_the_mesh(place: Place, service: Running) -> None:
    """As our own `bundle_endpoint` asks, and whoever else knows the root."""
    root = root_of(place.root / "ca").pem
    bundle = given(service, root)
    assert (bundle.anchors, bundle.refresh_hint) == (root, 90)
    assert bundle.sequence is not None
    assert abs(bundle.sequence - datetime.now(UTC).timestamp()) < 3600
    # It is for nobody else: not for another id, not for another CA.
    other = root_of(make_ca(place.root / "other")).pem
    with pytest.raises(BundleEndpointError, match="certificate verify failed"):
        fetched(endpoint(service), other)
    with pytest.raises(BundleEndpointError, match="the status 404"):
        fetched(endpoint(service, "v1/bundle"), root)


def test_what_is_sent_is_a_bundle_of_the_standard(place: Place, service: Running) -> None:
    """Without a client's certificate, and over TLS 1.2 too. The server's is for servers alone."""
    root = root_of(place.root / "ca").pem
    given(service, root)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = context.maximum_version = version
        context.load_verify_locations(cadata=root)
        with (
            socket.create_connection(("127.0.0.1", port_of(service)), 10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := tls.recv(65536):
                answer += piece
            shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"Content-Type: application/json" in head
        said = json.loads(body)
        assert said.keys() == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
        assert [{*key} for key in said["keys"]] == [{"use", "kty", "crv", "x", "y", "x5c"}]
        usages = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usages) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [ID]


def test_root_reaches_others_before_anything_is_issued_by_it(place: Place, service: Running) -> None:
    ca, new = place.root / "ca", make_ca(place.root / "new")
    old_root, new_root = root_of(ca).pem, root_of(new).pem
    first = given(service, old_root)
    both = {"trust_anchors": [{"pem": old_root}, {"pem": new_root}]}
    (place.root / "mesh" / "trust.yaml").write_text(yaml.safe_dump(both))
    second = wait_for(lambda: newer(given(service, old_root), first), "the new root is told")
    assert anchors_of(second.anchors) == {old_root, new_root}
    # The CA issues by the new root from now on: its endpoint too.
    shutil.copytree(new, ca, dirs_exist_ok=True)
    wait_for(lambda: not answers(service, old_root), "the endpoint's own certificate is of the new root")
    third = given(service, new_root)
    assert third == second  # nothing has changed for others
    (place.root / "mesh" / "trust.yaml").write_text(yaml.safe_dump({"trust_anchors": [{"pem": new_root}]}))
    fourth = wait_for(lambda: newer(given(service, new_root), third), "the old root is told no more")
    assert fourth.anchors == new_root


def newer(now: SpiffeBundle, before: SpiffeBundle) -> SpiffeBundle | None:
    assert now.sequence is not None
    assert before.sequence is not None
    return now if now.sequence > before.sequence else None


def answers(service: Running, anchors: str) -> bool:
    try:
        fetched(endpoint(service), anchors)
    except BundleEndpointError:
        return False
    return True


def test_mesh_state_that_is_wrong_changes_nothing(place: Place, service: Running) -> None:
    root = root_of(place.root / "ca").pem
    first = given(service, root)
    (place.root / "mesh" / "trust.yaml").write_text("trust_anchors: nonsense\n")
    wait_for(lambda: service.asker.health().problems, "the mesh state is wrong")
    assert given(service, root) == first


def test_without_the_setting_there_is_no_endpoint(tmp_path: Path) -> None:
    with running(Place.make(tmp_path)) as service:
        assert "bundle endpoint" not in service.log.read_text()


# ---- the sequence number


def published(place: Path, ca: Path, now: datetime, *anchors: TrustAnchor) -> PublishedBundle:
    bundle = PublishedBundle(place, LiveSigner(ca, lambda: datetime.now(UTC)), 60, lambda: now)
    bundle.anchors = anchors
    bundle.refresh()
    return bundle


def sequence_of(bundle: PublishedBundle) -> int:
    assert bundle.document is not None
    found = read_jwks(bundle.document, "it").sequence
    assert found is not None
    return found


def test_sequence_grows_with_each_change_and_stays_over_a_restart(tmp_path: Path) -> None:
    ca, other = make_ca(tmp_path / "ca"), root_of(make_ca(tmp_path / "other"))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    bundle = published(tmp_path, ca, now)
    first = sequence_of(bundle)
    assert first == int(now.timestamp())
    assert sequence_of(published(tmp_path, ca, now.replace(year=2027))) == first
    bundle.anchors = (other,)
    bundle.refresh()
    assert sequence_of(bundle) == first + 1  # even where the clock stands still
    assert bundle.document is not None
    assert anchors_of(read_jwks(bundle.document, "it").anchors) == {other.pem, root_of(ca).pem}
    (tmp_path / "bundle-endpoint.json").unlink()
    assert sequence_of(published(tmp_path, ca, now.replace(year=2027))) > first + 1


@pytest.mark.parametrize("content", ["", "[]", '{"sequence": "x", "anchors": ""}', "\x00"])
def test_note_of_the_sequence_that_is_damaged_is_made_anew(tmp_path: Path, content: str) -> None:
    ca, now = make_ca(tmp_path / "ca"), datetime(2026, 1, 1, tzinfo=UTC)
    (tmp_path / "bundle-endpoint.json").write_text(content)
    assert sequence_of(published(tmp_path, ca, now)) == int(now.timestamp())


def test_before_the_mesh_state_was_read_nothing_is_told(tmp_path: Path) -> None:
    bundle = PublishedBundle(
        tmp_path, LiveSigner(make_ca(tmp_path / "ca"), lambda: datetime.now(UTC)), 60, datetime.now
    )
    bundle.refresh()
    assert bundle.document is None


def test_anchor_that_verifies_nobody_is_not_told(tmp_path: Path) -> None:
    ca = make_ca(tmp_path / "ca")
    other = root_of(make_ca(tmp_path / "other"))
    nonsense = TrustAnchor("0" * 64, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    bundle = published(tmp_path, ca, datetime(2026, 1, 1, tzinfo=UTC), other, nonsense)
    assert bundle.document is not None
    assert anchors_of(read_jwks(bundle.document, "it").anchors) == {other.pem, root_of(ca).pem}


def strange_root() -> str:
    """A CA's certificate with a key on a curve that no JWK has."""
    key, now = ec.generate_private_key(ec.BrainpoolP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "strange")])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | dict.fromkeys(("crl_sign", "encipher_only", "decipher_only"), False)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, **usage), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def test_anchor_of_a_kind_that_no_bundle_has_is_left_out_and_told(tmp_path: Path) -> None:
    ca = make_ca(tmp_path / "ca")
    other = root_of(make_ca(tmp_path / "other"))
    strange = TrustAnchor("1" * 64, strange_root())
    bundle = published(tmp_path, ca, datetime(2026, 1, 1, tzinfo=UTC), other, strange)
    assert bundle.document is not None
    assert anchors_of(read_jwks(bundle.document, "it").anchors) == {other.pem, root_of(ca).pem}
    assert bundle.why is not None
    assert "has a key of a kind that no bundle can have: it is left out" in bundle.why
    bundle.anchors = (other,)
    bundle.refresh()
    assert bundle.why is None


def test_sequence_that_cannot_be_kept_stays_and_is_kept_later(tmp_path: Path) -> None:
    ca, state, now = make_ca(tmp_path / "ca"), tmp_path / "state", [datetime(2026, 1, 1, tzinfo=UTC)]
    bundle = PublishedBundle(state, LiveSigner(ca, lambda: datetime.now(UTC)), 60, lambda: now[0])
    bundle.anchors = ()
    bundle.refresh()
    first = sequence_of(bundle)
    assert bundle.why is not None
    now[0] = now[0].replace(year=2027)
    bundle.refresh()
    assert sequence_of(bundle) == first
    state.mkdir()
    bundle.refresh()
    assert bundle.why is None
    assert json.loads((state / "bundle-endpoint.json").read_text())["sequence"] == first


# ---- the setting


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"listen": []}, "bundle_endpoint.listen: expected a list of addresses"),
        ({"listen": ["x"]}, "bundle_endpoint.listen"),
        ({"refresh_hint": "1s"}, "bundle_endpoint.refresh_hint: expected"),
        ({"refresh_hint": "2d"}, "bundle_endpoint.refresh_hint: expected"),
        ({"certificate": "x"}, "bundle_endpoint.certificate: expected"),
        (7, "bundle_endpoint: expected a mapping"),
    ],
)
def test_mistakes_in_the_setting_are_told(tmp_path: Path, setting: object, problem: str) -> None:
    path = tmp_path / "ca.yaml"
    path.write_text(json.dumps({"ca": "ca", "mesh": "mesh", "bundle_endpoint": setting}))
    with pytest.raises(AuthorityError) as caught:
        load(path)
    assert problem in str(caught.value)


def test_setting_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "ca.yaml"
    path.write_text(json.dumps({"ca": "ca", "mesh": "mesh", "bundle_endpoint": {}}))
    config = load(path).bundle_endpoint
    assert config is not None
    assert ([str(one) for one in config.listen], config.refresh_hint.total_seconds()) == (["0.0.0.0:8443"], 300)
