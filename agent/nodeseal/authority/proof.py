"""How a node proves that it is the one it says: a way is a class, which looks for its own evidence in a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from nodeseal.authority.node_certificates import read_node
from nodeseal.authority.recorder import Recorder
from nodeseal.authority.refused import Refused
from nodeseal.authority.tokens import TokenState, digest_of, id_of
from nodeseal.contracts.authority import NodeRequest, ServiceWord

_ANOTHER = "make another: nodeseal ca token create --node {node}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a TLS connection."""

    address: str
    certificate: bytes | None = None
    """DER, verified by `nodes.pem` but for its time; None: the client has shown none."""
    bearer: str | None = field(default=None, repr=False)
    """The token that came with the request; None: none came."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A node that has proven itself."""

    node: str
    credential: str
    """By what, for the ledger."""
    token: bytes | None = None
    """The digest of the token that is used up when the node gets its certificate."""
    serial: int | None = None
    """Of the node certificate that it has shown."""


class NodeProof(ABC):
    """One way."""

    @abstractmethod
    async def prove(self, request: NodeRequest, caller: Caller) -> Proven | None:
        """The node that joins, or renews its certificate; None when the request has no evidence of this kind. Raises
        Refused for evidence that is wrong."""

    async def stands(self, node: str, caller: Caller) -> Proven | None:
        """The node that asks for something else; `node`: its name by its own words. As `prove`."""
        del node, caller
        return None

    def known(self, caller: Caller) -> str | None:
        """The node, if that is known without waiting; None: it is not, or it is nobody."""
        del caller
        return None


class TokenProof(NodeProof):
    """A join token, bound to the node's name."""

    def __init__(self, recorder: Recorder, now: Callable[[], datetime]) -> None:
        self._recorder = recorder
        self._now = now

    async def prove(self, request: NodeRequest, caller: Caller) -> Proven | None:
        """See NodeProof.prove."""
        if request.token is None:
            return None
        digest = digest_of(request.token)
        token = await self._recorder.ask(lambda ledger: ledger.token(digest))
        another = _ANOTHER.format(node=request.node or "NODE")
        if token is None:
            raise Refused(ServiceWord.TOKEN_UNKNOWN, f"there is no such token; {another}")
        # Whoever has a token may know whose it is, and what became of it.
        if token.node != request.node:
            raise Refused(
                ServiceWord.TOKEN_OF_ANOTHER_NODE,
                f"the token {token.id} is for the node {token.node}, not for {request.node!a}; {another}",
            )
        match token.state(self._now()):
            case TokenState.USED:
                raise Refused(
                    ServiceWord.TOKEN_USED, f"the token {token.id} was used at {token.used:%Y-%m-%d %H:%M}Z; {another}"
                )
            case TokenState.EXPIRED:
                raise Refused(
                    ServiceWord.TOKEN_EXPIRED,
                    f"the token {token.id} expired at {token.expires:%Y-%m-%d %H:%M}Z; {another}",
                )
            case TokenState.REVOKED:
                raise Refused(ServiceWord.TOKEN_REVOKED, f"the token {token.id} was revoked; {another}")
        return Proven(token.node, f"token {id_of(digest)}", digest)


class CertificateProof(NodeProof):
    """The node certificate that it has from joining, or from its last renewal."""

    def __init__(self, trust_domain: str, now: Callable[[], datetime]) -> None:
        self._trust_domain = trust_domain
        self._now = now

    async def prove(self, request: NodeRequest, caller: Caller) -> Proven | None:
        """See NodeProof.prove."""
        return self.read(caller)

    async def stands(self, node: str, caller: Caller) -> Proven | None:
        """See NodeProof.stands. The certificate says which node it is."""
        del node
        return self.read(caller)

    def read(self, caller: Caller) -> Proven | None:
        """What a request for something else than a node certificate is proven by. As `prove`."""
        if caller.certificate is None:
            return None
        try:
            shown = read_node(caller.certificate)
        except ValueError as error:
            raise Refused(
                ServiceWord.NODE_UNPROVEN, f"the client's certificate is no node certificate: {error}"
            ) from None
        if shown.trust_domain != self._trust_domain:
            raise Refused(
                ServiceWord.NODE_UNPROVEN,
                f"the node certificate is of the trust domain {shown.trust_domain}, expected {self._trust_domain}",
            )
        if self._now() >= shown.not_after:
            raise Refused(
                ServiceWord.NODE_EXPIRED,
                f"the node certificate of {shown.node} expired at {shown.not_after:%Y-%m-%d %H:%M}Z; "
                + _ANOTHER.format(node=shown.node),
            )
        return Proven(shown.node, f"certificate {shown.serial}", serial=int(shown.serial, 16))

    def node_of(self, certificate: bytes | None) -> Proven | None:
        """As `read`; None for what proves nothing."""
        try:
            return self.read(Caller("", certificate))
        except Refused:
            return None
