"""The certificate service as a process, over TLS: who joins, who gets what, and how hostile ones are refused."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeseal.authority.ledger import Ledger
from nodeseal.authority.renewal import renew
from nodeseal.authority.signing_key import kind_of
from nodeseal.contracts.authority import BODY_MAX, CERTIFICATES, NODE, NodeRequest, ServiceRefusal, decode
from nodeseal.contracts.key_kind import KeyKind
from support.ca_service import DB, IDLE, WEB, Asker, Place, RefusedRequest, Running, csr_of, new_key, running
from support.patience import wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"), limits={"stranger_burst": 10_000, "stranger_rate": 10_000})


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Running]:
    with running(place) as service:
        yield service


@pytest.fixture(scope="module")
def stranger(service: Running) -> Asker:
    return service.asker


@pytest.fixture(scope="module")
def node1(place: Place, stranger: Asker) -> Asker:
    return stranger.joined("node1", place.token("node1"))


def word_of(asker: Asker, *arguments: str, **more: str) -> str:
    """With which a certificate is refused."""
    with pytest.raises(RefusedRequest) as caught:
        asker.certificate(*arguments, **more)
    return caught.value.word


# ---- joining


def test_node_joins_with_a_token_and_renews_with_its_certificate(place: Place, stranger: Asker) -> None:
    certificate, key = stranger.join("node9", place.token("node9"))
    assert (certificate.node, certificate.identity) == ("node9", "spiffe://example.org/node/node9")
    node9 = Asker(stranger.port, stranger.pin, (certificate.certificate, key))
    again, _key = node9.join("node9", None)
    assert (again.node, again.identity) == ("node9", certificate.identity)
    assert again.serial != certificate.serial


def test_node_certificate_is_no_workloads(stranger: Asker, place: Place) -> None:
    """For clients only, and signed by what is no trust anchor."""
    certificate, _key = stranger.join("node8", place.token("node8"))
    cert = x509.load_pem_x509_certificate(certificate.certificate.encode())
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    anchors = x509.load_pem_x509_certificates(stranger.bundle().anchors.encode())
    assert cert.issuer not in {anchor.subject for anchor in anchors}
    assert cert.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)


def test_token_is_used_once(place: Place, stranger: Asker) -> None:
    token = place.token("node3")
    stranger.join("node3", token)
    with pytest.raises(RefusedRequest, match=r"401 token-used: the token [0-9a-f]{12} was used at .*; make another"):
        stranger.join("node3", token)


def test_token_of_another_node(place: Place, stranger: Asker) -> None:
    token = place.token("node4")
    with pytest.raises(RefusedRequest, match=r"403 token-of-another-node: .*is for the node node4, not for 'node1'"):
        stranger.join("node1", token)
    stranger.join("node4", token)


def test_token_that_nobody_made(stranger: Asker) -> None:
    with pytest.raises(RefusedRequest, match="401 token-unknown: "):
        stranger.join("node1", "nodeseal-join-" + "A" * 43)


def test_token_that_was_revoked(place: Place, stranger: Asker) -> None:
    made = place.command("token", "create", "--node", "node5")
    place.command("token", "revoke", made["id"])
    with pytest.raises(RefusedRequest, match="401 token-revoked: "):
        stranger.join("node5", made["token"])


def test_token_that_has_expired(place: Place, stranger: Asker) -> None:
    with Ledger(place.state) as ledger:
        token, _known = ledger.make_token("node6", timedelta(minutes=1), datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(RefusedRequest, match=r"401 token-expired: .*expired at "):
        stranger.join("node6", token)


def test_joining_with_nothing(stranger: Asker) -> None:
    with pytest.raises(RefusedRequest, match="401 node-unproven: neither a token nor a node certificate was shown"):
        stranger.join("node1", None)


def test_request_that_is_refused_leaves_its_token_usable(place: Place, stranger: Asker) -> None:
    token = place.token("node7")
    with pytest.raises(RefusedRequest, match="csr-unreadable"):
        stranger.ask(NODE, NodeRequest(csr="nothing", node="node7", token=token))
    stranger.join("node7", token)


# ---- certificates


def test_node_gets_the_certificate_of_its_workload(node1: Asker) -> None:
    key = new_key()
    answer = node1.certificate(WEB, csr_of(key))
    leaf, intermediate = x509.load_pem_x509_certificates(answer.chain.encode())
    uris = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uris.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    assert leaf.public_key() == key.public_key()
    leaf.verify_directly_issued_by(intermediate)
    (anchor,) = x509.load_pem_x509_certificates(node1.bundle().anchors.encode())
    intermediate.verify_directly_issued_by(anchor)
    assert (answer.serial, answer.not_after) == (f"{leaf.serial_number:x}", leaf.not_valid_after_utc)
    assert answer.bundle == node1.bundle().tag


def test_what_was_issued_is_known(place: Place, node1: Asker) -> None:
    answer = node1.certificate(WEB, reason="renewal")
    (row,) = place.command("issued", "--serial", answer.serial)["certificates"]
    assert (row["node"], row["identity"], row["kind"], row["reason"]) == ("node1", WEB, "workload", "renewal")
    (own,) = place.command("issued", "--serial", row["credential"].removeprefix("certificate "))["certificates"]
    assert (own["kind"], own["node"], own["reason"]) == ("node", "node1", "join")


def test_another_nodes_workload(place: Place, node1: Asker) -> None:
    assert word_of(node1, DB) == "identity-not-on-node"
    line = place.audited(word="identity-not-on-node", identity=DB)
    assert (line["who"], line["outcome"], line["address"]) == ("node1", "refused", "127.0.0.1")


@pytest.mark.parametrize(
    ("identity", "word"),
    [
        (IDLE, "identity-not-enrolled"),
        ("spiffe://other.org/ns/default/sa/web", "identity-of-another-domain"),
        ("spiffe://example.org/node/node1", "identity-malformed"),
        ("spiffe://example.org", "identity-malformed"),
        (WEB + "/", "identity-malformed"),
        (WEB + "\0", "identity-malformed"),
    ],
)
def test_identity_that_is_not_the_nodes(node1: Asker, identity: str, word: str) -> None:
    assert word_of(node1, identity) == word


def test_stranger_gets_no_certificate(stranger: Asker) -> None:
    assert word_of(stranger, WEB) == "node-unproven"


def test_workloads_certificate_is_no_nodes(node1: Asker) -> None:
    """Not even signed by the mesh's own CA: what is behind another CA ends the handshake."""
    key = new_key()
    workload = Asker(node1.port, node1.pin, (node1.certificate(WEB, csr_of(key)).chain, key))
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        workload.certificate(WEB)


def test_key_is_certified_once(node1: Asker) -> None:
    csr = csr_of(new_key())
    node1.certificate(WEB, csr)
    assert word_of(node1, WEB, csr) == "key-used"


def test_key_of_a_node_is_no_workloads(node1: Asker) -> None:
    """Nor may one node's request be shown by another."""
    assert node1.shown is not None
    assert word_of(node1, WEB, csr_of(node1.shown[1])) == "key-used"


def test_request_that_is_not_signed_by_its_own_key(node1: Asker) -> None:
    der = bytearray(x509.load_pem_x509_csr(csr_of(new_key()).encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    assert word_of(node1, WEB, pem) == "csr-signature"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["rsa", "p-521", "secp256k1", "ed448"],
)
def test_keys_of_other_kinds(node1: Asker, key: object) -> None:
    assert word_of(node1, WEB, csr_of(key)) == "csr-key"


@pytest.mark.parametrize(
    "kind",
    [lambda: ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate],
    ids=["p-384", "ed25519"],
)
def test_other_keys_that_are_taken(node1: Asker, kind: Callable[[], object]) -> None:
    """Each is known as itself."""
    csrs = [csr_of(kind()) for _ in range(2)]
    assert [node1.certificate(WEB, csr).identity for csr in csrs] == [WEB, WEB]
    assert word_of(node1, WEB, csrs[0]) == "key-used"


@pytest.mark.parametrize("kind", [KeyKind.P384, KeyKind.ED25519], ids=lambda kind: kind.value)
def test_ca_of_another_kind(tmp_path: Path, kind: KeyKind) -> None:
    place = Place.make(tmp_path, kind=kind)
    with running(place) as service:
        node = service.asker.joined("node1", place.token("node1"))
        issued = node.certificate(WEB, csr_of(ed25519.Ed25519PrivateKey.generate()))
        leaf, intermediate = x509.load_pem_x509_certificates(issued.chain.encode())
        leaf.verify_directly_issued_by(intermediate)
        assert (kind_of(leaf.public_key()), kind_of(intermediate.public_key())) == ("ed25519", kind)


@pytest.mark.parametrize("csr", ["x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request(node1: Asker, csr: str) -> None:
    assert word_of(node1, WEB, csr) == "csr-unreadable"


# ---- the bundle


def test_bundle_is_told_again_only_when_it_has_changed(stranger: Asker) -> None:
    status, headers, _body = stranger.send("GET", "/v1/bundle")
    assert (status, headers["ETag"]) == (200, f'"{stranger.bundle().tag}"')
    assert stranger.send("GET", "/v1/bundle", headers={"If-None-Match": headers["ETag"]})[0] == 304


# ---- HTTP and TLS


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/v1/node", b"", 400, "malformed"),
        ("POST", "/v1/node", b"{", 400, "malformed"),
        ("POST", "/v1/node", b"[" * 60_000, 400, "malformed"),
        ("POST", "/v1/node", b"x" * (BODY_MAX + 1), 413, "too-large"),
        ("GET", "/v1/node", None, 404, "unknown-operation"),
        ("GET", "/", None, 404, "unknown-operation"),
        ("PUT", "/v1/health", None, 404, "unknown-operation"),
        ("GET", "/" + "x" * 5000, None, 400, "malformed"),
    ],
)
def test_what_is_no_operation(
    stranger: Asker, method: str, path: str, body: bytes | None, status: int, word: str
) -> None:
    found, _headers, data = stranger.send(method, path, body)
    assert (found, decode(data, ServiceRefusal).word) == (status, word)
    assert len(decode(data, ServiceRefusal).detail.splitlines()) == 1


def test_little_that_would_be_much_when_it_is_unpacked(stranger: Asker) -> None:
    """It is not unpacked: what arrives is small, and no JSON."""
    body = gzip.compress(b" " * 1_000_000)
    status, _headers, data = stranger.send("POST", "/v1/node", body, {"Content-Encoding": "gzip"})
    assert (status, decode(data, ServiceRefusal).word) == (400, "malformed")


def test_no_http(service: Running, place: Place) -> None:
    asker = service.asker
    with contextlib.closing(asker.connect()) as connection:
        connection.sock.sendall(b"\x16\x03\x01 nothing of HTTP\r\n\r\n")
        assert b" 400 " in connection.sock.recv(100)


def test_no_tls_is_counted_and_written(service: Running, place: Place) -> None:
    with socket.create_connection(("127.0.0.1", service.asker.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(100)
    assert "TLS: " in place.audited(word="handshake")["detail"]


def test_older_tls_is_refused(service: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", service.asker.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_refusals_are_counted(stranger: Asker, node1: Asker) -> None:
    def count() -> int:
        return {one.word: one.count for one in stranger.health().refused}.get("identity-not-enrolled", 0)

    before = count()
    word_of(node1, IDLE)
    assert count() == before + 1


# ---- in time


def test_changed_mesh_state_counts(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as service:
        node1 = service.asker.joined("node1", place.token("node1"))
        assert word_of(node1, IDLE) == "identity-not-enrolled"
        mesh = tmp_path / "mesh" / "mesh.yaml"
        mesh.write_text(mesh.read_text().replace("netns: idle", "netns: idle, enrolled: true"))

        def given() -> bool:
            with contextlib.suppress(RefusedRequest):
                return node1.certificate(IDLE).identity == IDLE
            return False

        wait_for(given, "the workload that is enrolled now gets a certificate")


def test_expired_node_certificate_is_told_so(tmp_path: Path) -> None:
    """As one of a node that was away for too long: in words, and not by an alert."""
    from nodeseal.authority.node_certificates import sign_node
    from nodeseal.authority.state_keys import StateKeys

    place = Place.make(tmp_path)
    with running(place) as service:
        keys = StateKeys.load(place.state, "example.org", datetime.now(UTC))
        key, then = new_key(), datetime.now(UTC) - timedelta(days=3)
        cert = sign_node(
            keys.nodes, "example.org", "node1", key.public_key(), lifetime=timedelta(days=1), now=then
        ).public_bytes(Encoding.PEM)
        away = Asker(service.asker.port, service.asker.pin, (cert.decode(), key))
        for ask in (lambda: away.certificate(WEB), lambda: away.join("node1", None)):
            with pytest.raises(RefusedRequest, match=r"401 node-expired: .*make another: nodeseal ca token create"):
                ask()
        away.join("node1", place.token("node1"))


def test_expired_ca_lets_nodes_join_and_issues_again_when_it_is_renewed(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=3)
    place = Place.make(tmp_path, made=then)
    renew(tmp_path / "ca", now=then, lifetime=timedelta(days=1))
    with running(place, active=False) as service:
        wait_for(lambda: len(service.asker.health().problems) == 1, "the mesh state is read")
        (problem,) = service.asker.health().problems
        assert service.asker.health().state == "impaired"
        assert "intermediate.pem expired at" in problem
        node1 = service.asker.joined("node1", place.token("node1"))
        assert word_of(node1, WEB) == "authority-unable"
        renew(tmp_path / "ca", now=datetime.now(UTC))
        wait_for(lambda: service.asker.health().state == "active", "the next intermediate counts")
        assert node1.certificate(WEB).identity == WEB


def test_ca_that_cannot_be_used_for_a_while_is_told_for_so_long(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as service:
        key = tmp_path / "ca" / "intermediate.key"
        key.rename(tmp_path / "away")
        wait_for(lambda: service.asker.health().state == "impaired", "it is told")
        node1 = service.asker.joined("node1", place.token("node1"))
        assert node1.certificate(WEB).identity == WEB  # it goes on with what it has
        (tmp_path / "away").rename(key)
        wait_for(lambda: service.asker.health().state == "active", "it is well again")


def test_another_process_stands_by_and_takes_over(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as first, running(place, active=False) as second:
        assert second.asker.pin == first.asker.pin
        assert second.asker.health().state == "standby"
        node1 = first.asker.joined("node1", place.token("node1"))
        there = Asker(second.asker.port, node1.pin, node1.shown)
        assert word_of(there, WEB) == "standby"
        csr = csr_of(new_key())
        node1.certificate(WEB, csr)
        first.kill()
        wait_for(lambda: second.asker.health().state == "active", "the other one takes over")
        assert there.certificate(WEB).identity == WEB
        assert word_of(there, WEB, csr) == "key-used"


def test_service_that_is_told_to_go_leaves_nothing_half(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as service, contextlib.closing(service.asker.connect()) as idle:
        idle.request("GET", "/v1/health")
        idle.getresponse().read()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
    assert "the certificate service goes" in service.log.read_text()
    assert "Traceback" not in service.log.read_text()
    assert sorted(path.name for path in place.state.iterdir()) == [
        "audit.jsonl", "issued.db", "nodes.pem", "service.pem", "writer.lock",
    ]  # fmt: skip


# ---- hostile


def test_flood_is_refused_and_counted_and_the_service_lives(tmp_path: Path) -> None:
    """Strangers, and a node that asks for what is another's: each is refused, first with the reason and then for its
    rate; the audit log names them, and does not grow with the flood. Another node gets what it asks for."""
    place = Place.make(tmp_path, limits={"node_rate": 1, "node_burst": 50, "stranger_rate": 1, "stranger_burst": 1_000})
    with running(place) as service:
        node1, node2 = (service.asker.joined(node, place.token(node)) for node in ("node1", "node2"))
        body = json.dumps({"csr": "x", "node": "node1", "token": "nodeseal-join-wrong"}).encode()
        words = Counter(_pipelined(service.asker, NODE.path, body, 2_000))
        assert set(words) <= {"token-unknown", "rate"}
        assert words["token-unknown"] >= 1_000
        other = json.dumps({"identity": DB, "csr": "x"}).encode()
        assert Counter(_pipelined(node1, CERTIFICATES.path, other, 500)).keys() == {"identity-not-on-node", "rate"}
        # Its rate refills while it floods: one request a second.
        words = Counter(_pipelined(node1, NODE.path, b'{"csr": "x"}', 50))
        assert set(words) <= {"rate", "csr-unreadable"}
        assert words["rate"] > words["csr-unreadable"]
        refused = {one.word: one.count for one in service.asker.health().refused}
        assert sum(refused.values()) == 2_550
        assert place.audited(word="token-unknown")["address"] == "127.0.0.1"
        assert {line["who"] for line in place.audit() if line.get("word") == "rate"} == {"127.0.0.1", "node1"}
        assert len(place.audit()) < 50
        assert word_of(node2, DB, "x") == "csr-unreadable"
        assert node2.certificate(DB).identity == DB


def _pipelined(asker: Asker, path: str, body: bytes, count: int) -> Iterator[str]:
    """The words that so many requests on one connection are refused with."""
    with contextlib.closing(asker.connect()) as connection:
        for _ in range(count):
            connection.request("POST", path, body)
            yield decode(connection.getresponse().read(), ServiceRefusal).word


def test_strangers_that_hold_connections_give_way(tmp_path: Path) -> None:
    """Neither those that say nothing at all, nor those that stop within a request, keep a node out."""
    place = Place.make(tmp_path, limits={"connections": 20})
    with running(place) as service, contextlib.ExitStack() as stack:
        node1 = service.asker.joined("node1", place.token("node1"))
        for number in range(60):
            if number % 2:
                stack.enter_context(socket.create_connection(("127.0.0.1", service.asker.port)))
            else:
                slow = stack.enter_context(contextlib.closing(service.asker.connect()))
                slow.sock.sendall(b"POST /v1/node HTTP/1.1\r\nContent-Le")
        assert node1.certificate(WEB).identity == WEB
