"""A SPIRE server and a SPIRE agent, which `make spire` builds: both in a network namespace of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from string import Template
from typing import Self

import pytest

from support.namespaces import Namespace
from support.patience import wait_for
from support.process import end_process

PROGRAMS = Path(__file__).resolve().parents[2] / "build" / "spire" / "bin"
NODE = "spiffe://example.org/node1"
"""The SPIRE agent's own identity: the parent of every registration entry."""

_SERVER = """
server {
  bind_address = "127.0.0.1"
  bind_port = "8081"
  socket_path = "$directory/server.sock"
  trust_domain = "example.org"
  data_dir = "$directory"
  log_level = "WARN"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "$directory/server.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
"""

_AGENT = """
agent {
  server_address = "127.0.0.1"
  server_port = "8081"
  socket_path = "$directory/agent.sock"
  trust_domain = "example.org"
  data_dir = "$directory/agent"
  insecure_bootstrap = true
  log_level = "WARN"
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
"""


class Spire:
    """Runs from the making of the object until the end of the `with` block. `directory` is new, and its path short:
    the sockets are in it."""

    def __init__(self, directory: Path, namespace: Namespace) -> None:
        """Skips the test where the programs are not built."""
        if not all((PROGRAMS / name).exists() for name in ("spire-server", "spire-agent")):
            pytest.skip(f"SPIRE is not in {PROGRAMS}: `make spire` builds it, and runs this test")
        self.workload_api = directory / "agent.sock"
        self._directory = directory
        self._namespace = namespace
        self._running: dict[str, subprocess.Popen[str]] = {}
        (directory / "agent").mkdir()

    def __enter__(self) -> Self:
        try:
            self._start("server", _SERVER)
            wait_for(lambda: self._answers("server"), "the SPIRE server is ready")
            self.start_agent()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self._end(name)

    def start_agent(self) -> None:
        """It joins by a new token."""
        token = json.loads(self.ask("token", "generate", "-spiffeID", NODE, "-output", "json"))["value"]
        self._start("agent", _AGENT, "-joinToken", token)
        wait_for(lambda: self._answers("agent"), "the SPIRE agent is ready")

    def stop_agent(self) -> None:
        """It is gone, and its socket answers nobody."""
        self._end("agent")

    def register(self, identity: str, selector: str, *, ttl_s: int = 3600) -> None:
        """A registration entry; its SVIDs live for `ttl_s`."""
        self.ask(
            *("entry", "create", "-parentID", NODE, "-spiffeID", identity),
            *("-selector", selector, "-x509SVIDTTL", str(ttl_s)),
        )

    def trust_anchors(self) -> str:
        """The bundle of the trust domain, PEM."""
        return self.ask("bundle", "show", "-format", "pem")

    def ask(self, *command: str) -> str:
        """A command for spire-server, with its arguments; its output."""
        words = [str(PROGRAMS / "spire-server"), *command, "-socketPath", f"{self._directory}/server.sock"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, name: str, configuration: str, *more: str) -> None:
        path = self._directory / f"{name}.conf"
        path.write_text(Template(configuration).substitute(directory=self._directory))
        with self._log(name).open("a") as log:
            self._running[name] = self._namespace.popen(
                *(str(PROGRAMS / f"spire-{name}"), "run", "-config", str(path), *more), stdout=log, stderr=log
            )

    def _answers(self, name: str) -> bool:
        if self._running[name].poll() is not None:
            pytest.fail(f"spire-{name} ended: {self._log(name).read_text()[-2000:]}")
        words = [str(PROGRAMS / f"spire-{name}"), "healthcheck", "-socketPath", f"{self._directory}/{name}.sock"]
        return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        if process.poll() is None:
            end_process(process.pid)
        process.wait()

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
