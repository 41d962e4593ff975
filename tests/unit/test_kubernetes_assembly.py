"""The model is put together object by object, and what cannot be in it with others is left out and named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.model import Mesh, Workload
from nodeseal.mesh.workload import Phase, WorkloadName
from nodeseal.sources.kubernetes.assembly import Assembly, _Entry
from support.agent_fakes import TRUST_DOMAIN, workload

A = workload("a", "/run/netns/a", addresses=(IPv4Address("10.0.0.1"),))
B = workload("b", None, node="node2", addresses=(IPv4Address("10.0.0.2"),), phase=Phase.ENROLLED)
HOST = workload("host", OWN_NAMESPACE, addresses=(IPv4Address("10.0.9.1"),), host=HostPlace("/h", (PortRange(80, 80),)))


def flushed(assembly: Assembly) -> Mesh:
    asyncio.run(assembly.flush())
    return assembly.mesh


def an_assembly(*own: Workload) -> Assembly:
    assembly = Assembly(TRUST_DOMAIN, "node1")
    for one in own:
        assembly.put_own(one.key, one)
    return assembly


def test_own_workload_is_enrolled_once_its_node_has_published_it() -> None:
    assembly = an_assembly(A)
    assert flushed(assembly).workloads == {A.key: A}
    assembly.put_published(A.key, replace(A, netns=None, phase=Phase.ENROLLED))
    assert flushed(assembly).workloads == {A.key: A.in_phase(Phase.ENROLLED)}
    assembly.put_published(A.key, None)
    assert flushed(assembly).workloads == {A.key: A}


def test_what_a_former_agent_has_published_and_is_no_pod_any_more_is_not_there() -> None:
    assembly = an_assembly()
    assembly.put_published(A.key, replace(A, phase=Phase.ENROLLED))
    assert flushed(assembly).workloads == {}


def test_pod_that_came_here_is_this_nodes_whatever_the_other_still_says() -> None:
    assembly = an_assembly()
    assembly.put_published(B.key, B)
    here = replace(B, node="node1", addresses=(IPv4Address("10.0.0.3"),), phase=Phase.ABSENT)
    assembly.put_own(B.key, here)
    assert flushed(assembly).workloads == {B.key: here}
    assembly.put_own(B.key, None)
    assert flushed(assembly).workloads == {B.key: B}


def test_nothing_new_makes_no_model() -> None:
    assembly = an_assembly(A)
    before = flushed(assembly)
    assembly.put_own(A.key, replace(A))
    assert not asyncio.run(assembly.flush())
    assert assembly.mesh is before


def test_addresses_that_two_exchange_are_not_contested() -> None:
    assembly = an_assembly(A, workload("c", None, addresses=(IPv4Address("10.0.0.3"),)))
    flushed(assembly)
    assembly.put_own(A.key, replace(A, addresses=(IPv4Address("10.0.0.3"),)))
    other = workload("c", None, addresses=(IPv4Address("10.0.0.1"),))
    assembly.put_own(other.key, other)
    mesh = flushed(assembly)
    assert not mesh.contested
    assert mesh.by_address[IPv4Address("10.0.0.1")] is mesh.workloads[other.key]


def test_address_that_two_claim_is_neithers() -> None:
    assembly = an_assembly(A)
    thief = replace(B, addresses=A.addresses)
    assembly.put_published(thief.key, thief)
    assert flushed(assembly).claimants(A.addresses[0]) == (assembly.mesh.workloads[A.key], thief)
    assert not list(assembly.problems())


def test_what_cannot_be_there_with_others_is_left_out_until_it_can() -> None:
    assembly = an_assembly(A, HOST)
    clash = replace(B, addresses=HOST.addresses)
    assembly.put_published(clash.key, clash)
    many = [workload(f"w{n}", None, node="node2", addresses=(IPv4Address(0x0A010000 + n),)) for n in range(2000)]
    for one in many:
        assembly.put_published(one.key, one.in_phase(Phase.ENROLLED))
    mesh = flushed(assembly)
    assert len(mesh.workloads) == 2002
    assert clash.key not in mesh.workloads
    (problem,) = assembly.problems()
    assert problem.startswith("workloads: default/b is left out: ")
    assert "10.0.9.1" in problem
    assembly.put_own(HOST.key, None)
    assert clash.key in flushed(assembly).workloads
    assert not list(assembly.problems())


def test_one_that_becomes_impossible_does_not_stay_as_it_was() -> None:
    assembly = an_assembly(A, HOST)
    flushed(assembly)
    assembly.put_own(A.key, replace(A, addresses=HOST.addresses))
    assert A.key not in flushed(assembly).workloads
    assembly.put_own(A.key, A)
    assert A.key in flushed(assembly).workloads


def test_name_that_cannot_be_in_an_identity_is_left_out() -> None:
    bad = replace(A, key=WorkloadName("default", "bad"), service_account="a/b")
    assert flushed(an_assembly(A, bad)).workloads.keys() == {A.key}


def test_whoever_goes_while_the_model_is_made_loses_nothing() -> None:
    async def story(assembly: Assembly) -> None:
        making = asyncio.create_task(assembly.flush())
        await asyncio.sleep(0)
        making.cancel()
        await asyncio.wait([making])
        assert making.cancelled()
        await assembly.flush()

    many = [workload(f"w{n}", None, node="node2", addresses=(IPv4Address(0x0A010000 + n),)) for n in range(2000)]
    assembly = an_assembly()
    for one in many:
        assembly.put_published(one.key, one.in_phase(Phase.ENROLLED))
    asyncio.run(story(assembly))
    assert len(assembly.mesh.workloads) == 2000


def test_what_is_told_back_while_the_model_is_made_counts() -> None:
    async def story(assembly: Assembly) -> None:
        making = asyncio.create_task(assembly.flush())
        await asyncio.sleep(0)
        last = many[-1].key
        assert many[0].key in assembly.mesh.workloads
        assert last not in assembly.mesh.workloads
        assembly.put_published(last, None)
        await making
        await assembly.flush()
        assert last not in assembly.mesh.workloads

    many = [workload(f"w{n}", None, node="node2", addresses=(IPv4Address(0x0A010000 + n),)) for n in range(2000)]
    assembly = an_assembly()
    for one in many:
        assembly.put_published(one.key, one.in_phase(Phase.ENROLLED))
    asyncio.run(story(assembly))
    assert len(assembly.mesh.workloads) == 1999


def test_many_that_cannot_be_there_are_not_tried_with_every_change() -> None:
    now = 0.0
    tried = []

    class Slow(Assembly):
        async def _apply(self, entries: list[tuple[_Entry, Any | None]]) -> None:
            nonlocal now
            now += 0.01
            tried.append(len(entries))
            await super()._apply(entries)

    assembly = Slow(TRUST_DOMAIN, "node1", lambda: now)
    assembly.put_own(HOST.key, HOST)
    clashes = [workload(f"w{n}", None, node="node2", addresses=HOST.addresses) for n in range(20)]
    for one in clashes:
        assembly.put_published(one.key, one.in_phase(Phase.ENROLLED))
    flushed(assembly)
    tried.clear()
    assembly.put_own(A.key, A)
    assert A.key in flushed(assembly).workloads
    assert tried == [1]
    assert len(list(assembly.problems())) == 20
    now += 3600
    assembly.put_own(HOST.key, None)
    assert len(flushed(assembly).workloads) == 21
    assert not list(assembly.problems())
