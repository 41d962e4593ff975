"""What Helm makes of the chart, and what `nodeseal install` makes of it: the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal.manifests.chart import RELEASE, Chart
from nodeseal.manifests.values import ValuesError
from support.api_server import HELM
from support.manifests import NAMESPACE, Object, rendered

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart" / "nodeseal"

AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}
COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"namespace": {"create": True, "labels": {"team": "platform", "yes": "no"}}},
    {"trustDomain": "prod.example.com", "image": {"name": "registry.example.com:5000/a/nodeseal@sha256:abc"}},
    {"image": {"pullPolicy": "Never", "pullSecrets": [{"name": "one"}, {"name": "two"}]}},
    {"agent": {"configuration": {"capture": "ebpf", "limits": {"memory": "1GiB"}, "crls": ["a: b", "on", "1"]}}},
    {"agent": {"nodeSelector": {"a/b": "c", "kubernetes.io/os": None}, "tolerations": [], "affinity": AFFINITY}},
    {"agent": {"tolerations": [{"key": "a", "operator": "Equal", "value": "true", "tolerationSeconds": 3}]}},
    {"agent": {"updateStrategy": {"maxSurge": "25%", "maxUnavailable": 1}, "terminationGracePeriodSeconds": 3600}},
    {"agent": {"resources": {"limits": {"cpu": 2, "memory": "1.5Gi"}, "requests": None}}},
    {"agent": {"runDirectory": "/run/other", "dataDirectory": "/srv/n", "podAnnotations": {"a": "1", "b": "{{ x }}"}}},
    {"agent": {"cni": {"configurationDirectory": "/var/lib/cni/conf", "binaryDirectory": "/home/kubernetes/bin"}}},
    {"ca": {"replicas": 1, "make": False, "secret": "mesh-ca", "certificateLifetime": "1h", "tolerations": []}},
    {"ca": {"nodeSelector": {"a": "b"}, "resources": {"limits": {"memory": "1Gi"}}}},
    {"agent": {"cni": {"enabled": False}, "core": {"memory": "none", "cpus": 1.5}}},
    {"agent": {"cni": {"onFailure": "open", "openNamespaces": []}, "core": {"cpus": 2}}},
    {"uninstall": True},
    {"uninstall": True, "agent": {"podAnnotations": {"a": "b"}, "priorityClassName": "system-cluster-critical"}},
]


def helm(*words: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    text = json.dumps(values or {})
    return subprocess.run(
        [HELM, *words, "-f", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def by_helm(values: dict[str, Any], namespace: str) -> list[Object]:
    done = helm("template", RELEASE, str(CHART), "--namespace", namespace, values=values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def comparable(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """By kind and name, without what has to differ: who manages them, and by which characters YAML says a value."""
    found = {}
    for one in objects:
        text = json.dumps(one).replace(
            '"app.kubernetes.io/managed-by": "Helm"', '"app.kubernetes.io/managed-by": "nodeseal"'
        )
        copy = json.loads(text)
        if copy["kind"] == "ConfigMap":
            copy["data"] = {name: yaml.safe_load(value) for name, value in copy["data"].items()}
        if copy["kind"] in ("DaemonSet", "Deployment"):
            digest = copy["spec"]["template"]["metadata"]["annotations"].pop("nodeseal.io/configuration")
            assert len(digest) == 64
        found[copy["kind"], copy["metadata"]["name"]] = copy
    return found


def test_helm_finds_nothing_wrong() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("uninstall", [False, True])
def test_helm_says_what_comes_next(uninstall: bool) -> None:
    done = helm("install", RELEASE, str(CHART), "-n", NAMESPACE, "--dry-run=client", values={"uninstall": uninstall})
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:\n")[2]
    assert f"kubectl -n {NAMESPACE} rollout status daemonset/nodeseal-agent" in notes
    assert (f"helm uninstall {RELEASE} --namespace {NAMESPACE}" in notes) == uninstall


@pytest.mark.parametrize("values", COMBINATIONS, ids=str)
@pytest.mark.parametrize("namespace", [NAMESPACE, "elsewhere"])
def test_helm_makes_the_same_objects(values: dict[str, Any], namespace: str) -> None:
    theirs, ours = by_helm(values, namespace), rendered(values, namespace=namespace)
    assert len(theirs) == len(ours)
    assert comparable(theirs) == comparable(ours)


@pytest.mark.parametrize(
    "values",
    [
        {"trustDomain": "A"},
        {"trustDomain": None},
        {"image": {"name": "a b"}},
        {"agent": {"x": 1}},
        {"agent": {"configuration": {"node": "n"}}},
        {"agent": {"updateStrategy": {"maxSurge": "101%"}}},
        {"agent": {"runDirectory": "/run/a/../b"}},
        {"agent": {"nodeSelector": {"a": True}}},
        {"ca": {"replicas": 0}},
        {"ca": {"secret": "A"}},
        {"uninstall": "yes"},
    ],
    ids=str,
)
def test_helm_refuses_the_same_values(values: dict[str, Any]) -> None:
    done = helm("template", RELEASE, str(CHART), values=values)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    with pytest.raises(ValuesError):
        Chart().values([values])
