"""What a chaos run does and when, from its seed."""

from __future__ import annotations

import pytest

from chaos.impairment import Impairment
from chaos.players import players
from chaos.schedule import FIRST_AT, LAST_BEFORE_END, Cast, Event, Kind, make_schedule
from nodeseal_lab.plan import Plan, PodRequest

CAST = Cast(("node1", "node2"), ("comer", "rover"), ("siem",), (("shipper", "pipeline"), ("pipeline", "siem")))
SECONDS = 600.0
SEEDS = pytest.mark.parametrize("seed", range(5))


def test_same_seed_gives_the_same_schedule() -> None:
    assert make_schedule(7, SECONDS, CAST) == make_schedule(7, SECONDS, CAST)
    assert make_schedule(7, SECONDS, CAST) != make_schedule(8, SECONDS, CAST)


@SEEDS
def test_every_kind_happens_soon(seed: int) -> None:
    assert {event.kind for event in make_schedule(seed, 90.0, CAST)} == set(Kind)


@SEEDS
def test_events_are_in_order_and_within_the_run(seed: int) -> None:
    times = [event.at for event in make_schedule(seed, SECONDS, CAST)]
    assert times == sorted(times)
    assert times[0] == FIRST_AT
    assert times[-1] <= SECONDS - LAST_BEFORE_END


@SEEDS
@pytest.mark.parametrize(("begin", "end"), [(Kind.UNENROL, Kind.ENROL), (Kind.STRICT, Kind.PERMISSIVE)])
def test_what_is_begun_is_ended(seed: int, begin: Kind, end: Kind) -> None:
    begun: set[str] = set()
    for event in make_schedule(seed, SECONDS, CAST):
        if event.kind is begin:
            assert event.subject not in begun
            begun.add(event.subject)
        elif event.kind is end:
            begun.remove(event.subject)
    assert begun == set()


def test_run_of_no_length_has_no_events() -> None:
    assert make_schedule(1, 5.0, CAST) == []


def test_impairments_stay_within_what_must_not_cut() -> None:
    changes = [event.details["impairment"] for event in make_schedule(3, 3600.0, CAST) if "impairment" in event.details]
    assert Impairment() in changes
    assert max(one.loss for one in changes) <= 0.03
    assert max(one.delay_ms + one.jitter_ms for one in changes) <= 55


def test_event_is_named_with_its_details() -> None:
    event = Event(3.0, Kind.BURST, "shipper pipeline", {"count": 50})
    assert str(event) == "burst shipper pipeline count 50"


@pytest.mark.parametrize("hosts", [False, True])
def test_everybody_who_plays_is_there(hosts: bool) -> None:
    cast = players(hosts=hosts)
    asked = [*map(PodRequest.parse, cast.pods), *map(PodRequest.parse_host_workload, cast.host_workloads)]
    there = {pod.name for pod in Plan.build("chaos", more_pods=asked, ipv6=True).pods}
    pairs = {*cast.steady, *cast.open, *cast.coming, *cast.cast().bursts}
    assert {name for pair in pairs for name in pair} | {*cast.comers, *cast.cast().strict} <= there
    assert {*cast.comers}.isdisjoint(name for pair in cast.steady for name in pair)
    assert all({*pair} & {*cast.comers} for pair in cast.coming)
    assert bool(cast.host_workloads) == hosts
