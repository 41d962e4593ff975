"""docs/reference/ and docs/words.md say what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tools.reference import fields, words
from tools.reference.markdown import WIDTH
from tools.reference.pages import PAGES

from nodeseal.cli import root
from nodeseal.cli.tree import path_of, walk
from nodeseal.contracts import output
from nodeseal.mesh.reasons import Word

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = [name for name in PAGES if name.endswith(".md")]
SCHEMAS = [name for name in PAGES if name.endswith(".json")]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_stale(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), "make reference"


def test_no_page_is_left_of_what_is_no_more() -> None:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/reference").rglob("*") if path.is_file()}
    assert found | {"docs/words.md"} == set(PAGES)


@pytest.mark.parametrize("name", MARKDOWN)
def test_lines_are_short_enough_to_be_read(name: str) -> None:
    assert [line for line in PAGES[name]().splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_headings_are_told_apart_by_links(name: str) -> None:
    headings = [line.lstrip("# ").lower() for line in PAGES[name]().splitlines() if line.startswith("#")]
    assert sorted(headings) == sorted(set(headings))


def test_every_command_that_prints_json_is_there() -> None:
    contexts = {path_of(ctx): ctx for ctx in walk(root.context())}
    options = {path: {one.name: one for one in ctx.command.params} for path, ctx in contexts.items()}
    assert {path for path, known in options.items() if "output" in known} == set(output.COMMANDS)


def test_every_word_is_there() -> None:
    assert {kind for _title, _text, kind in words.PARTS} == {*Word.__subclasses__()}
    assert all(f"* `{word.value}`" in words.page() for _title, _text, kind in words.PARTS for word in kind)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_says_what_each_thing_is_that_it_refers_to(name: str) -> None:
    text = PAGES[name]()
    known = set(json.loads(text)["$defs"])
    assert set(re.findall(r'"#/\$defs/(.*?)"', text)) == known


class Inner(msgspec.Struct):
    """What is inside."""

    ports: list[tuple[int, int]]


class Example(Inner):
    """Of
    two lines."""

    key: int
    inner: Inner | None = None
    """Below, with
    two lines."""
    # Above.
    names: dict[str, list[str]] = {}


def test_fields_come_with_types_and_meanings() -> None:
    def link(message: type[Any]) -> str:
        return message.__name__

    found = [(one.name, fields.type_text(one.type, link), one.needed, one.meaning) for one in fields.fields(Example)]
    assert found == [
        ("ports", "list of lists [integer, integer]", True, ""),
        ("key", "integer", True, ""),
        ("inner", "Inner or null", False, "Below, with two lines."),
        ("names", "object that has lists of strings by name", False, "Above."),
    ]
    assert fields.summary(Example) == "Of two lines."
    assert fields.messages(Example) == [Example, Inner]
