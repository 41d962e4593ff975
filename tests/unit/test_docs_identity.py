"""docs/identity.md: every rule names tests that there are, and what is said of who breaks it is what the core says."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RULES = CHECKOUT / "docs" / "identity.md"
TEST_PATTERN = re.compile(r"^TEST\((\w+)\)$", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str]]:
    """(rule, source, what is said of a peer that breaks it, tests) of each: an item of a list, with items below."""
    text = re.sub(r"\n +(?![ *])", " ", RULES.read_text())
    found = []
    for item in re.findall(r"^\* .*(?:\n  \* .*)*", text, re.MULTILINE):
        rule, *below = item.split("\n  * ")
        parts = dict(part.removesuffix(".").split(": ", 1) for part in below)
        said = parts.get("Said", "").strip('"').replace("\\", "")
        found.append((rule.removeprefix("* "), parts["Source"], said, parts.get("Test") or parts["Tests"]))
    return found


def names_in(name: str) -> set[str]:
    return set(TEST_PATTERN.findall((CHECKOUT / "tests" / "cext" / name).read_text()))


def test_all_rules_are_found() -> None:
    assert len(rows()) == RULES.read_text().count("* Source: ") >= 40


def test_every_rule_has_its_source_and_tests_that_there_are() -> None:
    programs = ("test_svid.c", "test_tls.c", "test_tls_bounds.c", "test_trust.c", "test_revoked.c")
    known = {name for program in programs for name in names_in(program)}
    for rule, source, _said, tests in rows():
        named = re.findall(r"`(\w+)`", tests)
        assert source, rule
        assert named, rule
        assert set(named) <= known, rule


def test_every_test_of_a_rule_is_named() -> None:
    named = {name for row in rows() for name in re.findall(r"`(\w+)`", row[3])}
    assert names_in("test_svid.c") - named == {
        "a_proper_leaf_is_taken",
        "damaged_certificates_are_refused_or_of_a_valid_identity",
        "every_fault_fits_a_reason",
    }


def test_what_is_said_is_what_the_core_says() -> None:
    sources = "".join(
        (CHECKOUT / "cext" / "src" / "wire" / name).read_text()
        for name in ("chain.c", "peer.c", "revoked.c", "svid.c", "tls.c", "tls_words.c")
    )
    for _rule, _source, said, _tests in rows():
        first = re.split(r" \(or: |; of a trust anchor| \.\.\.", said)[0]
        assert first in sources, said
