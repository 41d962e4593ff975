"""docs/install-on-kubernetes.md and docs/kubernetes-permissions.md, compared with what is installed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal.manifests.chart import Chart
from support.command_line import parsed

DOCS = Path(__file__).resolve().parents[2] / "docs"
INSTALL, PERMISSIONS = DOCS / "install-on-kubernetes.md", DOCS / "kubernetes-permissions.md"


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Any]:
    chart = Chart()
    read = [yaml.safe_load(one.text) for one in chart.manifests("nodeseal-system", chart.values([]))]
    return {(one["kind"], one["metadata"]["name"]): one for one in read}


def test_commands_are_those_that_there_are() -> None:
    lines = re.findall(r"^nodeseal (.*?)(?: \|.*)?$", INSTALL.read_text(), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert parsed(*shlex.split(line))


def test_every_object_is_told(objects: dict[tuple[str, str], Any]) -> None:
    section = INSTALL.read_text().partition("## What is installed\n")[2].partition("\n## ")[0]
    accounts = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    for kind, name in objects:
        if kind not in (*accounts, "PodDisruptionBudget", "ValidatingAdmissionPolicyBinding"):
            assert f"`{name.removesuffix('.nodeseal.io')}`" in section, (kind, name)


def test_every_path_of_the_node_is_told(objects: dict[tuple[str, str], Any]) -> None:
    volumes = objects["DaemonSet", "nodeseal-agent"]["spec"]["template"]["spec"]["volumes"]
    paths = {one["hostPath"]["path"] for one in volumes if "hostPath" in one}
    text = INSTALL.read_text()
    assert {path for path in paths if f"`{path}`" not in text} == {"/run/netns", "/sys/fs/cgroup"}


def test_rights_of_the_agent_are_told(objects: dict[tuple[str, str], Any]) -> None:
    given = {
        (f"{resource}.{group}".rstrip("."), ", ".join(rule["verbs"]))
        for rule in objects["ClusterRole", "nodeseal-agent"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    section = PERMISSIONS.read_text().partition("## In the cluster: the agent\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z0-9.]+)` \| ([a-z, ]+) \| .+ \|$", section, re.MULTILINE)) == given


def test_capabilities_of_the_agent_are_told(objects: dict[tuple[str, str], Any]) -> None:
    (container,) = objects["DaemonSet", "nodeseal-agent"]["spec"]["template"]["spec"]["containers"]
    given = set(re.findall(r"\+([a-z_]+)", " ".join(container["command"])))
    told = re.findall(r"^\| `([A-Z_]+)` \| .+ \|$", PERMISSIONS.read_text(), re.MULTILINE)
    assert [one.lower() for one in told if one.lower() not in given] == []
    assert len(told) == len(given)
