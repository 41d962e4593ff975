"""nodeseal-cni, built with the sanitizers, and called as a container runtime calls it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.kept import kept_in

CHECKOUT = Path(__file__).resolve().parents[2]
CNI, FUZZ = CHECKOUT / "cext" / "cni", CHECKOUT / "cext" / "fuzz"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
SANITIZERS = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COMPILE_S, CALL_S = 120, 60


def built(name: str, *sources: Path) -> Path:
    """A program of these sources, with the sanitizers."""
    digest = hashlib.sha256(repr((WARNINGS, SANITIZERS)).encode())
    for path in sorted({*sources, *CNI.glob("*.h")}):
        digest.update(path.read_bytes())
    with kept_in("cni") as directory:
        program = directory / f"{name}-{digest.hexdigest()[:16]}"
        if not program.exists():
            draft = program.with_suffix(".new")
            command = ["gcc", *WARNINGS, *SANITIZERS, *map(str, sources), "-o", str(draft)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
            assert done.returncode == 0, done.stderr
            draft.rename(program)
    return program


def plugin() -> Path:
    """The network plugin."""
    return built("nodeseal-cni", *sorted(CNI.glob("*.c")))


RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/cni-1"}],
    "ips": [{"address": "10.1.0.7/24", "interface": 0}, {"address": "fd00::7/64"}],
}


def configuration(socket_path: Path | str, **changes: Any) -> dict[str, Any]:
    """What the runtime gives it."""
    values = {"cniVersion": "1.0.0", "name": "net", "type": "nodeseal-cni", "socket": str(socket_path)}
    return {**values, "prevResult": RESULT, **changes}


def environment(command: str, **changes: str) -> dict[str, str]:
    """The variables of one call for the pod default/web-1."""
    values = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "sandbox-1",
        "CNI_NETNS": "/var/run/netns/cni-1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_UID=uid-1",
        "CNI_PATH": "/opt/cni/bin",
    }
    return {**values, **changes}


@dataclass(frozen=True)
class Called:
    """How a call ended."""

    status: int
    output: bytes
    errors: str

    @property
    def error(self) -> Any:
        """The error of the specification."""
        assert self.status == 1, self
        return json.loads(self.output)


def start(program: Path, variables: Mapping[str, str], given: bytes) -> subprocess.Popen[bytes]:
    """A call that has begun, with its configuration."""
    pipe = subprocess.PIPE
    called = subprocess.Popen([program], stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **variables})
    assert called.stdin is not None
    with contextlib.suppress(BrokenPipeError), called.stdin:
        called.stdin.write(given)
    called.stdin = None
    return called


def ended(called: subprocess.Popen[bytes]) -> Called:
    """Waits for its end."""
    output, errors = called.communicate(timeout=CALL_S)
    return Called(called.returncode, output, errors.decode())


def call(program: Path, variables: Mapping[str, str], given: bytes | Mapping[str, Any]) -> Called:
    """A whole call."""
    data = given if isinstance(given, bytes) else json.dumps(given).encode()
    return ended(start(program, variables, data))


@dataclass
class FakeAgent:
    """Answers each question with the next of `answers`: bytes as they are, a mapping in a frame, None: goes without."""

    path: Path
    answers: list[bytes | Mapping[str, Any] | None]
    questions: list[Any] = field(default_factory=list)
    patience_ms: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeAgent]:
        """Listens within the context; all answers are to be asked for by its end."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(16)
        thread = threading.Thread(target=self._serve, args=(listener,))
        thread.start()
        try:
            yield self
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(timeout=CALL_S)
            self.path.unlink()
        assert not self.answers

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                magic, size, patience = struct.unpack(">4sII", stream.read(12))
                assert magic == b"NSC1"
                self.questions.append(json.loads(stream.read(size)))
                self.patience_ms.append(patience)
                answer = self.answers.pop(0)
                if answer is None:
                    continue
                with contextlib.suppress(ConnectionError):
                    connection.sendall(answer if isinstance(answer, bytes) else framed(answer))


def framed(answer: Mapping[str, Any]) -> bytes:
    """An answer on the wire."""
    body = json.dumps(answer).encode()
    return struct.pack(">4sI", b"NSC1", len(body)) + body
