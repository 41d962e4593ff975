"""What the certificate service does, without HTTP: a node joins, renews, and gets certificates for its workloads.

The order is the same for all: who is it, may it ask so often, may it have that, and only then what costs: the request's
signature, signing, the disk. What is recorded comes before what is given away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network

from cryptography import x509

from nodeseal import __version__
from nodeseal.authority.admission import Residents, admit, check_node
from nodeseal.authority.audit import Audit
from nodeseal.authority.certificates import fingerprint, pem, public_bytes
from nodeseal.authority.csr import requested_key
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Counts, Entry, Issued, Kind, Ledger
from nodeseal.authority.live_signer import HeldSigner
from nodeseal.authority.node_certificates import node_identity, sign_node
from nodeseal.authority.proof import Caller, CertificateProof, NodeProof, Proven
from nodeseal.authority.rates import Rates
from nodeseal.authority.recorder import Recorder
from nodeseal.authority.refused import Refused
from nodeseal.authority.signer import Signer
from nodeseal.authority.signing_key import LeafKey
from nodeseal.authority.signing_queue import FIRST_S, SigningQueue
from nodeseal.authority.state_keys import OwnKey
from nodeseal.contracts.authority import (
    ACTIVE,
    FIRST,
    IMPAIRED,
    RENEWAL,
    Bundle,
    CaCertificateEnd,
    Certificate,
    CertificateRequest,
    Health,
    NodeCertificate,
    NodeRequest,
    RefusedCount,
    ServiceWord,
)
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError

_JOIN = "join"
_NO_STATE_S = 2.0
_NOBODYS_FAULT = (ServiceWord.RATE, ServiceWord.BUSY, ServiceWord.REVIEW_UNAVAILABLE)
"""What a stranger is not charged for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one asker may take, and all together."""

    rate: float = 20.0
    """Requests a second of a node, in the long run."""
    burst: int = 1_000
    """At once, after it was quiet: a node with many workloads that starts."""
    strangers_rate: float = 20.0
    """Attempts a second from an address (of IPv6: a /64) that prove nothing."""
    strangers_burst: int = 200
    waiting: int = 20_000
    """Requests that wait to be signed."""
    connections: int = 4_096


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long certificates are valid."""

    workload: timedelta = timedelta(hours=24)
    node: timedelta = timedelta(hours=24)


class Service:
    """Belongs to the event loop."""

    def __init__(
        self, signer: HeldSigner, nodes: OwnKey | None, recorder: Recorder, proofs: Iterable[NodeProof], audit: Audit,
        queue: Queue, *, limits: Limits, lifetimes: Lifetimes, now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`nodes`: signs node certificates; None: nodes prove themselves otherwise. `proofs`: the ways in which they
        do, but for such certificates; `now`: the wall clock; `clock`: seconds, monotonic."""
        self.residents: Residents | None = None
        """Of the mesh state; None: it was not read yet. Whoever follows the state replaces it."""
        self.problems: dict[str, str] = {}
        """What is wrong, by what it is about; one line each. Whoever knows puts it in."""
        self.look: Callable[[str, tuple[str, str]], Awaitable[None]] | None = None
        """Asked before a node is refused an account (namespace, name) that may have come there a moment ago. Raises
        Refused."""
        self._signer = signer
        self._nodes = nodes
        self._recorder = recorder
        self._own_proof = CertificateProof(signer.trust_domain, now)
        self._proofs = (*proofs, self._own_proof)
        self._audit = audit
        self._queue = queue
        self._lifetimes = lifetimes
        self._now = now
        self._of_nodes = Rates(limits.rate, limits.burst, clock)
        self._of_strangers = Rates(limits.strangers_rate, limits.strangers_burst, clock)
        self._counts = Counts()
        self._warnings: list[str] = []
        self._since = now()
        self._issued = 0
        self._refused: Counter[str] = Counter()

    async def node(self, request: NodeRequest, caller: Caller) -> NodeCertificate:
        """A node joins, or renews its node certificate. Raises Refused."""
        who = caller.address
        reason = _JOIN if request.token is not None else RENEWAL
        try:
            nodes = self._nodes
            if nodes is None:
                raise Refused(
                    ServiceWord.UNKNOWN_OPERATION, "there are no node certificates here: show the pod's token"
                )
            proven = await self._proven(request, caller)
            who = proven.node
            self._check_rate(proven.node)
            check_node(self._known_residents(), proven.node, proven.serial)
            now = self._now()
            domain, lifetime = self._signer.trust_domain, self._lifetimes.node
            sign = functools.partial(sign_node, nodes, domain, proven.node, lifetime=lifetime, now=now)
            work = functools.partial(_signed, request.csr, sign)
            signed = await self._queue.sign(work, now.timestamp() + FIRST_S)
            # It may have waited, and the mesh state be another one by now.
            check_node(self._known_residents(), proven.node, proven.serial)
            identity = node_identity(domain, proven.node)
            issued = _entry(signed, Kind.NODE, proven, identity, now, reason)
            await self._recorder.record(Entry(issued, proven.token), lambda: self._tell(issued, caller))
        except (AuthorityError, Refused) as error:
            raise self._refusal(error, who, caller, node=request.node or None, asked=reason) from None
        return NodeCertificate(
            node=proven.node,
            identity=identity,
            trust_domain=domain,
            certificate=signed.pem,
            serial=signed.serial,
            issued=issued.issued,
            not_before=signed.not_before,
            not_after=signed.not_after,
        )

    async def certificate(self, request: CertificateRequest, caller: Caller) -> Certificate:
        """The certificate of a workload of the node that asks. Raises Refused."""
        who = caller.address
        try:
            proven = await self._standing(request, caller)
            who = proven.node
            self._check_rate(proven.node)
            await self._look(proven.node, request.identity)
            identity = admit(self._known_residents(), proven.node, request.identity, proven.serial)
            signer = self._signer.signer
            if signer is None:
                raise Refused(ServiceWord.AUTHORITY_UNABLE, f"the CA cannot sign: {self._signer.why}", _NO_STATE_S)
            now = self._now()
            sign = functools.partial(signer.sign, identity, lifetime=self._lifetimes.workload, now=now)
            work = functools.partial(_signed, request.csr, sign)
            signed = await self._queue.sign(work, _by(request, now))
            # As above.
            admit(self._known_residents(), proven.node, request.identity, proven.serial)
            reason = request.reason if request.reason == RENEWAL else FIRST
            issued = _entry(signed, Kind.WORKLOAD, proven, str(identity), now, reason)
            await self._recorder.record(Entry(issued), lambda: self._tell(issued, caller))
        except (AuthorityError, Refused) as error:
            raise self._refusal(error, who, caller, identity=request.identity[:512], asked=request.reason) from None
        chain, anchor = _chain(signer)
        return Certificate(
            identity=str(identity),
            chain=signed.pem + chain,
            serial=signed.serial,
            issued=issued.issued,
            not_before=signed.not_before,
            not_after=signed.not_after,
            anchor=anchor,
            bundle=_tag(signer),
        )

    def bundle(self) -> Bundle:
        """The trust anchors. Raises Refused."""
        signer = self._signer.signer
        if signer is None:
            raise Refused(ServiceWord.AUTHORITY_UNABLE, f"the CA cannot be used: {self._signer.why}", _NO_STATE_S)
        return Bundle(
            trust_domain=signer.trust_domain, anchors=signer.bundle_pem, anchor=_chain(signer)[1], tag=_tag(signer)
        )

    async def refresh(self) -> None:
        """Looks at what a thread or a disk has to be asked for: to be called every few seconds."""
        now = self._now()
        kind = Kind.NODE if self._nodes is not None else Kind.WORKLOAD
        try:
            self._counts = await self._recorder.ask(functools.partial(Ledger.counts, now=now, kind=kind))
            await self._recorder.check()
        except AuthorityError as error:
            self.problems["store"] = str(error)
        else:
            self.problems.pop("store", None)
        await asyncio.to_thread(self._signer.refresh)
        self._warnings = self._signer.warnings(now)

    def health(self) -> Health:
        """How it was when it was refreshed last."""
        problems = list(self.problems.values())
        if self._signer.why is not None:
            problems.append(f"{self._signer.place} is not used as it is: {self._signer.why}")
        if self.residents is None:
            problems.append("the mesh state was not read yet")
        elif self.residents.trust_domain != self._signer.trust_domain:
            problems.append(
                f"the mesh state is of the trust domain {self.residents.trust_domain}, the CA of "
                f"{self._signer.trust_domain}; no workload gets a certificate"
            )
        return Health(
            state=IMPAIRED if problems else ACTIVE,
            since=self._since,
            trust_domain=self._signer.trust_domain,
            certificates=_ends(self._signer.signer) if self._signer.signer is not None else [],
            version=__version__,
            problems=problems,
            warnings=self._warnings,
            issued=self._issued,
            refused=[RefusedCount(word=word, count=count) for word, count in sorted(self._refused.items())],
            waiting=self._queue.waiting,
            nodes=self._counts.nodes,
            issued_last_hour=self._counts.last_hour,
            valid=self._counts.valid,
        )

    def refuse(self, error: Refused, caller: Caller) -> None:
        """Counts and writes what was refused before it came here, such as a body that is none."""
        self._count(error, caller.address, caller)

    def node_of(self, certificate: bytes | None) -> str | None:
        """The node whose certificate somebody shows (DER, verified but for its time); None: it is nobody's now."""
        proven = self._own_proof.node_of(certificate)
        if proven is None or self.residents is None:
            return proven.node if proven is not None else None
        try:
            check_node(self.residents, proven.node, proven.serial)
        except Refused:
            return None
        return proven.node

    def node_known(self, caller: Caller) -> str | None:
        """The node that asks, as far as that is known without waiting; None: it is a stranger."""
        if (node := self.node_of(caller.certificate)) is not None:
            return node
        return next((node for proof in self._proofs if (node := proof.known(caller)) is not None), None)

    @property
    def unready(self) -> str | None:
        """Why it does not issue; None: it does."""
        if self._signer.signer is None:
            return f"the CA cannot be used: {self._signer.why}"
        return "the mesh state was not read yet" if self.residents is None else None

    def _known_residents(self) -> Residents:
        """Without the mesh state it is not known who is revoked. Raises Refused."""
        if self.residents is None:
            raise Refused(ServiceWord.MESH_STATE_UNKNOWN, "the service has not read the mesh state yet", _NO_STATE_S)
        return self.residents

    async def _standing(self, request: CertificateRequest, caller: Caller) -> Proven:
        self._check_stranger(caller)
        for proof in self._proofs:
            proven = await proof.stands(request.node, caller)
            if proven is not None:
                return proven
        if self._nodes is None:
            raise Refused(
                ServiceWord.NODE_UNPROVEN, "no token was shown: an agent shows the one that is projected into its pod"
            )
        raise Refused(
            ServiceWord.NODE_UNPROVEN,
            "no node certificate was shown; join with a token first: nodeseal ca token create --node NODE",
        )

    async def _look(self, node: str, identity: str) -> None:
        if self.look is None:
            return
        with contextlib.suppress(SpiffeIdError):  # which `admit` says
            wanted = SpiffeId.parse(identity)
            await self.look(node, (wanted.namespace, wanted.service_account))

    async def _proven(self, request: NodeRequest, caller: Caller) -> Proven:
        self._check_stranger(caller)
        for proof in self._proofs:
            proven = await proof.prove(request, caller)
            if proven is not None:
                return proven
        raise Refused(
            ServiceWord.NODE_UNPROVEN,
            "neither a token nor a node certificate was shown; make a token: nodeseal ca token create --node NODE",
        )

    def _check_rate(self, node: str) -> None:
        if wait := self._of_nodes.wait(node):
            raise Refused(ServiceWord.RATE, f"the node {node} asks too often; wait", wait)

    def _check_stranger(self, caller: Caller) -> None:
        """Only attempts that fail are charged: many nodes may have one address. Who has shown a node certificate that
        is good is no stranger."""
        if self.node_known(caller) is None and (wait := self._of_strangers.peek(_block(caller.address))):
            raise Refused(ServiceWord.RATE, f"too many attempts from {caller.address} have failed; wait", wait)

    def _refusal(self, error: AuthorityError | Refused, who: str, caller: Caller, **what: object) -> Refused:
        if isinstance(error, AuthorityError):
            error = Refused(ServiceWord.AUTHORITY_UNABLE, str(error), _NO_STATE_S)
        self._count(error, who, caller, **what)
        return error

    def _count(self, error: Refused, who: str, caller: Caller, **what: object) -> None:
        stranger = _block(caller.address) if who == caller.address else None
        if stranger is not None and error.word not in _NOBODYS_FAULT:
            self._of_strangers.wait(stranger)
        self._refused[error.word.value] += 1
        self._audit.refused(error.word.value, who, stranger, address=caller.address, detail=str(error), **what)

    def _tell(self, issued: Issued, caller: Caller) -> None:
        self._issued += 1
        self._audit.issued(
            who=issued.node,
            address=caller.address,
            kind=issued.kind.value,
            identity=issued.identity,
            serial=issued.serial,
            not_after=issued.not_after.isoformat(),
            reason=issued.reason,
            credential=issued.credential,
        )


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and what is told of it."""

    pem: str
    serial: str
    key_sha256: bytes
    not_before: datetime
    not_after: datetime


Queue = SigningQueue[Signed]


def _signed(csr: str, sign: Callable[[LeafKey], x509.Certificate]) -> Signed:
    """In a thread: all that takes time, of which checking a request's signature is as much as signing."""
    key = requested_key(csr)
    cert = sign(key)
    return Signed(
        pem(cert),
        f"{cert.serial_number:x}",
        hashlib.sha256(public_bytes(key)).digest(),
        cert.not_valid_before_utc,
        cert.not_valid_after_utc,
    )


def _by(request: CertificateRequest, now: datetime) -> float:
    """When a certificate is needed. What a node says of it is not checked: it buys no more than its rate allows."""
    at = now.timestamp()
    if request.reason == RENEWAL and request.expires is not None:
        return max(request.expires.timestamp(), at)
    return at + FIRST_S


def _entry(signed: Signed, kind: Kind, proven: Proven, identity: str, now: datetime, reason: str) -> Issued:
    return Issued(
        serial=signed.serial,
        kind=kind,
        node=proven.node,
        identity=identity,
        key_sha256=signed.key_sha256,
        issued=now.astimezone(UTC).replace(microsecond=0),
        not_after=signed.not_after,
        reason=reason,
        credential=proven.credential,
    )


@functools.lru_cache(maxsize=4)
def _chain(signer: Signer) -> tuple[str, str]:
    """(the intermediates, the fingerprint of their root)"""
    return "".join(map(pem, signer.chain)), fingerprint(signer.root)


def _ends(signer: Signer) -> list[CaCertificateEnd]:
    above = [CaCertificateEnd(role="intermediate", not_after=cert.not_valid_after_utc) for cert in signer.chain]
    return [*above, CaCertificateEnd(role="root", not_after=signer.root.not_valid_after_utc)]


@functools.lru_cache(maxsize=4)
def _tag(signer: Signer) -> str:
    """Of its Bundle."""
    return hashlib.sha256((signer.bundle_pem + _chain(signer)[1]).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=4096)
def _block(address: str) -> str:
    """What one stranger has: an IPv4 address, or a /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, 64), strict=False))
