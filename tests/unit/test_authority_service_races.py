"""What the certificate service does with a request while the mesh state changes under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nodeseal.authority.admission import Residents
from nodeseal.authority.audit import Audit
from nodeseal.authority.creation import init_authority
from nodeseal.authority.ledger import Selection
from nodeseal.authority.live_signer import LiveSigner
from nodeseal.authority.proof import Caller, NodeProof, Proven
from nodeseal.authority.recorder import Recorder
from nodeseal.authority.refused import Refused
from nodeseal.authority.service import Lifetimes, Limits, Service
from nodeseal.authority.state_keys import StateKeys
from nodeseal.contracts.authority import CertificateRequest, NodeRequest, ServiceWord
from nodeseal.identity.key import PrivateKey
from nodeseal.mesh.revocation import revoked_node

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
IDENTITY = "spiffe://example.org/ns/default/sa/shipper"
RESIDENTS = Residents(
    "example.org",
    {"node1": frozenset({("default", "shipper")})},
    {"node1": frozenset({("default", "shipper")})},
)
REVOKED = replace(RESIDENTS, revoked_nodes={"node1": revoked_node("node1", ())})


class Known(NodeProof):
    """Everybody is node1."""

    async def prove(self, _request: NodeRequest, _caller: Caller) -> Proven | None:
        return Proven("node1", "test")

    async def stands(self, _node: str, _caller: Caller) -> Proven | None:
        return Proven("node1", "test")

    def read(self, _caller: Caller) -> Proven | None:
        """As CertificateProof.read."""
        return Proven("node1", "test")

    def node_of(self, _certificate: bytes | None) -> Proven | None:
        """As CertificateProof.node_of."""
        return Proven("node1", "test")


class SlowQueue:
    """`meanwhile` happens while a request waits."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.waiting = 0

    async def sign(self, work: Callable[[], Any], _by: float) -> Any:
        self.meanwhile()
        return work()


def refused(tmp_path: Path, ask: Callable[[Service], Any]) -> tuple[ServiceWord, int]:
    """The word with which the node is refused that is revoked while it waits, and how many certificates it has got."""
    init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)

    async def story() -> tuple[ServiceWord, int]:
        recorder, lines = Recorder(lambda: NOW), list[str]()
        state = tmp_path / "state"
        state.mkdir()
        await recorder.open(state)

        def revoke() -> None:
            service.residents = REVOKED

        queue: Any = SlowQueue(revoke)
        service = Service(
            LiveSigner(tmp_path / "ca", lambda: NOW), StateKeys.load(state, "example.org", NOW).nodes, recorder,
            [Known()], Audit(lines.append, lambda: NOW, lambda: 0.0), queue, limits=Limits(), lifetimes=Lifetimes(),
            now=lambda: NOW, clock=lambda: 0.0,
        )  # fmt: skip
        known: Any = Known()
        service._own_proof = known
        service.residents = RESIDENTS
        with pytest.raises(Refused) as caught:
            await ask(service)
        count = await recorder.ask(lambda ledger: ledger.count(Selection()))
        await recorder.close()
        assert '"outcome": "refused"' in lines[0]
        return caught.value.word, count

    return asyncio.run(story())


def csr(identity: str) -> str:
    return PrivateKey.generate().request(identity).decode()


def test_node_that_is_revoked_while_its_request_waits_gets_nothing(tmp_path: Path) -> None:
    request = CertificateRequest(identity=IDENTITY, csr=csr(IDENTITY))
    asked = refused(tmp_path, lambda service: service.certificate(request, Caller("10.0.0.1")))
    assert asked == (ServiceWord.NODE_REVOKED, 0)


def test_nor_does_it_join(tmp_path: Path) -> None:
    request = NodeRequest(csr=csr("spiffe://example.org/node/node1"), node="node1")
    asked = refused(tmp_path, lambda service: service.node(request, Caller("10.0.0.1")))
    assert asked == (ServiceWord.NODE_REVOKED, 0)
