"""The local API's server on agent.sock, for root and the agent's own user."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from nodeseal import __version__
from nodeseal.api.exchange import (
    IDLE_S,
    Batches,
    Exchange,
    GoneError,
    LineClientError,
    Request,
    RequestError,
    one_line,
)
from nodeseal.contracts.api import Operation
from nodeseal.contracts.rows import Parameters, Row
from nodeseal.linux.control_socket import listen, peer_credentials

log = logging.getLogger("nodeseal.agent")

CLIENTS_MAX = 64
STREAMS_MAX = 56
"""Of these: a stream may last for ever, and the others are to be answered."""
_LAST_S = 1.0
"""For how long an agent that ends waits for clients to take what they were sent last."""

P = TypeVar("P", bound=Parameters)
A = TypeVar("A", bound=Row)


@dataclass(frozen=True, slots=True)
class Served(Generic[P, A]):
    """How an operation is carried out. `answer` gives the whole; `stream` rows, for one who asks for JSON lines, or for
    everybody where there is no whole."""

    operation: Operation[P, A]
    answer: Callable[[P], Awaitable[A]] | None = None
    stream: Callable[[P], Batches] | None = None


class ApiServer:
    """Serves operations. An exception of one is a problem document with its text: status 503 if it is one of
    `unavailable`, what passes by itself; 504 for TimeoutError; 500 for any other."""

    def __init__(
        self, path: Path, served: Iterable[Served[Any, Any]], *, unavailable: Sequence[type[Exception]] = ()
    ) -> None:
        self._path = path
        self._served = {(str(one.operation.method), one.operation.path): one for one in served}
        self._unavailable = tuple(unavailable)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._streams = 0

    async def start(self) -> None:
        """Listens. The caller holds the agent's lock, so that a socket file that is there is a stale one. OSError."""
        listener = listen(str(self._path), socket.SOCK_STREAM)
        try:
            self._server = await asyncio.start_unix_server(self._connected, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Ends the listening and the connections."""
        if self._server is None:
            return
        self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        exchange = Exchange(reader, writer)
        patience = IDLE_S
        try:
            _pid, uid = peer_credentials(writer.get_extra_info("socket"))
            await self._serve(exchange, uid)
        except RequestError as error:
            with contextlib.suppress(GoneError):
                await exchange.refuse(error)
        except LineClientError:
            with contextlib.suppress(GoneError):
                await exchange.refuse_line(
                    f"the agent is of a newer version ({__version__}) than this command: run the one that is installed"
                )
        except GoneError:
            patience = 0.0
        except asyncio.CancelledError:
            patience = _LAST_S  # the agent is ending
        finally:
            # It counts until it has gone: what it was sent last is still here.
            with contextlib.suppress(asyncio.CancelledError):
                await exchange.close(patience)
            self._clients.discard(task)

    async def _serve(self, exchange: Exchange, uid: int) -> None:
        if uid not in (0, os.geteuid()):
            raise RequestError(HTTPStatus.FORBIDDEN, "the agent may be asked by root only")
        if len(self._clients) > CLIENTS_MAX:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, f"{CLIENTS_MAX} clients are served already; ask again")
        while (request := await exchange.request()) is not None:
            try:
                await self._carry_out(request, exchange)
            except RequestError as error:
                await exchange.refuse(error)

    async def _carry_out(self, request: Request, exchange: Exchange) -> None:
        served = self._find(request)
        parameters = _parameters(served.operation, request.parameters)
        if request.lines and served.stream is None:
            raise RequestError(HTTPStatus.NOT_ACCEPTABLE, f"{served.operation} has no stream of JSON lines")
        try:
            if served.stream is not None and (request.lines or served.answer is None):
                await self._stream(exchange, served.stream(parameters))
            elif served.answer is not None:
                await exchange.answer(await served.answer(parameters))
        except (RequestError, GoneError):
            raise
        except TimeoutError:
            text = f"{served.operation} got no answer from the core in time"
            raise RequestError(HTTPStatus.GATEWAY_TIMEOUT, text) from None
        except self._unavailable as error:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, one_line(error)) from None
        except Exception as error:
            log.warning("%s failed: %s", served.operation, one_line(error))
            raise RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, one_line(error)) from None

    async def _stream(self, exchange: Exchange, batches: Batches) -> None:
        """Raises RequestError, GoneError."""
        if self._streams >= STREAMS_MAX:
            text = f"{STREAMS_MAX} streams are open already; ask again when one has ended"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, text)
        self._streams += 1
        try:
            await exchange.stream(batches)
        finally:
            self._streams -= 1

    def _find(self, request: Request) -> Served[Any, Any]:
        """Raises RequestError."""
        served = self._served.get((request.method, request.path))
        if served is not None:
            return served
        methods = sorted(method for method, path in self._served if path == request.path)
        if methods:
            allow = ", ".join(methods)
            text = f"{request.method} {request.path}: say {allow}"
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, text, ("Allow", allow))
        known = ", ".join(str(one.operation) for one in self._served.values())
        raise RequestError(
            HTTPStatus.NOT_FOUND, f"unknown operation {request.method} {request.path}; there are: {known}"
        )


def _parameters(operation: Operation[P, Any], given: dict[str, str]) -> P:
    """Raises RequestError."""
    known = [field.encode_name for field in msgspec.structs.fields(operation.parameters)]
    for name in given:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "there are none"
            raise RequestError(HTTPStatus.BAD_REQUEST, f"unknown parameter {name!r} of {operation}; {there}")
    try:
        return msgspec.convert(given, operation.parameters, strict=False)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        raise RequestError(HTTPStatus.BAD_REQUEST, f"parameter {where.rstrip('`')!r} of {operation}: {text}") from None
