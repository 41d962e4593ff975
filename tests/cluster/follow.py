"""`python -m cluster follow`: README's two commands, timed, and docs/roll-out-on-kubernetes.md, command by command."""

from __future__ import annotations

import json
import time
from typing import Any

from cluster.cluster import Cluster
from cluster.commands import REPOSITORY, Reader, commands
from cluster.errors import ClusterError
from cluster.images import APPS_IMAGE
from cluster.story.mesh import Mesh
from nodeseal_lab.demo.report import Report

README = REPOSITORY / "README.md"
PAGE = REPOSITORY / "docs" / "roll-out-on-kubernetes.md"
SHOP, LEGACY = "shop", "legacy"
LONGEST_S = 120.0
_DIALS = (
    "while :; do curl --silent --show-error --fail --max-time 3 --output /dev/null "
    "http://$0:8080/hostname 2>&1 && echo ok || echo failed; sleep 0.5; done"
)


class Following:
    """In a cluster where nothing of nodeseal is, but its image on the nodes."""

    def __init__(self, report: Report, cluster: Cluster, image: str) -> None:
        self._report = report
        self._cluster = cluster
        self._mesh = Mesh(cluster, image)
        self._reader = Reader(cluster, image)

    def run(self) -> None:
        """Raises CheckFailed, ClusterError."""
        self._report.step("a", "A cluster that runs: shop/web and legacy/report dial shop/cart")
        self._deploy()
        self._report.proved("each dials twice a second, and is answered")
        self._readme()
        self._mesh.uninstall()
        self._cluster.kubectl("label", "namespace", SHOP, "nodeseal.io/enrol-")
        self._roll_out()

    def _readme(self) -> None:
        report = self._report
        report.step("b", "README, On Kubernetes: from nothing to the first mutual TLS")
        lines = commands(README, "On Kubernetes")
        report.check("two commands", len(lines) == 2, expected=2, seen=lines)
        began = time.monotonic()
        self._all(lines)
        self._cluster.wait_for(self._has_mtls, "web and cart talk by mutual TLS")
        seconds = time.monotonic() - began
        report.check("it is quick", seconds < LONGEST_S, expected=f"under {LONGEST_S:.0f} s", seen=f"{seconds:.1f} s")
        report.proved(f"the first connection by mutual TLS was seen {seconds:.1f} s after the first command began")

    def _roll_out(self) -> None:
        report, cluster = self._report, self._cluster
        report.step("c", "One node")
        said = self._all(commands(PAGE, "One node"))
        report.check("check concludes", "capture by" in said, expected="capture by ...", seen=said[-200:])
        nodes = set(self._mesh.nodes())
        report.check("an agent on that node alone", nodes == {"node1"}, expected="node1", seen=nodes)
        report.proved("an agent runs on node1 alone, and check says how it would capture")

        report.step("d", "One deployment")
        label, status, events = commands(PAGE, "One deployment")
        self._all([label])
        cluster.wait_for(lambda: "yes" in self._reader.run(status), "cart is enrolled")
        report.check("no Event", "NodesealProblem" not in self._all([events]), expected="none", seen="one")
        self._mesh.wait_enrolled(1)
        report.proved("cart's pod is enrolled, nobody else, and both clients are answered")
        self._check_answered("web", SHOP)

        report.step("e", "Everything on all nodes; one namespace")
        self._all(commands(PAGE, "Everything on all nodes"))
        label, wait, status, connections = commands(PAGE, "One namespace")
        self._all([label])
        self._mesh.wait_enrolled(2)
        self._all([wait, status])
        cluster.wait_for(self._has_mtls, "web and cart talk by mutual TLS")
        self._all([connections])
        self._check_answered("web", SHOP)
        self._check_answered("report", LEGACY)
        report.proved("web and cart talk by mutual TLS, and report, which is not enrolled, in plaintext")

        report.step("f", "From permissive to strict")
        check, label, connections = commands(PAGE, "From permissive to strict")
        said = self._all([check])
        refused = [line for line in said.splitlines() if "(legacy/report" in line and "shop/cart" in line]
        report.check("check names report", len(refused) == 1, expected="a line with legacy/report", seen=said[-400:])
        report.show(refused[0])
        self._all([label])
        cluster.wait_for(lambda: self._last("report", LEGACY) == "failed", "report is refused")
        self._check_answered("web", SHOP)
        said = self._all([connections])
        report.check("it is told", "strict" in said, expected="strict", seen=said[-400:])
        report.proved("report is refused, as check said; web is answered")

        report.step("g", "In an emergency")
        suspend, nodes_, resume, wait = commands(PAGE, "In an emergency")
        report.show(self._all([suspend, nodes_]))
        self._mesh.wait_enrolled(0)
        cluster.wait_for(lambda: self._last("report", LEGACY) == "ok", "report is answered again")
        self._check_answered("web", SHOP)
        report.proved("suspended: no pod is enrolled, and everybody is answered")
        self._all([resume])
        self._mesh.wait_enrolled(2)
        self._all([wait])
        cluster.wait_for(lambda: self._last("report", LEGACY) == "failed", "report is refused again")
        self._check_answered("web", SHOP)
        report.proved("resumed: as before")

    def _all(self, lines: list[str]) -> str:
        said = ""
        for line in lines:
            self._report.did(line)
            said += self._reader.run(line)
        return said

    def _has_mtls(self) -> bool:
        """Whether the agent of cart's node has seen such a connection of it."""
        try:
            said = json.loads(self._mesh.on_node("node1", "connections", "-o", "json"))
        except ClusterError:
            return False  # it starts
        return any(row["mtls"] and row["workload"].startswith(f"{SHOP}/cart") for row in said["connections"])

    def _last(self, app: str, namespace: str) -> str:
        return self._cluster.kubectl("logs", f"deploy/{app}", "--namespace", namespace, "--tail=1").strip()

    def _check_answered(self, app: str, namespace: str) -> None:
        """That its next two dials are answered. Raises ClusterError."""

        def answered() -> bool:
            words = ["logs", f"deploy/{app}", "--namespace", namespace, "--tail=2"]
            return self._cluster.kubectl(*words).split() == ["ok", "ok"]

        self._cluster.wait_for(answered, f"{namespace}/{app} is answered", 30.0)

    def _deploy(self) -> None:
        cluster = self._cluster
        cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": one}} for one in (SHOP, LEGACY)))
        cluster.apply(
            _deployment("cart", SHOP, "node1", ["busybox", "httpd", "-f", "-p", "8080", "-h", "/etc"]),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "cart", "namespace": SHOP},
                "spec": {"selector": {"app": "cart"}, "ports": [{"port": 8080}]},
            },
        )
        address = cluster.get("service", "cart", "--namespace", SHOP)["spec"]["clusterIP"]
        for name, namespace in (("web", SHOP), ("report", LEGACY)):
            cluster.apply(_deployment(name, namespace, "node2", ["sh", "-c", _DIALS, address]))
        for namespace in (SHOP, LEGACY):
            words = ["--for=condition=Available", "deployment", "--all", "--namespace", namespace, "--timeout=100s"]
            cluster.kubectl("wait", *words)
        self._check_answered("web", SHOP)
        self._check_answered("report", LEGACY)


def _deployment(name: str, namespace: str, node: str, command: list[str]) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "app", "image": APPS_IMAGE, "imagePullPolicy": "Never", "command": command}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
