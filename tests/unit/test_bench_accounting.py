"""Reading the kernel's accounts of processes."""

from __future__ import annotations

import os

import pytest
from bench.accounting import Usage, family, read_memory, read_usage
from bench.loads import LOADS, Load


def test_difference_of_two_readings() -> None:
    before, after = Usage(1.0, 10, 20, 5, 6), Usage(4.0, 110, 220, 15, 16)
    spent = after - before
    assert spent.total_s == 3.0
    assert spent.user_s == pytest.approx(1.0)
    assert spent.system_s == pytest.approx(2.0)
    assert spent.switches == 20


def test_no_ticks_count_as_system() -> None:
    assert (Usage(0.004).user_s, Usage(0.004).system_s) == (0.0, 0.004)


def test_own_process_has_used_something() -> None:
    assert read_usage([os.getpid()]).total_s > 0
    assert read_memory([os.getpid()]).pss_mb > 0


def test_process_that_is_gone_counts_nothing() -> None:
    assert read_usage([2**22 + 1]) == Usage()
    assert family(2**22 + 1) == [2**22 + 1]


def test_load_becomes_arguments() -> None:
    assert Load("x", keepalive=64, rate=100).arguments() == ["--keepalive", "64", "--rate", "100"]


def test_loads_have_names_of_their_own() -> None:
    assert len({load.name for load in LOADS}) == len(LOADS)
