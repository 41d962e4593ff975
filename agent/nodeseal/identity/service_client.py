"""Asking the certificate service (`nodeseal ca serve`) over HTTPS: its addresses in turn, known by its key.

How it works: TLS 1.3. With pins nothing but the key of the service's certificate counts, and it is looked at before a
byte of HTTP is sent; with an anchor the certificate is verified by it, for the service's one name, whatever the
address. Connections are kept, for a node asks for all its certificates at once. What the service answers is hostile
until it is parsed, and read up to a bound.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from cryptography import x509

from nodeseal.authority.certificates import key_fingerprint
from nodeseal.contracts.authority import (
    ANSWER_MAX,
    BEARER,
    HEALTH,
    SERVER_NAME,
    Message,
    ServiceOperation,
    ServiceRefusal,
    ServiceWord,
    decode,
    encode,
    service_id,
)
from nodeseal.https import one_line, read_answer, why
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.shown_id import shows
from nodeseal.local.issuers import ServiceCa

A = TypeVar("A", bound=Message)

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_CONNECTIONS = 8
_TOKEN_MAX = 64 * 1024
_KEPT_S = 5.0  # less than the service keeps a connection that is idle


class ServiceAway(Exception):
    """None of the addresses has answered. One line: why each has not."""


class ServiceRefused(Exception):
    """The service has not carried it out. One line."""

    def __init__(self, refusal: ServiceRefusal, status: int) -> None:
        super().__init__(f"{one_line(refusal.detail) or 'it gives no reason'} ({one_line(refusal.word)})")
        self.word = refusal.word
        self.retry_after = refusal.retry_after_seconds
        self.for_good = 400 <= status < 500 and status != 429


class ServiceClient:
    """All methods belong to the event loop, but for the first."""

    def __init__(self, ca: ServiceCa) -> None:
        """Reads the anchor, if there is one. Raises IssuerError."""
        self._name = SERVER_NAME if ca.anchor is not None else None
        self._addresses = list(ca.services)
        self._pins = frozenset(ca.pins)
        self._anchor = _read_anchor(ca.anchor) if ca.anchor is not None else None
        self._context: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    async def show(self, certificate: Path | None) -> None:
        """The node certificate, with its key in the same file, that new connections show. None: none; what is kept of
        connections ends. Raises ssl.SSLError, OSError."""
        if certificate is None or self._context is None:
            await self.close()
            self._context = self._new_context()
        if certificate is not None:
            self._context.load_cert_chain(certificate)

    async def ask(self, operation: ServiceOperation[Any, A], message: Message | None = None, tag: str = "") -> A | None:
        """The answer; None: what has this tag has not changed. Raises ServiceAway, ServiceRefused."""
        failures = []
        for address in list(self._addresses):
            try:
                answer = await self._ask(address, operation, message, tag)
            except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as error:
                failures.append(f"{address}: {why(error)}")
            except TimeoutError:
                failures.append(f"{address}: no answer in time")
            except ServiceRefused as refused:
                if refused.word != ServiceWord.STANDBY:
                    self._prefer(address)
                    raise
                failures.append(f"{address}: {refused}")
            else:
                self._prefer(address)
                return answer
        raise ServiceAway("; ".join(failures) or "no address of it is known")

    async def close(self) -> None:
        """What is under way fails."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _proof(self) -> dict[str, str]:
        """What each request shows beside what the connection does."""
        return {}

    def _prefer(self, address: str) -> None:
        self._addresses.remove(address)
        self._addresses.insert(0, address)

    async def _ask(
        self, address: str, operation: ServiceOperation[Any, A], message: Message | None, tag: str
    ) -> A | None:
        headers = self._proof()
        if message is not None:
            headers["Content-Type"] = "application/json"
        if tag:
            headers["If-None-Match"] = f'"{tag}"'
        async with self._opened().request(
            operation.method,
            address + operation.path,
            data=encode(message) if message is not None else None,
            headers=headers,
            server_hostname=self._name,
            allow_redirects=False,
        ) as response:
            body = await read_answer(response, ANSWER_MAX)
            if response.status == 304:
                return None
            if response.status == 200 or (operation is HEALTH and response.status == 503):
                return decode(body, operation.answer)
            raise ServiceRefused(decode(body, ServiceRefusal), response.status)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            if self._context is None:
                self._context = self._new_context()
            connector = aiohttp.TCPConnector(ssl=self._context, limit=_CONNECTIONS, keepalive_timeout=_KEPT_S)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=_TIMEOUT, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._anchor is not None:
            context.load_verify_locations(cadata=self._anchor)
            return context
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.sslobject_class = _pinned(self._pins)
        return context


class ClusterClient(ServiceClient):
    """Of the service in the same cluster of Kubernetes: each request shows the pod's token, and the service is known by
    its SPIFFE id and the mesh's trust anchors."""

    def __init__(
        self, trust_domain: str, token: Path | None, addresses: Sequence[str] = (), anchors: str | None = None
    ) -> None:
        """`token`: a file, read for every request, because the kubelet replaces it; None: none is shown. Where the
        service is, and by what it is verified, may be told by `meet`."""
        super().__init__(ServiceCa(tuple(addresses), trust_domain, (), None, None, None))
        self._id = str(service_id(trust_domain))
        self._token = token
        self._anchor = anchors

    async def meet(self, addresses: Sequence[str], anchors: str) -> None:
        """The service is there, and verified by these (PEM), from now on. Raises ssl.SSLError, ValueError."""
        if anchors != self._anchor:
            # What is not ASCII is a ValueError then, and not a TypeError.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=anchors.encode("ascii").decode())
            await self.close()
            self._anchor, self._context = anchors, None
        if set(addresses) != set(self._addresses):
            self._addresses = list(addresses)

    def _proof(self) -> dict[str, str]:
        """Raises OSError, ValueError."""
        if self._token is None:
            return {}
        with self._token.open("rb") as file:
            token = file.read(_TOKEN_MAX).decode("ascii").strip()
        if not token or not token.isprintable():
            raise ValueError(f"the token {self._token} is empty, or is none")
        return {"Authorization": BEARER + token}

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        if self._anchor is not None:
            context.load_verify_locations(cadata=self._anchor)
            # The anchors need not be self-signed.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.sslobject_class = shows(self._id)
        return context


def _pinned(pins: Collection[str]) -> type[ssl.SSLObject]:
    """Sessions whose handshake fails unless the peer's key has one of these fingerprints."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            shown = self.getpeercert(binary_form=True)
            try:
                found = key_fingerprint(x509.load_der_x509_certificate(shown or b"").public_key())
            except ValueError:
                found = ""
            if found not in pins:
                line = f"the service has the key sha256:{found}, and another was expected"
                raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, line)

    return Pinned


def _read_anchor(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError):  # the last for what is not ASCII
        why = "it holds no certificate in PEM form"
    except OSError as error:
        why = error.strerror or str(error)
    else:
        return text
    raise IssuerError(f"the certificate service cannot be known by {path}: {why}; correct 'anchor'")
