"""What the measurement of Kubernetes' watch makes of sizes."""

from __future__ import annotations

from bench.kubernetes_bytes import PODS, ROOMS, churn, table

from nodeseal.sources.kubernetes.shards import ROOM

SIZES = [500 + 150 * count for count in range(max(ROOMS) + 1)]


def test_change_of_a_workload_is_one_event_and_few_objects_are_half_empty() -> None:
    events, mean, filled = churn(ROOM, SIZES, 0)
    assert 1 <= events < 1.1
    assert SIZES[1] < mean <= SIZES[ROOM]
    assert filled > 0.75 * ROOM


def test_every_shape_is_a_row_with_what_all_objects_take() -> None:
    rows = [line.split("|")[1:-1] for line in table(SIZES, 300, 1000).splitlines() if line.startswith("| ")]
    assert [int(row[0]) for row in rows[1:]] == list(ROOMS)
    assert rows[1][5].strip() == f"{PODS:,}, {PODS * SIZES[1] / 1e6:.0f} MB"
