"""HTTPS in front of the certificate service: aiohttp's low-level server, without a framework above it.

What a client can hold before it has proven anything is bounded: connections and their handshakes (connections.py),
the time of a request and of an idle connection, and the size of heads and bodies.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from nodeseal.authority.connections import Connections
from nodeseal.authority.proof import Caller
from nodeseal.authority.refused import Refused
from nodeseal.authority.service import Service
from nodeseal.contracts.authority import (
    ACTIVE,
    ALIVE,
    BEARER,
    BODY_MAX,
    BUNDLE,
    CERTIFICATES,
    HEALTH,
    NODE,
    READY,
    STATUSES,
    CertificateRequest,
    Health,
    Message,
    NodeRequest,
    Probe,
    ServiceOperation,
    ServiceRefusal,
    ServiceWord,
    decode,
    encode,
)
from nodeseal.mesh.address import ApplicationAddress

log = logging.getLogger("nodeseal.ca")

M = TypeVar("M", bound=Message)

REQUEST_S = 10.0
"""A request's head has so long from the handshake, or from the last answer, on; its body as long again."""
STANDBY_S = 1.0
_LINE_MAX = 4096
_HEADERS_MAX = 64
_LINGER_S = 2.0
_GOODBYE_S = 3.0
_BAD_REQUESTS = frozenset({400, 413, 414, 431})
_JSON = "application/json"


class Server:
    """`service` is None as long as another process has the store: then this one stands by."""

    def __init__(self, context: ssl.SSLContext, standby: Health, connections: int) -> None:
        """`standby`: what is answered while it stands by; `connections`: most at once."""
        self.service: Service | None = None
        self.going: str | None = None
        """Why it is not ready for others, though it still answers; None: it is."""
        self._standby = standby
        self._calls: Mapping[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.Response]]] = {
            _key(NODE): self._node,
            _key(CERTIFICATES): self._certificate,
            _key(BUNDLE): self._bundle,
            _key(HEALTH): self._health,
            _key(READY): self._ready,
            _key(ALIVE): self._alive,
        }
        self._http = web.Server(self._handle, request_factory=_request, handler_cancellation=True)
        self._connections = Connections(
            context, self._new_connection, connections, self._node_of, self._handshake_failed
        )

    def use(self, context: ssl.SSLContext) -> None:
        """For connections from now on."""
        self._connections.use(context)

    def listen(self, where: ApplicationAddress) -> ApplicationAddress:
        """See Connections.listen."""
        return self._connections.listen(where)

    async def stop(self) -> None:
        """Accepts nobody more; what was asked before is answered, if that does not take long."""
        self._connections.close()
        await self._http.shutdown(_GOODBYE_S)
        await self._connections.end()

    def _new_connection(self) -> asyncio.Protocol:
        return _Connection(self._http, self._connections, self._refused_head)

    # ---- operations

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        try:
            call = self._calls.get((request.method, request.path))
            if call is None:
                there = ", ".join(f"{method} {path}" for method, path in self._calls)
                raise Refused(ServiceWord.UNKNOWN_OPERATION, f"there is no such operation; there are {there}")
            return await call(request)
        except Refused as error:
            if error.word in (
                ServiceWord.MALFORMED,
                ServiceWord.TOO_LARGE,
                ServiceWord.SLOW,
                ServiceWord.UNKNOWN_OPERATION,
            ):
                self._count(error, request)
            return _refusal(error)
        except Exception:
            log.exception("cannot answer %s %s", request.method, request.path[:80])
            return _refusal(Refused(ServiceWord.INTERNAL, "the service failed; its log says how", STANDBY_S))

    async def _node(self, request: web.BaseRequest) -> web.Response:
        service = self._active()
        return _answer(await service.node(await _body(request, NodeRequest), _caller(request)))

    async def _certificate(self, request: web.BaseRequest) -> web.Response:
        service, caller = self._active(), _caller(request)
        certificate = await service.certificate(await _body(request, CertificateRequest), caller)
        if caller.bearer is not None and (node := service.node_known(caller)) is not None:
            self._connections.is_node(request.protocol, node)
        return _answer(certificate)

    async def _bundle(self, request: web.BaseRequest) -> web.Response:
        bundle = self._active().bundle()
        tag = f'"{bundle.tag}"'
        if request.headers.get("If-None-Match", "") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        answer = _answer(bundle)
        answer.headers["ETag"] = tag
        return answer

    async def _health(self, request: web.BaseRequest) -> web.Response:
        health = self._standby if self.service is None else self.service.health()
        if not is_own_address(request.transport) and self._known(_caller(request)) is None:
            health = health.for_strangers()
        return _answer(health, 200 if health.state == ACTIVE else 503)

    async def _ready(self, request: web.BaseRequest) -> web.Response:
        del request
        why = self.going or ("it stands by" if self.service is None else self.service.unready)
        return _answer(Probe(why=why or ""), 503 if why else 200)

    async def _alive(self, request: web.BaseRequest) -> web.Response:
        del request
        return _answer(Probe())

    def _active(self) -> Service:
        if self.service is None:
            raise Refused(
                ServiceWord.STANDBY, "another process does the work; this one takes over when it ends", STANDBY_S
            )
        return self.service

    # ---- what does not come so far

    def _count(self, error: Refused, request: web.BaseRequest) -> None:
        if self.service is not None:
            self.service.refuse(error, _caller(request))

    def _refused_head(self, request: web.BaseRequest, status: int) -> web.Response:
        """A request whose head could not be read, or an answer that failed."""
        if status not in _BAD_REQUESTS:
            return _refusal(Refused(ServiceWord.INTERNAL, "the service failed; its log says how", STANDBY_S))
        error = Refused(ServiceWord.MALFORMED, "this is no HTTP/1.1 request, or its head is too large")
        self._count(error, request)
        return _refusal(error)

    def _node_of(self, certificate: bytes | None) -> str | None:
        return self.service.node_of(certificate) if self.service is not None else None

    def _known(self, caller: Caller) -> str | None:
        return self.service.node_known(caller) if self.service is not None else None

    def _handshake_failed(self, address: str, why: str) -> None:
        if self.service is not None:
            self.service.refuse(Refused(ServiceWord.HANDSHAKE, why), Caller(address))


class _Connection(RequestHandler):
    """aiohttp's, which says when it ends, and has its own words for what it cannot read."""

    def __init__(
        self, server: web.Server, connections: Connections, refused: Callable[[web.BaseRequest, int], web.Response]
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            # From the handshake, or the last answer, to the end of the next request's head.
            keepalive_timeout=REQUEST_S,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=_LINE_MAX,
            max_field_size=_LINE_MAX,
            max_headers=_HEADERS_MAX,
            lingering_time=_LINGER_S,
            # A little of what is sent may be much when it is unpacked.
            auto_decompress=False,
        )
        self._of = connections
        self._refused = refused

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._of.ended(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See RequestHandler: here nothing of a stranger's comes into the log or the answer."""
        if status not in _BAD_REQUESTS:
            log.error("cannot answer a request", exc_info=exc)
        answer = self._refused(request, status)
        answer.force_close()
        return answer


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_MAX)


async def _body(request: web.BaseRequest, kind: type[M]) -> M:
    """Raises Refused."""
    try:
        async with asyncio.timeout(REQUEST_S):
            data = await request.read()
    except TimeoutError:
        raise Refused(ServiceWord.SLOW, f"the body did not arrive within {REQUEST_S:.0f} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(ServiceWord.TOO_LARGE, f"the body has more than {BODY_MAX:,} bytes") from None
    except web.RequestPayloadError:
        raise Refused(ServiceWord.MALFORMED, "the body is not what its head says") from None
    try:
        return decode(data, kind)
    except ValueError as error:
        raise Refused(ServiceWord.MALFORMED, f"the body is not as expected: {error}") from None


def _caller(request: web.BaseRequest) -> Caller:
    transport = request.transport
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    shown = request.headers.get("Authorization", "")
    bearer = shown.removeprefix(BEARER).strip() if shown.startswith(BEARER) else None
    return Caller(request.remote or "unknown", tls.getpeercert(True) if tls is not None else None, bearer)


def is_own_address(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the other end of a connection is on this machine: on the loopback, or with the address of this end."""
    if transport is None:
        return False
    peer, own = (_ip(transport.get_extra_info(name)) for name in ("peername", "sockname"))
    return peer is not None and (peer == own or peer.is_loopback)


def _ip(name: tuple[Any, ...] | None) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(str(name[0]).partition("%")[0]) if name else None
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _answer(message: Message, status: int = 200) -> web.Response:
    return web.Response(body=encode(message), status=status, content_type=_JSON, headers={"Server": "nodeseal"})


def _refusal(error: Refused) -> web.Response:
    refusal = ServiceRefusal(word=error.word.value, detail=str(error), retry_after_seconds=error.retry_after)
    answer = _answer(refusal, STATUSES[error.word])
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return answer


def _key(operation: ServiceOperation[Any, Any]) -> tuple[str, str]:
    return operation.method, operation.path
