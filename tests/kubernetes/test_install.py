"""What is installed, in a real API server: all of it is taken strictly, and agents write only what is their node's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeseal.kubernetes.api import Api, RefusedError
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import Key, KubernetesObject, Resource
from nodeseal.mesh.model import Mode
from nodeseal.sources.kubernetes import requirements
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import MESH_ENDPOINTS, MESH_NODES
from nodeseal.sources.kubernetes.publisher import Publisher
from nodeseal.sources.source import PublicationError
from support.agent_fakes import workload
from support.api_server import ApiServer
from support.manifests import NAMESPACE, Cluster, rendered
from support.patience import wait_for

ENDPOINTS = Resource("nodeseal.io", "v1alpha1", "meshendpoints", KubernetesObject)
NODES = Resource("nodeseal.io", "v1alpha1", "meshnodes", KubernetesObject)
WITH_NAMESPACE = {"namespace": {"create": True}}
EVERYTHING = {
    **WITH_NAMESPACE,
    "image": {"name": "registry.example.com/nodeseal@sha256:" + "0" * 64, "pullSecrets": [{"name": "registry"}]},
    "agent": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
                }
            }
        },
        "updateStrategy": {"maxSurge": 0, "maxUnavailable": "20%"},
        "podAnnotations": {"a": "1"},
        "configuration": {"capture": "ebpf", "limits": {"connections": 100}},
    },
}
_RBAC = "rbac.authorization.k8s.io"
MORE_RIGHTS = [
    {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "more"},
        "rules": [{"apiGroups": ["nodeseal.io"], "resources": ["*"], "verbs": ["patch"]}],
    },
    {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "more"},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": "nodeseal-agent", "namespace": NAMESPACE}],
    },
]
WORKLOAD = {"namespace": "shop", "name": "cart-0", "serviceAccount": "cart", "addresses": ["10.0.0.1", "fd00::1"]}


TIME = "2026-01-01T00:00:00Z"
SHOWN = ("Name", "Version", "Enrolled", "Wanted", "Healthy", "Problems")


@pytest.fixture(scope="module")
def cluster(server: ApiServer) -> Cluster:
    """With all of it installed. Agents may do more than they need: the policy holds whatever RBAC gives."""
    cluster = Cluster(server)
    cluster.apply([*rendered(WITH_NAMESPACE), *MORE_RIGHTS])
    wait_for(lambda: _is_established(server), "the API server knows the new kinds")
    return cluster


def _is_established(server: ApiServer) -> bool:
    try:
        return len(server.ask("GET", "/apis/nodeseal.io/v1alpha1")["resources"]) == 2
    except AssertionError:
        return False


@pytest.fixture(scope="module")
def tokens(server: ApiServer, cluster: Cluster) -> dict[str, str]:
    """Of the agents of two nodes, the second's name begins with the first's; "" is bound to no node."""
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/nodeseal-agent/token"
    found = {"": server.ask("POST", account, {"spec": {}})["status"]["token"]}
    for node in ("n1", "n1-a"):
        server.ask("POST", "/api/v1/nodes", {"metadata": {"name": node}})
        pod = {
            "metadata": {"name": f"agent-{node}"},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "nodeseal-agent",
                "containers": [{"name": "agent", "image": "none"}],
            },
        }
        made = server.ask("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": made["metadata"]["uid"]}
        found[node] = server.ask("POST", account, {"spec": {"boundObjectRef": bound}})["status"]["token"]
    # The policy and its binding are read by the server a moment after they were made.
    wait_for(lambda: _refuses(server, found[""]), "the policy is in force")
    return found


def _refuses(server: ApiServer, token: str) -> bool:
    try:
        asked(server, token, "create", ENDPOINTS, mesh_endpoints("n1", "n1-0"))
    except RefusedError as error:
        return "bound to no node" in str(error)
    server.ask("DELETE", "/apis/nodeseal.io/v1alpha1/meshendpoints/n1-0")
    return False


@pytest.fixture
def empty(server: ApiServer, tokens: dict[str, str]) -> Iterator[None]:
    """Nothing is published before and after."""
    yield
    for plural in ("meshendpoints", "meshnodes"):
        server.ask("DELETE", f"/apis/nodeseal.io/v1alpha1/{plural}")


def mesh_endpoints(node: str, its_name: str, /, **changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshEndpoints",
        "metadata": {"name": its_name},
        "spec": {"node": node, "workloads": [{**WORKLOAD, **changes}]},
    }


def mesh_node(name: str, **changes: Any) -> dict[str, Any]:
    holder = {"boot": "b", "runDirectory": "/run/nodeseal"}
    status = {
        "agentVersion": "0.1.0",
        "holder": holder,
        "enrolled": 1,
        "wanted": 2,
        "renewTime": TIME,
        **changes,
    }
    return {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "status": status,
    }


def asked(server: ApiServer, token: str, verb: str, resource: Resource[Any], body: dict[str, Any]) -> None:
    """Raises RefusedError."""
    key = ("", body["metadata"]["name"])
    version = {}
    if verb == "replace":
        there = server.ask("GET", resource.at(key))
        version["resourceVersion"] = there["metadata"]["resourceVersion"]

    async def story(api: Api) -> None:
        match verb:
            case "create":
                await api.create(resource, "", copy.deepcopy(body))
            case "apply":
                await api.apply(resource, key, copy.deepcopy(body), manager="nodeseal")
            case "replace":
                await api.replace(resource, key, {**body, "metadata": {**body["metadata"], **version}})
            case "merge":
                await api.merge(resource, key, {"spec": body["spec"]})
            case "delete":
                await api.delete(resource, key)

    server.play(story, token)


@pytest.mark.parametrize("values", [WITH_NAMESPACE, EVERYTHING, {**EVERYTHING, "uninstall": True}])
def test_every_object_is_taken_strictly(cluster: Cluster, values: dict[str, Any]) -> None:
    cluster.apply(rendered(values), really=False)


def test_field_that_is_not_known_would_be_refused(cluster: Cluster) -> None:
    (agent,) = (one for one in rendered() if one["kind"] == "DaemonSet")
    agent["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(AssertionError, match="hostNetwrok"):
        cluster.apply([agent], really=False)


def test_agent_has_every_right_that_it_needs(server: ApiServer, tokens: dict[str, str]) -> None:
    async def story(api: Api) -> None:
        assert [line async for line in requirements.missing(api, NAMESPACE)] == []

    server.play(story, tokens["n1"])


@pytest.mark.usefixtures("empty")
def test_agent_writes_what_is_its_node_s(server: ApiServer, tokens: dict[str, str]) -> None:
    for node in ("n1", "n1-a"):
        for verb in ("create", "apply", "replace", "merge", "delete"):
            asked(server, tokens[node], verb, ENDPOINTS, mesh_endpoints(node, f"{node}-0"))
        asked(server, tokens[node], "create", NODES, mesh_node(node))
        asked(server, tokens[node], "apply", NODES, mesh_node(node, enrolled=2))
        asked(server, tokens[node], "delete", NODES, mesh_node(node))


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("verb", ["create", "apply", "replace", "merge", "delete"])
@pytest.mark.parametrize(("agent", "owner"), [("n1", "n1-a"), ("n1-a", "n1"), ("", "n1")])
def test_agent_is_refused_what_is_another_node_s(
    server: ApiServer, tokens: dict[str, str], agent: str, owner: str, verb: str
) -> None:
    theirs = mesh_endpoints(owner, f"{owner}-0")
    if verb != "create":
        asked(server, tokens[owner], "create", ENDPOINTS, theirs)
    for body in (theirs, mesh_endpoints(agent or "n2", f"{owner}-0")):  # the second takes it over
        with pytest.raises(RefusedError) as refused:
            asked(server, tokens[agent], verb, ENDPOINTS, body)
        assert refused.value.code == 403
        assert "ValidatingAdmissionPolicy 'nodeseal-agent'" in str(refused.value)
    if agent:
        with pytest.raises(RefusedError, match="may write the MeshNode"):
            asked(server, tokens[agent], "create", NODES, mesh_node(owner))


@pytest.mark.usefixtures("empty")
def test_agent_does_not_say_that_its_object_is_another_node_s(server: ApiServer, tokens: dict[str, str]) -> None:
    with pytest.raises(RefusedError, match="may write MeshEndpoints of that node only"):
        asked(server, tokens["n1"], "create", ENDPOINTS, mesh_endpoints("n1-a", "n1-0"))
    asked(server, tokens["n1"], "create", ENDPOINTS, mesh_endpoints("n1", "n1-0"))
    with pytest.raises(RefusedError, match="may write MeshEndpoints of that node only"):
        asked(server, tokens["n1"], "replace", ENDPOINTS, mesh_endpoints("n1-a", "n1-0"))


@pytest.mark.usefixtures("empty")
def test_publisher_has_the_rights_that_it_needs_for_its_own_node_and_is_told_of_another(
    server: ApiServer, tokens: dict[str, str]
) -> None:
    async def changed(_keys: set[Key]) -> None:
        pass

    def publisher(api: Api, node: str) -> Publisher:
        endpoints, nodes = Followed(api, MESH_ENDPOINTS, changed), Followed(api, MESH_NODES, changed)
        endpoints.synced.set()  # nothing is published yet
        return Publisher(api, node, Holder("boot", Path("/run/of-the-test")), "0.1.0", endpoints, nodes)

    async def story(api: Api) -> None:
        own, other = publisher(api, "n1"), publisher(api, "n1-a")
        for one in (own, other):
            await one.claim()
        one = workload("cart", None, node="n1")
        assert await own.publish([one], None)
        assert await own.publish([replace(one, mode=Mode.STRICT)], None)
        with pytest.raises(PublicationError, match="the agent of the node n1 may write the MeshNode n1 only"):
            await other.publish([], None)
        with pytest.raises(PublicationError, match=r"the agent of the node n1 may write MeshEndpoints n1-\.\.\."):
            await publisher(api, "n1-a").publish([replace(one, node="n1-a")], None)
        assert await own.withdraw() == "the MeshNode n1 and its MeshEndpoints (1)"

    server.play(story, tokens["n1"])
    assert server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints")["items"] == []


@pytest.mark.usefixtures("empty")
def test_agent_does_not_delete_all_objects_at_once(server: ApiServer, tokens: dict[str, str]) -> None:
    for node in ("n1", "n1-a"):
        asked(server, tokens[node], "create", ENDPOINTS, mesh_endpoints(node, f"{node}-0"))

    async def story(api: Api) -> None:
        with pytest.raises(RefusedError):
            await api.delete(ENDPOINTS, ("", ""))  # the path of all of them

    server.play(story, tokens["n1"])
    assert server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints/n1-a-0")


@pytest.mark.usefixtures("empty")
def test_whole_object_is_kept(server: ApiServer, tokens: dict[str, str]) -> None:
    """No field is dropped because the schema lacks it."""
    body = mesh_endpoints(
        "n1",
        "n1-0",
        mode="strict",
        exclude={
            "inbound": {"ports": [9090, "8000-8010"], "from": ["10.0.0.0/8"]},
            "outbound": {"ports": [1], "to": ["fd00::/8"]},
        },
        host={"ports": [1, "2-3"]},
    )
    node = mesh_node(
        "n1",
        summary="w",
        problems=[{"word": "w", "text": "t", "remedy": "r", "about": "shop/cart"}],
        trust={
            "issuer": "0" * 32,
            "anchors": ["0" * 32],
            "needs": [{"anchor": "1" * 32, "until": 1 << 40, "connections": 3}],
        },
        conditions=[
            {
                "type": "Ready",
                "status": "True",
                "reason": "Synced",
                "message": "",
                "lastTransitionTime": TIME,
            }
        ],
    )
    asked(server, tokens["n1"], "create", ENDPOINTS, body)
    asked(server, tokens["n1"], "create", NODES, node)
    kept = server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints/n1-0")
    assert kept["spec"] == body["spec"]
    assert server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshnodes/n1")["status"] == node["status"]


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"addresses": []}, r"addresses"),
        ({"addresses": ["10.0.0.1"] * 33}, r"addresses"),
        ({"addresses": ["host.example"]}, r"addresses"),
        ({"name": "x" * 254}, r"name"),
        ({"mode": "other"}, r"mode"),
        ({"exclude": {"inbound": {"ports": [0]}}}, r"ports"),
        ({"exclude": {"inbound": {"ports": ["x"]}}}, r"ports"),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    server: ApiServer, tokens: dict[str, str], changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(RefusedError, match=rf"spec\.workloads\[0\]\.{where}|spec\.workloads\[0\]\.exclude.*{where}"):
        asked(server, tokens["n1"], "create", ENDPOINTS, mesh_endpoints("n1", "n1-0", **changes))


@pytest.mark.usefixtures("empty")
def test_node_is_a_row_of_what_matters(server: ApiServer, tokens: dict[str, str]) -> None:
    healthy = {"type": "Healthy", "status": "False", "reason": "R", "message": "", "lastTransitionTime": TIME}
    asked(server, tokens["n1"], "create", NODES, mesh_node("n1", summary="core-down", conditions=[healthy]))
    accept = "/apis/nodeseal.io/v1alpha1/meshnodes"
    table = server.ask("GET", accept, accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    shown = {one["name"]: cell for one, cell in zip(table["columnDefinitions"], table["rows"][0]["cells"], strict=True)}
    assert {key: shown[key] for key in SHOWN} == {
        "Name": "n1",
        "Version": "0.1.0",
        "Enrolled": 1,
        "Wanted": 2,
        "Healthy": "False",
        "Problems": "core-down",
    }
