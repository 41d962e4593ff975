"""What is installed in a cluster, as `nodeseal install` and `nodeseal uninstall` print it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal import __version__
from nodeseal.cli.main import main
from nodeseal.local import config
from nodeseal.manifests.chart import Chart

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart" / "nodeseal"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def objects(text: str) -> dict[tuple[str, str], Any]:
    found = [one for one in yaml.safe_load_all(text) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_objects_are_those_of_the_golden_file(
    capsys: pytest.CaptureFixture[str], golden: Callable[[str, str], None]
) -> None:
    golden("install.yaml", printed(capsys, "install"))


def test_each_object_has_a_place_of_its_own_and_can_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    chart = Chart()
    manifests = chart.manifests("somewhere", chart.values([{"namespace": {"create": True}}]))
    assert len({(one.kind, one.name) for one in manifests}) == len(manifests)
    for one in manifests:
        read = yaml.safe_load(one.text)
        named = {"apiVersion": one.version, "kind": one.kind, "metadata": {"name": one.name}}
        if one.namespace is not None:
            named["metadata"]["namespace"] = "somewhere"
        assert yaml.safe_load(one.identity) == named
        assert read["metadata"].get("namespace") == one.namespace
        assert (read["apiVersion"], read["kind"], read["metadata"]["name"]) == (one.version, one.kind, one.name)


def test_options_are_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("trustDomain: of.the.file\nagent:\n  nodeSelector: {a: b, kubernetes.io/os: null}\n")
    words = (
        "install",
        "-f",
        str(file),
        "--image",
        "r.example/n@sha256:1",
        "--trust-domain",
        "of.the.option",
        "-n",
        "x",
    )
    found = objects(
        printed(
            capsys,
            *words,
            "--set",
            r"agent.nodeSelector.c\.d/e=f",
            "--set",
            "agent.tolerations=[{operator: Exists, key: t}]",
        )
    )
    pod = found["DaemonSet", "nodeseal-agent"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"a": "b", "c.d/e": "f"}
    assert pod["tolerations"] == [{"operator": "Exists", "key": "t"}]
    assert pod["containers"][0]["image"] == "r.example/n@sha256:1"
    assert yaml.safe_load(found["ConfigMap", "nodeseal-config"]["data"]["agent.yaml"])["mesh"] == {
        "kubernetes": {"trust_domain": "of.the.option", "namespace": "x"}
    }
    assert {one["metadata"].get("namespace", "x") for one in found.values()} == {"x"}
    assert ("Namespace", "x") in found


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--set trustDomain=A", "trustDomain must match pattern ^[a-z0-9][a-z0-9._-]{0,254}$"),
        ("--set agent.x=1", "agent must not contain {'x'} properties"),
        ("--set trustDomain=null", "the values must contain ['trustDomain'] properties"),
        ("--set agent.configuration.mesh=/x", "agent.configuration must be named by propertyName definition"),
        ("--set agent", "--set agent: expected key=value, such as agent.resources.limits.memory=1Gi"),
        ("--set a..b=1", "--set a..b=1: expected key=value, such as agent.resources.limits.memory=1Gi"),
        ("--set a=[", "--set a:2: expected YAML, found "),
        ("--set a=0x10", "--set a:1: value: expected a text in quotes, a number, true, false or null, found "),
        ("--namespace A", "--namespace A: expected a name of a-z, 0-9 and '-', of at most 63"),
        ("-f /nowhere/v.yaml", "cannot read /nowhere/v.yaml: No such file or directory"),
    ],
)
def test_values_that_are_wrong_are_one_line(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", *words.split()]) in (1, 2)
    out = capsys.readouterr()
    assert out.err.startswith(f"nodeseal: {error}")
    assert (out.err.count("\n"), out.out) == (1, "")


def test_uninstalling_puts_a_cleaning_pod_in_the_place_of_every_agent(capsys: pytest.CaptureFixture[str]) -> None:
    agent, cleaner = (objects(printed(capsys, one))["DaemonSet", "nodeseal-agent"] for one in ("install", "uninstall"))
    assert agent["metadata"] == cleaner["metadata"]
    assert agent["spec"]["selector"] == cleaner["spec"]["selector"]
    assert cleaner["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "100%"}
    before, after = (one["spec"]["template"]["spec"] for one in (agent, cleaner))
    assert after["volumes"] == before["volumes"]
    (cleanup,), (container,) = after["initContainers"], before["containers"]
    assert cleanup["command"][-4:] == ["nodeseal", "cleanup", "--run-dir", "/run/nodeseal"]
    for part in ("volumeMounts", "securityContext", "env", "image"):
        assert cleanup[part] == container[part]
    assert [one["command"] for one in after["containers"]] == [["sleep", "infinity"]]


def test_everything_that_was_installed_is_deleted_in_the_opposite_order(capsys: pytest.CaptureFixture[str]) -> None:
    installed = list(objects(printed(capsys, "install")))
    assert list(objects(printed(capsys, "uninstall", "--delete"))) == installed[::-1]
    assert installed[0] == ("Namespace", "nodeseal-system")
    assert installed[-1] == ("DaemonSet", "nodeseal-agent")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"trustDomain": "prod.example.com", "agent": {"core": {"cpus": 1.5, "memory": "none"}}},
        {"agent": {"cni": {"enabled": False}, "configuration": {"capture": "ebpf", "drain_limit": "1h"}}},
        {"agent": {"runDirectory": "/run/other", "cni": {"onFailure": "open", "openNamespaces": []}}},
    ],
    ids=str,
)
def test_agent_takes_its_configuration(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.NODE_VARIABLE, "n1")
    chart = Chart()
    (one,) = (one for one in chart.manifests("x", chart.values([values])) if one.name == "nodeseal-config")
    (tmp_path / "agent.yaml").write_text(yaml.safe_load(one.text)["data"]["agent.yaml"])
    read = config.load(tmp_path / "agent.yaml")
    assert (read.node, read.hand_over, read.core.own_cgroup) == ("n1", True, True)
    assert (read.pod_start is None) == (values.get("agent", {}).get("cni", {}).get("enabled") is False)


def test_versions_are_the_package_s() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


def settings(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in schema.get("properties", {}).items():
        yield f"{path}{name}", one
        yield from settings(one, f"{path}{name}.")


def test_every_value_is_in_the_schema_with_a_sentence() -> None:
    """And has a default, or is a part of what Kubernetes defines."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, one in settings(schema):
        if ".resources." not in path:
            assert re.fullmatch(r"[A-Z].*[^.]\.", one.get("description", "")), path
            value: Any = Chart().defaults
            for key in path.split("."):
                value = value[key]


def test_package_carries_the_chart() -> None:
    """As the agent finds it, wherever it was installed."""
    assert Chart()._directory.resolve() == CHART
    assert {"values.yaml", "values.schema.json", "Chart.yaml", "templates"} <= {
        one.name for one in Chart()._directory.iterdir()
    }
