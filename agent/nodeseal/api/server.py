"""The local API on agent.sock: one JSON object a line in, one a line out, for root and the agent's own user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("nodeseal.agent")

_REQUEST_MAX = 64 * 1024
_IDLE_S = 60.0
_CLIENTS_MAX = 64

Operation = Callable[[], Awaitable[dict[str, Any]]]


class ApiServer:
    """Serves `operations` by name. An operation's exception becomes {"ok": false, "error": its text}."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._path = path
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. The caller holds the agent's lock, so that a socket file that is there is a stale one. OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_REQUEST_MAX)
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
        try:
            if _peer_uid(writer) in (0, os.geteuid()) and len(self._clients) <= _CLIENTS_MAX:
                await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, said nothing for long, or sent a line without end; or the agent is ending
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):
                line = await reader.readline()
            if not line:
                return
            answer = await self._answer(line)
            writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            async with asyncio.timeout(_IDLE_S):
                await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "the request is not JSON"}
        name = request.get("op") if isinstance(request, dict) else None
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            known = ", ".join(sorted(self._operations))
            return {"ok": False, "error": f"unknown operation {name!r}; there are: {known}"}
        try:
            return await operation()
        except TimeoutError:
            return {"ok": False, "error": f"'{name}' got no answer from the core in time"}
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            log.warning("request %s failed: %s", name, text)
            return {"ok": False, "error": text}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    connection = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
