"""The load generator against a server that is made to behave oddly."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from bench.build import build_programs

MIB = 1 << 20
SECONDS = 0.5


def report(connection: socket.socket, *mebibytes: int) -> None:
    """What serve.c says about an upload."""
    connection.sendall(b"".join((number * MIB).to_bytes(8, "little") for number in mebibytes))


@pytest.fixture
def load_program(tmp_path: Path) -> Path:
    return build_programs(tmp_path).load


def test_upload_reports_that_come_in_a_bunch_are_spread_over_the_measured_time(load_program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        measuring = threading.Event()

        def serve() -> None:
            # It reads no more than the request: the generator soon blocks, and sends nothing to speak of.
            connection, _ = listener.accept()
            with connection:
                connection.recv(512)
                report(connection, 4)
                measuring.wait(10)
                time.sleep(SECONDS / 2)
                report(connection, 8, 12)
                while connection.recv(MIB):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        argv = [str(load_program), "--target", f"127.0.0.1:{listener.getsockname()[1]}", "--up", "1"]
        argv += ["--warmup", "0.1", "--seconds", str(SECONDS)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("go\n")
            process.stdin.flush()
            measuring.set()
            assert process.stdout.readline() == "done\n"
            result = json.loads(process.stdout.readline())
            process.stdin.close()
        server.join(10)
    assert result["up_bytes_per_s"] == pytest.approx(8 * MIB / SECONDS, rel=0.1)
