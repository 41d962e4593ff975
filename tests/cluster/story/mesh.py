"""nodeseal in the cluster: installed, asked and removed, with the commands that a user has."""

from __future__ import annotations

import sys
from typing import Any

from cluster.cluster import Cluster
from cluster.errors import ClusterError, CommandError
from cluster.programs import run

NAMESPACE = "nodeseal-system"
AGENTS = "daemonset/nodeseal-agent"
_LONG = 180.0


class Mesh:
    """`image`: what the nodes have been given."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self._cluster = cluster
        self._values = ["--image", image, "--set", "image.pullPolicy=Never", "--set", "namespace.create=true"]

    def install(self) -> None:
        """`nodeseal install | kubectl apply -f -`; every agent is Ready when this returns. Raises ClusterError."""
        self._cluster.kubectl("apply", "-f", "-", text=self._nodeseal("install"))
        self.wait_rolled_out()

    def uninstall(self) -> None:
        """Both steps of `nodeseal uninstall`. Raises ClusterError."""
        self._cluster.kubectl("apply", "-f", "-", text=self._nodeseal("uninstall"))
        self.wait_rolled_out()
        self._cluster.kubectl("delete", "-f", "-", text=self._nodeseal("uninstall", "--delete"), seconds=_LONG)

    def restart(self) -> None:
        """Another pod takes the place of every agent; returns when all are Ready. Raises ClusterError."""
        self._cluster.kubectl("rollout", "restart", AGENTS, "--namespace", NAMESPACE)
        self.wait_rolled_out()

    def wait_rolled_out(self) -> None:
        """Raises CommandError, with what the agents say."""
        try:
            words = ["rollout", "status", AGENTS, "--namespace", NAMESPACE, f"--timeout={_LONG:.0f}s"]
            self._cluster.kubectl(*words, seconds=_LONG + 10)
        except CommandError as error:
            pods = self._cluster.kubectl("get", "pods", "--namespace", NAMESPACE, "-o", "wide")
            said = self._cluster.kubectl("logs", AGENTS, "--namespace", NAMESPACE, "--all-containers", "--tail=5")
            raise CommandError(["kubectl", *words], error.status, f"{error.said}\n{pods}\n{said}") from error

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The status of each MeshNode, by its name. Raises CommandError."""
        return {one["metadata"]["name"]: one["status"] for one in self._cluster.get("meshnodes")["items"]}

    def enrolled(self) -> int:
        """How many workloads are, on all nodes."""
        return sum(status.get("enrolled", 0) for status in self.nodes().values())

    def wait_enrolled(self, count: int) -> None:
        """Until so many are, and no more are wanted. Raises ClusterError, with the problems."""

        def holds() -> bool:
            statuses = self.nodes().values()
            return all(sum(one.get(key, 0) for one in statuses) == count for key in ("enrolled", "wanted"))

        self._cluster.wait_for(holds, f"{count} workloads are enrolled")

    def problems(self) -> list[str]:
        """What the nodes say of something wrong: "node1: WORD: TEXT"."""
        return [
            f"{node}: {one['word']}: {one['text']}"
            for node, status in self.nodes().items()
            for one in status.get("problems", [])
        ]

    def table(self) -> str:
        """`kubectl get meshnodes`."""
        return self._cluster.kubectl("get", "meshnodes")

    def on_node(self, node: str, *words: str) -> str:
        """What a command of nodeseal says in the agent of a node. Raises ClusterError, also where there is none."""
        pods = self._cluster.get("pods", "--namespace", NAMESPACE, "--field-selector", f"spec.nodeName={node}")["items"]
        names = [one["metadata"]["name"] for one in pods if one["metadata"]["name"].startswith("nodeseal-agent-")]
        if not names:
            raise ClusterError(f"no agent's pod is on {node}")
        return self._cluster.kubectl("exec", names[0], "--namespace", NAMESPACE, "--", "nodeseal", *words)

    def _nodeseal(self, *words: str) -> str:
        return run([sys.executable, "-m", "nodeseal", *words, *self._values])
