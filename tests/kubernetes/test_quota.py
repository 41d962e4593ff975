"""Clusters that admit pods of the system's priority classes only where a quota names them: the one installed does."""

from __future__ import annotations

import pytest

from cluster import settings
from support.api_server import ApiServer
from support.manifests import NAMESPACE, Cluster, Object, rendered
from support.patience import wait_for

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def pod(name: str, priority_class: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "agent", "image": "none"}],
            "priorityClassName": priority_class,
            "automountServiceAccountToken": False,
        },
    }


def test_quota_lets_pods_of_both_classes_in(server: ApiServer) -> None:
    file = server.directory / "admission.json"
    file.write_text(settings.admission())
    server.stop()
    server.start("--admission-control-config-file", str(file))
    found = rendered({"namespace": {"create": True}})
    (quota,) = [one for one in found if one["kind"] == "ResourceQuota"]
    cluster = Cluster(server)
    cluster.apply(one for one in found if one["kind"] == "Namespace")
    server.ask("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
    wait_for(lambda: _is_class(server, "system-node-critical"), "the API server has made its priority classes")
    with pytest.raises(AssertionError, match="insufficient quota to match these scopes"):
        server.ask("POST", PODS, pod("before", "system-node-critical"))

    cluster.apply([quota])
    # What the controller of quotas does, which is not here.
    status = {"status": {"hard": quota["spec"]["hard"], "used": {"pods": "0"}}}
    server.ask("PATCH", f"{cluster.path(quota)}/status", status, "application/merge-patch+json")
    used = [one["spec"]["template"]["spec"]["priorityClassName"] for one in found if one["kind"] in _CONTROLLERS]
    assert len(used) == 2
    for priority_class in used:
        server.ask("POST", PODS, pod(f"of-{priority_class}", priority_class))


def _is_class(server: ApiServer, name: str) -> bool:
    classes = server.ask("GET", "/apis/scheduling.k8s.io/v1/priorityclasses")["items"]
    return name in {one["metadata"]["name"] for one in classes}


_CONTROLLERS = ("DaemonSet", "Deployment")
