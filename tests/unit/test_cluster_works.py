"""What is tried in a cluster, and the pages that tell of it: they do not drift apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands import REPOSITORY, commands
from cluster.services import Outcome, fits, same, wrong
from cluster.works.checks import CHECKS
from cluster.works.page import PAGE, text
from cluster.works.rows import ROWS
from support.service_rows import ALONE, REFUSED, SILENT, Dial, Row

ROLL_OUT = REPOSITORY / "docs" / "roll-out-on-kubernetes.md"


def test_every_row_is_tried() -> None:
    assert sorted(CHECKS) == sorted(row.name for row in ROWS)


def test_page_is_not_stale() -> None:
    assert PAGE.read_text() == text(), "make reference"


def test_commands_of_a_page_are_found_with_the_lines_they_go_on_in(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n## One\n\nkubectl not this\n```\nkubectl get \\\n  pods\n  - said: kubectl\n```\n\n## Two\n\n"
        "```\nkubectl other\n```\n"
    )
    assert commands(page, "One") == ["kubectl get pods"]
    assert commands(page, "Three") == []


def test_roll_out_page_has_what_is_followed() -> None:
    headings = {
        "One node": 4,
        "One deployment": 3,
        "Everything on all nodes": 3,
        "One namespace": 4,
        "From permissive to strict": 3,
        "In an emergency": 4,
    }
    assert {heading: len(commands(ROLL_OUT, heading)) for heading in headings} == headings
    assert len(commands(REPOSITORY / "README.md", "On Kubernetes")) == 2


A, B = frozenset({"a1:8080"}), frozenset({"a1:8080", "b1:8080"})


@pytest.mark.parametrize(
    ("arrives", "seen", "expected"),
    [
        ("a1:8080 b1:8080", A, True),
        ("a1:8080 b1:8080", B, True),
        ("a1:8080", B, False),
        ("a1:8080", frozenset(), False),
        ("b1/6:8080", frozenset({"b1:8080"}), True),
        (REFUSED, frozenset({REFUSED}), True),
        (REFUSED, frozenset({REFUSED, SILENT}), False),
        (SILENT, frozenset({REFUSED}), False),
        (ALONE, frozenset({"ENETUNREACH"}), True),
    ],
)
def test_what_a_row_says_and_what_is_seen(arrives: str, seen: frozenset[str], expected: bool) -> None:
    assert fits(Dial("cluster", 80, arrives), seen) is expected


def test_clients_that_arrive_elsewhere_are_named_unless_the_row_tells() -> None:
    dial = Dial("cluster", 80, REFUSED)
    apart = Outcome(dial, frozenset({SILENT}), frozenset({REFUSED}))
    assert not same(apart)
    assert wrong(Row("a-row", "It waits."), [apart]) == ["a-row: cluster:80: nodeseal: refused, kube-proxy: silent"]
    assert wrong(Row("a-row", "It waits.", nodeseal="Refused."), [apart]) == []
    left_alone = Outcome(Dial("cluster", 80, ALONE), frozenset({REFUSED}), frozenset({SILENT}))
    assert not same(left_alone)
    assert same(Outcome(Dial("cluster", 80, "a1:8080 b1:8080"), A, B)), "which of them is random"
