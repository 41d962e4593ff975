"""The seam between the agent and what issues the certificates of its workloads.

An issuer may sign by itself, ask a service in the network (both: nodeseal.identity.signing), or hand over what another
program on the node has. It may be slow or gone: so it is asked asynchronously, and nothing but the certificate that was
asked for waits for it. The agent knows its issuer by this interface alone; nodeseal.daemon chooses one by the
configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from nodeseal.identity.key import PrivateKey
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId


class IssuerError(Exception):
    """A certificate could not be issued, or the issuer cannot be used. One line: what, where, what to do. Never holds
    anything made of a key."""


@dataclass(frozen=True, slots=True)
class Svid:
    """A workload's certificate and key."""

    identity: SpiffeId
    chain_pem: str
    """The leaf, then the intermediates."""
    key: PrivateKey = field(repr=False, compare=False)
    """The leaf's. It is wiped when nothing refers to it any more: keep a reference only as long as it may be needed."""
    issued: datetime
    """When it was issued: its validity may begin a little earlier, for clocks that are behind."""
    not_after: datetime
    serial: str
    """The leaf's serial number, in hexadecimal."""
    anchor: str
    """The trust anchor that it is verified by, as in TrustBundle.fingerprints."""
    issuer_name: bytes = b""
    """Of whoever signed the leaf: the DER of the name in it."""
    delivered: bool = False
    """Others made the key and the certificate. It is replaced once the issuer has another one (Issuer.superseded);
    other SVIDs at half of their life at the latest."""


class Flaw(Enum):
    """What can be wrong with an issuer."""

    EXPIRED = "expired"
    """A certificate that it signs with, or is verified by, has expired."""
    EXPIRES = "expires"
    """One is near its end."""
    STALE = "stale"
    """It goes on with what it had before, because what is there now cannot be used."""
    EXPOSED = "exposed"
    """Others than it could get at its keys or trust anchors."""
    ON_DISK = "on-disk"
    """Private keys are on a disk."""
    AWAY = "away"
    """It does not answer; what was issued goes on."""
    UNPROVEN = "unproven"
    """It does not take this node for what it is: somebody has to do something, on this node."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an issuer. `text`: what and where, one line without a full stop; `remedy`: what to
    do, the same."""

    flaw: Flaw
    text: str
    remedy: str


class Issuer(ABC):
    """Issues certificates in one trust domain. All methods belong to the event loop, and none blocks it."""

    trust_domain: str
    """The only one that identities are issued in. Stays the same."""

    bundle: TrustBundle
    """The trust anchors of that domain, as far as they are known now."""

    anchor: str
    """The one of them that a certificate which is issued now is verified by, as in TrustBundle.fingerprints."""

    others: Mapping[str, str] | None = None
    """The trust anchors (PEM) of other trust domains, as far as it gives them. None: it is none that gives any."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for people, as in "expected example.org, as in the CA directory /etc/nodeseal/ca"."""

    async def begin(self) -> None:  # noqa: B027 (most have nothing to do)
        """Returns once the trust anchors are known; what the node needs to issue may still be lacking. Raises
        IssuerError when they cannot be had: the agent does not start then."""

    @abstractmethod
    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        """A certificate, and the key that it is for: a fresh one, unless others make the keys. `present`: what it is to
        replace. May take as long as it takes. Raises IssuerError."""

    def superseded(self, svid: Svid) -> bool:
        """Whether it is to be replaced before its time: others delivered a newer one, or the issuer has issued by
        another trust anchor for some time. Never waits."""
        del svid
        return False

    def anchor_for(self, identity: SpiffeId) -> str:
        """`anchor`, of what is issued to this one."""
        del identity
        return self.anchor

    @abstractmethod
    def changes(self) -> AsyncIterator[TrustBundle]:
        """First the present bundle, then each that replaces it; the same again when something else has changed that
        concerns who has certificates (`superseded`), or when `others` has. Never ends by itself, and never raises."""

    @abstractmethod
    async def condition(self) -> tuple[Fault, ...]:
        """What is wrong with it now. Looks anew."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of it. What is under way may fail."""
