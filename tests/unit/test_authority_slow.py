"""Clients of the certificate service that are slow, each at another point: the connection is ended, and it is told."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from nodeseal.authority import connections, server, state_keys
from nodeseal.authority.proof import Caller
from nodeseal.authority.refused import Refused
from nodeseal.authority.server import Server
from nodeseal.authority.service import Service
from nodeseal.authority.state_keys import StateKeys
from nodeseal.authority.tls import bound_buffers, server_context
from nodeseal.contracts.authority import STANDBY, Health, NodeRequest
from nodeseal.mesh.address import ApplicationAddress
from support.patience import PATIENCE

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Told:
    """In the place of the service: remembers what was refused."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def refuse(self, error: Refused, caller: Caller) -> None:
        self.words.append(error.word)

    def node_of(self, _certificate: bytes | None) -> None:
        return None

    async def node(self, _request: NodeRequest, _caller: Caller) -> None:
        raise AssertionError("the request is not whole")


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Awaitable[Any]]], list[str]]:
    """Runs a client, which is given the port, against a server of little patience; with which words it was refused."""
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.2)
    state_keys.prepare(tmp_path)
    keys = StateKeys.load(tmp_path, "example.org", datetime.now(UTC))

    def run(client: Callable[[int], Awaitable[Any]]) -> list[str]:
        async def scenario() -> list[str]:
            https, told = Server(server_context(keys), Health(state=STANDBY), 10), Told()
            https.service = cast(Service, told)
            port = https.listen(ApplicationAddress.parse("127.0.0.1:0")).port
            async with asyncio.timeout(PATIENCE):
                await client(port)
            await https.stop()
            return told.words

        return asyncio.run(scenario())

    return run


async def connected(port: int) -> Streams:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def sent(port: int, data: bytes) -> bytes:
    """What comes until the connection is ended."""
    reader, writer = await connected(port)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        await ended(writer)


def test_one_that_begins_no_handshake(play: Callable[..., list[str]]) -> None:
    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        await ended(writer)

    assert play(client) == ["handshake"]


def test_one_that_asks_nothing(play: Callable[..., list[str]]) -> None:
    async def client(port: int) -> None:
        assert await sent(port, b"") == b""

    assert play(client) == []


def test_one_that_never_ends_its_head(play: Callable[..., list[str]]) -> None:
    async def client(port: int) -> None:
        assert await sent(port, b"POST /v1/node HTTP/1.1\r\nContent-Len") == b""

    assert play(client) == []


def test_one_that_sends_its_head_byte_by_byte(play: Callable[..., list[str]]) -> None:
    """Each byte does not begin its time anew."""

    async def client(port: int) -> None:
        reader, writer = await connected(port)
        over = asyncio.ensure_future(reader.read())
        writer.write(b"POST /v1/node HTTP/1.1\r\nX: ")
        while not over.done():
            writer.write(b"x")
            await asyncio.wait([over], timeout=0.02)
        await ended(writer)

    assert play(client) == []


def test_one_that_never_ends_its_body(play: Callable[..., list[str]]) -> None:
    async def client(port: int) -> None:
        answer = await sent(port, b"POST /v1/node HTTP/1.1\r\nHost: ca\r\nContent-Length: 10\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"word":"slow"' in answer

    assert play(client) == ["slow"]


def test_one_that_asks_no_more(play: Callable[..., list[str]]) -> None:
    async def client(port: int) -> None:
        answer = await sent(port, b"GET /nothing HTTP/1.1\r\nHost: ca\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ")

    assert play(client) == ["unknown-operation"]


def test_buffers_of_connections_are_bounded_where_asyncio_has_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is asyncio's own: another version may have another."""
    assert sslproto.SSLProtocol.max_size == 256 * 1024
    assert "max_size" in inspect.getsource(sslproto.SSLProtocol.__init__)
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    bound_buffers()
    assert sslproto.SSLProtocol.max_size == 32 * 1024
