"""docs/install-on-kubernetes.md with the real kubectl, before a real API server: its commands, as they stand there.

There are neither nodes nor controllers: what waits for pods is left out, and nothing waits for what is deleted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.api_server import ADMIN, PROGRAMS, ApiServer
from support.manifests import NAMESPACE, Cluster, Object, rendered
from support.patience import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "install-on-kubernetes.md"
AGENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/nodeseal-agent"
KUBECTL = f"""#!/bin/sh
case "$1" in delete) set -- "$@" --wait=false ;; esac
exec {PROGRAMS}/bin/kubectl "$@"
"""
NODESEAL = f"""#!/bin/sh
exec {sys.executable} -m nodeseal "$@"
"""
Run = Callable[[str], str]


def commands(heading: str) -> list[str]:
    """Of a section, those that begin with `nodeseal`."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^nodeseal .*$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def run(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A line of the page in a shell; what it prints."""
    if not (PROGRAMS / "bin" / "kubectl").exists():
        pytest.skip(f"{PROGRAMS}/bin/kubectl is not there: `make test-kubernetes` builds it, and runs this test")
    directory = tmp_path_factory.mktemp("commands")
    for name, text in (("kubectl", KUBECTL), ("nodeseal", NODESEAL)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    access = server.access()
    cluster = {"server": access.server, "certificate-authority": str(access.ca)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": ADMIN}}],
    }
    (directory / "config").write_text(json.dumps(config))
    environment = {
        "PATH": f"{directory}:/usr/bin:/bin",
        "KUBECONFIG": str(directory / "config"),
        "HOME": str(directory),
        "PYTHONPATH": ":".join(sys.path),
    }

    def line(text: str) -> str:
        def body() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["bash", "-o", "pipefail", "-c", text],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        done = server.inside(body)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return line


def pod_of(server: ApiServer) -> Any:
    return server.ask("GET", AGENT)["spec"]["template"]["spec"]


def is_there(server: ApiServer, cluster: Cluster, one: Object) -> bool:
    """A namespace is Terminating until its controller has looked, and so is a kind until its own has."""
    try:
        found = server.ask("GET", cluster.path(one))
    except (AssertionError, KeyError):
        return False
    return "deletionTimestamp" not in found["metadata"]


def test_page_is_followed(server: ApiServer, run: Run) -> None:
    cluster = Cluster(server)
    objects = rendered({"namespace": {"create": True}})
    (install,) = commands("Install")
    clean, delete = commands("Uninstall")

    applied = run(install).splitlines()
    assert len(applied) == len(objects)
    assert [line for line in applied if not line.endswith(" created")] == []
    assert all(is_there(server, cluster, one) for one in objects)
    again = [line for line in run(install).splitlines() if not line.endswith(" unchanged")]
    # Its selector is replaced as a whole, which kubectl takes for a change.
    assert again == ["poddisruptionbudget.policy/nodeseal-ca configured"]
    assert [one["name"] for one in pod_of(server)["containers"]] == ["agent"]
    assert "readinessProbe" in pod_of(server)["containers"][0]

    run(clean)
    pod = pod_of(server)
    assert [one["command"][-4:-2] for one in pod["initContainers"]] == [["nodeseal", "cleanup"]]
    # Nothing of the agent's is left in what only waits.
    (waiting,) = pod["containers"]
    assert waiting["command"] == ["sleep", "infinity"]
    assert not {"env", "volumeMounts", "readinessProbe", "livenessProbe", "startupProbe"} & set(waiting)
    assert waiting["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not waiting["securityContext"].get("privileged")
    # And back: somebody has changed their mind.
    run(install)
    assert "initContainers" not in pod_of(server)
    run(clean)

    run(delete)
    wait_for(lambda: not any(is_there(server, cluster, one) for one in objects), "nothing is left")
