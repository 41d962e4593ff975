"""SVIDs of a SPIFFE Workload API: a server that speaks it, and streams what the test says."""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe._proto import workload_pb2, workload_pb2_grpc

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.daemon.composition import issuer_of
from nodeseal.identity import workload_api
from nodeseal.identity.issuer import Flaw, IssuerError
from nodeseal.identity.workload_api import WorkloadApiIssuer
from nodeseal.local.issuers import WorkloadApiCa
from nodeseal.mesh.federated import Federated
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.node.federation import Federation
from support.agent_fakes import agent_config, until, until_flaws
from support.anchors import make_ca, root_of
from support.issued import issue

SHIPPER, SIEM = (SpiffeId("example.org", "default", name) for name in ("shipper", "siem"))


class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):  # type: ignore[misc]
    """Streams SVIDs of its own CA."""

    def __init__(self, directory: Path) -> None:
        init_authority(directory / "ca", trust_domain="example.org", now=datetime.now(UTC))
        self.signer = Signer.load(directory / "ca", datetime.now(UTC))
        self.socket = directory / "api.sock"
        self.answers: queue.Queue[Any] = queue.Queue()
        self._server: Any = None

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        self.answers.put(None)
        self._server.stop(None).wait()

    def give(self, *identities: SpiffeId, federated: Mapping[str, Sequence[str]] | None = None) -> list[str]:
        """Streams a certificate for each, and the anchors (PEM) of other trust domains; their serial numbers."""
        svids, serials = [], []
        root = self.signer.root.public_bytes(Encoding.DER)
        for identity in identities:
            made = issue(self.signer, identity, lifetime=timedelta(hours=1), now=datetime.now(UTC))
            certs = x509.load_pem_x509_certificates(made.chain_pem.encode())
            with made.key.exported() as fd:
                key = Path(f"/proc/self/fd/{fd}").read_bytes()
            svids.append(
                workload_pb2.X509SVID(
                    spiffe_id=str(identity),
                    x509_svid=b"".join(one.public_bytes(Encoding.DER) for one in certs),
                    x509_svid_key=key,
                    bundle=root,
                )
            )
            serials.append(made.serial)
        others = {
            f"spiffe://{domain}": b"".join(
                x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER) for pem in pems
            )
            for domain, pems in (federated or {}).items()
        }
        self.answers.put(workload_pb2.X509SVIDResponse(svids=svids, federated_bundles=others))
        return serials

    def FetchX509SVID(self, _request: Any, context: Any) -> Iterator[Any]:
        while (answer := self.answers.get()) is not None:
            if isinstance(answer, grpc.StatusCode):
                context.abort(answer, "no identity issued")
            yield answer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_api, "AGAIN_S", 0.05)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[WorkloadApi]:
    api = WorkloadApi(tmp_path)
    api.start()
    yield api
    api.stop()


def play(api: WorkloadApi, story: Callable[[WorkloadApiIssuer], Awaitable[None]]) -> None:
    async def whole() -> None:
        issuer = WorkloadApiIssuer(WorkloadApiCa(api.socket, "example.org"))
        try:
            async with asyncio.timeout(20):
                await story(issuer)
        finally:
            await issuer.close()

    asyncio.run(whole())


def test_each_workload_gets_the_svid_of_its_identity(api: WorkloadApi) -> None:
    serials = api.give(SHIPPER, SIEM)

    async def story(issuer: WorkloadApiIssuer) -> None:
        await issuer.begin()
        for identity, serial in zip((SHIPPER, SIEM), serials, strict=True):
            svid = await issuer.issue(identity)
            assert (svid.identity, svid.serial, svid.delivered) == (identity, serial, True)
            assert {svid.anchor, issuer.anchor} == issuer.bundle.fingerprints
        assert await issuer.condition() == ()

    play(api, story)


def test_next_svid_is_told_when_it_comes(api: WorkloadApi) -> None:
    api.give(SHIPPER)

    async def story(issuer: WorkloadApiIssuer) -> None:
        await issuer.begin()
        changes = issuer.changes()
        await anext(changes)
        first = await issuer.issue(SHIPPER)
        (serial,) = api.give(SHIPPER)
        await anext(changes)
        assert issuer.superseded(first)
        second = await issuer.issue(SHIPPER)
        assert second.serial == serial
        assert not issuer.superseded(second)
        await changes.aclose()  # type: ignore[attr-defined]

    play(api, story)


def test_anchors_of_federated_domains_are_told_and_withdrawn(api: WorkloadApi, tmp_path: Path) -> None:
    one, other = (root_of(make_ca(tmp_path / name, trust_domain="other.org")).pem for name in ("a", "b"))
    api.give(SHIPPER, federated={"other.org": [one]})

    async def story(issuer: WorkloadApiIssuer) -> None:
        assert issuer.others == {}
        await issuer.begin()
        assert issuer.others == {"other.org": one}
        changes = issuer.changes()
        await anext(changes)
        api.give(SHIPPER, federated={"other.org": [one, other], "third.org": [other]})
        await anext(changes)
        assert {domain: set(pem.splitlines()) for domain, pem in issuer.others.items()} == {
            "other.org": set((one + other).splitlines()),
            "third.org": set(other.splitlines()),
        }
        api.give(SHIPPER)
        await anext(changes)
        assert issuer.others == {}
        # Nor are they anchors of the own domain at any time.
        assert one not in issuer.bundle.pem
        await changes.aclose()  # type: ignore[attr-defined]

    play(api, story)


def test_node_trusts_what_the_workload_api_gives_of_a_domain_that_the_mesh_state_lists(
    api: WorkloadApi, tmp_path: Path
) -> None:
    root = root_of(make_ca(tmp_path / "a", trust_domain="other.org")).pem
    api.give(SHIPPER, federated={"other.org": [root], "unlisted.org": [root]})

    async def story(issuer: WorkloadApiIssuer) -> None:
        await issuer.begin()
        federation = Federation(tmp_path, given=lambda: issuer.others)
        listed = Federated("other.org", from_workload_api=True)
        await federation.take(Mesh.build("example.org", (), federated=[listed]))
        assert federation.bundles == {"other.org": root}

    play(api, story)


def test_workload_without_a_registration_entry_is_named(api: WorkloadApi) -> None:
    api.give(SHIPPER)

    async def story(issuer: WorkloadApiIssuer) -> None:
        await issuer.begin()
        with pytest.raises(IssuerError, match=f"has no SVID of {SIEM}; make a registration entry"):
            await issuer.issue(SIEM)

    play(api, story)


def test_api_that_goes_away_is_told_and_what_came_goes_on(api: WorkloadApi) -> None:
    (serial,) = api.give(SHIPPER)

    async def story(issuer: WorkloadApiIssuer) -> None:
        await issuer.begin()
        api.stop()
        await until_flaws(issuer, Flaw.AWAY)
        first = await issuer.issue(SHIPPER)
        assert first.serial == serial
        api.start()
        (following,) = api.give(SHIPPER)
        await until(lambda: issuer.superseded(first), "the next stream")
        assert (await issuer.issue(SHIPPER)).serial == following
        assert await issuer.condition() == ()

    play(api, story)


def test_answer_that_cannot_be_read_is_told_and_the_next_one_taken(api: WorkloadApi) -> None:
    api.answers.put(workload_pb2.X509SVIDResponse(svids=[workload_pb2.X509SVID(spiffe_id="no id", x509_svid=b"x")]))
    api.answers.put(None)

    async def story(issuer: WorkloadApiIssuer) -> None:
        beginning = asyncio.create_task(issuer.begin())
        await until_flaws(issuer, Flaw.AWAY)
        (serial,) = api.give(SHIPPER)
        await beginning
        assert (await issuer.issue(SHIPPER)).serial == serial
        assert await issuer.condition() == ()

    play(api, story)


def test_agent_that_no_registration_entry_selects_is_told_so(api: WorkloadApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_api, "BEGIN_S", 1.0)
    api.answers.put(grpc.StatusCode.PERMISSION_DENIED)

    async def story(issuer: WorkloadApiIssuer) -> None:
        with pytest.raises(IssuerError, match="has no SVID for this agent; make a registration entry that selects it"):
            await issuer.begin()

    play(api, story)


def test_without_its_package_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spiffe", None)
    monkeypatch.delitem(sys.modules, "nodeseal.identity.workload_api")
    settings = agent_config(tmp_path, ca=WorkloadApiCa(tmp_path / "api.sock", "example.org"))
    with pytest.raises(IssuerError, match=r"needs the Python package spiffe, .*: pip install 'nodeseal\[spiffe\]'"):
        issuer_of(settings)


def test_without_an_api_it_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_api, "BEGIN_S", 0.2)

    async def story() -> None:
        issuer = WorkloadApiIssuer(WorkloadApiCa(tmp_path / "none.sock", "example.org"))
        with pytest.raises(IssuerError, match=r"the Workload API .*none\.sock does not answer: "):
            await issuer.begin()
        await issuer.close()

    asyncio.run(story())
