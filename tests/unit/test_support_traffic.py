"""The traffic program, over loopback: what it counts is what happened."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control import Remote, RemoteError
from support.messages import Sender
from support.patience import wait_for
from support.pod_traffic import new_marker, traffic_command

HOST = "127.0.0.1"
MARKER = new_marker()


class Program:
    """One that runs."""

    def __init__(self, directory: Path, name: str) -> None:
        control = directory / name
        self.process = subprocess.Popen(traffic_command(control, HOST))
        self._remote = Remote(control)
        wait_for(self._connect, "the program answers")

    def ask(self, op: str, **arguments: Any) -> Any:
        return self._remote.ask(op, **arguments)

    def open(self, port: int, count: int, **options: Any) -> None:
        self.ask("open", group="some", address=(HOST, port), count=count, marker=MARKER.hex(), **options)

    def group(self) -> dict[str, int]:
        counts: dict[str, int] = self.ask("counts")["groups"]["some"]
        return counts

    def served(self) -> dict[str, int]:
        counts: dict[str, int] = self.ask("counts")["served"]
        return counts

    def whats(self) -> set[str]:
        return {incident["what"] for incident in self.ask("incidents")}

    def end(self) -> None:
        self._remote.close()
        self.process.kill()
        self.process.wait()

    def _connect(self) -> bool:
        with contextlib.suppress(OSError):
            self._remote.connect()
            return True
        return False


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path, "client")
    yield program
    program.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path, "server")
    yield program
    program.end()


def test_connections_that_finish_are_whole(client: Program, server: Program) -> None:
    client.open(server.ask("listen"), 50, interval_ms=20, reply_ms=20)
    wait_for(lambda: client.group()["received"] > 200, "messages go both ways")
    client.ask("finish", group="some")
    wait_for(lambda: client.group()["closed"] == server.served()["closed"] == 50, "every connection ends")
    mine, other = client.group(), server.served()
    assert (mine["sent"], other["sent"]) == (other["received"], mine["received"])
    assert (mine["open"], mine["cut"], mine["failed"], mine["wrong"]) == (0, 0, 0, 0)
    assert client.ask("incidents") == server.ask("incidents") == []


def test_connections_end_by_themselves_after_their_messages(client: Program, server: Program) -> None:
    client.open(server.ask("listen"), 20, interval_ms=1, reply_ms=5, messages=3)
    wait_for(lambda: client.group()["closed"] == server.served()["closed"] == 20, "every connection ends")
    assert server.served()["received"] == 20 * 4


def test_slow_reader_gets_everything(client: Program, server: Program) -> None:
    client.open(server.ask("listen"), 2, reply_ms=0, read_rate=200_000)
    wait_for(lambda: client.group()["received"] > 30, "the reader reads")
    client.ask("finish", group="some")
    wait_for(lambda: client.group()["closed"] == server.served()["closed"] == 2, "every connection ends")
    assert client.group()["received"] == server.served()["sent"]


def test_server_that_dies_cuts_every_connection(client: Program, server: Program) -> None:
    client.open(server.ask("listen"), 10, interval_ms=50)
    wait_for(lambda: client.group()["open"] == 10, "every connection is open")
    server.process.kill()
    wait_for(lambda: client.group()["cut"] == 10, "every connection is cut")
    assert client.whats() == {"cut"}
    assert len({incident["connection"] for incident in client.ask("incidents")}) == 10


def test_port_that_is_closed_is_a_failure(client: Program) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
    client.open(port, 3)
    wait_for(lambda: client.group()["failed"] == 3, "every connection fails")
    assert client.whats() == {"failed"}


def test_connection_that_fails_is_dialled_again(client: Program, server: Program) -> None:
    port = server.ask("listen")
    client.open(port, 4, redial=True, interval_ms=50)
    wait_for(lambda: client.group()["open"] == 4, "every connection is open")
    server.process.kill()
    server.process.wait()
    wait_for(lambda: client.group()["failed"] > 0, "dialling again fails")
    with serving(port) as accepted:
        wait_for(lambda: len(accepted) == 4, "every connection is dialled again")


@contextlib.contextmanager
def serving(port: int) -> Iterator[list[socket.socket]]:
    """The connections that are accepted; the thread ends with the listener."""
    accepted: list[socket.socket] = []
    with socket.create_server((HOST, port)) as listener:
        listener.settimeout(20)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in accepted:
                one.close()


@pytest.mark.parametrize("harm", ["lost", "repeated"])
def test_harm_on_the_way_is_wrong(client: Program, harm: str) -> None:
    with socket.create_server((HOST, 0)) as listener:
        client.open(listener.getsockname()[1], 1)
        connection, _ = listener.accept()
        with connection:
            sender = Sender(MARKER, 1, 0)
            messages = [sender.message(10) for _ in range(3)]
            connection.sendall(messages[0] + (messages[2] if harm == "lost" else messages[0]))
            wait_for(lambda: client.group()["wrong"] == 1, "the harm is found")
    (incident,) = client.ask("incidents")
    assert incident["what"] == "wrong"
    assert harm in incident["detail"]


def test_request_that_cannot_be_is_refused(client: Program) -> None:
    with pytest.raises(RemoteError, match="KeyError"):
        client.ask("finish", group="unknown")
