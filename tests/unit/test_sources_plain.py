"""The short way for large files: it takes the plain form, and leaves everything else alone."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from nodeseal.documents.document import Content, Problem
from nodeseal.mesh.model import Workload, WorkloadName
from nodeseal.sources.directory import publications, state
from nodeseal.sources.directory.plain import take_plain_publication, take_plain_workloads
from nodeseal.sources.directory.publications import Publication, publish, read_publication
from nodeseal.sources.directory.state import StateFile

PLAIN = """\
# Written by a program.
trust_domain: example.org

workloads:
- name: shipper
  namespace: logs
  service_account: shipper
  node: node1
  address: 10.0.0.1
  netns: /run/netns/shipper
  enrolled: true
  mode: strict
  on_failure: open
- name: 7up
  node: node2
  address: 10.0.0.2
- address: 10.0.0.3
  name: third
  node: node1
- name: fourth
  addresses: [10.0.0.4, fd00::4]
  node: node1
- name: fifth
  node: node1
  addresses:
  - fd00::5
services:
- name: front
  address: 10.1.0.1
  ports: [{port: 80}]
  endpoints: [logs/shipper, third]
"""
INDENTED = """\
workloads:
  -   name: a
      node: n
      address: 10.0.0.1
  -   name: b
      node: n
      address: 10.0.0.2"""
ITEM = "workloads:\n- name: a\n  node: n\n  address: 10.0.0.1\n"


@dataclass
class Read:
    """Everything that a file says."""

    trust_domain: tuple[str | None, int]
    workloads: list[tuple[int, Workload | None]]
    services: list[object]
    problems: tuple[Problem, ...]


def read(text: str) -> Read:
    file = StateFile(Content(Path("f.yaml"), "f.yaml", text.encode()))
    if file.problems:
        # What a bad file says is not used.
        return Read((None, 0), [], [], file.problems)
    workloads = list(zip(file.workloads.lines, file.workloads.items, strict=True))
    services = [*file.services.lines, *file.services.items]
    return Read((file.trust_domain, file.trust_domain_line), workloads, services, ())


def read_long(text: str) -> Read:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "take_plain_workloads", lambda data: None)
        return read(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (PLAIN, 5),
        (INDENTED + "\n", 2),
        (ITEM, 1),
        ("---\n" + ITEM, 1),
        (ITEM + "services:\n- name: s\n  address: 10.1.0.1\n  ports:\n  - port: 80\n  endpoints:\n  - a\n", 1),
        (ITEM + "services: []\n", 1),
        (ITEM.replace("10.0.0.1", "fd00::1"), 1),
        (ITEM.replace("10.0.0.1", "2001:20:30:10:5:6:7:8"), 1),
        (ITEM.replace("address: 10.0.0.1", "addresses: [10.0.0.1]"), 1),
        (ITEM.replace("address: 10.0.0.1", "addresses: [fd00::1, 10.0.0.1]"), 1),
        (ITEM.replace("address: 10.0.0.1", "addresses:\n  - 10.0.0.1\n  - 2001:DB8:1:2:3:4:5:6\n  enrolled: true"), 1),
        (
            ITEM
            + ITEM.removeprefix("workloads:\n").replace(
                "name: a\n  node: n\n  address: 10.0.0.1", "addresses:\n  - fd00::1\n  name: b\n  node: n"
            ),
            2,
        ),
        (ITEM + ITEM.removeprefix("workloads:\n").replace("name: a", "name: b").replace("0.1", "0.2"), 2),
    ],
)
def test_the_plain_form_is_taken_and_reads_as_yaml_does(text: str, count: int) -> None:
    plain = take_plain_workloads(text.encode())
    assert plain is not None
    assert len(plain.workloads) == count
    assert read(text) == read_long(text)


def _numbered(addresses: dict[str, object], n: int) -> dict[str, object]:
    return {
        key: value.format(n) if isinstance(value, str) else [text.format(n) for text in value]  # type: ignore[attr-defined]
        for key, value in addresses.items()
    }


@pytest.mark.parametrize(
    "addresses", [{"address": "10.0.0.{}"}, {"address": "fd00::{}"}, {"addresses": ["10.0.0.{}", "fd00::1:{}"]}]
)
def test_what_a_yaml_library_writes_is_plain(addresses: dict[str, object]) -> None:
    workloads = [{"name": f"w{n}", "node": "node1", **_numbered(addresses, n), "enrolled": True} for n in range(1, 9)]
    text = yaml.safe_dump({"workloads": workloads}, sort_keys=False)
    assert take_plain_workloads(text.encode()) is not None
    assert read(text) == read_long(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "workloads:\n",
        "workloads: []\n",
        INDENTED,  # without a line end
        ITEM.replace("a\n", "true\n", 1),
        ITEM.replace("a\n", "Null\n", 1),
        ITEM.replace("a\n", "12\n", 1),
        ITEM.replace("a\n", "1.5\n", 1),
        ITEM.replace("a\n", "'a'\n", 1),
        ITEM.replace("a\n", "a # a comment\n", 1),
        ITEM.replace("a\n", "a-\n", 1),
        ITEM.replace("a\n", "a\n    goes on\n", 1),
        ITEM.replace("a\n", "&x a\n", 1),
        ITEM.replace("a\n", "*x\n", 1),
        ITEM.replace("a\n", "!!str a\n", 1),
        ITEM.replace("a\n", "\n", 1),
        ITEM.replace("a\n", "a: b\n", 1),
        ITEM.replace("name: a", "name: ä"),
        ITEM.replace("name: a", "nmae: a"),
        ITEM.replace("  node: n\n", ""),
        ITEM.replace("  node: n\n", "  node: n\n  node: n\n"),
        ITEM.replace("  node", "   node"),
        ITEM.replace("  node", " node"),
        ITEM.replace("  node", "\tnode"),
        ITEM.replace("\n", "\r\n"),
        ITEM.replace("  node", "\n  node"),
        ITEM.replace("  node", "# why\n  node"),
        ITEM.replace("10.0.0.1", "10.0.0.256"),
        ITEM.replace("10.0.0.1", "10.0.0.01"),
        ITEM.replace("10.0.0.1", "127.0.0.1"),
        ITEM.replace("10.0.0.1", "0.0.0.0"),
        ITEM.replace("10.0.0.1", "224.0.0.1"),
        ITEM.replace("10.0.0.1", "255.255.255.255"),
        ITEM.replace("10.0.0.1", "10.0"),
        ITEM.replace("10.0.0.1", "::1"),
        ITEM.replace("10.0.0.1", "fd00::"),
        ITEM.replace("10.0.0.1", "fd00::1%lo"),
        ITEM.replace("10.0.0.1", "fe80::1"),
        ITEM.replace("10.0.0.1", "febf::1"),
        ITEM.replace("10.0.0.1", "ff02::1"),
        ITEM.replace("10.0.0.1", "0:0::ffff:a00:1"),
        ITEM.replace("10.0.0.1", "0::ffff:10.0.0.1"),
        ITEM.replace("address: 10.0.0.1", "addresses: 10.0.0.1"),
        ITEM.replace("address: 10.0.0.1", "addresses: []"),
        ITEM.replace("address: 10.0.0.1", "addresses: ["),
        ITEM.replace("address: 10.0.0.1", "addresses: "),
        ITEM.replace("address: 10.0.0.1", "addresses:"),
        ITEM.replace("address: 10.0.0.1", "addresses: [10.0.0.1,fd00::1]"),
        ITEM.replace("address: 10.0.0.1", "addresses: [10.0.0.1, fd00::]"),
        ITEM.replace("address: 10.0.0.1", "addresses: [10.0.0.1, 10.0.0.2]"),
        ITEM.replace("address: 10.0.0.1", "addresses: [10.0.0.1, fd00::1, fd00::2]"),
        ITEM.replace("address: 10.0.0.1", "addresses:\n  - 10.0.0.1, fd00::1"),
        ITEM.replace("address: 10.0.0.1", "addresses:\n  -  10.0.0.1"),
        ITEM.replace("address: 10.0.0.1", "addresses:\n    - 10.0.0.1"),
        ITEM + "  addresses: [fd00::1]\n",
        ITEM + "  netns: ../escape\n",
        ITEM + "  enrolled: yes\n",
        ITEM + "  enrolled: 'true'\n",
        ITEM + "  mode: lenient\n",
        ITEM + "...\n",
        ITEM + "---\n" + ITEM,
        ITEM + "# a comment\n" + ITEM.removeprefix("workloads:\n"),
        "note: >\n workloads:\n- name: a\n",
        'note: "\nworkloads:\n- name: a\n  node: n\n  address: 10.0.0.1\n"\n',
        "note: word\n goes on\n" + ITEM,
    ],
)
def test_everything_else_is_left_to_yaml(text: str) -> None:
    assert take_plain_workloads(text.encode()) is None
    assert read(text) == read_long(text)


@pytest.mark.parametrize("more", ["workloads: []\n", "servces: []\n", "services: 1\n", "trust_domain: 12\n", "a: [\n"])
def test_problems_behind_a_plain_list_are_told_as_yaml_tells_them(more: str) -> None:
    assert read(ITEM + more).problems
    assert read(ITEM + more) == read_long(ITEM + more)


def test_both_ways_agree_on_whatever_is_edited_into_a_plain_file() -> None:
    chance = random.Random(4)  # noqa: S311
    pieces = [
        "\n",
        " ",
        "  ",
        "- ",
        ": ",
        "#",
        "'",
        '"',
        "a",
        "1",
        ".",
        "/",
        "-",
        "name: ",
        "true",
        "\t",
        "[",
        "&",
        "|",
    ]
    pieces += ["workloads:\n", "\n- ", "\n  ", "...\n", "0", "node: n\n", "é"]
    for _ in range(200):
        text = PLAIN
        for _ in range(chance.choice((1, 1, 2))):
            begin = chance.randrange(len(text))
            text = text[:begin] + chance.choice(pieces) + text[begin + chance.choice((0, 0, 1, 3, 12)) :]
        assert read(text) == read_long(text), text


def test_what_an_agent_publishes_is_plain(tmp_path: Path) -> None:
    names = [WorkloadName("default", "b"), WorkloadName("team.x", "a-1")]
    for published in ([], names):
        publish(tmp_path, "node1", published)
        plain = take_plain_publication((tmp_path / "enrolled" / "node1.yaml").read_bytes())
        assert plain == ("node1", published)


@pytest.mark.parametrize(
    "text",
    [
        'node: "node1"\nenrolled:\n  - "default/a"\n',
        '# a comment\nnode: "node1"\nenrolled: []\n',
        '# a \x07\nnode: "node1"\nenrolled: []\n',
        'node: "node2"\nenrolled: []\n',
        "node: node1\nenrolled: [default/a]\n",
        'node: "node1"\nenrolled:\n  - "default/a"\n  - "default/b/c"\n',
        'node: "node1"\nenrolled:\n  - "default/a"\nmore: 1\n',
        'node: "node1"\nenrolled:\n',
        "",
    ],
)
def test_both_ways_agree_on_publications(text: str) -> None:
    content = Content(Path("node1.yaml"), "enrolled/node1.yaml", text.encode())
    last = Publication("node1", "enrolled/node1.yaml", frozenset({WorkloadName("default", "before")}))
    short = read_publication(content, last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publications, "take_plain_publication", lambda data: None)
        assert read_publication(content, last) == short
