"""The lab's program that keeps many connections open, and what the demo reads of what it prints."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nodeseal_lab.lab import APPS
from support.patience import wait_for

COUNT = 5


class Server:
    """Echoes lines; a line that it is told to spoil comes back as another."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.spoil = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data.replace(b"line", b"Line") if self.spoil else data)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Client:
    def __init__(self, server: Server, *more: str) -> None:
        argv = [sys.executable, str(APPS / "line_clients.py"), "127.0.0.1", str(server.port), str(COUNT), *more]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def says(self, beginning: str) -> str | None:
        return next((line for line in self.lines if line.startswith(beginning)), None)

    def end(self) -> list[str]:
        self.process.terminate()
        assert self.process.wait(30) == 0
        self._thread.join()
        return self.lines[-1].split()


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(server, *getattr(request, "param", ()))
    wait_for(lambda: client.says(f"open {COUNT} "), "all are open")
    wait_for(lambda: len(server.connections) == COUNT, "the server has accepted all")
    yield client
    client.process.kill()
    client.process.communicate()


def test_all_end_in_order_with_every_line_back(client: Client) -> None:
    word, closed, sent, received, longest = client.end()
    assert (word, int(closed), sent) == ("closed", COUNT, received)
    assert int(sent) >= COUNT
    assert float(longest) > 0
    assert client.says("cut") is None


def test_connection_that_ends_by_itself_is_told(server: Server, client: Client) -> None:
    local = "{}:{}".format(*server.connections[2].getpeername())
    server.connections[2].shutdown(socket.SHUT_RDWR)
    line = wait_for(lambda: client.says("cut"), "the cut is told")
    assert line.split()[1] == local
    assert line.endswith("the connection was closed")
    assert int(client.end()[1]) == COUNT - 1


def test_line_that_comes_back_as_another_ends_its_connection(server: Server, client: Client) -> None:
    server.spoil = True
    line = wait_for(lambda: client.says("cut"), "it is told")
    assert "came back for" in line


@pytest.mark.parametrize("client", [("3600",)], indirect=True)
def test_round_has_a_line_back_on_each(server: Server, client: Client) -> None:
    wait_for(lambda: client.says(f"open {COUNT} {COUNT}"), "each has sent its first")
    client.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: client.says("round 1"), "the round is told")
    wait_for(lambda: client.says(f"open {COUNT} {2 * COUNT}"), "one more on each")
    server.connections[2].shutdown(socket.SHUT_RDWR)
    wait_for(lambda: client.says("cut"), "the cut is told")
    client.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: client.says("round 2"), "the round of those that are left")
    assert client.end()[1:4] == [str(COUNT - 1), str(3 * COUNT - 1), str(3 * COUNT - 1)]
