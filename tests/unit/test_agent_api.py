"""The local API's socket, and the client of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.api import client, exchange, server
from nodeseal.api.server import ApiServer, Served
from nodeseal.contracts.api import CONNECTIONS, FAILURE, JSON, LINES, STATUS, UPGRADE_CORE, VERSION
from nodeseal.contracts.connections import ConnectionFilter, ConnectionRow, Connections
from nodeseal.contracts.rows import Parameters, Row
from nodeseal.contracts.status import AgentRow, Status
from nodeseal.linux.lock_file import LockFile
from nodeseal.local import generations, run_directory
from support.patience import wait_for


class StartingError(Exception):
    """What passes by itself."""


async def status(_parameters: Parameters) -> Status:
    return Status(node="node1")


async def connections(wanted: ConnectionFilter) -> Connections:
    rows = [ConnectionRow(id=number) for number in range(wanted.limit or 1)]
    return Connections(node="node1", connections=rows, next=None if wanted.after else "there")


async def lines(wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
    for number in range(wanted.limit or 3):
        yield [ConnectionRow(id=number, workload="default/a")]
    if wanted.after:
        raise RuntimeError("two\nlines")


def raising(error: Exception) -> list[Served[Any, Any]]:
    async def answer(_parameters: Parameters) -> Status:
        raise error

    return [Served(STATUS, answer)]


ALL = (Served(STATUS, status), Served(CONNECTIONS, connections, lines))


def serve(run_dir: Path, story: Callable[[], Any], *served: Served[Any, Any]) -> Any:
    """Runs a blocking `story` in a thread while the API serves."""

    async def play() -> Any:
        api_server = ApiServer(run_dir / run_directory.AGENT_SOCKET, served or ALL, unavailable=[StartingError])
        await api_server.start()
        try:
            async with asyncio.timeout(30):
                return await asyncio.to_thread(story)
        finally:
            await api_server.stop()

    return asyncio.run(play())


def connect(run_dir: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(run_dir / run_directory.AGENT_SOCKET))
    return connection


def talk(run_dir: Path, said: bytes) -> bytes:
    """What comes back until the agent ends the connection."""
    with connect(run_dir) as connection, contextlib.suppress(ConnectionResetError):
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(said)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: node", "Connection: close", *headers, "", ""]).encode()


def curl(run_dir: Path, path: str, *arguments: str) -> tuple[int, str, str]:
    """(status, content type, body) as curl has them."""
    command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(run_dir / run_directory.AGENT_SOCKET)]
    form = "\n%{http_code} %{content_type}"
    done = subprocess.run(
        [*command, *arguments, "-w", form, f"http://node{path}"], capture_output=True, text=True, timeout=30, check=True
    )
    body, _, last = done.stdout.rpartition("\n")
    code, _, kind = last.partition(" ")
    return int(code), kind, body


class TestAnswers:
    def test_one_comes_back(self, tmp_path: Path) -> None:
        assert serve(tmp_path, lambda: client.ask(tmp_path, STATUS)) == Status(node="node1")

    def test_curl_has_it_as_json(self, tmp_path: Path) -> None:
        code, kind, body = serve(tmp_path, lambda: curl(tmp_path, "/v1/status"))
        assert (code, kind) == (200, JSON)
        assert json.loads(body)["node"] == "node1"

    def test_parameters_come_with_the_path(self, tmp_path: Path) -> None:
        _code, _kind, body = serve(tmp_path, lambda: curl(tmp_path, "/v1/connections?live=true&limit=2"))
        assert [row["id"] for row in json.loads(body)["connections"]] == [0, 1]

    def test_one_connection_carries_many(self, tmp_path: Path) -> None:
        once = request("/v1/status").replace(b"Connection: close\r\n", b"")
        assert serve(tmp_path, lambda: talk(tmp_path, once + once + request("/v1/status"))).count(b'"node1"') == 3

    def test_pages_are_one_for_the_command_line(self, tmp_path: Path) -> None:
        found = serve(tmp_path, lambda: client.ask_connections(tmp_path, ConnectionFilter(live=True)))
        assert (len(found.connections), found.next) == (2 * client.PAGE_MAX, None)


class TestStreams:
    @pytest.mark.parametrize("asked", [("-H", f"Accept: {LINES}"), ()])
    def test_rows_come_as_lines(self, tmp_path: Path, asked: tuple[str, ...]) -> None:
        path = "/v1/connections" if asked else "/v1/connections?stream=true"
        code, kind, body = serve(tmp_path, lambda: curl(tmp_path, path, *asked))
        assert (code, kind) == (200, LINES)
        assert [json.loads(line)["id"] for line in body.splitlines()] == [0, 1, 2]

    def test_last_line_says_what_is_missing(self, tmp_path: Path) -> None:
        _code, _kind, body = serve(tmp_path, lambda: curl(tmp_path, "/v1/connections?stream=true&limit=1&after=x"))
        assert json.loads(body.splitlines()[-1]) == {"error": "two lines"}

    def test_operation_without_rows_refuses(self, tmp_path: Path) -> None:
        assert serve(tmp_path, lambda: curl(tmp_path, "/v1/status?stream=true"))[0] == 406

    def test_reader_that_stops_is_waited_for_and_costs_one_batch(self, tmp_path: Path) -> None:
        """And others are answered meanwhile."""
        made = []

        async def endless(_wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
            while True:
                made.append(1)
                yield [ConnectionRow(source="x" * 10_000)]

        def story() -> int:
            with connect(tmp_path) as slow:
                slow.sendall(request("/v1/connections?stream=true"))
                before = -1
                while len(made) != before:
                    before = len(made)
                    assert client.ask(tmp_path, STATUS).node == "node1"
                    threading.Event().wait(0.2)
                return before

        assert serve(tmp_path, story, Served(STATUS, status), Served(CONNECTIONS, connections, endless)) < 200

    def test_stream_ends_with_its_client(self, tmp_path: Path) -> None:
        """Also when there is no row that could not be written."""
        begun, ended = threading.Event(), threading.Event()

        async def silent(_wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            yield []

        def story() -> bool:
            with connect(tmp_path) as connection:
                connection.sendall(request("/v1/connections?stream=true"))
                assert begun.wait(20)
            return ended.wait(20)

        assert serve(tmp_path, story, Served(CONNECTIONS, connections, silent))


class TestFailures:
    def test_unknown_operation_names_those_that_there_are(self, tmp_path: Path) -> None:
        code, kind, body = serve(tmp_path, lambda: curl(tmp_path, "/v1/stat"))
        assert (code, kind) == (404, FAILURE)
        text = "unknown operation GET /v1/stat; there are: GET /v1/status, GET /v1/connections"
        assert json.loads(body) == {"type": "about:blank", "title": "Not Found", "status": 404, "detail": text}

    def test_other_method_says_which(self, tmp_path: Path) -> None:
        answer = serve(tmp_path, lambda: talk(tmp_path, request("/v1/status", method="POST")))
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: GET\r\n" in answer
        head = serve(tmp_path, lambda: talk(tmp_path, request("/v1/status", method="HEAD")))
        assert head.startswith(b"HTTP/1.1 405 ")
        assert head.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        ("query", "text"),
        [
            ("lives=true", "unknown parameter 'lives' of GET /v1/connections; there are: live, workload, "),
            ("live=maybe", "parameter 'live' of GET /v1/connections: Expected `bool`, got `str`"),
            ("limit=0", "parameter 'limit' of GET /v1/connections: Expected `int` >= 1"),
            ("direction=up", "parameter 'direction' of GET /v1/connections: Invalid enum value 'up'"),
            ("live=true&live=false", "a parameter is there twice"),
            ("stream=perhaps", "parameter 'stream' is 'perhaps': say true or false"),
            ("&".join(f"p{number}=" for number in range(100)), "at most 32 parameters are taken"),
        ],
    )
    def test_parameter_that_is_not_understood_is_refused(self, tmp_path: Path, query: str, text: str) -> None:
        """A filter that is passed over would give too much."""
        code, _kind, body = serve(tmp_path, lambda: curl(tmp_path, f"/v1/connections?{query}"))
        assert code == 400
        assert json.loads(body)["detail"].startswith(text)

    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (RuntimeError("two\nlines"), 500, "two lines"),
            (StartingError("ask again"), 503, "ask again"),
            (TimeoutError(), 504, "GET /v1/status got no answer from the core in time"),
        ],
    )
    def test_failing_operation_is_one_line(self, tmp_path: Path, error: Exception, code: int, text: str) -> None:
        assert serve(tmp_path, lambda: curl(tmp_path, "/v1/status"), *raising(error))[0] == code
        with pytest.raises(client.AgentError) as caught:
            serve(tmp_path, lambda: client.ask(tmp_path, STATUS), *raising(error))
        assert str(caught.value) == text

    @pytest.mark.parametrize("said", [b"nonsense\n\n", b"\xff\r\n\r\n", b"GET /v1/status HTTP/1.1\r\n\r\n"])
    def test_what_is_not_http_is_answered(self, tmp_path: Path, said: bytes) -> None:
        answer = serve(tmp_path, lambda: talk(tmp_path, said))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"the request is not HTTP/1.1: " in answer

    @pytest.mark.parametrize("target", ["//[", "http://[::1/v1/status"])
    def test_target_that_is_no_url_is_answered(self, tmp_path: Path, target: str) -> None:
        answer = serve(tmp_path, lambda: talk(tmp_path, request(target)))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"the request's target is no URL: Invalid IPv6 URL" in answer


class TestBounds:
    @pytest.mark.parametrize(
        ("said", "code"),
        [
            (b"GET /" + b"x" * 1_000_000, 431),
            (request("/v1/status", "X: " + "x" * 100_000), 431),
            (request("/v1/status", "Content-Length: 1000000") + b"x" * 1_000_000, 413),
        ],
    )
    def test_request_without_end_is_refused(self, tmp_path: Path, said: bytes, code: int) -> None:
        assert serve(tmp_path, lambda: talk(tmp_path, said)).startswith(f"HTTP/1.1 {code} ".encode())

    def test_client_that_says_nothing_is_let_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange, "IDLE_S", 0.1)
        assert serve(tmp_path, lambda: talk(tmp_path, b"GET /v1/sta")) == b""

    def test_client_that_does_not_read_is_let_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange, "IDLE_S", 0.1)
        ended = threading.Event()

        async def endless(_wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
            try:
                while True:
                    yield [ConnectionRow(source="x" * 10_000)]
            finally:
                ended.set()

        def story() -> bool:
            with connect(tmp_path) as slow:
                slow.sendall(request("/v1/connections?stream=true"))
                return ended.wait(20)

        assert serve(tmp_path, story, Served(CONNECTIONS, connections, endless))

    def test_number_of_clients(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "CLIENTS_MAX", 2)

        def story() -> None:
            refused = pytest.raises(client.AgentError, match=r"^2 clients are served already; ask again$")
            with connect(tmp_path), connect(tmp_path), refused:
                client.ask(tmp_path, STATUS)
            while True:
                with contextlib.suppress(client.AgentError):
                    assert client.ask(tmp_path, STATUS).node == "node1"
                    return

        serve(tmp_path, story)

    def test_streams_leave_room_for_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "STREAMS_MAX", 2)
        monkeypatch.setattr(server, "CLIENTS_MAX", 3)

        async def silent(_wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
            yield [ConnectionRow(id=1)]
            await asyncio.sleep(60)

        def stream() -> socket.socket:
            connection = connect(tmp_path)
            connection.sendall(request("/v1/connections?stream=true"))
            return connection

        def story() -> None:
            with stream() as one, stream() as two:
                assert one.recv(15) == two.recv(15) == b"HTTP/1.1 200 OK"
                answer = talk(tmp_path, request("/v1/connections?stream=true"))
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"2 streams are open already" in answer
                assert client.ask(tmp_path, STATUS).node == "node1"
            wait_for(streams, "a stream that has ended makes room")

        def streams() -> bool:
            with stream() as one:
                return one.recv(12) == b"HTTP/1.1 200"

        serve(tmp_path, story, Served(STATUS, status), Served(CONNECTIONS, connections, silent))

    def test_others_than_root_and_the_agents_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "peer_credentials", lambda _connection: (1, os.geteuid() + 1))
        with pytest.raises(client.AgentError, match=r"^the agent may be asked by root only$"):
            serve(tmp_path, lambda: client.ask(tmp_path, STATUS))

    def test_socket_is_for_root_and_goes_with_the_server(self, tmp_path: Path) -> None:
        path = tmp_path / run_directory.AGENT_SOCKET
        assert serve(tmp_path, lambda: path.stat().st_mode & 0o777) == 0o600
        assert not path.exists()

    def test_agent_that_goes_waits_for_no_client(self, tmp_path: Path) -> None:
        clients: list[socket.socket] = []

        def story() -> None:
            clients.append(connect(tmp_path))
            clients[0].sendall(request("/v1/status").replace(b"Connection: close\r\n", b""))
            assert clients[0].recv(65536).startswith(b"HTTP/1.1 200 ")

        serve(tmp_path, story)
        with clients[0] as idle:
            assert idle.recv(1) == b""

    def test_agent_that_goes_waits_for_no_reader(self, tmp_path: Path) -> None:
        clients: list[socket.socket] = []

        async def endless(_wanted: ConnectionFilter) -> AsyncGenerator[list[ConnectionRow], None]:
            while True:
                yield [ConnectionRow(source="x" * 1_000_000)]

        def story() -> float:
            clients.append(connect(tmp_path))
            clients[0].sendall(request("/v1/connections?stream=true"))
            assert clients[0].recv(1)
            return time.monotonic()

        begin = serve(tmp_path, story, Served(CONNECTIONS, connections, endless))
        assert time.monotonic() - begin < 10
        clients[0].close()


class TestVersions:
    def test_command_that_speaks_lines_is_told(self, tmp_path: Path) -> None:
        """It prints "error"."""
        answer = serve(tmp_path, lambda: talk(tmp_path, b'{"op": "status"}\n'))
        assert json.loads(answer) == {
            "ok": False,
            "error": f"the agent is of a newer version ({exchange.__version__}) than this command: run the one that is "
            "installed",
        }

    @pytest.mark.parametrize("operation", [VERSION, UPGRADE_CORE])
    def test_agent_that_does_not_know_an_operation(self, tmp_path: Path, operation: Any) -> None:
        with pytest.raises(
            client.AgentError, match=r"is of another version than this command .*; start the agent anew$"
        ):
            serve(tmp_path, lambda: client.ask(tmp_path, operation))

    def test_answer_with_more_and_less_than_is_known(self, tmp_path: Path) -> None:
        class Newer(Row, frozen=True):
            node: str = "node1"
            surprise: int = 1
            agent: Any = msgspec.field(default_factory=lambda: {"pid": 7, "surprise": []})

        async def newer(_parameters: Parameters) -> Any:
            return Newer()

        found = serve(tmp_path, lambda: client.ask(tmp_path, STATUS), Served(STATUS, newer))
        assert found == Status(node="node1", agent=AgentRow(pid=7))

    def test_agent_that_ends_meanwhile(self, tmp_path: Path) -> None:
        def story() -> None:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(tmp_path / run_directory.AGENT_SOCKET))
                listener.listen()
                threading.Thread(target=lambda: listener.accept()[0].close()).start()
                client.ask(tmp_path, STATUS)

        with pytest.raises(client.AgentError, match=r"ended without an answer$"):
            story()


def test_no_agent_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(client.AgentGone, match="nodeseal agent --config"):
        client.ask(tmp_path, STATUS)


def test_no_agent_but_a_core_says_so(tmp_path: Path) -> None:
    lock = LockFile(generations.lock_path(tmp_path, 1))
    with pytest.raises(client.AgentGone, match=r"its core \(pid \d+\) goes on"):
        client.ask(tmp_path, STATUS)
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
