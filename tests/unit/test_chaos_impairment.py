"""What the bad link does to frames."""

from __future__ import annotations

import pytest

from chaos.impairment import REORDER_GAP, Direction, Impairment

COUNT = 20_000


def times(impairment: Impairment, seed: int = 1, spacing: float = 0.001) -> list[tuple[float, ...]]:
    """When each of COUNT frames is delivered, after it arrived."""
    direction = Direction(seed)
    direction.impairment = impairment
    return [direction.deliveries(number * spacing) for number in range(COUNT)]


def firsts(impairment: Impairment) -> list[float]:
    return [one[0] for one in times(impairment) if one]


def test_clean_link_delivers_at_once() -> None:
    assert times(Impairment()) == [(number * 0.001,) for number in range(COUNT)]


def test_same_seed_gives_the_same_link() -> None:
    bad = Impairment(loss=0.1, delay_ms=5, jitter_ms=5, reorder=0.1, duplicate=0.1)
    assert times(bad, seed=3) == times(bad, seed=3)
    assert times(bad, seed=3) != times(bad, seed=4)


def test_loss_is_about_as_asked() -> None:
    lost = sum(not one for one in times(Impairment(loss=0.05)))
    assert lost == pytest.approx(0.05 * COUNT, rel=0.2)


def test_delay_and_jitter_keep_the_order() -> None:
    delivered = firsts(Impairment(delay_ms=10, jitter_ms=8))
    assert delivered == sorted(delivered)
    waits = [due - number * 0.001 for number, due in enumerate(delivered)]
    assert min(waits) >= 0.010
    assert max(waits) <= 0.018 + 1e-9


def test_reordered_frames_come_later_than_those_behind_them() -> None:
    delivered = firsts(Impairment(delay_ms=2, reorder=0.1))
    late = [number for number, due in enumerate(delivered) if due > number * 0.001 + 0.002 + 1e-9]
    assert len(late) == pytest.approx(0.1 * COUNT, rel=0.2)
    assert all(delivered[number] == pytest.approx(number * 0.001 + 0.002 + REORDER_GAP) for number in late)


def test_some_frames_are_delivered_twice() -> None:
    twice = sum(len(one) == 2 for one in times(Impairment(duplicate=0.03)))
    assert twice == pytest.approx(0.03 * COUNT, rel=0.2)


def test_link_that_becomes_better_stays_in_order() -> None:
    direction = Direction(1)
    direction.impairment = Impairment(delay_ms=100)
    (first,) = direction.deliveries(1.0)
    direction.impairment = Impairment()
    (second,) = direction.deliveries(1.01)
    assert second >= first


@pytest.mark.parametrize(
    ("impairment", "text"),
    [
        (Impairment(), "clean"),
        (
            Impairment(0.015, 20, 5, 0.02, 0.001),
            "loss 1.5%, delay 20 ms + 5 ms, reordered 2.0%, duplicated 0.1%",
        ),
    ],
)
def test_impairment_is_named(impairment: Impairment, text: str) -> None:
    assert str(impairment) == text
