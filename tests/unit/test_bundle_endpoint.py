"""Fetching bundles from SPIFFE bundle endpoints: servers that are known, and hostile ones."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.authority.spiffe_bundle import MAX_BYTES, read_jwks
from nodeseal.identity import bundle_endpoint
from nodeseal.identity.bundle_endpoint import BundleEndpointError, fetch
from nodeseal.mesh.federated import BundleEndpoint, Profile
from support.agent_fakes import until
from support.anchors import make_ca, root_of
from support.bundle_server import BundleServer, answering, bundle_of, fetched, svid, web_certificate

ENDPOINT_ID = "spiffe://other.org/spire/server"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return make_ca(tmp_path / "ca", trust_domain="other.org")


@pytest.fixture
def body(ca: Path) -> bytes:
    return bundle_of(root_of(ca).pem, sequence=7, hint=60)


@pytest.fixture
def web(tmp_path: Path, body: bytes) -> Iterator[BundleServer]:
    with BundleServer(web_certificate(tmp_path, "127.0.0.1"), answering(body)) as server:
        yield server


@pytest.fixture
def spiffe(tmp_path: Path, ca: Path, body: bytes) -> Iterator[BundleServer]:
    with BundleServer(svid(ca, ENDPOINT_ID, tmp_path), answering(body)) as server:
        yield server


def web_endpoint(server: BundleServer, tmp_path: Path) -> BundleEndpoint:
    return BundleEndpoint(server.url, Profile.WEB, ca_file=str(tmp_path / "web.pem"))


def spiffe_endpoint(server: BundleServer, spiffe_id: str = ENDPOINT_ID) -> BundleEndpoint:
    return BundleEndpoint(server.url, Profile.SPIFFE, spiffe_id)


def fails(endpoint: BundleEndpoint, anchors: str = "") -> str:
    with pytest.raises(BundleEndpointError) as caught:
        fetched(endpoint, anchors)
    line = str(caught.value)
    assert endpoint.url in line
    assert "\n" not in line
    return line


def test_bundle_of_a_server_that_the_web_pki_knows(web: BundleServer, body: bytes, tmp_path: Path) -> None:
    assert fetched(web_endpoint(web, tmp_path), "") == body
    assert web.requests == ["GET /bundle.json HTTP/1.1"]
    bundle = read_jwks(body, "it")
    assert (bundle.sequence, bundle.refresh_hint) == (7, 60)


def test_bundle_of_a_server_with_the_svid_that_is_expected(spiffe: BundleServer, ca: Path, body: bytes) -> None:
    assert fetched(spiffe_endpoint(spiffe), root_of(ca).pem) == body


def test_ca_that_nobody_named_is_not_trusted(web: BundleServer) -> None:
    assert "certificate verify failed" in fails(BundleEndpoint(web.url, Profile.WEB))
    assert web.requests == []


def test_certificate_for_another_host_is_refused(web: BundleServer, tmp_path: Path) -> None:
    web.show(web_certificate(tmp_path, "other.example"))
    assert "IP address mismatch" in fails(web_endpoint(web, tmp_path))
    assert web.requests == []


def test_svid_of_somebody_else_is_refused(spiffe: BundleServer, ca: Path) -> None:
    line = fails(spiffe_endpoint(spiffe, "spiffe://other.org/spire/agent"), root_of(ca).pem)
    assert f"the server's certificate is for {ENDPOINT_ID}, not for spiffe://other.org/spire/agent" in line
    assert spiffe.requests == []


def test_svid_of_another_authority_is_refused(spiffe: BundleServer, tmp_path: Path) -> None:
    other = make_ca(tmp_path / "another", trust_domain="other.org")
    assert "certificate verify failed" in fails(spiffe_endpoint(spiffe), root_of(other).pem)
    assert spiffe.requests == []


def test_signing_certificate_is_no_svid(spiffe: BundleServer, ca: Path) -> None:
    both = spiffe_ca_as_server(ca)
    spiffe.show(both)
    assert "unsuitable certificate purpose" in fails(spiffe_endpoint(spiffe), root_of(ca).pem)


def spiffe_ca_as_server(ca: Path) -> Path:
    path = ca / "both.pem"
    path.write_bytes((ca / "intermediate.pem").read_bytes() + (ca / "intermediate.key").read_bytes())
    return path


def test_web_certificate_does_not_do_where_an_svid_is_expected(web: BundleServer, tmp_path: Path) -> None:
    """Nor does a bundle that verifies it: it says no SPIFFE id."""
    line = fails(spiffe_endpoint(web), (tmp_path / "web.pem").read_text().partition("-----END PRIVATE KEY-----\n")[2])
    assert "the server's certificate is a CA's" in line


def test_without_a_bundle_of_the_endpoints_domain_nobody_is_asked(spiffe: BundleServer) -> None:
    assert "it is known by the bundle of other.org, and none is known yet" in fails(spiffe_endpoint(spiffe))


def test_tls_older_than_1_2_is_refused(web: BundleServer, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        web.show(tmp_path / "web.pem", ssl.TLSVersion.TLSv1_1)
    fails(web_endpoint(web, tmp_path))
    assert web.requests == []
    web.show(tmp_path / "web.pem", ssl.TLSVersion.TLSv1_2)
    fetched(web_endpoint(web, tmp_path), "")


def test_redirect_is_told_and_not_followed(web: BundleServer, tmp_path: Path) -> None:
    web.behaviour = answering(b"", "302 Found", f"Location: {web.url}2")
    line = fails(web_endpoint(web, tmp_path))
    assert f"it redirects to {web.url}2, which is not followed" in line
    assert web.requests == ["GET /bundle.json HTTP/1.1"]


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content"])
def test_other_answers_are_no_bundle(web: BundleServer, tmp_path: Path, status: str) -> None:
    web.behaviour = answering(b"", status)
    assert f"it answers with the status {status[:3]}" in fails(web_endpoint(web, tmp_path))


def test_answer_is_read_up_to_a_bound(web: BundleServer, tmp_path: Path) -> None:
    def endless(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    web.behaviour = endless
    assert f"more than {MAX_BYTES} bytes" in fails(web_endpoint(web, tmp_path))


def test_packed_answer_is_not_unpacked(web: BundleServer, tmp_path: Path) -> None:
    web.behaviour = answering(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip")
    assert fetched(web_endpoint(web, tmp_path), "") == b"\x1f\x8b"


@pytest.mark.parametrize("behaviour", ["hang", "trickle"])
def test_slow_server_is_given_up(
    web: BundleServer, tmp_path: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_endpoint, "FETCH_S", 1.0)
    web.behaviour = getattr(web, behaviour)

    async def story() -> None:
        with pytest.raises(BundleEndpointError, match="did not answer within 1 s"):
            await fetch(web_endpoint(web, tmp_path), "")
        # The loop's connection ends with the server's, or half a minute later.
        web.close()
        await until(lambda: not web.connected)
        await asyncio.sleep(0.1)

    asyncio.run(story())


def test_what_is_no_http_is_told_in_a_line(web: BundleServer, tmp_path: Path) -> None:
    web.behaviour = lambda connection: connection.sendall(b"\x00\xff\n\nnonsense\r\n\r\n")
    fails(web_endpoint(web, tmp_path))


def test_server_that_is_not_there_is_told(web: BundleServer, tmp_path: Path) -> None:
    web.close()
    assert "Connect" in fails(web_endpoint(web, tmp_path))


@pytest.mark.parametrize("content", [None, "nonsense", "bad \xff bytes"])
def test_ca_file_that_cannot_be_used_is_named(web: BundleServer, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cas.pem"
    if content is not None:
        path.write_text(content)
    assert f"{path}" in fails(BundleEndpoint(web.url, Profile.WEB, ca_file=str(path)))
