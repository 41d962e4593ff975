"""The garbage collector around the reading of a large state."""

import gc
from collections.abc import Iterator

import pytest

from nodeseal.sources.heap import Heap


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_no_collection_while_a_state_is_read() -> None:
    def fail() -> None:
        with Heap().reading():
            assert not gc.isenabled()
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert gc.isenabled()


def test_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with Heap().reading():
        pass
    assert not gc.isenabled()


def test_large_state_is_frozen_when_it_has_grown_and_not_again() -> None:
    gc.unfreeze()
    heap = Heap()
    heap.settle(10)
    assert gc.get_freeze_count() == 0
    heap.settle(50_000)
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    heap.settle(50_100)
    assert gc.get_freeze_count() == 0
    heap.settle(80_000)
    assert gc.get_freeze_count() > 0
