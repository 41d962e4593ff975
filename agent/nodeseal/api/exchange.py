"""One client's connection to the local API: HTTP/1.1 (RFC 9112) on asyncio's streams, by h11.

Everything is bounded. A request's head and body have a size, and a time in which they have to arrive; an answer has a
time in which the client has to take what the socket does not. A stream of rows is one chunk a batch, and the next batch
is asked for when the one before has gone, so that a client that does not read costs one batch and one task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec

from nodeseal import __version__
from nodeseal.contracts.api import FAILURE, JSON, LINES
from nodeseal.contracts.rows import Failure, Incomplete, Row

HEAD_MAX = 16 * 1024
BODY_MAX = 64 * 1024
IDLE_S = 60.0
_PARAMETERS_MAX = 32
_READ = 16 * 1024

Batches = AsyncGenerator[Sequence[Row] | Sequence[msgspec.Raw], None]
"""Rows of a stream, or their JSON, as many at a time as make a message worth sending."""

_encoder = msgspec.json.Encoder()


class RequestError(Exception):
    """A request that is answered with a status other than 200; the text is one line."""

    def __init__(self, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class LineClientError(Exception):
    """A nodeseal command of a version that spoke JSON lines."""


class GoneError(Exception):
    """The client went, or does not read or write what it should."""


@dataclass(frozen=True, slots=True)
class Request:
    """`parameters`: of the query, as text; `lines`: an answer as JSON lines is asked for."""

    method: str
    path: str
    parameters: dict[str, str]
    lines: bool


class Exchange:
    """Requests and answers of one client, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._begun = False
        self._without_body = False

    async def request(self) -> Request | None:
        """The next one; None when the client has no more. Raises RequestError for one that cannot be understood (the
        connection is of no use behind its answer), LineClientError, GoneError."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        elif self._http.our_state is not h11.IDLE:
            return None
        try:
            async with asyncio.timeout(IDLE_S):
                return await self._request()
        except (TimeoutError, ConnectionError):
            raise GoneError from None
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            raise RequestError(status, f"the request is not HTTP/1.1: {one_line(error)}") from None

    async def _request(self) -> Request | None:
        head: h11.Request | None = None
        size = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Request):
                head = event
                self._without_body = event.method == b"HEAD"
            elif isinstance(event, h11.Data):
                # No operation has a body; one that is sent all the same is passed over.
                size += len(event.data)
                if size > BODY_MAX:
                    raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_MAX} bytes are taken")
            else:
                return _request_of(head) if head is not None else None

    async def _receive(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        data = await self._reader.read(_READ)
        if not self._begun and data.lstrip()[:1] == b"{":
            raise LineClientError
        self._begun = True
        self._http.receive_data(data)

    async def answer(
        self, body: object, status: HTTPStatus = HTTPStatus.OK, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Sends `body` as JSON. Raises GoneError."""
        data = _encoder.encode(body) + b"\n"
        kind = FAILURE if isinstance(body, Failure) else JSON
        head = _response(status, kind, *headers, ("Content-Length", str(len(data))))
        parts = [] if self._without_body else [h11.Data(data=data)]
        await self._send(head, *parts, h11.EndOfMessage())

    async def refuse(self, error: RequestError) -> None:
        """Sends why a request is not carried out. Raises GoneError."""
        failure = Failure(title=error.status.phrase, status=error.status, detail=str(error))
        await self.answer(failure, error.status, error.headers)

    async def refuse_line(self, text: str) -> None:
        """The same to a command that spoke JSON lines: it prints `text`. Raises GoneError."""
        await self._write(_encoder.encode({"ok": False, "error": text}) + b"\n")

    async def stream(self, batches: Batches) -> None:
        """Sends rows as JSON lines until there are no more; the last line is Incomplete when `batches` raise.

        Ends `batches`, with GoneError, when the client goes, also while there is no row for it.
        """
        sending = asyncio.ensure_future(self._stream(batches))
        leaving = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise GoneError
            sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _stream(self, batches: Batches) -> None:
        await self._send(_response(HTTPStatus.OK, LINES, ("Connection", "close")))
        async with contextlib.aclosing(batches):
            try:
                async for rows in batches:
                    await self._send(h11.Data(data=_encoder.encode_lines(rows)))
            except GoneError:
                raise
            except Exception as error:
                await self._send(h11.Data(data=_encoder.encode_lines([Incomplete(error=one_line(error))])))
        await self._send(h11.EndOfMessage())

    async def _left(self) -> None:
        """Returns when the client has. What it says meanwhile is passed over: the connection ends with the stream."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(_READ):
                pass

    async def _send(self, *events: h11.Event) -> None:
        await self._write(b"".join(self._http.send(event) or b"" for event in events))

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            async with asyncio.timeout(IDLE_S):
                await self._writer.drain()
        except (TimeoutError, ConnectionError):
            raise GoneError from None

    async def close(self, patience: float) -> None:
        """Ends the connection; the client has `patience` seconds to take what it was sent last."""
        self._writer.close()
        try:
            async with asyncio.timeout(patience):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._writer.transport.abort()


def one_line(error: BaseException) -> str:
    """The text of an error, or its kind when it has none."""
    if isinstance(error, TimeoutError):
        return "no answer from the core in time"
    return " ".join(str(error).split()) or type(error).__name__


def _response(status: HTTPStatus, kind: str, *headers: tuple[str, str]) -> h11.Response:
    common = [("Server", f"nodeseal/{__version__}"), ("Content-Type", kind), ("Cache-Control", "no-store")]
    return h11.Response(status_code=status, reason=status.phrase.encode(), headers=[*common, *headers])


def _request_of(head: h11.Request) -> Request:
    """Raises RequestError."""
    try:
        target = urlsplit(head.target.decode("ascii", "replace"))
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the request's target is no URL: {one_line(error)}") from None
    try:
        pairs = parse_qsl(target.query, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"at most {_PARAMETERS_MAX} parameters are taken") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise RequestError(HTTPStatus.BAD_REQUEST, "a parameter is there twice")
    accepted = b",".join(value for name, value in head.headers if name == b"accept")
    stream = parameters.pop("stream", "true" if LINES.encode() in accepted else "false")
    if stream not in ("true", "false"):
        raise RequestError(HTTPStatus.BAD_REQUEST, f"parameter 'stream' is {stream!r}: say true or false")
    return Request(head.method.decode("ascii"), target.path, parameters, stream == "true")
