"""The mesh state of a real API server, as one node's agent sees it. What the kubelets do is played."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.enrolment.capture_thread import inode_of
from nodeseal.kubernetes import followed
from nodeseal.local.mesh_source import KubernetesMesh, Outside
from nodeseal.local.run_directory import cluster_copies
from nodeseal.mesh.fronts import Found, front_at
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.workload import Mode, Phase, Workload, WorkloadName
from nodeseal.sources.arrival import Arrival
from nodeseal.sources.kubernetes.source import KubernetesSource
from nodeseal.sources.source import Concern, MeshStateError
from support.agent_fakes import until
from support.manifests import Cluster, rendered
from support.namespaces import needs_root
from support.patience import wait_for
from support.played_node import PlayedCluster, PlayedNode

pytestmark = needs_root

_numbers = itertools.count()
NOBODY, ANOTHER = "nobody-of-the-test", "another-of-the-test"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayedCluster]:
    with PlayedCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        Cluster(cluster.server).apply(rendered({"namespace": {"create": True}}))
        wait_for(lambda: _has_kinds(cluster), "the API server knows nodeseal's kinds")
        yield cluster


def _has_kinds(cluster: PlayedCluster) -> bool:
    try:
        for plural in ("meshendpoints", "meshnodes"):
            cluster.server.ask("GET", f"/apis/nodeseal.io/v1alpha1/{plural}")
    except AssertionError:
        return False
    return True


@pytest.fixture
def node(cluster: PlayedCluster) -> PlayedNode:
    """One that only this test has."""
    return cluster.node(1 + next(_numbers))


@pytest.fixture
def shop(cluster: PlayedCluster) -> str:
    """A namespace that only this test has."""
    name = f"shop{next(_numbers)}"
    cluster.make_namespace(name)
    return name


class Seen:
    """What a source's changes were last."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.mesh: Mesh | None = None
        self.error: MeshStateError | None = None
        self.meshes = 0

    async def follow(self) -> None:
        async for item in self.source.changes():
            if isinstance(item, Mesh):
                self.mesh, self.error = item, None
                self.meshes += 1
            else:
                self.error = item

    def workload(self, *key: str) -> Workload | None:
        return self.mesh.workloads.get(WorkloadName(*key)) if self.mesh is not None else None

    def lines(self) -> list[str]:
        return [str(one) for one in self.error.problems] if self.error is not None else []


def source_of(cluster: PlayedCluster, node: str, run_dir: Path, token: str = "") -> KubernetesSource:
    access = cluster.server.access(token) if token else cluster.server.access()
    outside = Outside(access.server, access.ca, access.token)
    return KubernetesSource(KubernetesMesh("cluster.local", outside=outside), node, run_dir)


def seeing(
    cluster: PlayedCluster,
    node: PlayedNode,
    run_dir: Path,
    story: Callable[[Seen], Awaitable[None]],
    *,
    token: str = "",
) -> None:
    """The story while an agent of the node follows the cluster, in the node's network namespace. With a token it has no
    claim."""

    async def whole() -> None:
        seen = Seen(source_of(cluster, node.name, run_dir, token))
        claim = await seen.source.claim() if not token else None
        task = asyncio.create_task(seen.follow())
        try:
            await story(seen)
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if claim is not None:
                await claim.release()

    run_dir.mkdir(exist_ok=True)
    node.namespace.run(lambda: asyncio.run(whole()))


async def does(action: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    return await asyncio.to_thread(action, *arguments, **more)


def test_label_of_a_namespace_takes_its_running_pods_in(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path
) -> None:
    pod = node.pod(shop, "web")

    async def story(seen: Seen) -> None:
        await until(lambda: seen.workload(shop, "web") is not None, "the pod is there")
        one = seen.workload(shop, "web")
        assert one is not None
        assert (one.wanted, one.netns, one.node, one.phase) == (False, None, node.name, Phase.ABSENT)
        await does(cluster.label, shop, enrol="true", mode="strict")
        await until(lambda: (one := seen.workload(shop, "web")) is not None and one.wanted, "it is wanted")
        one = seen.workload(shop, "web")
        assert one is not None
        assert one.netns is not None
        assert inode_of(one.netns) == pod.namespace.inode
        assert (one.addresses, one.mode) == ((ip_address(pod.address),), Mode.STRICT)
        await does(cluster.label, shop, enrol=None)
        await until(lambda: (one := seen.workload(shop, "web")) is not None and not one.wanted, "it is not wanted")
        await does(pod.delete)
        await until(lambda: seen.workload(shop, "web") is None, "it is gone")
        assert seen.error is None

    seeing(cluster, node, tmp_path / "run", story)


def test_pods_of_other_nodes_are_there_when_these_publish_them(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path
) -> None:
    other = f"{node.name}-other"
    published = {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshEndpoints",
        "metadata": {"name": f"{other}-0"},
        "spec": {
            "node": other,
            "workloads": [{"namespace": shop, "name": "far", "serviceAccount": "far", "addresses": ["10.99.0.1"]}],
        },
    }

    async def story(seen: Seen) -> None:
        await until(lambda: seen.mesh is not None)
        await does(cluster.server.ask, "POST", "/apis/nodeseal.io/v1alpha1/meshendpoints", published)
        await until(lambda: seen.workload(shop, "far") is not None, "what is published is there")
        one = seen.workload(shop, "far")
        assert one is not None
        assert (one.node, one.phase) == (other, Phase.ENROLLED)
        await does(cluster.server.ask, "DELETE", f"/apis/nodeseal.io/v1alpha1/meshendpoints/{other}-0")
        await until(lambda: seen.workload(shop, "far") is None, "what is withdrawn is not")

    seeing(cluster, node, tmp_path / "run", story)


def test_services_lead_to_their_endpoints(cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path) -> None:
    service = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}}
    made = cluster.server.ask("POST", f"/api/v1/namespaces/{shop}/services", service)
    part = {
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.99.1.1"], "conditions": {"ready": True}}],
    }

    def endpoints(seen: Seen) -> list[str]:
        found = seen.mesh.services.get(WorkloadName(shop, "web")) if seen.mesh is not None else None
        return [str(one) for one in found.fronts[0].endpoints] if found is not None and found.fronts else []

    async def story(seen: Seen) -> None:
        await until(lambda: seen.mesh is not None and WorkloadName(shop, "web") in seen.mesh.services)
        assert endpoints(seen) == []
        path = f"/apis/discovery.k8s.io/v1/namespaces/{shop}/endpointslices"
        await does(cluster.server.ask, "POST", path, part)
        await until(lambda: endpoints(seen) == ["10.99.1.1:8080"], "its endpoint")
        assert seen.mesh is not None
        (front,) = seen.mesh.services[WorkloadName(shop, "web")].fronts
        assert [str(one) for one in front.addresses] == [made["spec"]["clusterIP"]]
        await does(cluster.server.ask, "DELETE", f"{path}/web-1")
        await until(lambda: endpoints(seen) == [], "none again")

    seeing(cluster, node, tmp_path / "run", story)


def test_nodes_tell_where_node_ports_are_dialled(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path
) -> None:
    other, path = f"{node.name}-other", "/apis/nodeseal.io/v1alpha1/meshnodes"
    holder = {"boot": "b", "runDirectory": "/run/nodeseal"}
    status = {"agentVersion": "0.1.0", "holder": holder, "renewTime": "2026-01-01T00:00:00Z"}
    told = {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": other},
        "status": status | {"addresses": ["172.30.0.9", "fd30::9"]},
    }
    service = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30123}]}
    cluster.server.ask("POST", f"/api/v1/namespaces/{shop}/services", {"metadata": {"name": "web"}, "spec": service})

    def led(seen: Seen, address: str) -> bool:
        found = front_at(seen.mesh, ip_address(address), 30123) if seen.mesh is not None else None
        return isinstance(found, Found) and found.service.key == WorkloadName(shop, "web")

    async def story(seen: Seen) -> None:
        await until(lambda: led(seen, node.address), "its own node's address")
        assert not led(seen, "172.30.0.9")
        await does(cluster.server.ask, "POST", path, told)
        await until(lambda: led(seen, "172.30.0.9"), "another node's")
        assert seen.meshes > 0
        await seen.source.publish([], None)
        own = await does(cluster.server.ask, "GET", f"{path}/{node.name}")
        assert own["status"]["addresses"] == [node.address]
        merge = "application/merge-patch+json"
        await does(cluster.server.ask, "PATCH", f"{path}/{other}", {"status": {"addresses": ["::1"]}}, merge)
        await until(lambda: not led(seen, "172.30.0.9"), "nothing is known of its addresses")
        await does(cluster.server.ask, "PATCH", f"{path}/{other}", {"status": {"addresses": ["172.30.0.9"]}}, merge)
        await until(lambda: led(seen, "172.30.0.9"), "they are known again")
        await does(cluster.server.ask, "DELETE", f"{path}/{other}")
        await until(lambda: not led(seen, "172.30.0.9"), "the node is gone")

    seeing(cluster, node, tmp_path / "run", story)


def test_mistake_in_an_annotation_is_told_on_the_pod_and_changes_nothing(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path
) -> None:
    cluster.label(shop, enrol="true")
    pod = node.pod(shop, "web")

    def events() -> list[str]:
        found = cluster.server.ask("GET", f"/apis/events.k8s.io/v1/namespaces/{shop}/events")["items"]
        return [one["note"] for one in found if one["regarding"]["name"] == "web"]

    async def story(seen: Seen) -> None:
        await until(lambda: (one := seen.workload(shop, "web")) is not None and one.wanted)
        await does(pod.annotate, limits="connections: many")
        await until(lambda: bool(seen.lines()), "it is told")
        assert seen.error is not None
        assert {one.concern for one in seen.error.problems} == {Concern.OBJECT}
        assert "nodeseal.io/limits.connections" in seen.lines()[0]
        one = seen.workload(shop, "web")
        assert one is not None
        assert one.wanted
        assert await does(wait_for, events, "an Event tells it") == seen.lines()
        await does(pod.annotate, limits=None)
        await until(lambda: seen.error is None, "all is well")

    seeing(cluster, node, tmp_path / "run", story)


def test_documents_of_the_config_map_count(cluster: PlayedCluster, node: PlayedNode, tmp_path: Path) -> None:
    path = "/api/v1/namespaces/nodeseal-system/configmaps"
    body = {"metadata": {"name": "nodeseal-mesh"}, "data": {"revocations.yaml": "revocations: [{serials: ['1f']}]"}}

    def revoked(seen: Seen) -> int:
        return len(seen.mesh.of(REVOCATIONS)) if seen.mesh is not None else 0

    async def story(seen: Seen) -> None:
        await until(lambda: seen.mesh is not None)
        await does(cluster.server.ask, "POST", path, body)
        await until(lambda: revoked(seen) == 1, "it is revoked")
        bad = {"data": {"revocations.yaml": "revocations: 5"}}
        await does(cluster.server.ask, "PATCH", f"{path}/nodeseal-mesh", bad, MERGE)
        await until(lambda: bool(seen.lines()), "it is told")
        assert revoked(seen) == 1
        await does(cluster.server.ask, "DELETE", f"{path}/nodeseal-mesh")
        await until(lambda: revoked(seen) == 0, "nothing is revoked")
        assert seen.error is None

    seeing(cluster, node, tmp_path / "run", story)


def test_pod_that_arrives_is_a_workload_before_the_api_server_tells_its_address(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path
) -> None:
    cluster.label(shop, enrol="true")
    pod = node.starting(shop, "web")
    other = f"{shop}-other"
    cluster.make_namespace(other)
    unwanted = node.starting(other, "web")

    def arrival(one: Any) -> Arrival:
        return Arrival(WorkloadName(*one.key), one.uid, "1", str(one.namespace.path), (ip_address(one.address),))

    async def story(seen: Seen) -> None:
        await until(lambda: seen.mesh is not None)
        assert await seen.source.expect(arrival(pod), None) == WorkloadName(shop, "web")
        assert await seen.source.expect(arrival(unwanted), None) is None
        await until(lambda: (one := seen.workload(shop, "web")) is not None and one.netns is not None)
        one = seen.workload(shop, "web")
        assert one is not None
        assert (one.netns, one.addresses) == (str(pod.namespace.path), (ip_address(pod.address),))

    seeing(cluster, node, tmp_path / "run", story)


def test_server_that_is_away_at_the_start_is_told_and_what_was_saved_counts(
    cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "_LONGEST_S", 0.5)
    cluster.label(shop, enrol="true")
    node.pod(shop, "web")
    late = f"{shop}-late"

    async def nothing_known(seen: Seen) -> None:
        await until(lambda: seen.error is not None, "it is told")
        assert seen.error is not None
        assert not seen.error.used
        assert seen.mesh is None
        (line,) = seen.lines()
        assert ", pods, " in line
        assert ": https://172.29.0.1:6443: " in line
        await does(cluster.server.start)
        await until(lambda: (one := seen.workload(shop, "web")) is not None and one.netns is not None)
        await until(lambda: len(cluster_copies(tmp_path / "run")) == 11, "all of it is saved")

    async def saved(seen: Seen) -> None:
        await until(lambda: seen.workload(shop, "web") is not None, "what was saved counts")
        one = seen.workload(shop, "web")
        assert one is not None
        assert one.wanted
        assert one.netns is not None
        await until(lambda: seen.error is not None, "it is told")
        assert seen.error is not None
        assert {one.concern for one in seen.error.problems} == {Concern.AWAY}
        await does(cluster.server.start)
        await does(cluster.make_namespace, late, enrol="true")
        await does(node.pod, late, "new")
        await until(lambda: seen.workload(late, "new") is not None, "what comes is seen")
        await until(lambda: seen.error is None, "all is well")

    for story in (nothing_known, saved):
        cluster.server.stop()
        seeing(cluster, node, tmp_path / "run", story)


def test_right_that_is_missing_is_named_with_its_verb_and_resource(
    cluster: PlayedCluster, node: PlayedNode, tmp_path: Path
) -> None:
    cluster.server.add_user("nobody", NOBODY)

    async def story(seen: Seen) -> None:
        await until(lambda: len(seen.lines()) == 9, "each is told")
        assert seen.error is not None
        assert not seen.error.used
        assert any(
            line.startswith("meshendpoints.nodeseal.io: the agent may not list meshendpoints.nodeseal.io: give its ")
            for line in seen.lines()
        )

    seeing(cluster, node, tmp_path / "run", story, token=NOBODY)


def test_check_names_the_rights_that_are_missing(cluster: PlayedCluster, node: PlayedNode, tmp_path: Path) -> None:
    account = "/api/v1/namespaces/nodeseal-system/serviceaccounts/nodeseal-agent/token"
    token = cluster.server.ask("POST", account, {"spec": {}})["status"]["token"]
    cluster.server.add_user("another", ANOTHER)

    def lines(of: str) -> list[str]:
        return list(asyncio.run(source_of(cluster, node.name, tmp_path, of).examine()))

    # The server reads its own rules a moment after it has begun.
    wait_for(lambda: node.namespace.run(lambda: lines(token)) == [], "nothing is missing")
    found = node.namespace.run(lambda: lines(ANOTHER))
    assert "the agent may not list, watch pods: give its service account the verbs list, watch on them" in found
    assert any(line.startswith("the agent may not list, watch configmaps nodeseal-mesh of the names") for line in found)
    assert len(found) == 10
    cluster.server.stop()
    try:
        (line,) = node.namespace.run(lambda: lines(token))
    finally:
        cluster.server.start()
    assert line.startswith("the API server cannot be asked what the agent may do: https://172.29.0.1:6443: ")


def test_load_gives_what_is_there(cluster: PlayedCluster, node: PlayedNode, shop: str, tmp_path: Path) -> None:
    cluster.label(shop, enrol="true")
    node.pod(shop, "web")

    def load() -> Mesh:
        return asyncio.run(source_of(cluster, node.name, tmp_path).load())

    workload = node.namespace.run(load).workloads[WorkloadName(shop, "web")]
    assert workload.wanted
    assert workload.netns is not None
