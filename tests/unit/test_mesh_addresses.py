"""Workloads with any number of addresses, addresses that two claim, and what cores of former protocols are told."""

import asyncio
import json
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest

from nodeseal.contracts import core
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import Address, ApplicationAddress, OriginalDestination, TunnelAddress
from nodeseal.mesh.decide import (
    Allow,
    Deny,
    Plaintext,
    Route,
    Tunnel,
    Unavailable,
    inbound_plaintext,
    inbound_tunnel,
    outbound,
)
from nodeseal.mesh.exclusions import Excluded, Exclusions
from nodeseal.mesh.former import from_former, to_former
from nodeseal.mesh.model import (
    Mesh,
    MeshDifference,
    Mode,
    Phase,
    Service,
    ServicePort,
    Workload,
    WorkloadName,
    difference,
)
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused
from nodeseal.mesh.service import Front, Way
from nodeseal.mesh.spiffe import SpiffeId

A, B, C = (WorkloadName("default", text) for text in "abc")
SHARED = IPv4Address("10.0.0.9")
CONTESTED = Unavailable(WhyRefused.CONTESTED_ADDRESS)


def workload(key: WorkloadName, *addresses: str, phase: Phase = Phase.ENROLLED, **changes: object) -> Workload:
    where = tuple(map(ip_address, addresses))
    made = Workload(key, key.name, f"node-{key.name}", where, None, True, Mode.PERMISSIVE, phase)
    return replace(made, **changes)  # type: ignore[arg-type]


def mesh(*workloads: Workload, services: tuple[Service, ...] = ()) -> Mesh:
    return Mesh.build("example.org", workloads, services)


def identity(key: WorkloadName) -> SpiffeId:
    return SpiffeId("example.org", "default", key.name)


MANY = workload(B, "10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3")
ONE = workload(A, "10.0.0.1")


def test_the_first_of_each_family_is_the_primary() -> None:
    assert list(map(str, MANY.primaries)) == ["10.0.0.2", "fd00::2"]
    assert MANY.address_like(ip_address("fd00::9")) == ip_address("fd00::2")
    assert MANY.address_like(ip_address("10.0.0.3")) == ip_address("10.0.0.2")
    assert workload(A, "10.0.0.1", "10.0.0.2").address_like(ip_address("fd00::1")) == ip_address("10.0.0.1")


@pytest.mark.parametrize("text", ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"])
def test_a_tunnel_goes_to_the_address_that_was_dialled(text: str) -> None:
    model, address = mesh(ONE, MANY), ip_address(text)
    found = outbound(model, A, OriginalDestination(address, 80), established=False)
    assert found == Route((Tunnel(ApplicationAddress(address, 80), identity(B)),))
    assert inbound_tunnel(model, B, identity(A), ONE.address, TunnelAddress(address, 80)) == Allow(None)
    assert inbound_tunnel(model, A, identity(B), address, TunnelAddress(ONE.address, 80)) == Allow(None)
    assert inbound_tunnel(model, A, identity(A), address, TunnelAddress(ONE.address, 80)) != Allow(None)
    denied = inbound_plaintext(model, A, address, 80, established=False)
    assert isinstance(denied, Deny)
    assert denied.why is WhyRefused.SOURCE_IS_ENROLLED


def test_an_exclusion_of_some_addresses_of_a_peer_does_not_cover_the_others() -> None:
    sender = replace(ONE, exclude=Exclusions(outbound=Excluded(networks=(IPv4Network("10.0.0.2/32"),))))
    receiver = replace(MANY, exclude=Exclusions(inbound=Excluded(networks=(IPv4Network("10.0.0.0/8"),))))
    refused = inbound_plaintext(mesh(sender, receiver), B, ONE.address, 80, established=False)
    assert isinstance(refused, Deny)
    wide = replace(ONE, exclude=Exclusions(outbound=Excluded(networks=(IPv4Network("10.0.0.2/31"),))))
    allowed = inbound_plaintext(mesh(wide, receiver), B, ONE.address, 80, established=False)
    assert allowed == Allow(WhyPlaintext.EXCLUDED_RANGE)


# ---- two claims to one address


def contest(b: Phase = Phase.ENROLLED, c: Phase = Phase.ENROLLED, services: tuple[Service, ...] = ()) -> Mesh:
    return mesh(
        ONE, workload(B, "10.0.0.2", str(SHARED), phase=b), workload(C, str(SHARED), phase=c), services=services
    )


def out(model: Mesh, address: Address, *, established: bool = False) -> object:
    return outbound(model, A, OriginalDestination(address, 80), established=established)


def test_an_address_that_two_claim_is_neithers() -> None:
    model = contest()
    assert SHARED not in model.by_address
    assert [one.key for one in model.contested[SHARED]] == [B, C]
    assert model.by_address[IPv4Address("10.0.0.2")].key == B


@pytest.mark.parametrize(("b", "c"), [(Phase.ENROLLED, Phase.ENROLLED), (Phase.ABSENT, Phase.JOINING)])
def test_nothing_goes_to_a_contested_address_once_a_claimant_is_enrolled(b: Phase, c: Phase) -> None:
    assert out(contest(b, c), SHARED) == CONTESTED
    there = ApplicationAddress(SHARED, 80)
    assert out(contest(b, c), SHARED, established=True) == Route((
        Plaintext(there, WhyPlaintext.OPENED_BEFORE_ENROLMENT),
    ))  # fmt: skip


def test_nothing_is_taken_from_a_contested_address_in_plaintext_once_a_claimant_is_enrolled() -> None:
    denied = inbound_plaintext(contest(Phase.ABSENT), A, SHARED, 80, established=False)
    assert isinstance(denied, Deny)
    assert denied.why is WhyRefused.CONTESTED_ADDRESS


def test_a_contested_address_of_nobody_enrolled_is_plaintext() -> None:
    model = contest(Phase.ABSENT, Phase.ABSENT)
    assert out(model, SHARED) == Route((
        Plaintext(ApplicationAddress(SHARED, 80), WhyPlaintext.DESTINATION_NOT_ENROLLED),
    ))  # fmt: skip
    taken = inbound_plaintext(model, A, SHARED, 80, established=False)
    assert taken == Allow(WhyPlaintext.SOURCE_NOT_ENROLLED)


def test_tunnels_to_a_contested_address_are_not_taken() -> None:
    assert inbound_tunnel(contest(), C, identity(A), ONE.address, TunnelAddress(SHARED, 80)) == CONTESTED


def test_a_tunnel_from_a_contested_address_is_of_one_of_the_claimants() -> None:
    authority = TunnelAddress(ONE.address, 80)
    for key in (B, C):
        assert inbound_tunnel(contest(), A, identity(key), SHARED, authority) == Allow(None)
    assert isinstance(inbound_tunnel(contest(), A, identity(A), SHARED, authority), Deny)


def test_a_service_leads_to_addresses_that_are_not_contested() -> None:
    web = Service(WorkloadName("default", "web"), (IPv4Address("10.9.0.1"),), (ServicePort(80, 80),), (B, C))
    model = contest(services=(web,))
    tunnel = Tunnel(ApplicationAddress(IPv4Address("10.0.0.2"), 80), identity(B))
    assert out(model, web.addresses[0]) == Route((tunnel,))
    assert out(contest(services=(replace(web, endpoints=(C,)),)), web.addresses[0]) == CONTESTED


def test_a_claim_that_is_given_up_leaves_the_address_to_the_other() -> None:
    model = contest()
    alone = model.apply(MeshDifference("example.org", {}, {"workloads": (C,)}))
    assert (alone.by_address[SHARED].key, dict(alone.contested)) == (B, {})


def test_claims_after_any_changes_are_those_of_the_same_model_built_anew() -> None:
    rng = random.Random(7)  # noqa: S311
    addresses = [IPv4Address("10.0.0.0") + number for number in range(1, 6)]

    def some() -> Mesh:
        keys = rng.sample([WorkloadName("default", text) for text in "abcdef"], rng.randint(0, 6))
        return mesh(*(workload(key, *map(str, rng.sample(addresses, rng.randint(1, 3)))) for key in keys))

    model = some()
    for _ in range(300):
        new = some()
        model = model.apply(difference(model, new))
        if rng.random() < 0.3:
            phases = {key: rng.choice(list(Phase)) for key in model.workloads}
            model, new = model.with_phases(phases), new.with_phases(phases)
        assert model == new
        assert (model.by_address, model.contested) == (new.by_address, new.contested)
        assert all(len(claimants) > 1 for claimants in model.contested.values())


# ---- cores of former protocols


def test_a_former_core_gets_the_same_model_if_it_can_have_it() -> None:
    model = mesh(ONE, workload(B, "10.0.0.2", "fd00::2"))
    assert to_former(model) is model
    assert from_former(model) is model


def test_a_former_core_tunnels_to_further_addresses_too() -> None:
    former = to_former(mesh(ONE, MANY))
    assert list(map(str, former.workloads[B].addresses)) == ["10.0.0.2", "fd00::2"]
    assert all(
        len({one.version for one in each.addresses}) == len(each.addresses) for each in former.workloads.values()
    )
    for address in MANY.addresses:
        assert out(former, address) == Route((Tunnel(ApplicationAddress(address, 80), identity(B)),))
        assert isinstance(inbound_plaintext(former, A, address, 80, established=False), Deny)
    assert not any(one.wanted for one in former.workloads.values() if "~" in one.key.name)
    assert from_former(former) == mesh(ONE, MANY)


def test_a_former_core_knows_one_claimant_of_a_contested_address() -> None:
    former = to_former(contest())
    assert not former.contested
    assert out(former, SHARED) == Route((Tunnel(ApplicationAddress(SHARED, 80), identity(B)),))
    assert C not in former.workloads


def test_what_goes_to_a_former_core_has_one_address_of_each_family(tmp_path: Path) -> None:
    sent: list[core.MeshChange] = []

    async def ask(request: core.MeshChange) -> None:
        sent.append(request)

    async def story() -> None:
        client = CoreClient(tmp_path, 1)
        client._protocol = core.ADDRESSES_SINCE - 1
        client._ask = ask  # type: ignore[assignment, method-assign]
        before = mesh(ONE, workload(B, "10.0.0.2"))
        await client.mesh(mesh(ONE, MANY), 1)
        assert await client.mesh_change(before, mesh(ONE, MANY), 2, base=1)
        assert await client.mesh_change(mesh(ONE, MANY), before, 3, base=2)

    asyncio.run(story())
    whole, more, fewer = sent
    for part in (whole.full, more.difference, fewer.difference):
        for message in json.loads(bytes(part))["workloads"]:
            versions = [ip_address(text).version for text in message["addresses"]]
            assert len(set(versions)) == len(versions)
    names = [message["name"] for message in json.loads(bytes(whole.full))["workloads"]]
    assert sorted(names) == ["a", "b", "b~10.0.0.3", "b~fd00::3"]
    assert json.loads(bytes(fewer.difference))["removed_workloads"] == ["default/b~10.0.0.3", "default/b~fd00::3"]


def test_what_goes_to_a_core_that_knows_no_fronts_has_no_service_with_some(tmp_path: Path) -> None:
    sent: list[core.MeshChange] = []

    async def ask(request: core.MeshChange) -> None:
        sent.append(request)

    web = Service(WorkloadName("default", "web"), (IPv4Address("10.9.0.1"),), (ServicePort(80, 80),), (B,))
    front = Front(Way.CLUSTER, 4, (IPv4Address("10.9.0.2"),), 80, 80, ())
    dialled = Service(A, (), (), (), (front,))
    before, after = mesh(ONE, services=(web,)), mesh(ONE, MANY, services=(web, dialled))

    async def story() -> None:
        client = CoreClient(tmp_path, 1)
        client._protocol = core.FRONTS_SINCE - 1
        client._ask = ask  # type: ignore[assignment, method-assign]
        await client.mesh(after, 1)
        assert await client.mesh_change(before, after, 2, base=1)
        assert not await client.mesh_change(before, mesh(ONE, services=(web, dialled)), 3, base=2)

    asyncio.run(story())
    whole, change = sent
    assert [one["name"] for one in json.loads(bytes(whole.full))["services"]] == ["web"]
    assert "services" not in json.loads(bytes(change.difference))
