"""What runs in the cluster before anything of nodeseal: a telemetry pipeline as Deployments with Services.

shipper -> pipeline -> siem, all in the namespace "telemetry"; and an intruder in another. Each is pinned to a node, so
that what they say to each other crosses the wire between the nodes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.images import APPS_IMAGE

NAMESPACE = "telemetry"
OTHERS = "elsewhere"
HTTP_PORT, LINES_PORT, SIEM_PORT = 8080, 7000, 9000
APPS = "/apps"
_FILES = "/var/tmp"  # noqa: S108 - the pod's own

NODE_OF = {"shipper": "node1", "siem": "node1", "pipeline": "node2", "intruder": "node1"}


def objects() -> list[dict[str, Any]]:
    """All of them."""
    pipeline = [
        "--port",
        str(HTTP_PORT),
        "--lines-port",
        str(LINES_PORT),
        "--siem",
        f"$(SIEM_SERVICE_HOST):{SIEM_PORT}",
    ]
    siem = ["--port", str(SIEM_PORT), "--store", f"{_FILES}/store"]
    return [
        _namespace(NAMESPACE),
        _namespace(OTHERS),
        _service("siem", {"http": SIEM_PORT}),
        _service("pipeline", {"http": HTTP_PORT, "lines": LINES_PORT}),
        _deployment("siem", _app("siem", *siem, "--access-log", f"{_FILES}/access.log"), SIEM_PORT),
        _deployment("pipeline", _app("pipeline", *pipeline, "--access-log", f"{_FILES}/access.log"), HTTP_PORT),
        _deployment("shipper", ["sleep", "infinity"], None),
        _deployment("intruder", ["sleep", "infinity"], None, OTHERS),
    ]


def client(name: str, program: str, *arguments: str, node: str = NODE_OF["shipper"]) -> dict[str, Any]:
    """A pod that runs one program against the pipeline, at once, until it is told to end."""
    words = ["$(PIPELINE_SERVICE_HOST)" if word == "PIPELINE" else word for word in arguments]
    spec = {**_spec(_app(program, *words), node, None), "restartPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": spec,
    }


def _app(name: str, *arguments: str) -> list[str]:
    return ["python3", f"{APPS}/{name}.py", *arguments]


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _service(name: str, ports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": name}, "ports": [{"name": key, "port": port} for key, port in ports.items()]},
    }


def _deployment(name: str, command: Sequence[str], port: int | None, namespace: str = NAMESPACE) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _spec(command, NODE_OF[name], port)},
        },
    }


def _spec(command: Sequence[str], node: str, port: int | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "app",
        "image": APPS_IMAGE,
        "imagePullPolicy": "Never",
        "command": list(command),
    }
    if port is not None:
        # Patient: on a busy machine a probe is late, and a pod that is not ready gets no connections.
        probe = {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1, "timeoutSeconds": 10}
        container["readinessProbe"] = {**probe, "failureThreshold": 5}
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
