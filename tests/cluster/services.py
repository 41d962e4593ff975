"""`python -m cluster services`: the rows of docs/kubernetes-services.md, with the real kube-proxy beside nodeseal.

Each row's Services and EndpointSlices are applied. Then two pods of one node dial: one that is not enrolled, which
kube-proxy serves, and one that is. Where the enrolled one arrives must be what the row says, and where the other does
must be the same, unless the row tells a difference.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.images import APPS_IMAGE
from cluster.plan import API_ADDRESS, NODES6
from cluster.story.mesh import Mesh
from nodeseal_lab.demo.report import Report
from support.service_rows import ALONE, NAMESPACE, OUTSIDE, PODS, REFUSED, ROWS, SILENT, Dial, Row, World, node_of

CLIENT, PLAIN = "client", "plain"
OTHERS = "elsewhere"
PORTS = (80, 5353, 8080, 8443, 9000, 9090, 9100)
NOT_HERE = ("node2-external",)
"""A kubelet without a cloud gives its node no address of this type."""
_ADDRESSES = {
    "cluster": "10.96.200.1",
    "cluster-2": "10.96.200.2",
    "cluster/6": "fd96::c801",
    "balancer": "198.51.100.80",
    "external": "198.51.100.81",
}
_MARKER = "10.96.201"
_TIMES, _SECONDS = 12, 3.0
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a dial: what came of it for kube-proxy's client, and for nodeseal's."""

    dial: Dial
    kube_proxy: frozenset[str]
    nodeseal: frozenset[str]


def fits(dial: Dial, seen: frozenset[str]) -> bool:
    """Whether that is what the row says."""
    if dial.arrives in (REFUSED, SILENT):
        return seen == {dial.arrives}
    return dial.arrives == ALONE or (bool(seen) and seen <= {one.replace("/6", "") for one in dial.endpoints})


def same(outcome: Outcome) -> bool:
    """Whether both clients arrive at the same endpoints, or both do not in the same way."""
    return outcome.kube_proxy == outcome.nodeseal or (
        bool(outcome.dial.endpoints) and all(fits(outcome.dial, one) for one in (outcome.kube_proxy, outcome.nodeseal))
    )


def wrong(row: Row, outcomes: Sequence[Outcome]) -> list[str]:
    """What is not as the row says."""
    found = []
    for one in outcomes:
        where = f"{row.name}: {one.dial.to}:{one.dial.port}"
        if not fits(one.dial, one.nodeseal):
            found.append(f"{where}: nodeseal: {shown(one.nodeseal)}, where the row says: {one.dial.arrives}")
        elif not same(one) and not row.nodeseal:
            found.append(f"{where}: nodeseal: {shown(one.nodeseal)}, kube-proxy: {shown(one.kube_proxy)}")
    return found


def shown(seen: frozenset[str]) -> str:
    """ "a1:8080 b1:8080"."""
    return " ".join(sorted(seen)) or "nothing"


class Comparison:
    """In a cluster of three nodes with both families, where nodeseal is installed."""

    def __init__(self, report: Report, cluster: Cluster, mesh: Mesh) -> None:
        self._report = report
        self._cluster = cluster
        self._mesh = mesh
        self._worlds: dict[str, World] = {}
        self._marked = 0

    def run(self, *names: str) -> list[str]:
        """All rows that have dials, or those of these names; what is wrong. Raises CheckFailed, ClusterError."""
        report = self._report
        report.step("a", "Pods on three nodes; all are enrolled but one client")
        problems = []
        with self._outside():
            self._prepare()
            report.proved(f"{len(PODS)} pods are enrolled, and the client {OTHERS}/{PLAIN} is not")
            report.step("b", "Each row is applied, and dialled by both clients of node1")
            for row in ROWS:
                if row.dials and (not names or row.name in names):
                    try:
                        problems += self._row(row)
                    except ClusterError as error:
                        problems.append(f"{row.name}: {error}")
                        report.did(problems[-1])
        return problems

    def _row(self, row: Row) -> list[str]:
        dials = [dial for dial in row.dials if dial.to not in NOT_HERE]
        # Two worlds where the client is an endpoint itself.
        hairpin = any(name == CLIENT for service in row.services for part in service.slices for name in part.endpoints)
        seen: dict[str, list[frozenset[str]]] = {}
        for clients in ((CLIENT,), (PLAIN,)) if hairpin else ((CLIENT, PLAIN),):
            with self._applied(row, self._worlds[clients[0]]):
                for client in clients:
                    self._wait_known(client)
                    seen[client] = self._dialled(client, dials)
        outcomes = [Outcome(*one) for one in zip(dials, seen[PLAIN], seen[CLIENT], strict=True)]
        problems = wrong(row, outcomes)
        for problem in problems:
            self._report.did(f"NOT AS IT SAYS: {problem}")
        if not problems:
            told = "; ".join(f"{one.dial.to}:{one.dial.port} -> {_told(one)}" for one in outcomes)
            self._report.proved(f"{row.name}: {told}")
        return problems

    def _dialled(self, client: str, dials: Sequence[Dial]) -> list[frozenset[str]]:
        """Again until it fits: between a change and the moment when a node knows it is some time."""
        world = self._worlds[client]
        # Once where nobody answers: the kernel tells a client only now and then that it is refused (icmp_ratelimit).
        places = [f"{_TIMES if dial.endpoints else 1},{world.addresses[dial.to]},{dial.port}" for dial in dials]
        namespace = NAMESPACE if client == CLIENT else OTHERS
        found: list[frozenset[str]] = []
        for _ in range(_TRIES):
            words = ["exec", client, "--namespace", namespace, "--", "python3", "/apps/dials.py"]
            said = json.loads(self._cluster.kubectl(*words, str(_SECONDS), *places))
            found = [frozenset(one.replace(PLAIN, CLIENT) for one in seen) for seen in said]
            if all(map(fits, dials, found)):
                break
        return found

    @contextlib.contextmanager
    def _applied(self, row: Row, world: World) -> Iterator[None]:
        """And a Service behind it, which is known once the row is."""
        objects = list(row.objects(world))
        self._marked += 1
        marker = f"marker-{self._marked}"
        mark: list[dict[str, Any]] = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": marker, "namespace": NAMESPACE},
                "spec": {"clusterIP": f"{_MARKER}.{self._marked}", "ports": [{"name": "http", "port": 80}]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": marker,
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": marker},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [world.addresses["c1"]]}],
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            },
        ]
        everything = [{key: value for key, value in one.items() if key != "status"} for one in objects]
        try:
            self._cluster.apply(*everything)
            for one in objects:
                if status := one.get("status"):
                    words = ["patch", "service", one["metadata"]["name"], "--namespace", NAMESPACE]
                    patch = json.dumps({"status": status})
                    self._cluster.kubectl(*words, "--subresource=status", "--type=merge", "--patch", patch)
            self._cluster.apply(*mark)
            yield
        finally:
            kept = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*everything, *mark]})
            self._cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", text=kept)

    def _wait_known(self, client: str) -> None:
        namespace = NAMESPACE if client == CLIENT else OTHERS
        words = ["exec", client, "--namespace", namespace, "--", "python3", "/apps/dials.py", "1"]

        def known() -> bool:
            said = json.loads(self._cluster.kubectl(*words, f"1,{_MARKER}.{self._marked},80"))
            return bool(said == [["c1:8080"]])

        self._cluster.wait_for(known, f"{client} arrives at a Service that was just made", 30.0)

    def _prepare(self) -> None:
        cluster = self._cluster
        labels = {"nodeseal.io/enrol": "true"}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHERS}},
            *(_pod(name, NAMESPACE) for name in PODS),
            _pod(PLAIN, OTHERS),
        )
        for node, zone in (("node1", "zone-a"), ("node2", "zone-b"), ("node3", "zone-b")):
            cluster.kubectl("label", "node", node, f"topology.kubernetes.io/zone={zone}", "--overwrite")
        for namespace in (NAMESPACE, OTHERS):
            words = ["wait", "--for=condition=Ready", "pods", "--all", "--namespace", namespace, "--timeout=100s"]
            cluster.kubectl(*words)
        addresses = {**_ADDRESSES, OUTSIDE: str(API_ADDRESS), f"{OUTSIDE}/6": str(NODES6[1])}
        for one in cluster.nodes:
            for address in one.plan.addresses:
                addresses[one.name + ("/6" if address.version == 6 else "")] = str(address)
        for pod in cluster.get("pods", "--namespace", NAMESPACE)["items"]:
            addresses |= _addresses_of(pod, pod["metadata"]["name"])
        plain = _addresses_of(cluster.get("pod", PLAIN, "--namespace", OTHERS), CLIENT)
        nodes = {one.name: one.name for one in cluster.nodes}
        self._worlds = {CLIENT: World(nodes, addresses), PLAIN: World(nodes, addresses | plain)}
        self._mesh.wait_enrolled(len(PODS))

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        """A server that is no pod, in the control plane's namespace."""
        program = str(Path(__file__).with_name("apps") / "named_server.py")
        server = self._cluster.popen("python3", program, OUTSIDE, "8443", stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            server.kill()
            server.wait()


def _told(outcome: Outcome) -> str:
    if same(outcome):
        return shown(outcome.nodeseal)
    return f"{shown(outcome.nodeseal)} (kube-proxy: {shown(outcome.kube_proxy)}, as the row tells)"


def _addresses_of(pod: Mapping[str, Any], name: str) -> dict[str, str]:
    return {name + ("/6" if ":" in one["ip"] else ""): one["ip"] for one in pod["status"]["podIPs"]}


def _pod(name: str, namespace: str) -> dict[str, Any]:
    node = node_of(name) if name != PLAIN else "node1"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "app",
                    "image": APPS_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["python3", "/apps/named_server.py", name, *map(str, PORTS)],
                }
            ],
        },
    }
