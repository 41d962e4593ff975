"""Nodes of a cluster as far as an agent can tell: what a kubelet does is played, API server and kernel are real.

A pod is a network namespace, with a process in a cgroup that has the name which the kubelet would give it, and an
object in the API server that says what the kubelet would. All nodes hang at one namespace, in which the API server is:

    hub 172.29.0.1 (API server) --- 172.29.N.2 node N 10.88.N.x --- 10.88.N.x+1 pod
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nodeseal.linux.cgroups import find_cgroup
from support.api_server import ApiServer
from support.namespaces import Namespace, Namespaces
from support.patience import wait_for

HUB = "172.29.0.1"
_numbers = itertools.count()


class PlayedPod:
    """`namespace`: its network namespace; the node's for one of the host network."""

    def __init__(self, node: PlayedNode, key: tuple[str, str], uid: str, namespace: Namespace, address: str) -> None:
        self.node = node
        self.key = key
        self.uid = uid
        self.namespace = namespace
        self.address = address
        self.cgroup = node.cgroups / "kubepods" / "burstable" / f"pod{uid}"
        self.process: subprocess.Popen[str] | None = None

    @property
    def path(self) -> str:
        """Of its object."""
        return f"/api/v1/namespaces/{self.key[0]}/pods/{self.key[1]}"

    def run(self, container: str = "sandbox") -> None:
        """Its first process, in the cgroup of a container."""
        directory = self.cgroup / container
        directory.mkdir(parents=True)
        self.process = self.namespace.popen("sleep", "100000")
        (directory / "cgroup.procs").write_text(str(self.process.pid))

    def tell(self, phase: str = "Running", *addresses: str) -> None:
        """What the kubelet says of it."""
        told = [{"ip": one} for one in addresses or (self.address,)]
        status = {"phase": phase, "podIP": told[0]["ip"], "podIPs": told}
        self.node.server.ask("PATCH", f"{self.path}/status", {"status": status}, "application/merge-patch+json")

    def annotate(self, **annotations: str | None) -> None:
        """Annotations of nodeseal's; None takes one off."""
        self._change({"annotations": _named(annotations)})

    def label(self, **labels: str | None) -> None:
        """Labels of nodeseal's."""
        self._change({"labels": _named(labels)})

    def _change(self, metadata: dict[str, Any]) -> None:
        self.node.server.ask("PATCH", self.path, {"metadata": metadata}, "application/merge-patch+json")

    def end(self) -> None:
        """Its processes end, and their cgroup goes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
            self.process = None
        _remove_cgroup(self.cgroup)

    def delete(self) -> None:
        """It is gone, with its object."""
        self.end()
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        self.node.server.ask("DELETE", self.path, body)


class PlayedNode:
    """One node."""

    def __init__(self, server: ApiServer, net: Namespaces, hub: Namespace, number: int) -> None:
        self.server = server
        self.name = f"node{number}"
        self.address = f"172.29.{number}.2"
        self.namespace = net.create(self.name)
        self.cgroups = find_cgroup() / f"nst-{os.getpid()}-{next(_numbers)}"
        self.pods: list[PlayedPod] = []
        self._net = net
        self._number = number
        net.join(self.namespace, "eth0", f"{self.address}/30", hub, f"n{number}", f"172.29.{number}.1/30")
        self.namespace.ip("route", "add", "default", "via", f"172.29.{number}.1")
        self.namespace.sysctl("net/ipv4/ip_forward", 1)
        hub.ip("route", "add", f"10.88.{number}.0/24", "via", self.address)
        server.ask("POST", "/api/v1/nodes", {"metadata": {"name": self.name}})
        addresses = [{"type": "InternalIP", "address": self.address}]
        status = {"status": {"addresses": addresses, "nodeInfo": _NODE_INFO}}
        server.ask("PATCH", f"/api/v1/nodes/{self.name}/status", status, "application/merge-patch+json")

    def pod(self, namespace: str, name: str, **spec: Any) -> PlayedPod:
        """One that runs, and whose kubelet has told so."""
        pod = self.starting(namespace, name, **spec)
        pod.run()
        pod.tell()
        return pod

    def starting(self, namespace: str, name: str, **spec: Any) -> PlayedPod:
        """One that was given to the node, with its network and nothing else."""
        container = {"name": "app", "image": "none", "ports": spec.pop("ports", [])}
        body = {"metadata": {"name": name}, "spec": {"nodeName": self.name, "containers": [container], **spec}}
        made = self.server.ask("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        if spec.get("hostNetwork"):
            inside, address = self.namespace, self.address
        else:
            inside, address = self.network()
        pod = PlayedPod(self, (namespace, name), made["metadata"]["uid"], inside, address)
        self.pods.append(pod)
        return pod

    def network(self) -> tuple[Namespace, str]:
        """What a network plugin makes for a pod: a namespace, and its address."""
        first = 4 * (1 + sum(one.name.startswith(f"nst-pod{self._number}-") for one in self._net.all))
        inside = self._net.create(f"pod{self._number}")
        gateway, address = (f"10.88.{self._number}.{first + one}" for one in (1, 2))
        self._net.join(inside, "eth0", f"{address}/30", self.namespace, f"v{first}", f"{gateway}/30")
        inside.ip("route", "add", "default", "via", gateway)
        return inside, address

    def close(self) -> None:
        """No process and no cgroup of it is left."""
        for pod in self.pods:
            pod.end()
        _remove_cgroup(self.cgroups)


class PlayedCluster:
    """Everything, gone at the end of the `with` block."""

    def __init__(self, directory: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._directory = directory
        self.nodes: dict[int, PlayedNode] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.net = stack.enter_context(Namespaces())
            self.hub = self.net.create("hub")
            self.hub.add_address("lo", f"{HUB}/32")
            self.hub.sysctl("net/ipv4/ip_forward", 1)
            self.server = ApiServer(self._directory, self.hub, HUB)
            stack.enter_context(self.server)
            stack.callback(self._close_nodes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_nodes(self) -> None:
        for node in self.nodes.values():
            node.close()

    def node(self, number: int) -> PlayedNode:
        """The node of this number, 1 to 250."""
        if number not in self.nodes:
            self.nodes[number] = PlayedNode(self.server, self.net, self.hub, number)
        return self.nodes[number]

    def make_namespace(self, name: str, **labels: str) -> None:
        """With the service account that pods have, and labels of nodeseal's."""
        self.server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": _named(labels)}})
        account = {"metadata": {"name": "default"}}
        self.server.ask("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account)

    def label(self, namespace: str, **labels: str | None) -> None:
        """Labels of nodeseal's; None takes one off."""
        body = {"metadata": {"labels": _named(labels)}}
        self.server.ask("PATCH", f"/api/v1/namespaces/{namespace}", body, "application/merge-patch+json")


_NODE_INFO = dict.fromkeys(
    (
        "machineID",
        "systemUUID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
        "operatingSystem",
        "architecture",
    ),
    "",
) | {"bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}


def _named(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    return {f"nodeseal.io/{name.replace('_', '-')}": text for name, text in texts.items()}


def _remove_cgroup(directory: Path) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        wait_for(lambda path=path: _removed(Path(path)), f"{path} is empty")  # type: ignore[misc]


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
