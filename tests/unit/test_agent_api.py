"""The local API's socket, and the client of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeseal.api import client
from nodeseal.api.server import ApiServer
from nodeseal.linux.lock_file import LockFile
from nodeseal.local import generations, run_directory


def serve(run_dir: Path, story: Callable[[], Any], **operations: Callable[[], Awaitable[dict[str, Any]]]) -> Any:
    """Runs a blocking `story` in a thread while the API serves."""

    async def play() -> Any:
        api = ApiServer(run_dir / run_directory.AGENT_SOCKET, operations)
        await api.start()
        try:
            async with asyncio.timeout(30):
                return await asyncio.to_thread(story)
        finally:
            await api.stop()

    return asyncio.run(play())


async def answer() -> dict[str, Any]:
    return {"ok": True, "node": "node1"}


async def broken() -> dict[str, Any]:
    raise RuntimeError("two\nlines")


def test_answer_comes_back(tmp_path: Path) -> None:
    assert serve(tmp_path, lambda: client.ask(tmp_path, "status"), status=answer) == {"ok": True, "node": "node1"}


def test_unknown_operation_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(client.AgentError, match=r"unknown operation 'stat'; there are: status"):
        serve(tmp_path, lambda: client.ask(tmp_path, "stat"), status=answer)


def test_failing_operation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(client.AgentError, match=r"^two lines$"):
        serve(tmp_path, lambda: client.ask(tmp_path, "status"), status=broken)


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'{"op": 3}\n', b"\xff\n"])
def test_malformed_request_is_answered(tmp_path: Path, line: bytes) -> None:
    def story() -> dict[str, Any]:
        import socket

        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / run_directory.AGENT_SOCKET))
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                result: dict[str, Any] = json.loads(answers.readline())
            return result

    assert serve(tmp_path, story)["ok"] is False


def test_line_without_end_closes_the_connection(tmp_path: Path) -> None:
    def story() -> bytes:
        import socket

        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / run_directory.AGENT_SOCKET))
            try:
                connection.sendall(b"x" * 1_000_000)
                return connection.recv(1)
            except (BrokenPipeError, ConnectionResetError):
                return b""

    assert serve(tmp_path, story) == b""


def test_socket_is_for_root_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / run_directory.AGENT_SOCKET
    assert serve(tmp_path, lambda: path.stat().st_mode & 0o777) == 0o600
    assert not path.exists()


def test_no_agent_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(client.AgentGone, match="nodeseal agent --config"):
        client.ask(tmp_path, "status")


def test_no_agent_but_a_core_says_so(tmp_path: Path) -> None:
    lock = LockFile(generations.lock_path(tmp_path, 1))
    with pytest.raises(client.AgentGone, match=r"its core \(pid \d+\) goes on"):
        client.ask(tmp_path, "status")
    lock.release()


def test_publication_is_remembered_for_cleanup(tmp_path: Path) -> None:
    assert run_directory.remembered_publications(tmp_path) == []
    references = [{"directory": "/etc/mesh", "node": name} for name in ("node1", "renamed")]
    for one in (*references, references[0]):
        run_directory.remember_publication(tmp_path, one)
    assert run_directory.remembered_publications(tmp_path) == references
    run_directory.forget_publication(tmp_path, references[0])
    assert run_directory.remembered_publications(tmp_path) == references[1:]
    for damage in ("{}", "[]", '{"node": 1}', '{"node": "a", "former": [{}]}', '{"node": "a", "former": [7]}'):
        (tmp_path / run_directory.PUBLICATION).write_text(damage)
        with pytest.raises(ValueError, match="damaged"):
            run_directory.remembered_publications(tmp_path)
