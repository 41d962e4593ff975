"""`kubectl nodeseal` with the real kubectl, before a real API server: who is meant by what is named, and in which pods
`nodeseal` is run. A pod cannot be entered without a kubelet: what would be is shown by a kubectl that stands before it.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.api_server import ADMIN, PROGRAMS, ApiServer

PLUGIN = Path(__file__).parents[2] / "deploy" / "kubectl-nodeseal"
SHIM = f"""#!/bin/sh
case " $* " in *" exec "*) echo "$*${{EXEC_SAYS:-}}"; exit "${{EXEC_STATUS:-0}}" ;; esac
exec {PROGRAMS}/bin/kubectl "$@"
"""

_numbers = itertools.count()


class Kubectl:
    """Runs the plugin as its user does, in the namespace where the API server is."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        (directory / "kubectl").write_text(SHIM)
        (directory / "kubectl").chmod(0o755)
        access = server.access()
        user, cluster = {"token": ADMIN}, {"server": access.server, "certificate-authority": str(access.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
        }
        (directory / "config").write_text(json.dumps(config))
        self._server = server
        self._environment = {
            "PATH": f"{directory}:{PLUGIN.parent}:/usr/bin:/bin",
            "KUBECONFIG": str(directory / "config"),
            "HOME": str(directory),
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._server.inside(
            lambda: subprocess.run(
                ["kubectl", "nodeseal", *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**self._environment, **environment},
            )
        )

    def lines(self, *words: str) -> list[str]:
        """What it prints when all is well."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def kubectl(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    agents = {"app.kubernetes.io/name": "nodeseal", "app.kubernetes.io/component": "agent"}
    server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "nodeseal-system"}})
    for node in ("n1.example", "n2.example"):
        make_pod(server, "nodeseal-system", f"agent-{node}", node, agents, ready=True)
    # While agents are replaced, a node has two.
    make_pod(server, "nodeseal-system", "zz-starting", "n1.example", agents, ready=False)
    return Kubectl(server, tmp_path_factory.mktemp("kubectl"))


@pytest.fixture
def shop(server: ApiServer) -> Iterator[str]:
    """A namespace of one test: web-1 and web-2 on two nodes, cart on the first, and one that is on none yet."""
    name = f"shop{next(_numbers)}"
    server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    make_pod(server, name, "web-1", "n1.example", {"app": "web", "tier": "a"})
    make_pod(server, name, "web-2", "n2.example", {"app": "web", "tier": "b"})
    make_pod(server, name, "cart", "n1.example", {"app": "cart"})
    make_pod(server, name, "waiting", None, {"app": "web", "tier": "a"})
    yield name
    for pod in ("web-1", "web-2", "cart", "waiting"):
        server.ask("DELETE", f"/api/v1/namespaces/{name}/pods/{pod}?gracePeriodSeconds=0")


def make_pod(
    server: ApiServer, namespace: str, name: str, node: str | None, labels: dict[str, str], *, ready: bool = False
) -> None:
    spec: dict[str, Any] = {
        "containers": [{"name": "agent", "image": "none"}],
        "automountServiceAccountToken": False,
        **({"nodeName": node} if node else {}),
    }
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    if not server.ask("GET", account)["items"]:
        server.ask("POST", account, {"metadata": {"name": "default"}})
    server.ask(
        "POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": name, "labels": labels}, "spec": spec}
    )
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"status": {"phase": "Running", "conditions": [condition]}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    server.ask("PATCH", path, status, "application/merge-patch+json")


def entered(node: str, *words: str) -> str:
    """What the agent of this node is asked."""
    return " ".join(("exec", "-n", "nodeseal-system", f"agent-{node}", "-c", "agent", "--", "nodeseal", *words))


def test_pods_of_a_namespace_by_their_nodes(kubectl: Kubectl, shop: str) -> None:
    assert kubectl.lines("status", "-n", shop) == [
        entered("n1.example", "status", "--workload", f"{shop}/cart", "--workload", f"{shop}/web-1"),
        "",
        entered("n2.example", "status", "--workload", f"{shop}/web-2"),
    ]
    assert kubectl.lines("status", f"namespace/{shop}") == kubectl.lines("status", f"--namespace={shop}")


def test_options_of_nodeseal_come_before_the_workloads(kubectl: Kubectl, shop: str) -> None:
    expected = [entered("n2.example", "connections", "--live", "-o", "json", "--workload", f"{shop}/web-2")]
    assert kubectl.lines("connections", "web-2", "-n", shop, "--", "--live", "-o", "json") == expected
    assert kubectl.lines("connections", "pod/web-2", "-n", shop, "--", "--live", "-o", "json") == expected


def has(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


WEB, WEB_B, CART = {"app": "web"}, {"app": "web", "tier": "b"}, {"app": "cart"}


@pytest.mark.parametrize(
    ("selector", "labels", "pods"),
    [
        ({"matchLabels": WEB}, WEB, {"web-1", "web-2"}),
        ({"matchLabels": WEB, **has("tier", "In", "b", "c")}, WEB_B, {"web-2"}),
        ({"matchLabels": WEB, **has("tier", "NotIn", "b")}, WEB, {"web-1"}),
        (has("tier", "Exists"), WEB_B, {"web-1", "web-2"}),
        (has("tier", "DoesNotExist"), CART, {"cart"}),
    ],
)
def test_pods_of_a_deployment(
    kubectl: Kubectl, server: ApiServer, shop: str, selector: Any, labels: dict[str, str], pods: set[str]
) -> None:
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "none"}]}}
    body = {"metadata": {"name": "them"}, "spec": {"selector": selector, "template": template}}
    server.ask("POST", f"/apis/apps/v1/namespaces/{shop}/deployments", body)
    said = " ".join(kubectl.lines("status", "deployment/them", "-n", shop)).split()
    assert {word.removeprefix(f"{shop}/") for word in said if word.startswith(f"{shop}/")} == pods


def test_whole_nodes_are_asked_about_all_that_they_have(kubectl: Kubectl, shop: str) -> None:
    assert kubectl.lines("status", "node/n2.example") == [entered("n2.example", "status")]
    assert kubectl.lines("status", "-A") == [entered("n1.example", "status"), "", entered("n2.example", "status")]


def test_check_names_the_node(kubectl: Kubectl, shop: str) -> None:
    assert kubectl.lines("check", "pod/cart", "-n", shop) == [
        "node n1.example:",
        entered("n1.example", "check", "--config", "/etc/nodeseal/agent.yaml"),
    ]


def test_check_of_a_namespace_names_the_clients_of_its_pods(kubectl: Kubectl, server: ApiServer, shop: str) -> None:
    status = {"status": {"podIPs": [{"ip": "192.0.2.7"}], "podIP": "192.0.2.7"}}
    server.ask("PATCH", f"/api/v1/namespaces/{shop}/pods/cart/status", status, "application/merge-patch+json")
    says = "\n  - shop/a: 192.0.2.7, 1 connection\n  - shop/a: 192.0.2.8, 1 connection\n  - x: ok"
    done = kubectl.run("check", f"namespace/{shop}", EXEC_SAYS=says)
    question = ("check", "--config", "/etc/nodeseal/agent.yaml", "--workload", f"{shop}/*")
    assert done.stdout.splitlines()[:5] == [
        "node n1.example:",
        entered("n1.example", *question),
        f"  - shop/a: 192.0.2.7 ({shop}/cart), 1 connection",
        "  - shop/a: 192.0.2.8, 1 connection",
        "  - x: ok",
    ]


def test_status_of_the_command_in_the_pod_is_told(kubectl: Kubectl, shop: str) -> None:
    assert kubectl.run("status", "-n", shop, EXEC_STATUS="3").returncode == 1


def test_node_without_an_agent_is_named(kubectl: Kubectl, server: ApiServer, shop: str) -> None:
    make_pod(server, shop, "far", "n3.example", {"app": "far"})
    done = kubectl.run("status", "-n", shop)
    assert done.returncode == 1
    assert "no agent runs on the node n3.example" in done.stderr
    assert "agent-n1.example" in done.stdout, "the others are asked"
    server.ask("DELETE", f"/api/v1/namespaces/{shop}/pods/far?gracePeriodSeconds=0")


def test_suspend_and_resume(kubectl: Kubectl, server: ApiServer, shop: str) -> None:
    def label() -> str | None:
        found: dict[str, str] = server.ask("GET", f"/api/v1/namespaces/{shop}")["metadata"]["labels"]
        return found.get("nodeseal.io/suspended")

    assert kubectl.run("suspend").returncode == 2, "never by accident the namespace of the context"
    assert f"namespace/{shop} labeled" in kubectl.lines("suspend", f"namespace/{shop}")
    assert label() == "true"
    kubectl.lines("resume", "-n", shop)
    assert label() is None
    kubectl.lines("suspend", "--all-namespaces")
    assert label() == "true"
    kubectl.lines("resume", "-A")
    assert label() is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "nothing-of-this-name"), 'pods "nothing-of-this-name" not found'),
        (("status", "deployment/none"), 'deployments.apps "none" not found'),
        (("status", "--live"), "options of nodeseal come after --"),
        (("status", "a", "b"), "one thing is asked about at a time"),
        (("status", "-A", "pod/a"), "--all-namespaces is everything"),
        (("frobnicate",), "there is no command frobnicate"),
        (("suspend", "pod/a"), "only whole namespaces are suspended"),
    ],
)
def test_what_is_not_understood_is_said_in_a_line(kubectl: Kubectl, words: tuple[str, ...], said: str) -> None:
    done = kubectl.run(*words)
    assert done.returncode != 0
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
