"""What all nodes have published, as it comes and goes: one name on two nodes, nodes that are silent or have expired,
objects that cannot be read."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import msgspec
import pytest

from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.kubernetes.objects import Key, Meta
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.trust import Trust
from nodeseal.node.peers import claimed_twice
from nodeseal.sources.kubernetes.mesh_objects import (
    EndpointsSpec,
    MeshEndpoints,
    MeshNode,
    NodeStatus,
    write_trust,
    write_workload,
)
from nodeseal.sources.kubernetes.publications import Publications
from nodeseal.sources.source import Concern

TRUST = Trust(frozenset({"1" * 32}), "1" * 32)


def name(text: str) -> WorkloadName:
    return WorkloadName("default", text)


def a(text: str, node: str, *addresses: str, mode: Mode = Mode.PERMISSIVE) -> Workload:
    found = tuple(map(ip_address, addresses))
    return Workload(name(text), "a", node, found, None, True, mode, Phase.ENROLLED)


def raw(spec: EndpointsSpec) -> msgspec.Raw:
    """As it comes."""
    return msgspec.Raw(msgspec.json.encode(spec))


def said(number: int, node: str, *workloads: Workload) -> tuple[Key, MeshEndpoints]:
    key = f"{node}-{number}"
    return ("", key), MeshEndpoints(Meta(key), raw(EndpointsSpec(node, list(map(write_workload, workloads)))))


def status(node: str, trust: Trust | None = None) -> tuple[Key, MeshNode]:
    return ("", node), MeshNode(Meta(node), NodeStatus("0.1.0", trust=write_trust(trust)))


@pytest.fixture
def here() -> Publications:
    return Publications("n1")


def test_workloads_come_change_and_go(here: Publications) -> None:
    web, db = a("web", "n2", "10.0.2.1"), a("db", "n2", "10.0.2.2")
    assert here.take_endpoints(dict([said(0, "n2", web), said(1, "n2", db)])) == {web.key, db.key}
    assert here.workloads == {web.key: web, db.key: db}
    strict = replace(db, mode=Mode.STRICT)
    assert here.take_endpoints(dict([said(1, "n2", strict)])) == {db.key}
    assert here.take_endpoints(dict([said(1, "n2", strict)])) == set()
    assert here.take_endpoints({("", "n2-1"): None}) == {db.key}
    assert here.workloads == {web.key: web}
    assert here.take_endpoints({("", "n2-7"): None}) == set()


def test_workload_that_moves_between_objects_is_no_change(here: Publications) -> None:
    web = a("web", "n2", "10.0.2.1")
    here.take_endpoints(dict([said(0, "n2", web)]))
    assert here.take_endpoints(dict([said(1, "n2", web)])) == set()
    assert here.take_endpoints({("", "n2-0"): None}) == set()
    assert here.workloads == {web.key: web}
    assert here.take_endpoints({("", "n2-1"): None}) == {web.key}


def test_object_that_cannot_be_read_is_named_and_counts_as_it_was(here: Publications) -> None:
    web = a("web", "n2", "10.0.2.1")
    here.take_endpoints(dict([said(0, "n2", web)]))
    bad = a("web", "n2", "127.0.0.1")
    other = a("other", "n3", "10.0.3.1")
    assert here.take_endpoints(dict([said(0, "n2", bad), said(0, "n3", other)])) == {other.key}
    assert here.workloads == {web.key: web, other.key: other}
    (problem,) = here.problems()
    assert problem.concern is Concern.PUBLICATION
    assert problem.text == (
        "MeshEndpoints n2-0: default/web: 127.0.0.1 is no address of a workload; what it said before counts"
    )
    here.take_endpoints({("", "n2-0"): None})
    assert list(here.problems()) == []
    assert here.workloads == {other.key: other}


def test_object_that_says_it_is_another_node_s_counts_for_nobody(here: Publications) -> None:
    stolen = MeshEndpoints(Meta("n2-0"), raw(EndpointsSpec("n3", [write_workload(a("web", "n3", "10.0.3.1"))])))
    assert here.take_endpoints({("", "n2-0"): stolen}) == set()
    assert here.workloads == {}
    assert len(list(here.problems())) == 1


# ---- one name, two nodes


def test_pod_that_comes_back_elsewhere_counts_there_before_it_is_withdrawn_here(here: Publications) -> None:
    old, new = a("db-0", "n2", "10.0.2.1"), a("db-0", "n3", "10.0.3.1")
    beside = name("db-0@n3")
    here.take_endpoints(dict([said(0, "n2", old)]))
    assert here.take_endpoints(dict([said(0, "n3", new)])) == {beside}
    assert here.workloads == {old.key: old, beside: replace(new, key=beside)}
    assert here.take_endpoints({("", "n2-0"): None}) == {old.key, beside}
    assert here.workloads == {new.key: new}


def test_what_this_node_has_goes_by_its_name(here: Publications) -> None:
    theirs, own = a("db-0", "n2", "10.0.2.1"), a("db-0", "n1", "10.0.1.1")
    beside = name("db-0@n2")
    here.take_endpoints(dict([said(0, "n2", theirs)]))
    assert here.take_own([own.key]) == {own.key, beside}
    assert here.workloads == {beside: replace(theirs, key=beside)}
    assert here.take_endpoints(dict([said(0, "n1", own)])) == {own.key}
    assert here.workloads == {own.key: own, beside: replace(theirs, key=beside)}
    assert here.take_own([]) == set()
    assert here.take_endpoints({("", "n1-0"): None}) == {own.key, beside}
    assert here.workloads == {theirs.key: theirs}


def test_publication_of_this_node_takes_its_name_back(here: Publications) -> None:
    theirs, own = a("db-0", "n2", "10.0.2.1"), a("db-0", "n1", "10.0.1.1")
    here.take_endpoints(dict([said(0, "n2", theirs)]))
    assert here.take_endpoints(dict([said(0, "n1", own)])) == {own.key, name("db-0@n2")}
    assert here.workloads[own.key] == own


def test_address_that_two_nodes_claim_is_neither_s_and_both_are_named(here: Publications) -> None:
    one, two = a("one", "n2", "10.0.2.1", "10.0.2.2"), a("two", "n3", "10.0.2.1")
    here.take_endpoints(dict([said(0, "n2", one), said(0, "n3", two)]))
    mesh = Mesh.build("example.org", here.workloads.values())
    assert [str(address) for address in mesh.by_address] == ["10.0.2.2"]
    (problem,) = claimed_twice(mesh)
    assert "default/one (on n2) and default/two (on n3) claim the address 10.0.2.1" in problem.text


def test_names_beside_each_other_can_be_in_one_mesh(here: Publications) -> None:
    old, new = a("db-0", "n2", "10.0.2.1"), a("db-0", "n3", "10.0.3.1")
    here.take_endpoints(dict([said(0, "n2", old), said(0, "n3", new)]))
    mesh = Mesh.build("example.org", here.workloads.values())
    assert decode_difference(encode_difference(mesh.as_difference())) == mesh.as_difference()
    assert {str(one.identity("example.org")) for one in mesh.workloads.values()} == {
        "spiffe://example.org/ns/default/sa/a"
    }


# ---- nodes that do not renew


def test_silent_node_s_workloads_count_on(here: Publications) -> None:
    web = a("web", "n2", "10.0.2.1")
    here.take_endpoints(dict([said(0, "n2", web)]))
    assert here.take_silence(frozenset({"n2"}), frozenset()) == set()
    assert here.workloads == {web.key: web}


def test_expired_node_s_workloads_go_and_come_back_with_it(here: Publications) -> None:
    web, new = a("web", "n2", "10.0.2.1"), a("new", "n2", "10.0.2.2")
    here.take_endpoints(dict([said(0, "n2", web)]))
    here.take_nodes(dict([status("n2", TRUST)]))
    assert here.publishers == {"n2": TRUST}
    assert here.take_silence(frozenset({"n2"}), frozenset({"n2"})) == {web.key}
    assert here.workloads == {}
    assert here.publishers == {}
    assert here.take_endpoints(dict([said(1, "n2", new)])) == set()
    assert here.take_silence(frozenset(), frozenset()) == {web.key, new.key}
    assert here.workloads == {web.key: web, new.key: new}
    assert here.publishers == {"n2": TRUST}


def test_address_of_a_silent_node_is_that_of_who_else_claims_it(here: Publications) -> None:
    old = a("old", "n2", "10.0.2.1", "10.0.2.2")
    new = a("new", "n3", "10.0.2.1")
    here.take_endpoints(dict([said(0, "n2", old), said(0, "n3", new)]))
    assert here.workloads[old.key] == old  # two that are there: neither counts, which the model sees to
    assert here.take_silence(frozenset({"n2"}), frozenset()) == {old.key}
    assert here.workloads == {old.key: a("old", "n2", "10.0.2.2"), new.key: new}
    (problem,) = here.problems()
    assert "node n2 is silent, and another one claims its address 10.0.2.1" in problem.text
    both = replace(new, addresses=old.addresses)
    assert here.take_endpoints(dict([said(0, "n3", both)])) == {old.key, new.key}
    assert here.workloads == {new.key: both}
    assert here.take_endpoints({("", "n3-0"): None}) == {old.key, new.key}
    assert here.workloads == {old.key: old}
    assert here.take_silence(frozenset(), frozenset()) == set()


# ---- publishers


def test_publishers_are_nodes_that_have_published_anything(here: Publications) -> None:
    here.take_endpoints(dict([said(0, "n2", a("web", "n2", "10.0.2.1"))]))
    here.take_nodes(dict([status("n3", TRUST), status("n4")]))
    assert here.publishers == {"n2": None, "n3": TRUST, "n4": None}
    before = here.publishers
    here.take_endpoints(dict([said(0, "n2", a("web", "n2", "10.0.2.9"))]))
    assert here.publishers is before
    here.take_nodes({("", "n3"): None, ("", "n4"): None})
    here.take_endpoints({("", "n2-0"): None})
    assert here.publishers == {}


# ---- whatever comes


@pytest.mark.parametrize("seed", range(20))
def test_what_it_tells_is_what_changes_and_all_that_is_published_counts(seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311
    here = Publications("n0")
    objects: dict[tuple[str, int], list[Workload]] = {}
    own: set[WorkloadName] = set()
    silent: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()
    for _turn in range(200):
        before = dict(here.workloads)
        match chosen.randrange(8):
            case 0:
                own = {name(f"w{number}") for number in range(6) if chosen.random() < 0.3}
                told = here.take_own(own)
            case 1:
                silent = frozenset(f"n{number}" for number in range(1, 4) if chosen.random() < 0.3)
                expired = frozenset(node for node in silent if chosen.random() < 0.5)
                told = here.take_silence(silent, expired)
            case _:
                node, number = f"n{chosen.randrange(4)}", chosen.randrange(2)
                if chosen.random() < 0.3:
                    objects.pop((node, number), None)
                    told = here.take_endpoints({("", f"{node}-{number}"): None})
                else:
                    kept = {one.key: one for other, some in objects.items() if other[0] == node for one in some}
                    some = [f"w{index}" for index in range(6) if chosen.random() < 0.4]
                    # One that is in two objects of its node says the same in both.
                    workloads = [
                        kept.get(name(one)) or a(one, node, f"10.0.{node[1]}.{chosen.randrange(1, 5)}") for one in some
                    ]
                    objects[node, number] = workloads
                    told = here.take_endpoints(dict([said(number, node, *workloads)]))
        different = {key for key in before.keys() | here.workloads.keys() if before.get(key) != here.workloads.get(key)}
        assert different <= told
        everything = {
            (one.node, one.key): one for (node, _), some in objects.items() if node not in expired for one in some
        }
        assert {(one.node, name(one.key.name.partition("@")[0])) for one in here.workloads.values()} == set(everything)
        for key, one in here.workloads.items():
            assert one.key == key
            assert replace(one, key=name(key.name.partition("@")[0])) in everything.values()
            assert "@" in key.name or key not in own or one.node == "n0"
        # Nobody goes by another name than its own without need.
        for key in here.workloads:
            plain, at, _node = key.name.partition("@")
            assert not at or name(plain) in here.workloads or name(plain) in own
