"""Objects as a cluster has them: as long as real ones, with what their controllers write into them. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

Object = dict[str, Any]

_TIME = "2026-11-30T09:12:44Z"
ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")


def node(name: str, number: int, address: str) -> Object:
    """A Node, Ready."""
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "m6i.2xlarge",
        "topology.kubernetes.io/region": "eu-central-1",
        "topology.kubernetes.io/zone": ZONES[number % len(ZONES)],
    }
    info = {
        "machineID": uuid.uuid4().hex,
        "systemUUID": str(uuid.uuid4()),
        "bootID": str(uuid.uuid4()),
        "kernelVersion": "6.12.0-18-amd64",
        "osImage": "Debian GNU/Linux 13 (trixie)",
        "containerRuntimeVersion": "containerd://2.1.4",
        "kubeletVersion": "v1.36.3",
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": "amd64",
    }
    conditions = [
        {"type": kind, "status": status, "reason": f"Kubelet{kind}", "message": f"kubelet tells of {kind}"}
        | {"lastHeartbeatTime": _TIME, "lastTransitionTime": _TIME}
        for kind, status in (("MemoryPressure", "False"), ("DiskPressure", "False"), ("Ready", "True"))
    ]
    addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {"nodeInfo": info, "conditions": conditions, "addresses": addresses},
    }


def service(namespace: str, name: str) -> Object:
    """With a port by a name."""
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "team": namespace}},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }


def pod(namespace: str, name: str, app: str, node: str) -> Object:
    """One of a Deployment, bound to its node: as scheduler and kubelet find it."""
    container = {
        "name": "app",
        "image": f"registry.example.com/{namespace}/{app}:2026.11.30-4711",
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "env": [{"name": f"SETTING_{number}", "value": f"value of the setting {number}"} for number in range(8)],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": app, "team": namespace, "pod-template-hash": "6d5f9c7b8d"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": app,
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30,
            "containers": [container],
        },
    }


def pod_status(address: str, host: str, *, ready: bool) -> Object:
    """What a kubelet says of it."""
    said = "True" if ready else "False"
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    states = [(kind, said if kind.endswith("eady") else "True") for kind in kinds]
    return {
        "phase": "Running" if ready else "Pending",
        "hostIP": host,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": _TIME,
        "conditions": [{"type": kind, "status": state, "lastTransitionTime": _TIME} for kind, state in states],
        "containerStatuses": [
            {
                "name": "app",
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "image": "registry.example.com/app:2026.11.30-4711",
                "imageID": f"registry.example.com/app@sha256:{'7' * 64}",
                "containerID": f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}",
                "state": {"running": {"startedAt": _TIME}} if ready else {"waiting": {"reason": "ContainerCreating"}},
            }
        ],
    }


def stored_pod(namespace: str, name: str, app: str, node: str, address: str, host: str, uid: str) -> Object:
    """A pod that runs, as it is in etcd."""
    made = pod(namespace, name, app, node)
    made["metadata"] |= {"uid": uid, "creationTimestamp": _TIME}
    return made | {"status": pod_status(address, host, ready=True)}


def endpoint(namespace: str, name: str, uid: str, address: str, node: str, zone: str, state: str) -> Object:
    """`state`: "starting", "ready" or "ending"."""
    conditions = {"ready": state == "ready", "serving": state != "starting", "terminating": state == "ending"}
    return {
        "addresses": [address],
        "conditions": conditions,
        "nodeName": node,
        "zone": zone,
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
    }


def endpoint_slice(namespace: str, service: str, uid: str, name: str, endpoints: Iterable[Object]) -> Object:
    """As the controller writes it."""
    owner = {"apiVersion": "v1", "kind": "Service", "name": service, "uid": uid}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "generateName": f"{service}-",
            "labels": {
                "app": service,
                "team": namespace,
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": _TIME},
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def shares(total: int, parts: int) -> Sequence[int]:
    """How many pods each service has: a few have very many, most have some; at least one each."""
    weights = [1 / (rank + 10) for rank in range(parts)]
    scale = (total - parts) / sum(weights)
    found = [1 + int(weight * scale) for weight in weights]
    for index in range(total - sum(found)):
        found[index % parts] += 1
    return found
