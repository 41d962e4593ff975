from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.limits import LimitChanges
from nodeseal.mesh.model import (
    Mesh,
    MeshDifference,
    MeshError,
    Mode,
    Phase,
    Service,
    ServicePort,
    Workload,
    WorkloadName,
    difference,
)
from nodeseal.mesh.workload import WORKLOADS


def name(text: str) -> WorkloadName:
    return WorkloadName("default", text)


def workload(text: str, last: int, **changes: object) -> Workload:
    base = Workload(name(text), "default", "node1", (IPv4Address(f"10.0.0.{last}"),), None, True, Mode.PERMISSIVE)
    return replace(base, **changes)  # type: ignore[arg-type]


def service(text: str, last: int, *endpoints: str) -> Service:
    return Service(name(text), (IPv4Address(f"10.9.0.{last}"),), (ServicePort(80, 8080),), tuple(map(name, endpoints)))


EXCLUDE = Exclusions(
    Excluded((PortRange(80, 80), PortRange(8000, 8010)), (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8"))),
    Excluded(ports=(PortRange(5432, 5432),)),
)


def mesh(*workloads: Workload, services: tuple[Service, ...] = ()) -> Mesh:
    return Mesh.build("example.org", workloads, services)


def test_names_read_back_what_they_write() -> None:
    assert WorkloadName.parse(str(name("a"))) == name("a")


@pytest.mark.parametrize("text", ["", "a", "/a", "a/", "a/b/c"])
def test_a_name_without_exactly_a_namespace_and_a_name_is_refused(text: str) -> None:
    with pytest.raises(MeshError, match="namespace/name"):
        WorkloadName.parse(text)


@pytest.mark.parametrize(
    ("phase", "accepts"),
    [(Phase.ABSENT, False), (Phase.JOINING, True), (Phase.ENROLLED, True), (Phase.LEAVING, False)],
)
def test_tunnels_are_opened_to_joining_and_enrolled_workloads(phase: Phase, accepts: bool) -> None:
    assert workload("a", 1, phase=phase).accepts_tunnels is accepts


def test_an_identity_is_made_of_namespace_and_service_account() -> None:
    identity = workload("a", 1, service_account="robot").identity("example.org")
    assert str(identity) == "spiffe://example.org/ns/default/sa/robot"


def test_workloads_and_services_are_found_by_address() -> None:
    one, web = workload("a", 1), service("web", 1, "a")
    model = mesh(one, services=(web,))
    assert model.by_address == {one.address: one}
    assert model.service_by_address == {web.addresses[0]: web}


def test_dual_stack_workloads_and_services_are_found_by_both_addresses() -> None:
    one = workload("a", 1, addresses=(IPv4Address("10.0.0.1"), IPv6Address("fd00::1")))
    web = replace(service("web", 1, "a"), addresses=(IPv6Address("fd00::9"), IPv4Address("10.9.0.1")))
    model = mesh(one, services=(web,)).with_phases({one.key: Phase.JOINING})
    (joined,) = model.workloads.values()
    assert model.by_address == dict.fromkeys(one.addresses, joined)
    assert model.service_by_address == dict.fromkeys(web.addresses, web)
    assert (one.address, web.addresses[0]) == (IPv4Address("10.0.0.1"), IPv6Address("fd00::9"))


def test_an_address_that_one_of_two_gave_up_is_not_found_any_more() -> None:
    both = (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    old = mesh(workload("a", 1, addresses=both), workload("b", 2))
    new = mesh(workload("a", 1, addresses=both[:1]), workload("b", 2, addresses=(IPv4Address("10.0.0.2"), both[1])))
    result = old.apply(difference(old, new))
    assert (result, result.by_address) == (new, new.by_address)


def test_a_model_cannot_be_changed() -> None:
    model = mesh(workload("a", 1))
    with pytest.raises(FrozenInstanceError):
        model.trust_domain = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        model.workloads[name("b")] = workload("b", 2)  # type: ignore[index]


@pytest.mark.parametrize(
    ("workloads", "services", "message"),
    [
        ((workload("a", 1), workload("a", 2)), (), "two workloads are named default/a"),
        ((), (service("a", 1), service("a", 2)), "two services are named default/a"),
        ((), (service("a", 1), service("b", 1)), "default/a and default/b share the address 10.9.0.1"),
        (
            (workload("a", 1, addresses=(IPv4Address("10.9.0.1"),)),),
            (service("web", 1),),
            "default/a and service default/web",
        ),
        (
            (workload("a", 1, addresses=(IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))),),
            (replace(service("web", 1), addresses=(IPv4Address("10.9.0.1"), IPv6Address("fd00::1"))),),
            "default/a and service default/web share the address fd00::1",
        ),
        ((workload("a", 1, service_account="a b"),), (), "service account 'a b'"),
    ],
)
def test_what_cannot_be_in_one_mesh_is_refused(
    workloads: tuple[Workload, ...], services: tuple[Service, ...], message: str
) -> None:
    with pytest.raises(MeshError, match=message):
        Mesh.build("example.org", workloads, services)


def test_a_bad_trust_domain_is_refused() -> None:
    with pytest.raises(MeshError, match="trust domain"):
        Mesh.build("Example", [], [])


def test_phases_change_what_is_found_by_name_and_by_address() -> None:
    model = mesh(workload("a", 1), workload("b", 2)).with_phases({name("a"): Phase.JOINING})
    assert model.workloads[name("a")].phase is Phase.JOINING
    assert model.by_address[IPv4Address("10.0.0.1")].phase is Phase.JOINING
    assert model.workloads[name("b")].phase is Phase.ABSENT


def test_a_phase_changes_nothing_else() -> None:
    before = workload("a", 1, netns="a", mode=Mode.STRICT, wanted=False, exclude=EXCLUDE)
    assert before.in_phase(Phase.JOINING) == replace(before, phase=Phase.JOINING)


def test_phases_of_unknown_names_and_phases_that_are_so_already_change_nothing() -> None:
    model = mesh(workload("a", 1))
    assert model.with_phases({name("x"): Phase.ENROLLED, name("a"): Phase.ABSENT}) is model


OLD = mesh(workload("a", 1), workload("b", 2), workload("c", 3), services=(service("web", 1, "a"), service("db", 2)))
NEWS = [
    pytest.param(OLD, id="nothing"),
    pytest.param(mesh(), id="all-gone"),
    pytest.param(mesh(*OLD.workloads.values(), workload("d", 4), services=tuple(OLD.services.values())), id="one-more"),
    pytest.param(mesh(workload("a", 2), workload("b", 1), workload("c", 3)), id="addresses-exchanged"),
    pytest.param(mesh(workload("d", 1), workload("b", 2), workload("c", 3)), id="address-taken-over"),
    pytest.param(
        mesh(workload("a", 1, addresses=(IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))), workload("b", 2)),
        id="dual-stack",
    ),
    pytest.param(OLD.with_phases({name("a"): Phase.ENROLLED}), id="a-phase"),
    pytest.param(mesh(services=(service("web", 2, "b"), service("db", 1))), id="virtual-addresses-exchanged"),
    pytest.param(Mesh.build("example.net", OLD.workloads.values(), OLD.services.values()), id="trust-domain"),
]


@pytest.mark.parametrize("new", NEWS)
def test_a_difference_leads_from_the_old_model_to_the_new_one(new: Mesh) -> None:
    result = OLD.apply(difference(OLD, new))
    assert result == new
    assert dict(result.by_address) == dict(new.by_address)
    assert dict(result.service_by_address) == dict(new.service_by_address)


def test_a_difference_names_only_what_changed() -> None:
    change = difference(OLD, OLD.with_phases({name("b"): Phase.ENROLLED}))
    assert [item.key for item in change.put_of(WORKLOADS)] == [name("b")]
    assert change.size == 1


def test_a_difference_that_does_not_fit_leaves_the_model_alone() -> None:
    before = dict(OLD.workloads)
    with pytest.raises(MeshError, match="share the address"):
        OLD.apply(MeshDifference("example.org", {"services": (service("x", 1),)}))
    assert dict(OLD.workloads) == before


def test_a_workload_in_another_phase_keeps_its_limits() -> None:
    limits = LimitChanges(connections=5)
    assert workload("a", 1, limits=limits).in_phase(Phase.LEAVING).limits == limits


def test_a_large_mesh_shares_what_did_not_change() -> None:
    many = [
        workload(f"w{i}", 1, addresses=(IPv4Address(0x0A000000 + i),), node=f"node{i % 500}") for i in range(50_000)
    ]
    model = Mesh.build("example.org", many)
    moved = model.with_phases({name("w7"): Phase.ENROLLED})
    assert difference(model, moved).size == 1
    assert moved.workloads[name("w8")] is model.workloads[name("w8")]


def test_a_change_copies_no_workload_that_it_does_not_concern() -> None:
    old = Mesh.build("example.org", [workload(f"w{n}", n) for n in range(1, 9)])
    changed = workload("w3", 3, mode=Mode.STRICT)
    new = old.apply(MeshDifference("example.org", {"workloads": (changed,)}))
    assert [key for key, one in new.workloads.items() if one is not old.workloads[key]] == [changed.key]
    assert new.services is old.services
    assert new.service_by_address is old.service_by_address


def test_phases_are_taken_from_a_model_that_has_them_already() -> None:
    base = Mesh.build("example.org", [workload(f"w{n}", n) for n in range(1, 4)])
    phases = dict.fromkeys(base.workloads, Phase.ENROLLED)
    first = base.with_phases(phases)
    again = Mesh.build("example.org", [workload("w1", 1), workload("w2", 2, mode=Mode.STRICT), workload("w3", 3)])
    second = again.with_phases(phases, like=first)
    assert second == again.with_phases(phases)
    shared = [second.workloads[key] is first.workloads[key] for key in first.workloads]
    assert shared == [True, False, True]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_a_difference_in_parts_is_the_same_when_joined(size: int) -> None:
    services = tuple(service(f"s{n}", n) for n in range(1, 4))
    gone = tuple(name(f"gone{n}") for n in range(4))
    workloads = tuple(workload(f"w{n}", n) for n in range(1, 8))
    put, removed = {"workloads": workloads, "services": services}, {"workloads": gone, "services": gone[:2]}
    whole = MeshDifference("example.org", put, removed)
    parts = whole.parts(size)
    assert all(1 <= part.size <= size for part in parts)
    assert MeshDifference.joined(parts) == whole


def test_an_empty_difference_is_one_part() -> None:
    assert MeshDifference("example.org").parts(10) == [MeshDifference("example.org")]
