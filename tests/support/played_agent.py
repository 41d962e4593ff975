"""Agents of played nodes: real ones, started as their DaemonSet would, with their cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from nodeseal.api import client
from nodeseal.contracts.api import STATUS
from nodeseal.contracts.connections import ConnectionFilter
from nodeseal.contracts.status import Status, WorkloadRow
from nodeseal.daemon.cleanup import cleanup
from support import agent as agent_program
from support.manifests import NAMESPACE
from support.patience import PATIENCE, wait_for
from support.played_node import PlayedCluster, PlayedNode, PlayedPod


class PlayedAgent:
    """A node's, as its DaemonSet would run it: with the token that the API server gives to its pod."""

    def __init__(self, cluster: PlayedCluster, node: PlayedNode, directory: Path, programs: Path, ca: Path) -> None:
        self.node = node
        self.run_dir = directory / node.name
        self._config = directory / f"{node.name}.yaml"
        self._programs = programs
        access = cluster.server.access(token_of(cluster, node))
        kubernetes = {
            "trust_domain": "cluster.local",
            "server": access.server,
            "ca": str(access.ca),
            "token": str(access.token),
        }
        configuration = {
            "mesh": {"kubernetes": kubernetes},
            "ca": str(ca),
            "run_dir": str(self.run_dir),
            "settle": "200ms",
            "workers": 1,
            "cni": {"config_directory": f"{self.run_dir}.net.d", "binary_directory": f"{self.run_dir}.bin"},
        }
        self._config.write_text(json.dumps(configuration))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns at once."""
        environment = {**os.environ, "NODESEAL_NODE": self.node.name, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = (sys.executable, agent_program.__file__, str(self._programs), "--config", str(self._config))
        with self.log.open("a") as log:
            self._process = self.node.namespace.popen(*command, stdout=log, stderr=log, env=environment)

    @property
    def log(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def stop(self) -> None:
        """Core and capture stay."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, self.log.read_text()[-3000:]

    def close(self) -> None:
        """Nothing of it is left."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
        if self.run_dir.exists():
            assert self.node.namespace.run(lambda: cleanup(self.run_dir)).failed == []

    def status(self) -> Status | None:
        """None: it does not answer yet."""
        assert self._process is None or self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return client.ask(self.run_dir, STATUS, None)
        except client.AgentError:
            return None

    def workload(self, *key: str) -> WorkloadRow | None:
        status = self.status()
        name = "/".join(key)
        return next((one for one in status.workloads if one.workload == name), None) if status is not None else None

    def wait_enrolled(self, pod: PlayedPod, phase: str = "enrolled", seconds: float = 20.0) -> None:
        def so() -> bool:
            row = self.workload(*pod.key)
            return row is not None and row.phase == phase

        try:
            wait_for(so, f"{pod.key} is {phase}")
        except BaseException:
            sys.stderr.write(f"{self.status()}\n{self.log.read_text()[-4000:]}")
            raise

    def connections(self, port: int) -> set[str]:
        """How those to this port go."""
        rows = client.ask_connections(self.run_dir, ConnectionFilter()).connections
        return {"mTLS" if one.mtls else str(one.reason) for one in rows if one.destination.endswith(f":{port}")}

    def problems(self) -> set[str]:
        """The words of what is wrong."""
        status = self.status()
        return {one.word for one in status.problems} if status is not None else set()


def token_of(cluster: PlayedCluster, node: PlayedNode) -> str:
    """Bound to a pod of the DaemonSet on the node."""
    name = f"nodeseal-agent-{node.name}"
    container = {"name": "agent", "image": "none"}
    spec = {"nodeName": node.name, "serviceAccountName": "nodeseal-agent", "hostNetwork": True}
    body = {"metadata": {"name": name}, "spec": {**spec, "containers": [container]}}
    pods, account = (f"/api/v1/namespaces/{NAMESPACE}/{kind}" for kind in ("pods", "serviceaccounts"))
    made = cluster.server.ask("POST", pods, body)
    bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": made["metadata"]["uid"]}
    asked = {"spec": {"boundObjectRef": bound}}
    token: str = cluster.server.ask("POST", f"{account}/nodeseal-agent/token", asked)["status"]["token"]
    return token


def has_kinds(cluster: PlayedCluster) -> bool:
    """The API server knows nodeseal's."""
    try:
        for plural in ("meshendpoints", "meshnodes"):
            cluster.server.ask("GET", f"/apis/nodeseal.io/v1alpha1/{plural}")
    except AssertionError:
        return False
    return True
