"""A cluster from nothing and back.

with Cluster.up(ClusterPlan("mine"), [apps_image()]) as cluster:
    print(cluster.kubectl("get", "nodes"))
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

from cluster import cgroups, network
from cluster.control_plane import ControlPlane
from cluster.errors import ClusterError, ClusterExistsError, NoClusterError
from cluster.images import pause_image
from cluster.node import Node
from cluster.plan import ROOT, ClusterPlan, cgroup_of
from cluster.programs import KUBERNETES, require_programs, run
from nodeseal_lab.lab import require_root

PATIENCE = 120.0


class Cluster:
    """One that is there."""

    def __init__(self, plan: ClusterPlan) -> None:
        self.plan = plan
        self.control_plane = ControlPlane(plan)
        self.nodes = [Node(plan, node) for node in plan.nodes]

    @classmethod
    def up(cls, plan: ClusterPlan, images: Sequence[Path] = ()) -> Self:
        """Makes it; its nodes are Ready, with these images. Raises ClusterError, LabError; nothing is left then."""
        require_root("a cluster")
        require_programs()
        if plan.directory.exists() or network.namespaces_of(plan.name):
            raise ClusterExistsError(plan.name)
        plan.directory.mkdir(parents=True, mode=0o700)
        try:
            plan.save()
            cluster = cls(plan)
            cluster._make(images)
        except BaseException:
            take_down(plan.name)
            raise
        return cluster

    @classmethod
    def find(cls, name: str) -> Self:
        """One that is up. Raises NoClusterError."""
        return cls(ClusterPlan.load(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        take_down(self.plan.name)

    def node(self, name: str) -> Node:
        """Raises ClusterError when there is none of this name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ClusterError(f"unknown node '{name}': this cluster has {', '.join(node.name for node in self.nodes)}")

    def client(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs `argv` where the API server can be reached, as the administrator (KUBECONFIG)."""
        path = f"PATH={KUBERNETES}:{os.environ.get('PATH', '')}"
        inside = ["env", path, f"KUBECONFIG={self.control_plane.kubeconfig}", *argv]
        return [str(word) for word in ("nsenter", f"--net=/run/netns/{self.plan.api_netns}", *inside)]

    def kubectl(self, *words: str, text: str | None = None, seconds: float = PATIENCE) -> str:
        """What kubectl prints. `text`: its standard input. Raises CommandError when it fails."""
        return run(self.client(["kubectl", *words]), text=text, seconds=seconds)

    def get(self, *words: str) -> Any:
        """`kubectl get ... -o json`, parsed. Raises CommandError."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """`kubectl apply` of these. Raises CommandError."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A program as client() runs it, for whoever ends it."""
        return subprocess.Popen(self.client(argv), text=True, **options)

    def load(self, *archives: Path) -> None:
        """Images for all nodes, from docker or OCI archives; nobody has to pull them. Raises ClusterError."""
        _at_once([partial(node.import_image, archive) for archive in archives for node in self.nodes])

    def reboot(self, node: Node) -> None:
        """A power cut, and the node's return; its kubelet runs when this returns. Raises ClusterError, LabError."""
        node.kill()
        self.start_node(node)

    def start_node(self, node: Node) -> None:
        """One that is off. Raises ClusterError, LabError."""
        node.boot()
        node.start("kubelet")
        node.start("kube-proxy")

    def wait_ready(self) -> None:
        """Until every node is Ready. Raises ClusterError, with what the kubelets said last."""
        names = {node.name for node in self.nodes}

        def holds() -> bool:
            for node in self.nodes:
                node.revive()
            return {one for one, ready in self._readiness().items() if ready} == names

        try:
            self.wait_for(holds, "all nodes are Ready")
        except ClusterError as error:
            last = [f"{one.name}: {one.log('kubelet').read_text().strip()[-300:]}" for one in self.nodes]
            raise ClusterError(f"{error}; {'; '.join(last)}") from error

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Asks until it holds. Raises ClusterError, naming `what`, when it never does."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"did not happen within {seconds:.0f} s: {what}")
            time.sleep(0.1)

    def _readiness(self) -> dict[str, bool]:
        return {
            node["metadata"]["name"]: any(
                one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", [])
            )
            for node in self.get("nodes")["items"]
        }

    def _make(self, images: Sequence[Path]) -> None:
        credentials = self.control_plane.make()
        network.make_control_plane(self.plan)
        archives = [pause_image(), *images]

        def begin(node: Node) -> None:
            node.make(credentials)
            node.boot()
            for archive in archives:
                node.import_image(archive)

        _at_once([self.control_plane.start, *(partial(begin, node) for node in self.nodes)])
        self.kubectl("apply", "-f", "-", text=json.dumps(_PROXY_RIGHTS))
        for node in self.nodes:
            node.start("kubelet")
            node.start("kube-proxy")
        self.wait_ready()


def take_down(name: str) -> None:
    """Removes a cluster, or what is left of one. Raises ClusterError, LabError when something stays."""
    directory = ROOT / name
    # Without a plan nothing was started yet.
    with contextlib.suppress(NoClusterError):
        cluster = Cluster.find(name)
        _at_once([cluster.control_plane.stop, *(node.kill for node in cluster.nodes)])
    cgroups.remove(cgroup_of(name))
    network.remove_all(name)
    if directory.exists():
        shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        ROOT.rmdir()


def _at_once(actions: Sequence[Callable[[], None]]) -> None:
    """All of them, each in a thread; the first error when all have ended."""
    with ThreadPoolExecutor(len(actions)) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()


_PROXY_RIGHTS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "cluster-kube-proxy"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
}
"""system:kube-proxy has it from the start (bootstrap policy); kubeadm binds it again as well."""
