"""The capture journal, and what else of capture needs no privileges."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nodeseal.capture.bpf import compile as compiler
from nodeseal.capture.bpf.compile import Compiled, MapShape, ProgramCode
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry, Journal, Link
from nodeseal.linux.sysctls import Sysctl
from nodeseal.linux.tc_filters import Filter


def entry() -> Entry:
    return Entry(
        name="default/shipper",
        netns="/run/netns/shipper",
        cookie=4097,
        inode=4026532000,
        addresses=["10.0.0.5", "fd00::5"],
        state="capturing",
        table=20051,
        rule_priority=100,
        marks=[1, 2],
        filters=[Filter("eth0", 2, 1, 20051, True)],
        sysctls=[Sysctl("net/ipv4/fwmark_reflect", "0", "1")],
        links=[Link("eth1", 3)],
    )


def test_journal_reads_back_what_it_wrote(tmp_path: Path) -> None:
    journal = Journal.load(tmp_path)
    journal.entries["default/shipper"] = entry()
    journal.save()
    assert Journal.load(tmp_path).entries == {"default/shipper": entry()}


def test_journal_keeps_what_it_knows_of_a_process(tmp_path: Path) -> None:
    process = replace(entry(), cgroup="/system.slice/vector.service", number=3, ports=[[9000, 9000], [9100, 9110]])
    journal = Journal.load(tmp_path)
    journal.entries["default/shipper"] = process
    journal.save()
    assert Journal.load(tmp_path).entries == {"default/shipper": process}
    assert (entry().pins, process.pins) == ("ns-4097", "ns-4097-3")


def test_journal_is_for_its_owner_only(tmp_path: Path) -> None:
    journal = Journal.load(tmp_path)
    journal.save()
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_journal_leaves_no_draft(tmp_path: Path) -> None:
    Journal.load(tmp_path).save()
    assert [path.name for path in tmp_path.iterdir()] == ["capture.json"]


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert Journal.load(tmp_path).entries == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1, "entries": {"a": {}}}', '{"version": 1}'])
def test_damaged_journal_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "capture.json").write_text(text)
    with pytest.raises(
        CaptureError, match=re.escape(f"the capture journal {tmp_path}/capture.json is damaged")
    ) as caught:
        Journal.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_journal_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "capture.json").write_text('{"version": 8, "entries": {}}')
    with pytest.raises(CaptureError, match="is of version 8"):
        Journal.load(tmp_path)


def test_journal_of_version_1_knows_no_links(tmp_path: Path) -> None:
    journal = Journal.load(tmp_path)
    journal.entries["default/shipper"] = entry()
    journal.save()
    value = json.loads(journal.path.read_text())
    value["version"] = 1
    del value["entries"]["default/shipper"]["links"]
    journal.path.write_text(json.dumps(value))
    (read,) = Journal.load(tmp_path).entries.values()
    assert read.links == []
    assert read.filters == entry().filters


def test_journal_of_version_2_knows_one_address(tmp_path: Path) -> None:
    journal = Journal.load(tmp_path)
    journal.entries["default/shipper"] = entry()
    journal.save()
    value = json.loads(journal.path.read_text())
    value["version"] = 2
    del value["entries"]["default/shipper"]["addresses"]
    value["entries"]["default/shipper"]["address"] = "10.0.0.5"
    journal.path.write_text(json.dumps(value))
    (read,) = Journal.load(tmp_path).entries.values()
    assert read == replace(entry(), addresses=["10.0.0.5"])


def test_deleting_the_journal_twice(tmp_path: Path) -> None:
    journal = Journal.load(tmp_path)
    journal.save()
    assert journal.delete()
    assert not journal.delete()


def test_compiled_programs_survive_the_way_through_the_pipe() -> None:
    compiled = Compiled(
        {"steer_ingress": ProgramCode(b"\x95" + bytes(7), {4: "own"})}, {"own": MapShape(1, 4, 1, 256, 0)}
    )
    assert Compiled.from_json(compiled.to_json()) == compiled


def test_compiler_message_names_the_source_line(tmp_path: Path) -> None:
    message = "/virtual/main.c:7:5: error: use of undeclared identifier 'x'\n1 error generated.\n"
    assert compiler._first_error(message) == "/virtual/main.c:7:5: error: use of undeclared identifier 'x'"
