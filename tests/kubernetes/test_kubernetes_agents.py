"""Agents of two nodes of a cluster: a namespace is labelled, and its running pods talk through mutual TLS. API server,
agents, cores and kernel are real; what the kubelets do is played."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
from collections.abc import Iterator

import pytest

from nodeseal.api import client
from nodeseal.contracts.connections import ConnectionFilter
from nodeseal.kubernetes.objects import Pod
from nodeseal.local.run_directory import cluster_copies
from nodeseal.sources.kubernetes import saved
from support import cni_plugin
from support.anchors import make_ca
from support.connection import echo, echoes
from support.manifests import Cluster, rendered
from support.namespaces import needs_root
from support.patience import wait_for
from support.played_agent import PlayedAgent, has_kinds
from support.played_node import PlayedCluster, PlayedNode, PlayedPod
from support.pods import compiled
from support.server import Server

pytestmark = needs_root

PORT = 8080


class World:
    """Two nodes with an agent each, and a pod on each: shop/client, shop/server."""

    def __init__(self, cluster: PlayedCluster, agents: list[PlayedAgent]) -> None:
        self.cluster = cluster
        self.agents = agents


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("agents")
    programs = root / "compiled.json"
    programs.write_text(compiled().to_json())
    ca = make_ca(root / "ca", trust_domain="cluster.local")
    with PlayedCluster(root) as cluster, contextlib.ExitStack() as stack:
        Cluster(cluster.server).apply(rendered({"namespace": {"create": True}}))
        wait_for(lambda: has_kinds(cluster), "the API server knows nodeseal's kinds")
        agents = [PlayedAgent(cluster, cluster.node(number), root, programs, ca) for number in (1, 2)]
        for agent in agents:
            stack.callback(agent.close)
            agent.start()
        yield World(cluster, agents)


def dialled(pod: PlayedPod, server: PlayedPod, port: int = PORT) -> socket.socket:
    def connect() -> socket.socket:
        return socket.create_connection((server.address, port), 10)

    return pod.namespace.run(connect)


def is_published(world: World, node: PlayedNode, pod: PlayedPod) -> bool:
    items = world.cluster.server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints")["items"]
    specs = [one["spec"] for one in items if one["spec"]["node"] == node.name]
    return [(one["namespace"], one["name"]) for spec in specs for one in spec["workloads"]] == [pod.key]


def says_so(world: World, node: PlayedNode) -> bool:
    """One is wanted, and one is enrolled."""
    status = world.cluster.server.ask("GET", f"/apis/nodeseal.io/v1alpha1/meshnodes/{node.name}")["status"]
    states = {one["type"]: one["status"] for one in status["conditions"]}
    return (status.get("enrolled"), status.get("wanted"), states["Enrolled"]) == (1, 1, "True")


def reached_by_mtls(agent: PlayedAgent, client: PlayedPod, server: PlayedPod, port: int = PORT) -> bool:
    """Whether a connection goes through a tunnel. (Until both nodes have seen the other, it may be refused.)"""
    with contextlib.suppress(ConnectionError), dialled(client, server, port) as connection:
        return echoes(connection) and "mTLS" in agent.connections(port)
    return False


def test_namespace_is_labelled_and_its_running_pods_talk_through_mutual_tls(world: World) -> None:
    one, two = world.agents
    world.cluster.make_namespace("shop")
    web, api = one.node.pod("shop", "client"), two.node.pod("shop", "server")
    with contextlib.closing(Server(api.namespace.run, echo, "::", PORT)):
        before = dialled(web, api)
        assert echoes(before)
        world.cluster.label("shop", enrol="true")
        for agent, pod in ((one, web), (two, api)):
            agent.wait_enrolled(pod)
        wait_for(lambda: reached_by_mtls(one, web, api), "it is mutual TLS")
        # What was open goes on.
        assert echoes(before)
        for agent, pod in ((one, web), (two, api)):
            # What peers read, and what anybody sees who asks for the MeshNode.
            wait_for(functools.partial(is_published, world, agent.node, pod), "its pod is published, and no other")
            wait_for(functools.partial(says_so, world, agent.node), "the node says so", 30.0)
        world.cluster.label("shop", enrol=None)
        for agent, pod in ((one, web), (two, api)):
            agent.wait_enrolled(pod, "absent")
        with dialled(web, api) as direct:
            assert echoes(direct)
        assert echoes(before)
        before.close()


def test_services_are_dialled_through_mutual_tls_in_every_way(world: World) -> None:
    """Nobody else balances here: there is no kube-proxy."""
    one, two = world.agents
    ask = world.cluster.server.ask
    world.cluster.make_namespace("balanced", enrol="true")
    client_pod, server = one.node.pod("balanced", "client"), two.node.pod("balanced", "server")
    spec = {"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30777, "targetPort": PORT}]}
    made = ask("POST", "/api/v1/namespaces/balanced/services", {"metadata": {"name": "web"}, "spec": spec})
    slices = "/apis/discovery.k8s.io/v1/namespaces/balanced/endpointslices"
    part = {
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [server.address], "conditions": {"ready": True}, "nodeName": two.node.name}],
    }
    ways = [(made["spec"]["clusterIP"], 80), (one.node.address, 30777), (two.node.address, 30777)]

    def dial(address: tuple[str, int]) -> socket.socket:
        return client_pod.namespace.run(lambda: socket.create_connection(address, 10))

    def rows() -> list[tuple[str, str | None, bool]]:
        found = client.ask_connections(one.run_dir, ConnectionFilter(live=True, direction="outbound")).connections
        return [(row.destination, row.destination_workload, row.mtls) for row in found]

    def is_led(address: tuple[str, int]) -> bool:
        try:
            with dial(address) as through:
                expected = ("{}:{}".format(*address), "balanced/web", True)
                return echoes(through) and expected in rows()
        except OSError:
            return False  # it is not known yet

    def is_refused(address: tuple[str, int]) -> bool:
        try:
            dial(address).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False

    with contextlib.closing(Server(server.namespace.run, echo, "::", PORT)):
        for agent, pod in ((one, client_pod), (two, server)):
            agent.wait_enrolled(pod)
        wait_for(lambda: is_refused(ways[0]), "no endpoint: the connection is refused", 30.0)
        ask("POST", slices, part)
        for address in ways:
            wait_for(functools.partial(is_led, address), f"{address} leads to the pod", 30.0)
        ask("DELETE", f"{slices}/web-1")
        for address in ways:
            wait_for(functools.partial(is_refused, address), f"{address} is refused", 30.0)
    world.cluster.label("balanced", enrol=None)


def plugged(command: str, agent: PlayedAgent, pod: PlayedPod) -> cni_plugin.Called:
    """What the network plugin says of a pod."""
    namespace, name = pod.key
    variables = {
        "CNI_CONTAINERID": f"sandbox-of-{name}",
        "CNI_NETNS": str(pod.namespace.path),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={pod.uid}",
    }
    result = {"cniVersion": "1.0.0", "ips": [{"address": f"{pod.address}/30"}]}
    given = cni_plugin.configuration(agent.run_dir / "cni.sock", prevResult=result)
    return cni_plugin.call(cni_plugin.plugin(), cni_plugin.environment(command, **variables), given)


def published(world: World) -> set[tuple[str, str]]:
    items = world.cluster.server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints")["items"]
    return {(one["namespace"], one["name"]) for item in items for one in item["spec"].get("workloads", [])}


def test_pod_is_enrolled_before_anything_of_it_runs(world: World) -> None:
    agent = world.agents[0]
    for namespace, enrol in (("starting", "true"), ("unwanted", "false")):
        world.cluster.make_namespace(namespace)
        world.cluster.label(namespace, enrol=enrol)
    pod, other = agent.node.starting("starting", "web"), agent.node.starting("unwanted", "web")
    wait_for((agent.run_dir / "cni.sock").exists, "the agent listens")
    for one in (pod, other):
        called = plugged("ADD", agent, one)
        assert called.status == 0, called
        assert json.loads(called.output)["ips"] == [{"address": f"{one.address}/30"}]
    row = agent.workload(*pod.key)
    assert row is not None
    assert row.phase in ("joining", "enrolled")
    assert pod.key in published(world)
    assert other.key not in published(world)
    assert plugged("DEL", agent, pod).status == 0
    # Its namespace is still there, and so is the pod's object.
    assert pod.key not in published(world)


def test_agent_that_starts_while_the_api_server_is_away_goes_on_from_what_it_knew(world: World) -> None:
    one, two = world.agents
    world.cluster.make_namespace("away", enrol="true")
    web, api = one.node.pod("away", "client"), two.node.pod("away", "server")
    with contextlib.closing(Server(api.namespace.run, echo, "::", PORT)):
        for agent, pod in ((one, web), (two, api)):
            agent.wait_enrolled(pod)
        wait_for(lambda: reached_by_mtls(one, web, api), "it is mutual TLS")
        kept = dialled(web, api)
        assert echoes(kept)
        wait_for(lambda: _names(one, "pods") >= {"client"}, "what is known is saved")
        wait_for(lambda: len(cluster_copies(one.run_dir)) == 11, "all of it")
        world.cluster.server.stop()
        try:
            one.stop()
            one.start()
            one.wait_enrolled(web)
            wait_for(lambda: "mesh-state-away" in one.problems(), "it is told")
            with dialled(web, api) as through:
                assert echoes(through)
            assert echoes(kept)
            assert one.connections(PORT) == {"mTLS"}
        finally:
            world.cluster.server.start()
        late = one.node.pod("away", "late")
        one.wait_enrolled(late)
        wait_for(lambda: "mesh-state-away" not in one.problems(), "all is well")
        assert echoes(kept)
        kept.close()


def _names(agent: PlayedAgent, kind: str) -> set[str]:
    found = saved.load(agent.run_dir, kind, Pod)
    return {one.metadata.name for one in found.items} if found is not None else set()


def test_pod_that_comes_again_under_its_name_is_another_one(world: World) -> None:
    one, _ = world.agents
    world.cluster.make_namespace("stateful", enrol="true")
    first = one.node.pod("stateful", "db-0")
    one.wait_enrolled(first)
    first.delete()
    second = one.node.pod("stateful", "db-0")
    assert second.address != first.address

    def so() -> bool:
        row = one.workload(*second.key)
        return row is not None and row.phase == "enrolled" and second.address in row.addresses

    wait_for(so, "the second is enrolled")


def test_sandbox_that_is_made_anew_is_enrolled_where_it_is(world: World) -> None:
    one, _ = world.agents
    world.cluster.make_namespace("sandbox", enrol="true")
    pod = one.node.pod("sandbox", "web")
    one.wait_enrolled(pod)
    pod.end()
    pod.namespace.close()
    pod.namespace, pod.address = one.node.network()
    pod.run()
    pod.tell()

    def so() -> bool:
        row = one.workload(*pod.key)
        return row is not None and row.phase == "enrolled" and pod.address in row.addresses

    wait_for(so, "it is enrolled in its new sandbox")


def test_pod_of_the_host_network_is_reached_through_mutual_tls(world: World) -> None:
    one, two = world.agents
    world.cluster.make_namespace("host", enrol="true")
    web = one.node.pod("host", "client")
    daemon = two.node.pod("host", "daemon", hostNetwork=True, ports=[{"containerPort": 9100, "hostPort": 9100}])
    with contextlib.closing(Server(two.node.namespace.run, echo, "::", 9100)):
        for agent, pod in ((one, web), (two, daemon)):
            agent.wait_enrolled(pod)
        wait_for(lambda: reached_by_mtls(one, web, daemon, 9100), "it is mutual TLS")


def test_many_pods_that_start_at_once_are_all_enrolled(world: World) -> None:
    one, _ = world.agents
    world.cluster.make_namespace("many", enrol="true")
    pods = [one.node.starting("many", f"web-{number}") for number in range(30)]
    for pod in pods:
        pod.run()
        pod.tell()

    def published() -> set[tuple[str, str]]:
        found = world.cluster.server.ask("GET", "/apis/nodeseal.io/v1alpha1/meshendpoints")["items"]
        return {(one["namespace"], one["name"]) for item in found for one in item["spec"]["workloads"]}

    wait_for(lambda: published() >= {pod.key for pod in pods}, "all are published")
    for pod in pods:
        pod.delete()
    wait_for(lambda: all(one.workload(*pod.key) is None for pod in pods), "all are gone")
