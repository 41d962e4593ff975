"""The Python side of a core, with a stand-in for its C side, and the agent's client of it: over a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeseal.contracts import core as contract
from nodeseal.linux import control_socket
from nodeseal.local import generations
from nodeseal.splice import control_loop, control_server, native
from support.core_client import BlockingClient
from support.core_fakes import make_native


class RunningServer:
    """A control server in a thread, with its fake library and a client."""

    def __init__(self, run_dir: Path) -> None:
        module, self.lib = make_native()
        core = native.Core(module, workers=1, trust_domain="example.org")
        self.server = control_server.ControlServer(core, trust_domain="example.org")
        self._listener = control_socket.listen(str(generations.socket_path(run_dir, 1)))
        self._wake, self._signalled = socket.socketpair()
        self.thread = threading.Thread(target=control_loop.serve, args=(self.server, self._listener, self._wake))
        self.thread.start()
        self.client = BlockingClient.of(run_dir, 1)

    def answer(self, request: dict[str, object], fds: Sequence[int] = ()) -> dict[str, Any]:
        """To a request that no client of today would make."""
        answer, _fds = self.server.handle(control_server.Session(), json.dumps(request).encode(), list(fds))
        told: dict[str, Any] = json.loads(contract.encode(answer))
        return told

    def end(self) -> None:
        self._signalled.send(b"x")
        self.thread.join()
        self.client.close()
        for one in (self._listener, self._wake, self._signalled):
            one.close()
