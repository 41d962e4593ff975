"""The bench of fairness: what becomes of its rounds."""

from __future__ import annotations

from typing import Any

import pytest
from bench import fairness


def one(load: str, ratio: float, *, held: int = 8) -> dict[str, Any]:
    times = {"alone_p50": 0.1, "alone_p99": 0.2, "during_p50": 0.1, "during_p99": 0.2 * ratio}
    return {"load": load, "held": held, **times, "ratio_p50": 1.0, "ratio_p99": ratio}


def test_ratios_are_taken_within_a_round_and_then_the_median() -> None:
    figures = fairness.summarise([one("bulk", 1.0), one("stalled", 9.0), one("bulk", 3.0), one("bulk", 1.5)])
    bulk = figures["loads"]["bulk"]
    assert (bulk["rounds"], bulk["ratio_p99"], bulk["ratio_p99_worst"]) == (3, 1.5, 3.0)
    assert figures["loads"]["stalled"]["ratio_p99"] == 9.0


def test_the_table_has_a_line_for_each_load() -> None:
    text = fairness.markdown(fairness.summarise([one("bulk", 1.5), one("standing", 1.25, held=15762)]))
    assert "| bulk | 8 | 0.10, 0.10 ms | 0.20, 0.30 ms | 1.50 (1.50) | - |" in text
    assert "| standing | 15,762 | 0.10, 0.10 ms | 0.20, 0.25 ms | 1.25 (1.25) | - |" in text


def test_the_table_tells_what_a_load_does_without_nodeseal() -> None:
    rounds = [one("bulk", 1.5) | {"direct_ratio_p99": ratio} for ratio in (2.5, 2.0, 3.0)]
    assert fairness.markdown(fairness.summarise(rounds)).endswith("1.50 (1.50) | 2.50 |")


def test_an_unknown_load_is_refused_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fairness.main(["--only", "bulk,loud"])
    assert "no such load: loud; there are opening, standing, stalled" in capsys.readouterr().err
