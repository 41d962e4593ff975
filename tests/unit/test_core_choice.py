"""Which endpoint a client with an affinity gets, and for how long it keeps it."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest

from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.fronts import Sticky
from nodeseal.mesh.model import WorkloadName
from nodeseal.splice.choice import Affinities, asked_again_ms

CLIENT = WorkloadName("shop", "client")
WEB = Sticky(WorkloadName("shop", "web"), 80, 4, 60)
ENDPOINTS = tuple(ApplicationAddress(IPv4Address(0x0A000000 + last), 8080) for last in range(40))
LONGEST = WEB.seconds + asked_again_ms(WEB.seconds) / 1000


def clients(count: int) -> list[WorkloadName]:
    return [WorkloadName("shop", f"client-{number}") for number in range(count)]


def test_it_is_kept_while_endpoints_come_and_go() -> None:
    affinities = Affinities()
    first = {one: affinities.pick(one, WEB, ENDPOINTS[:3], 0) for one in clients(100)}
    # With so many that a choice among all would have hit one of those that came.
    second = {one: affinities.pick(one, WEB, ENDPOINTS, 30) for one in clients(100)}
    assert first == second


def test_it_is_chosen_anew_when_it_is_none_any_more() -> None:
    affinities = Affinities()
    first = affinities.pick(CLIENT, WEB, ENDPOINTS, 0)
    left = tuple(one for one in ENDPOINTS if one != first)
    second = affinities.pick(CLIENT, WEB, left, 1)
    assert second in left
    assert affinities.pick(CLIENT, WEB, ENDPOINTS, 2) == second


def test_it_is_kept_for_the_time_since_the_last_connection() -> None:
    affinities = Affinities()
    first = {one: affinities.pick(one, WEB, ENDPOINTS[:3], 0) for one in clients(100)}
    for now in (WEB.seconds, 2 * WEB.seconds, 3 * WEB.seconds):
        assert {one: affinities.pick(one, WEB, ENDPOINTS, now) for one in clients(100)} == first
    later = 3 * WEB.seconds + LONGEST + 0.1
    assert {one: affinities.pick(one, WEB, ENDPOINTS, later) for one in clients(100)} != first


@pytest.mark.parametrize("seconds", [1, 5, 60, 10_800, 86_400])
def test_a_core_asks_again_well_before_the_time_is_over(seconds: int) -> None:
    assert 100 <= asked_again_ms(seconds) <= seconds * 100


def test_another_core_chooses_the_same() -> None:
    assert [Affinities().pick(one, WEB, ENDPOINTS, 0) for one in clients(50)] == [
        Affinities().pick(one, WEB, tuple(reversed(ENDPOINTS)), 999) for one in clients(50)
    ]


def test_clients_are_spread_over_all_endpoints() -> None:
    found = Counter(Affinities().pick(one, WEB, ENDPOINTS, 0) for one in clients(4000))
    assert set(found) == set(ENDPOINTS)
    assert max(found.values()) < 2 * 4000 / len(ENDPOINTS)


def test_ports_families_and_services_are_apart() -> None:
    affinities = Affinities()
    affinities.pick(CLIENT, WEB, ENDPOINTS[:1], 0)
    others = (
        Sticky(WEB.service, 81, 4, 60),
        Sticky(WEB.service, 80, 6, 60),
        Sticky(WorkloadName("shop", "other"), 80, 4, 60),
    )
    for other in others:
        assert affinities.pick(CLIENT, other, ENDPOINTS[1:], 0) != ENDPOINTS[0]
    assert affinities.pick(CLIENT, WEB, ENDPOINTS, 0) == ENDPOINTS[0]


def test_the_one_that_was_asked_for_longest_ago_is_forgotten_first() -> None:
    affinities = Affinities(most=2)
    one, two, three = clients(3)
    for client in (one, two):
        affinities.pick(client, WEB, ENDPOINTS[:1], 0)
    affinities.pick(one, WEB, ENDPOINTS[:1], 0)
    affinities.pick(three, WEB, ENDPOINTS[:1], 0)
    assert affinities.pick(one, WEB, ENDPOINTS, 0) == ENDPOINTS[0]
    assert affinities.pick(three, WEB, ENDPOINTS, 0) == ENDPOINTS[0]
    forgotten = affinities.pick(two, WEB, ENDPOINTS, 0)
    assert forgotten == Affinities().pick(two, WEB, ENDPOINTS, 0) != ENDPOINTS[0]
