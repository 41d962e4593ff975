"""Who means ill, or a machine that fails, against the certificate service as a process."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.connections import OF_ONE_NODE
from nodeseal.authority.ledger import Ledger, Selection
from nodeseal.authority.node_certificates import sign_node
from nodeseal.authority.state_keys import StateKeys
from nodeseal.contracts.authority import NODE, ServiceRefusal, decode
from support.ca_service import DB, WEB, Asker, Place, RefusedRequest, Running, new_key, running
from support.patience import wait_for
from support.process import nodeseal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"), limits={"stranger_burst": 10_000, "stranger_rate": 10_000})


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Running]:
    with running(place) as service:
        yield service


@pytest.fixture(scope="module")
def node1(place: Place, service: Running) -> Asker:
    return service.asker.joined("node1", place.token("node1"))


def word_of(asker: Asker, identity: str = WEB) -> str:
    """With which a certificate is refused; "" if it is not."""
    try:
        asker.certificate(identity)
    except RefusedRequest as refused:
        return refused.word
    return ""


# ---- HTTP

HEAD = b"POST /v1/node HTTP/1.1\r\nHost: ca\r\n"
SECOND = b"GET /v1/health HTTP/1.1\r\nHost: ca\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND,
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + SECOND,
        HEAD + b"Content-Length: +2\r\n\r\n{}" + SECOND,
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}" + SECOND,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SECOND,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n" + SECOND,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n" + SECOND,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"T: x\r\n" * 500 + b"\r\n" + SECOND,
        HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}" + SECOND,
        b"GET /v1/health HTTP/1.1\r\nHost : ca\r\n\r\n" + SECOND,
        b"GET /v1/health HTTP/1.1\r\nHost: ca\r\n" + b"A: x\r\n" * 500 + b"\r\n" + SECOND,
        b"GET /v1/health HTTP/1.1\r\nHost: ca\r\nA: b\r\n c\r\n\r\n" + SECOND,
    ],
)
def test_request_that_two_could_read_in_two_ways_is_refused_and_ends_the_connection(
    service: Running, data: bytes
) -> None:
    """What follows it is not taken for another request."""
    with contextlib.closing(service.asker.connect()) as connection:
        connection.sock.sendall(data)
        answer = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while piece := connection.sock.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.0 400 ") or answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.") == 2, "the answer's first line, and the text of it, which names HTTP/1.1"
    assert b'"word":"malformed"' in answer


DEEP = "malformed or node-unproven"
"""Python 3.13 goes as deep as that, and skips what is not asked for."""


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b',"csr":"x"}', "malformed"),
        (b'{"x":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b',"csr":"x"}', DEEP),
        (b'{"csr":' + b"9" * 60_000 + b"}", "malformed"),
        (b'{"csr":"x","x":' + b"9" * 60_000 + b"}", "node-unproven"),
        (b'{"csr":"x","csr":"y","token":"a","token":"b","node":"n"}', "token-unknown"),
        (b'{"csr":"x","node":"node1","token":"\\ud800"}', "malformed"),
        (b'{"csr":"x","node":"node1","token":"\xff\xfe"}', "malformed"),
        (b'\xef\xbb\xbf{"csr":"x"}', "malformed"),
    ],
)
def test_json_that_is_meant_to_hurt(service: Running, body: bytes, word: str) -> None:
    status, _headers, data = service.asker.send("POST", NODE.path, body)
    assert 400 <= status < 500
    assert decode(data, ServiceRefusal).word in word.split(" or ")


def test_client_that_sends_requests_and_reads_no_answers_is_held_up(service: Running) -> None:
    """It has to stop before it has sent much, so what waits of it is bounded."""
    with contextlib.closing(service.asker.connect(timeout=1)) as connection:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100_000_000:
                sent += connection.sock.send(SECOND * 100)
        assert sent < 1_000_000, "neither the process nor the kernel keeps more of it"
        assert service.asker.health().state == "active"


# ---- requests for certificates


def test_request_with_extensions_gets_none_of_them(node1: Asker) -> None:
    key = new_key()
    names = [x509.UniformResourceIdentifier(DB), x509.DNSName("evil.example.org")]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "evil")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, hashes.SHA256())
    )
    answer = node1.certificate(WEB, request.public_bytes(Encoding.PEM).decode())
    leaf = x509.load_pem_x509_certificates(answer.chain.encode())[0]
    assert leaf.subject == x509.Name([])
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(found) == [x509.UniformResourceIdentifier(WEB)]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


# ---- who was a node


def test_node_that_was_taken_over_cannot_keep_the_others_out(tmp_path: Path) -> None:
    place = Place.make(tmp_path, limits={"connections": 2 * OF_ONE_NODE})
    with running(place) as service, contextlib.ExitStack() as stack:
        node1, node2 = (service.asker.joined(node, place.token(node)) for node in ("node1", "node2"))
        held = []
        for _ in range(3 * OF_ONE_NODE):
            held.append(stack.enter_context(contextlib.closing(node1.connect())))
            held[-1].request("GET", "/v1/health")  # it has been welcomed once that is answered
            held[-1].getresponse().read()
        assert node2.certificate(DB).identity == DB
        assert node1.certificate(WEB).identity == WEB, "its newest connections are kept"
        held[0].auto_open = 0  # rather than to connect again
        with contextlib.suppress(OSError):
            held[0].request("GET", "/v1/health")
        with pytest.raises((OSError, http.client.HTTPException)):
            held[0].getresponse()


def test_node_that_expired_or_is_revoked_gives_way_as_a_stranger(tmp_path: Path) -> None:
    place = Place.make(tmp_path, limits={"connections": 20})
    with running(place) as service, contextlib.ExitStack() as stack:
        expired = away(place, service)
        node1, node2 = (service.asker.joined(node, place.token(node)) for node in ("node1", "node2"))
        revoke(place, "node", "node1")
        wait_for(lambda: word_of(node1) == "node-revoked", "the service knows of it")
        for number in range(60):
            stack.enter_context(contextlib.closing((expired if number % 2 else node1).connect()))
        assert node2.certificate(DB).identity == DB


def test_node_that_expired_is_refused_for_its_rate_as_strangers_are(tmp_path: Path) -> None:
    place = Place.make(tmp_path, limits={"stranger_rate": 1, "stranger_burst": 20})
    with running(place) as service:
        expired = away(place, service)
        words: Counter[str] = Counter()
        with contextlib.closing(expired.connect()) as connection:
            for _ in range(60):
                connection.request("POST", NODE.path, b'{"csr":"x"}')
                words[decode(connection.getresponse().read(), ServiceRefusal).word] += 1
        assert words.keys() == {"node-expired", "rate"}
        assert words["rate"] > words["node-expired"]


def away(place: Place, service: Running) -> Asker:
    """A node whose certificate has expired."""
    keys = StateKeys.load(place.state, "example.org", datetime.now(UTC))
    key, then = new_key(), datetime.now(UTC) - timedelta(days=3)
    cert = sign_node(keys.nodes, "example.org", "node9", key.public_key(), lifetime=timedelta(days=1), now=then)
    return Asker(service.asker.port, service.asker.pin, (cert.public_bytes(Encoding.PEM).decode(), key))


# ---- revocation


def revoke(place: Place, *words: str) -> None:
    done = nodeseal("revoke", *words, "--mesh", str(place.root / "mesh"))
    assert (done.returncode, done.stderr) == (0, "")


def test_node_that_is_revoked_gets_nothing_until_that_is_taken_back(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as service:
        node1 = service.asker.joined("node1", place.token("node1"))
        token = place.token("node1")
        revoke(place, "node", "node1", "--reason", "stolen")
        wait_for(lambda: word_of(node1) == "node-revoked", "the service knows of it")
        with pytest.raises(RefusedRequest, match=r"403 node-revoked: .*\(stolen\)"):
            node1.join("node1", None)
        with pytest.raises(RefusedRequest, match="403 node-revoked: "):
            service.asker.join("node1", token)
        revoke(place, "node", "node1", "--undo")
        wait_for(lambda: word_of(node1) == "", "it gets certificates again")
        node1.join("node1", None)
        service.asker.join("node1", token)  # which was not used up


def test_node_certificate_that_is_revoked_proves_nothing_until_that_is_taken_back(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with running(place) as service:
        node1 = service.asker.joined("node1", place.token("node1"))
        (row,) = place.command("issued", "--node", "node1")["certificates"]
        revoke(place, "serial", row["serial"])
        wait_for(lambda: word_of(node1) == "node-certificate-revoked", "the service knows of it")
        with pytest.raises(RefusedRequest, match=r"401 node-certificate-revoked: .*nodeseal ca token create"):
            node1.join("node1", None)
        again = service.asker.joined("node1", place.token("node1"))
        assert again.certificate(WEB).identity == WEB
        revoke(place, "serial", row["serial"], "--undo")
        wait_for(lambda: word_of(node1) == "", "the first certificate is good again")


def test_before_the_mesh_state_is_known_nobody_joins(tmp_path: Path) -> None:
    """It is not known then who is revoked."""
    place = Place.make(tmp_path, mesh="nothing: [")
    with running(place, active=False) as service:
        wait_for(lambda: service.asker.health().state == "impaired", "it has begun")
        token = place.token("node1")
        with pytest.raises(RefusedRequest, match="503 mesh-state-unknown: "):
            service.asker.join("node1", token)
        (tmp_path / "mesh" / "mesh.yaml").write_text(json.dumps({"trust_domain": "example.org"}))
        wait_for(lambda: service.asker.health().state == "active", "the mesh state is read")
        service.asker.join("node1", token)


# ---- the disk


def test_what_cannot_be_recorded_is_not_given_away(tmp_path: Path) -> None:
    """The disk is full as far as the service's process is concerned; then it is not any more."""
    place = Place.make(tmp_path)
    with running(place) as service:
        pid = service.process.pid
        node1, token = service.asker.joined("node1", place.token("node1")), place.token("node2")
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        assert word_of(node1) == "authority-unable"
        with pytest.raises(RefusedRequest, match=r"503 authority-unable: .*issued\.db fails"):
            service.asker.join("node2", token)

        def said() -> bool:
            return any("issued.db fails" in one for one in service.asker.health().problems)

        wait_for(said, "the service says so")
        assert service.asker.health().state == "impaired"
        with Ledger(place.state) as ledger:
            assert [one.node for one in ledger.issued(Selection())] == ["node1"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        wait_for(lambda: service.asker.health().state == "active", "it is well again")
        assert word_of(node1) == ""
        service.asker.join("node2", token)  # which was not used up


def test_store_that_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    place.state.mkdir(mode=0o700)
    (place.state / "issued.db").write_bytes(b"not a database" * 100)
    done = nodeseal("ca", "serve", "--config", str(place.config))
    assert done.returncode != 0
    assert "issued.db fails: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_strangers_without_tls_are_told_apart_by_what_they_pay_for(service: Running, place: Place) -> None:
    before = {one.word: one.count for one in service.asker.health().refused}.get("handshake", 0)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", service.asker.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)

    def counted() -> bool:
        return {one.word: one.count for one in service.asker.health().refused}.get("handshake", 0) >= before + 20

    wait_for(counted, "each is counted")
    assert sum(line.get("word") == "handshake" and "repeated" not in line for line in place.audit()) == 1
