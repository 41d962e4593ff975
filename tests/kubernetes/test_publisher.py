"""What a node publishes, in a real API server: written, healed, taken over, withdrawn, and read by other nodes."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import Key
from nodeseal.mesh.model import Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust import Trust
from nodeseal.sources.kubernetes import publisher as publisher_module
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import (
    MESH_ENDPOINTS,
    MESH_NODES,
    MeshEndpoints,
    MeshNode,
    write_workload,
)
from nodeseal.sources.kubernetes.publications import Publications
from nodeseal.sources.kubernetes.publisher import Publisher
from nodeseal.sources.kubernetes.renewals import Renewals
from nodeseal.sources.kubernetes.shards import ROOM
from nodeseal.sources.source import ClaimError, NodeReport, PublicationError, SourceAwayError
from support.agent_fakes import until
from support.api_server import ApiServer
from support.manifests import Cluster, rendered
from support.patience import wait_for

TRUST = Trust(frozenset({"1" * 32}), "1" * 32)
BOOT = "boot-of-the-test"
PATH = "/apis/nodeseal.io/v1alpha1"

_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def _installed(server: ApiServer) -> None:
    Cluster(server).apply(one for one in rendered() if one["kind"] == "CustomResourceDefinition")
    wait_for(lambda: _is_established(server), "the API server knows the new kinds")


def _is_established(server: ApiServer) -> bool:
    try:
        for plural in ("meshendpoints", "meshnodes"):
            server.ask("GET", f"{PATH}/{plural}")
    except AssertionError:
        return False
    return True


@pytest.fixture(autouse=True)
def _no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else does right after a write of the agent's is not passed over."""
    monkeypatch.setattr(publisher_module, "_LAG_S", 0.0)


@pytest.fixture
def node(server: ApiServer) -> Iterator[str]:
    """A Node that only one test has."""
    name = f"node{next(_numbers):03}"
    make_node(server, name)
    yield name
    for one in server.ask("GET", f"{PATH}/meshendpoints")["items"]:
        server.ask("DELETE", f"{PATH}/meshendpoints/{one['metadata']['name']}")
    for one in server.ask("GET", f"{PATH}/meshnodes")["items"]:
        server.ask("DELETE", f"{PATH}/meshnodes/{one['metadata']['name']}")


def make_node(server: ApiServer, name: str, boot: str = BOOT) -> None:
    info = dict.fromkeys(
        ("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion"), "x"
    )
    info |= {"kubeProxyVersion": "x", "operatingSystem": "linux", "architecture": "amd64", "bootID": boot}
    server.ask("POST", "/api/v1/nodes", {"metadata": {"name": name}, "status": {"nodeInfo": info}})


def a(text: str, node: str, address: str, **changes: Any) -> Workload:
    name = WorkloadName("default", text)
    made = Workload(name, "a", node, (ip_address(address),), None, True, Mode.PERMISSIVE, Phase.ENROLLED)
    return replace(made, **changes)


def some(node: str, count: int) -> list[Workload]:
    return [a(f"w{number:03}", node, f"10.1.{number // 200}.{number % 200 + 1}") for number in range(count)]


@dataclass
class Agent:
    """What one node's agent has of all this."""

    publisher: Publisher
    publications: Publications
    endpoints: Followed[MeshEndpoints]
    nodes: Followed[MeshNode]
    told: list[set[WorkloadName]]


class Agents:
    """Of several nodes, over one API server."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tasks: list[asyncio.Task[None]] = []
        self._followed: list[Followed[Any]] = []

    def start(self, node: str, run_directory: str = "/run/of-the-test", boot: str = BOOT) -> Agent:
        publications = Publications(node)
        told: list[set[WorkloadName]] = []

        async def endpoints_changed(keys: set[Key]) -> None:
            told.append(publications.take_endpoints({key: endpoints.items.get(key) for key in keys}))

        async def nodes_changed(keys: set[Key]) -> None:
            publications.take_nodes({key: nodes.items.get(key) for key in keys})

        endpoints = Followed(self._api, MESH_ENDPOINTS, endpoints_changed)
        nodes = Followed(self._api, MESH_NODES, nodes_changed)
        self._followed += [endpoints, nodes]
        self._tasks += [asyncio.create_task(one.run()) for one in (endpoints, nodes)]
        holder = Holder(boot, Path(run_directory))
        publisher = Publisher(self._api, node, holder, "0.1.0", endpoints, nodes)
        return Agent(publisher, publications, endpoints, nodes, told)

    def go_on(self, publisher: Publisher) -> None:
        self._tasks.append(asyncio.create_task(publisher.run()))

    async def stop(self) -> None:
        # A connection that is given up while it is made, or is let go of, would end later than the loop: each is made,
        # and cut by what has it.
        await until(lambda: all(one._open_since is not None for one in self._followed), "all is watched")
        for task in self._tasks:
            task.cancel()


def play(server: ApiServer, story: Callable[[Agents], Awaitable[None]]) -> None:
    async def whole(api: Api) -> None:
        agents = Agents(api)
        try:
            await story(agents)
        finally:
            await agents.stop()

    server.play(whole)


def objects(server: ApiServer, plural: str, node: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask("GET", f"{PATH}/{plural}")["items"]
    return [one for one in found if one["metadata"]["name"].startswith(node)]


def published(server: ApiServer, node: str) -> set[str]:
    return {workload["name"] for one in objects(server, "meshendpoints", node) for workload in one["spec"]["workloads"]}


def seen(agent: Agent) -> dict[WorkloadName, Workload]:
    return agent.publications.workloads


def test_what_one_node_publishes_the_others_see(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        make_node(server, f"{node}-b")
        here, there = agents.start(node), agents.start(f"{node}-b")
        workloads = some(node, 2 * ROOM + 1)
        assert await here.publisher.publish(workloads, TRUST)
        await until(lambda: seen(there) == {one.key: one for one in workloads}, "all are seen")
        await until(lambda: there.publications.publishers == {node: TRUST}, "its trust too")
        before = len(there.told)
        changed = [replace(workloads[0], mode=Mode.STRICT), *workloads[1:]]
        assert await here.publisher.publish(changed, TRUST)
        await until(lambda: seen(there) == {one.key: one for one in changed}, "the change is seen")
        assert there.told[before:] == [{workloads[0].key}]
        assert not await here.publisher.publish(changed, TRUST)
        assert await here.publisher.publish([], TRUST)
        await until(lambda: seen(there) == {}, "nothing is left")
        assert objects(server, "meshendpoints", node) == []

    play(server, story)


def test_objects_are_owned_by_their_node_and_lose_their_managed_fields(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        await agent.publisher.publish(some(node, 1), TRUST)
        await agent.publisher.publish(some(node, 2), TRUST)

    play(server, story)
    uid = server.ask("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"]
    (one,) = objects(server, "meshendpoints", node)
    (mesh_node,) = objects(server, "meshnodes", node)
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    assert one["metadata"]["ownerReferences"] == [owner]
    assert mesh_node["metadata"]["ownerReferences"] == [owner]
    assert "managedFields" not in one["metadata"]


def test_agent_that_starts_again_moves_nothing(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        workloads = some(node, 3 * ROOM)
        await agents.start(node).publisher.publish(workloads, TRUST)
        before = objects(server, "meshendpoints", node)
        again = agents.start(node)
        await again.publisher.claim()
        assert not await again.publisher.publish(workloads, TRUST)
        assert objects(server, "meshendpoints", node) == before
        assert await again.publisher.publish(workloads[1:], TRUST)
        versions = [one["metadata"]["resourceVersion"] for one in objects(server, "meshendpoints", node)]
        assert len(set(versions) - {one["metadata"]["resourceVersion"] for one in before}) == 1

    play(server, story)


@pytest.mark.parametrize("how", ["edited", "removed", "emptied", "broken", "added"])
def test_what_somebody_else_does_to_it_is_healed(server: ApiServer, node: str, how: str) -> None:
    def meddle() -> None:
        path = f"{PATH}/meshendpoints/{node}-0"
        (one, *_) = objects(server, "meshendpoints", node)
        del one["metadata"]["managedFields"]
        match how:
            case "edited":
                one["spec"]["workloads"][0]["addresses"] = ["10.9.9.9"]
            case "removed":
                server.ask("DELETE", path)
                return
            case "emptied":
                one["spec"]["workloads"] = []
            case "broken":
                one["spec"]["workloads"][0]["addresses"] = ["1.2.3.4.5"]
            case "added":
                one["metadata"] = {"name": f"{node}-7"}
                server.ask("POST", f"{PATH}/meshendpoints", one)
                return
        server.ask("PUT", path, one)

    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        workloads = some(node, ROOM)
        await agent.publisher.publish(workloads, TRUST)
        await until(lambda: seen(agent) == {one.key: one for one in workloads}, "it is followed")
        versions = dict(agent.endpoints.items)
        await asyncio.to_thread(meddle)
        await until(lambda: agent.endpoints.items != versions, "what was done is followed")
        assert await agent.publisher.publish(workloads, TRUST)
        (one,) = objects(server, "meshendpoints", node)
        assert {workload["addresses"][0] for workload in one["spec"]["workloads"]} == {
            str(workload.address) for workload in workloads
        }

    play(server, story)


def test_node_that_was_made_anew_owns_what_is_published_from_then_on(server: ApiServer, node: str) -> None:
    def again() -> None:
        # As the garbage collector, which the test has not, does it.
        server.ask("DELETE", f"/api/v1/nodes/{node}")
        server.ask("DELETE", f"{PATH}/meshendpoints/{node}-0")
        server.ask("DELETE", f"{PATH}/meshnodes/{node}")
        make_node(server, node)

    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        await agent.publisher.publish(some(node, 1), TRUST)
        await until(lambda: agent.endpoints.items and agent.nodes.items, "it is followed")
        await asyncio.to_thread(again)
        await until(lambda: not agent.endpoints.items and not agent.nodes.items, "all is gone")
        await agent.publisher.publish(some(node, 1), TRUST)
        uid = server.ask("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"]
        for plural in ("meshendpoints", "meshnodes"):
            (one,) = objects(server, plural, node)
            assert one["metadata"]["ownerReferences"][0]["uid"] == uid

    play(server, story)


def test_node_that_the_cluster_does_not_have_is_named(server: ApiServer) -> None:
    async def story(agents: Agents) -> None:
        with pytest.raises(PublicationError, match=r"^the API server has no Node nowhere, for which this agent would"):
            await agents.start("nowhere").publisher.publish([], TRUST)

    play(server, story)


def test_agent_without_rights_starts_and_names_the_one_that_is_missing(server: ApiServer, node: str) -> None:
    server.add_user("rightless", "rightless-of-the-test")
    wait_for(lambda: _is_established(server), "it knows its kinds again")

    async def story(api: Api) -> None:
        async def changed(_keys: set[Key]) -> None:
            pass

        endpoints, nodes = Followed(api, MESH_ENDPOINTS, changed), Followed(api, MESH_NODES, changed)
        publisher = Publisher(api, node, Holder(BOOT, Path("/run/of-the-test")), "0.1.0", endpoints, nodes)
        await publisher.claim()
        with pytest.raises(SourceAwayError, match=r"the agent may not get meshnodes\.nodeseal\.io: give its service"):
            await publisher.publish([], TRUST)

    server.play(story, "rightless-of-the-test")


def test_server_that_is_away_is_told_and_tried_again_later(
    server: ApiServer, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_LONGEST_S", 0.1)
    monkeypatch.setattr(publisher_module, "_FIRST_S", 0.1)

    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        await agent.publisher.publish([], TRUST)
        await asyncio.to_thread(server.stop)
        try:
            with pytest.raises(SourceAwayError, match=r"^cannot publish the enrolled workloads: https://"):
                await agent.publisher.publish(some(node, 1), TRUST)
            await agents.start(node).publisher.claim()
        finally:
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(wait_for, lambda: _is_established(server), "it knows its kinds again")

        async def works() -> bool:
            try:
                return await agent.publisher.publish(some(node, 1), TRUST)
            except SourceAwayError:
                await asyncio.sleep(0.05)
                return False

        async with asyncio.timeout(30):
            while not await works():
                pass
        assert published(server, node) == {"w000"}

    play(server, story)


def test_field_that_the_cluster_s_schema_does_not_know_is_not_written_again_and_again(
    server: ApiServer, node: str
) -> None:
    """Agents of two versions are on a cluster while it is upgraded."""
    (schema,) = (one for one in rendered() if one["metadata"]["name"] == "meshendpoints.nodeseal.io")
    older = copy.deepcopy(schema)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["workloads"]["items"]["properties"]["mode"]
    strict = [replace(one, mode=Mode.STRICT) for one in some(node, 2)]

    def pruned() -> bool:
        """The server takes the schema of now into use a moment later."""
        body = {"metadata": {"name": f"{node}-9"}, "spec": {"node": node, "workloads": [write_workload(strict[0])]}}
        body |= {"apiVersion": "nodeseal.io/v1alpha1", "kind": "MeshEndpoints"}
        made = server.ask("POST", f"{PATH}/meshendpoints", msgspec.to_builtins(body))
        server.ask("DELETE", f"{PATH}/meshendpoints/{node}-9")
        return "mode" not in made["spec"]["workloads"][0]

    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        await agent.publisher.publish(strict, TRUST)
        await until(lambda: len(seen(agent)) == 2, "it is followed")
        assert {one.mode for one in seen(agent).values()} == {Mode.PERMISSIVE}
        assert not await agent.publisher.publish(strict, TRUST)
        assert not await agent.publisher.publish(strict, TRUST)

    Cluster(server).apply([older])
    try:
        wait_for(pruned, "the older schema is in use")
        play(server, story)
    finally:
        Cluster(server).apply([schema])
        wait_for(lambda: not pruned(), "the schema is in use again")


# ---- nodes that do not renew


def test_silent_node_expires_unless_its_node_is_ready(server: ApiServer, node: str) -> None:
    def say(ready: str) -> None:
        one = server.ask("GET", f"/api/v1/nodes/{node}")
        one["status"]["conditions"] = [{"type": "Ready", "status": ready}]
        server.ask("PUT", f"/api/v1/nodes/{node}/status", one)

    async def story(api: Api) -> None:
        clock = iter(range(0, 1 << 30, 100))
        told: list[tuple[frozenset[str], frozenset[str]]] = []

        async def changed(silent: frozenset[str], expired: frozenset[str]) -> None:
            told.append((silent, expired))

        renewals = Renewals(api, lambda: {node}, lambda: True, changed, clock=lambda: float(next(clock)))

        async def found() -> tuple[frozenset[str], frozenset[str]]:
            told.clear()
            while not told:
                renewals.seen({"another"})
                await renewals.look()
            return told[-1]

        await asyncio.to_thread(say, "True")
        assert await found() == ({node}, frozenset())
        await asyncio.to_thread(say, "Unknown")
        assert await found() == ({node}, {node})
        await asyncio.to_thread(say, "True")
        assert await found() == ({node}, frozenset())
        await asyncio.to_thread(server.ask, "DELETE", f"/api/v1/nodes/{node}")
        assert await found() == ({node}, {node})

    server.play(story)


# ---- whose the node is


def test_agents_of_one_run_directory_take_over_from_each_other(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        first, second = agents.start(node), agents.start(node)
        await first.publisher.publish(some(node, 1), TRUST)
        await second.publisher.claim()
        await second.publisher.publish(some(node, 2), TRUST)
        await first.publisher.publish(some(node, 3), TRUST)
        assert published(server, node) == {"w000", "w001", "w002"}

    play(server, story)


def test_node_of_another_run_directory_is_refused_while_its_agent_renews(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        first, second = agents.start(node), agents.start(node, "/run/another")
        await first.publisher.publish(some(node, 1), TRUST)
        why = f"the node {node} is in use by another agent of this machine, with the run directory /run/of-the-test"
        with pytest.raises(ClaimError, match=why):
            await second.publisher.claim()
        with pytest.raises(PublicationError, match=why):
            await second.publisher.publish([], TRUST)
        assert await second.publisher.withdraw() is None
        assert published(server, node) == {"w000"}

    play(server, story)


def test_of_two_machines_with_one_name_the_node_s_own_has_it(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        wrong, right = agents.start(node, boot="another-boot"), agents.start(node)
        await wrong.publisher.publish(some(node, 1), TRUST)
        await right.publisher.claim()
        await right.publisher.publish(some(node, 2), TRUST)
        right_one = Holder(BOOT, Path("/run/of-the-test")).spec
        await until(lambda: [one.status.holder for one in wrong.nodes.items.values()] == [right_one], "it is followed")
        with pytest.raises(PublicationError, match="another agent on another machine"):
            await wrong.publisher.publish(some(node, 1), TRUST)
        with pytest.raises(ClaimError, match="another agent on another machine"):
            await agents.start(node, boot="another-boot").publisher.claim()
        assert published(server, node) == {"w000", "w001"}

    play(server, story)


def test_withdrawing_leaves_nothing_of_the_node_and_everything_of_others(server: ApiServer, node: str) -> None:
    async def story(agents: Agents) -> None:
        make_node(server, f"{node}-1")
        first, other = agents.start(node), agents.start(f"{node}-1")
        await first.publisher.publish(some(node, 2 * ROOM), TRUST)
        await other.publisher.publish([a("other", f"{node}-1", "10.2.0.1")], TRUST)
        # Another process of it, which follows nothing: cleanup.
        later = agents.start(node).publisher
        assert await later.withdraw() == f"the MeshNode {node} and its MeshEndpoints (2)"
        assert await later.withdraw() is None
        assert published(server, node) == {"other"}
        assert [one["metadata"]["name"] for one in objects(server, "meshnodes", node)] == [f"{node}-1"]

    play(server, story)


# ---- how the node is


def test_report_is_brought_to_the_node_s_object(server: ApiServer, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nodeseal.sources.kubernetes import node_status

    monkeypatch.setattr(node_status, "_APART_S", 0.0)

    async def story(agents: Agents) -> None:
        agent = agents.start(node)
        claim = await agent.publisher.claim()
        await agent.publisher.publish([], TRUST)
        agents.go_on(agent.publisher)
        agent.publisher.report(NodeReport(1, 2, (Problem(ProblemWord.CORE_DOWN, "it is gone", "look"),)))
        await until(lambda: ("", node) in agent.nodes.items, "it is followed")
        await until(lambda: agent.nodes.items[("", node)].status.summary == "core-down", "it is told")
        status = agent.nodes.items[("", node)].status
        assert (status.enrolled, status.wanted) == (1, 2)
        agent.publisher.report(NodeReport(2, 2))
        await until(lambda: agent.nodes.items[("", node)].status.enrolled == 2, "and that it is well again")
        assert agent.nodes.items[("", node)].status.summary == ""
        # Whoever has let go of the node says nothing of it any more.
        await claim.release()
        agent.publisher.report(NodeReport(1, 2))
        next_ = agents.start(node)
        agents.go_on(next_.publisher)
        await next_.publisher.claim()
        await next_.publisher.publish([], TRUST)
        next_.publisher.report(NodeReport(3, 3))
        await until(lambda: agent.nodes.items[("", node)].status.enrolled == 3, "another one does")

    play(server, story)
