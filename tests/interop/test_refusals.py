"""What our HBONE server refuses, and that it says so: driven by a small client over Python's ssl (OpenSSL).

The client runs in the pod `edge`, a known workload. Each test ends with the proper certificate of that pod, which
succeeds with everything else the same.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.certificates import (
    SERVER,
    Credential,
    identity,
    issue,
    issue_from_new_ca,
    sign,
    sign_with_leaf,
)
from interop.envoy import Envoy
from interop.hbone import NO_ERROR, Answer, Hbone, client_context
from nodeseal.contracts.core import WorkloadStats
from nodeseal.cores.client import CoreClient
from support.core_client import ask
from support.lab import HBONE_PORT, RunningLab
from support.patience import wait_for
from support.process import nodeseal
from support.programs import Programs

GET = b"GET / HTTP/1.1\r\nHost: pipeline\r\nConnection: close\r\n\r\n"
HTTP, LINES = 8080, 7000


class Client:
    """Makes HBONE connections from `edge` to pipeline with this or that certificate."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        self.ca = lab.directory / "ca"
        self._directory = directory
        self._credentials = 0

    def connect(self, credential: Credential | None, **options: Any) -> Hbone:
        """`options` as for client_context. Raises OSError."""
        certificate = None
        if credential is not None:
            self._credentials += 1
            certificate = self._directory / str(self._credentials)
            credential.write(certificate)
        return Hbone(self.lab, "edge", "pipeline", client_context(certificate, self.ca / "root.pem", **options))

    def get(self, credential: Credential | None, **options: Any) -> Answer:
        """An HTTP request to the application, through a tunnel. Raises OSError, EOFError when there is no answer."""
        with self.connect(credential, **options) as hbone:
            return hbone.request(self.authority, GET)

    @property
    def proper(self) -> Credential:
        return issue(self.ca, "edge")

    @property
    def authority(self) -> str:
        return f"{self.lab.address('pipeline')}:{HTTP}"

    def assert_proper_one_succeeds(self) -> None:
        answer = self.get(self.proper)
        assert answer.status == "200"
        assert answer.body.endswith(b"\r\n\r\npipeline: ready\n")

    def counters(self) -> WorkloadStats:
        """Of pipeline, in its node's core."""
        _core, rows = ask(self.lab.run_dir("node2"), CoreClient.stats)
        return next(row for row in rows if row.workload == "default/pipeline")

    def requests_seen(self) -> int:
        """How many requests the application has had."""
        return (self.lab.lab.pod_directory("pipeline") / "access.log").read_text().count("GET / ")


@pytest.fixture
def client(lab: RunningLab, tmp_path: Path) -> Client:
    return Client(lab, tmp_path)


@pytest.fixture
def failed_handshake(client: Client) -> Iterator[None]:
    """The test fails exactly one handshake, which is counted, and nothing of it reaches the application."""
    before, seen = client.counters(), client.requests_seen()
    yield
    wait_for(lambda: client.counters().tls_failed == before.tls_failed + 1, "the failed handshake is counted, once")
    after = client.counters()
    assert after.accepted == before.accepted + 1  # the proper one
    wait_for(lambda: client.requests_seen() == seen + 1, "the application has the request of the proper one")


# With TLS 1.3 a client has finished before the server has seen its certificate: it hears of the refusal as it reads.


@pytest.mark.usefixtures("failed_handshake")
def test_no_certificate_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        client.get(None)
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_certificate_of_another_ca_is_refused(client: Client, tmp_path: Path) -> None:
    """A CA of the same trust domain, made by the same program, for the same identity."""
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        client.get(issue_from_new_ca(tmp_path / "ca", "edge"))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_ca_of_another_trust_domain_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        client.get(issue_from_new_ca(tmp_path / "ca", "edge", "other.example"))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
@pytest.mark.parametrize(
    "uris",
    [
        pytest.param([identity("edge", "other.example")], id="another-trust-domain"),
        pytest.param([identity("edge", "example.org.other.example")], id="ours-as-a-beginning"),
        pytest.param(["spiffe://example.org"], id="trust-domain-only"),
        pytest.param(["spiffe://example.org/ns/default/sa/edge/more"], id="longer-path"),
        pytest.param(["https://example.org/ns/default/sa/edge"], id="no-spiffe-id"),
        pytest.param([identity("edge"), identity("shipper")], id="two-identities"),
        pytest.param([], id="no-uri"),
    ],
)
def test_identity_that_our_issuer_would_not_sign_is_refused(client: Client, uris: list[str]) -> None:
    """Signed with the very key of our CA: the name alone is wrong."""
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.get(sign(client.ca, uris=uris, dns=["edge.example.org"]))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_expired_certificate_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
        client.get(sign(client.ca, uris=[identity("edge")], expired=True))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_certificate_for_servers_only_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.get(sign(client.ca, uris=[identity("edge")], usage=[SERVER]))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_ca_certificate_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.get(sign(client.ca, uris=[identity("edge")], ca_leaf=True))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_certificate_signed_by_a_workload_is_refused(client: Client) -> None:
    """A workload's own certificate is no CA: it cannot make itself another identity."""
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.get(sign_with_leaf(client.ca, "edge", identity("edge")))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_tls_1_2_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        client.get(client.proper, version=ssl.TLSVersion.TLSv1_2)
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_another_protocol_is_refused(client: Client) -> None:
    with pytest.raises(ssl.SSLError, match="alert no application protocol"):
        client.get(client.proper, alpn=("http/1.1",))
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_client_that_names_no_protocol_is_refused(client: Client) -> None:
    with pytest.raises((OSError, EOFError)):
        client.get(client.proper, alpn=())
    client.assert_proper_one_succeeds()


@pytest.mark.usefixtures("failed_handshake")
def test_request_without_tls_is_refused(client: Client, programs: Programs) -> None:
    plain = programs.dial("edge", (client.lab.address("pipeline"), HBONE_PORT))
    plain.sendall(GET)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := plain.recv(4096):
            received += part
    assert b"HTTP/1.1" not in received
    client.assert_proper_one_succeeds()


# The peer is who it says it is, and the server answers its request with a status (RFC 9113 section 8.1: the answer is
# complete, so a reset behind it has the code NO_ERROR).


def assert_answered(answer: Answer, status: str) -> None:
    assert answer.status == status
    assert answer.reset in (None, NO_ERROR)
    assert answer.body == b""


def test_identity_of_another_pod_is_answered_401(client: Client) -> None:
    """siem's certificate is good, but the connection comes from the address of edge."""
    before, seen = client.counters(), client.requests_seen()
    assert_answered(client.get(issue(client.ca, "siem")), "401")
    assert client.counters().refused == before.refused + 1
    client.assert_proper_one_succeeds()
    wait_for(lambda: client.requests_seen() == seen + 1, "the application has the request of the proper one")


# Whoever is refused is shown as that: from where, why, how often and when, and not as a connection.


def another_ca(client: Client, directory: Path) -> None:
    with pytest.raises(ssl.SSLError):
        client.get(issue_from_new_ca(directory / "ca", "edge"))


def ca_leaf(client: Client, _directory: Path) -> None:
    with pytest.raises(ssl.SSLError):
        client.get(sign(client.ca, uris=[identity("edge")], ca_leaf=True))


def another_identity(client: Client, _directory: Path) -> None:
    assert client.get(issue(client.ca, "siem")).status == "401"


def address_of_another(client: Client, _directory: Path) -> None:
    with client.connect(client.proper) as hbone:
        assert hbone.request(f"{client.lab.address('siem')}:9000").status == "400"


def no_connect(client: Client, _directory: Path) -> None:
    with client.connect(client.proper) as hbone:
        assert hbone.request(client.authority, GET, method="GET").status == "400"


def closed_port(client: Client, _directory: Path) -> None:
    with client.connect(client.proper) as hbone:
        assert hbone.request(f"{client.lab.address('pipeline')}:9998").status == "502"


@pytest.mark.parametrize(
    ("refuse", "kind", "status", "peer", "reason"),
    [
        pytest.param(
            another_ca, "handshake", None, None, "peer certificate is of a CA that is not trusted here", id="ca"
        ),
        pytest.param(ca_leaf, "handshake", None, None, "peer certificate is a CA certificate", id="ca-leaf"),
        pytest.param(another_identity, "stream", 401, "siem", "identity-mismatch", id="401"),
        pytest.param(address_of_another, "stream", 400, "edge", "wrong-address", id="400-address"),
        pytest.param(
            no_connect, "stream", 400, "edge", "peer sent a request that is no CONNECT to an address", id="400-method"
        ),
        pytest.param(closed_port, "stream", 502, "edge", "the application refused", id="502"),
    ],
)
def test_refused_peer_is_shown_with_source_reason_count_and_times(
    client: Client,
    tmp_path: Path,
    refuse: Callable[[Client, Path], None],
    kind: str,
    status: int | None,
    peer: str | None,
    reason: str,
) -> None:
    lab = client.lab
    values = {"kind": kind, "status": status, "reason": reason, "peer": identity(peer) if peer else None}

    def row() -> dict[str, Any] | None:
        rows = lab.refused("node2", source=lab.address("edge"), **values)
        assert len(rows) <= 1
        return rows[0] if rows else None

    known = row()
    before = known["count"] if known is not None else 0
    connections = {one["id"] for one in lab.connections("node2")}
    refuse(client, tmp_path / "1")
    refuse(client, tmp_path / "2")
    wait_for(lambda: (found := row()) is not None and found["count"] == before + 2, "both are counted")
    found = row()
    assert found is not None
    assert (found["direction"], found["workload"], found["source_workload"]) == (
        "inbound",
        "default/pipeline",
        "default/edge",
    )
    assert found["first"] <= found["last"]
    assert found["first_seconds"] >= found["last_seconds"] >= 0
    new = [one for one in lab.connections("node2") if one["id"] not in connections]
    assert [one for one in new if one["direction"] == "inbound" and one["workload"] == "default/pipeline"] == []
    shown = nodeseal("connections", "--run-dir", str(lab.run_dir("node2"))).stdout
    line = next(line for line in shown.splitlines() if reason in line and f" {kind}" in line)
    assert f" {before + 2}  " in line
    assert "edge" in line
    client.assert_proper_one_succeeds()


def test_refused_peer_is_logged_once_in_a_period(client: Client, programs: Programs) -> None:
    """siem has had no refusals, so that none of its few lines a minute is used up."""
    lab = client.lab
    node = lab.node_of("siem")
    said = f"workload default/siem: refused {lab.address('edge')}, handshake to {lab.address('siem')}:{HBONE_PORT}: "
    said += "peer speaks plain HTTP, not TLS"
    for _ in range(5):
        plain = programs.dial("edge", (lab.address("siem"), HBONE_PORT))
        plain.sendall(GET)
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    reason = "peer speaks plain HTTP, not TLS"
    wait_for(
        lambda: [row["count"] for row in lab.refused(node, workload="default/siem", reason=reason)] == [5],
        "all five are counted",
    )
    log = lab.run_dir(node) / "core.log"
    wait_for(lambda: said in log.read_text(), "the first is logged")
    assert log.read_text().count(said) == 1


def test_envoy_with_the_identity_of_another_pod_gets_401(
    lab: RunningLab, programs: Programs, client: Client, tmp_path: Path
) -> None:
    values = {"destination": lab.address("pipeline"), "peer": identity("pipeline")}
    for name, failure in (("siem", "tunnel_response:401"), ("edge", None)):
        with Envoy(lab, "edge", "client.yaml", tmp_path / name, issue(client.ca, name), **values) as envoy:
            application = programs.dial("edge", (lab.address("edge"), LINES))
            application.sendall(b"one line\n")
            with contextlib.suppress(ConnectionResetError):
                assert application.recv(100) == (b"" if failure else b"one line\n")
            application.close()
            entry = wait_for(envoy.access_log, "Envoy writes its access log")[0]
            assert entry["failure"] == failure


@pytest.mark.parametrize(
    ("authority", "status"),
    [
        pytest.param("{siem}:9000", "400", id="address-of-another-pod"),
        pytest.param("127.0.0.1:8080", "400", id="loopback"),
        pytest.param("pipeline:8080", "400", id="name"),
        pytest.param("{pipeline}", "400", id="no-port"),
        pytest.param("{pipeline}:99999", "400", id="port-out-of-range"),
        pytest.param("{pipeline}:08080", "400", id="port-with-a-zero-in-front"),
        pytest.param("[::ffff:{pipeline}]:8080", "400", id="ipv4-address-as-ipv6"),
        pytest.param("{pipeline}:9999", "502", id="closed-port"),
        pytest.param("{pipeline}:15008", "502", id="own-port-15008"),
        pytest.param("{pipeline}:15001", "502", id="own-port-15001"),
        pytest.param("{pipeline}:15006", "502", id="own-port-15006"),
    ],
)
def test_authority_that_leads_nowhere_is_answered(client: Client, authority: str, status: str) -> None:
    target = authority.format(pipeline=client.lab.address("pipeline"), siem=client.lab.address("siem"))
    with client.connect(client.proper) as hbone:
        assert_answered(hbone.request(target, GET), status)
    client.assert_proper_one_succeeds()


def test_another_method_is_answered_400(client: Client) -> None:
    with client.connect(client.proper) as hbone:
        assert_answered(hbone.request(client.authority, GET, method="GET"), "400")
    client.assert_proper_one_succeeds()
