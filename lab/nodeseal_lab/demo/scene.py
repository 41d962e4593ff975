"""The demo's pods and what they do: requests, the servers' logs, and nodeseal's own view of them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from typing import Any

from nodeseal_lab.demo.evidence import CARD
from nodeseal_lab.demo.report import CheckFailed
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import PIPELINE_HTTP_PORT, Plan, in_url
from nodeseal_lab.processes import child_environment

# -g: brackets in an URL are those of an IPv6 address.
_CURL = ("curl", "-g", "--silent", "--show-error", "--max-time", "15")
_NODESEAL = (sys.executable, "-m", "nodeseal")
_COMMAND_SECONDS = 20.0


class Scene:
    """The pods of the story. `lab` is there from the moment that the lab is up."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lab: Lab
        self.shipper, self.pipeline, self.siem, self.intruder = (
            plan.pod(pod) for pod in ("shipper", "pipeline", "siem", "intruder")
        )
        self.url = f"http://{in_url(self.pipeline.named_address)}:{PIPELINE_HTTP_PORT}/"

    def post_card(self) -> str:
        """shipper sends a log line with the card number, over a new connection; returns siem's answer. Raises
        CheckFailed."""
        result = self.curl("shipper", "--fail", "--data-binary", f"card={CARD} amount=42.00 EUR\n")
        if result.returncode != 0:
            raise CheckFailed("shipper's log line is delivered", expected="HTTP 200", seen=result.stderr.strip())
        return result.stdout.strip()

    def curl(self, pod: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.lab.run(pod, [*_CURL, *options, self.url])

    def dial(self, pod: str, address: str, port: int) -> str:
        """What connect() in the pod says: "connected", or an errno's name."""

        def attempt() -> int:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as application:
                application.settimeout(_COMMAND_SECONDS)
                return application.connect_ex((address, port))

        number = run_in(self.plan.pod(pod).netns, attempt)
        return errno.errorcode[number] if number else "connected"

    def connect_mode(self, node: str, pod: str) -> str:
        """How a pod's connect() ends, "truthful" or "early", by `nodeseal status`. Raises LabError."""
        workloads = [one for row in self._told(node, "status")["nodes"] for one in row["workloads"]]
        return next(str(one["connect"]) for one in workloads if one["workload"].rpartition("/")[2] == pod)

    def access_log(self, pod: str) -> list[str]:
        return (self.lab.pod_directory(pod) / "access.log").read_text().splitlines()

    def requests_from_intruder(self) -> int:
        source = in_url(self.intruder.named_address)
        return sum(f" {source}:" in line for line in self.access_log("pipeline"))

    def connections(self, node: str) -> list[dict[str, Any]]:
        """What `nodeseal connections` says of a node. Raises LabError."""
        connections: list[dict[str, Any]] = self._told(node, "connections")["connections"]
        return connections

    def refused(self, node: str) -> list[dict[str, Any]]:
        """Whom a node refused, and who refused its workloads, the last first. Raises LabError."""
        refused: list[dict[str, Any]] = self._told(node, "connections")["refused"]
        return sorted(refused, key=lambda row: float(row["last_seconds"]))

    def connections_on_terminal(self, node: str, columns: int) -> str:
        """The live connections as a terminal of so many columns shows them: in a pipe lines are as long as they are."""
        return self.on_terminal(columns, "connections", "--run-dir", str(self.lab.run_dirs[node]), "--live")

    def nodeseal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line: nodeseal ARGUMENTS, whatever comes of it."""
        return subprocess.run(
            [*_NODESEAL, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
            env=child_environment(),
        )

    def does(self, *arguments: str) -> str:
        """A command that has to work; what it prints. Raises LabError."""
        done = self.nodeseal(*arguments)
        if done.returncode != 0:
            raise LabError(f"nodeseal {' '.join(arguments)} fails: {done.stderr.strip()}")
        return done.stdout

    def on_terminal(self, columns: int, *arguments: str) -> str:
        """What a command shows on a terminal of so many columns. Raises LabError."""
        leader, follower = pty.openpty()
        with os.fdopen(leader, "rb", buffering=0) as screen:
            try:
                termios.tcsetwinsize(follower, (24, columns))
                environment = {name: value for name, value in child_environment().items() if name != "COLUMNS"}
                command = subprocess.Popen(
                    [*_NODESEAL, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=follower,
                    stderr=follower,
                    env=environment,
                )
            finally:
                os.close(follower)
            shown = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
                while part := screen.read(4096):
                    shown += part
        text = shown.decode().replace("\r\n", "\n")
        if command.wait(_COMMAND_SECONDS) != 0:
            raise LabError(f"nodeseal {' '.join(arguments)} fails: {text.strip()}")
        return text

    def _told(self, node: str, command: str) -> dict[str, Any]:
        """What a command of nodeseal says of a node with `-o json`. Raises LabError."""
        told: dict[str, Any] = json.loads(self.does(command, "--run-dir", str(self.lab.run_dirs[node]), "-o", "json"))
        return told
