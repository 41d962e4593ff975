"""The lab's command line: parsing, one-line errors, tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.cli.lab.tables import status_tables
from nodeseal.cli.main import main
from nodeseal.contracts.output import LabStatus
from nodeseal_lab import lab as lab_module
from nodeseal_lab.demo.run import STORIES
from nodeseal_lab.errors import LabError, LabExistsError, NoLabError
from nodeseal_lab.lab import Lab, take_down
from nodeseal_lab.plan import Plan, TrustDomainRequest
from support.command_line import parsed


def parse(*arguments: str) -> dict[str, Any]:
    return parsed("lab", *arguments).params


def run(*arguments: str) -> int:
    return main(["lab", *arguments])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory for labs that is not the machine's."""
    monkeypatch.setattr(Lab.open.__func__, "__defaults__", (tmp_path,))
    return tmp_path


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def write_lab(root: Path, plan: Plan) -> Lab:
    lab = Lab(plan, root)
    lab.directory.mkdir(parents=True)
    (lab.directory / "lab.json").write_text(json.dumps({"format": 1, "plan": plan.to_json()}))
    return lab


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_lab_is_called_lab_unless_named(command: str) -> None:
    assert parse(command)["name"] == "lab"


def test_demo_has_a_lab_of_its_own() -> None:
    assert parse("demo")["name"] == "demo"


def test_demo_tells_of_enrolment_unless_another_story_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("demo")["story"] == "enrolment"
    for story in STORIES:
        assert parse("demo", story)["story"] == story
    assert run("demo", "other") == 2
    assert "'other' is not one of 'enrolment', 'identity'" in capsys.readouterr().err


def test_every_command_prints_a_table_unless_json_is_asked_for() -> None:
    assert parse("status")["output"] == "table"
    assert parse("status", "-o", "json")["output"] == "json"


@pytest.mark.parametrize("arguments", [("-o", "json", "shipper", "--", "ls"), ("shipper", "-o", "json", "--", "ls")])
def test_exec_has_no_output_of_its_own(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("exec", *arguments) == 2
    assert "no such option '-o'" in capsys.readouterr().err


def test_pods_may_be_given_many_times() -> None:
    assert parse("up", "--pod", "a:node1", "--pod", "b:node2:plain")["pods"] == ("a:node1", "b:node2:plain")


def test_host_workloads_may_be_given_many_times() -> None:
    given = ("a:node1:9000", "b:node1:9001")
    assert parse("up", *(part for text in given for part in ("--host-workload", text)))["host_workloads"] == given


@pytest.mark.parametrize(
    ("arguments", "name", "command"),
    [
        (["shipper", "--", "curl", "-s", "http://x/"], "lab", ["curl", "-s", "http://x/"]),
        (["shipper", "curl", "-s", "http://x/"], "lab", ["curl", "-s", "http://x/"]),
        (["--name", "demo", "shipper", "--", "ls", "-o", "x"], "demo", ["ls", "-o", "x"]),
        (["shipper", "--name", "demo", "--", "ls", "--name", "x"], "demo", ["ls", "--name", "x"]),
        (["shipper", "--", "sh", "-c", "echo", "--", "a"], "lab", ["sh", "-c", "echo", "--", "a"]),
        (["shipper", "--"], "lab", []),
        (["shipper"], "lab", []),
    ],
)
def test_exec_leaves_the_command_as_it_is(arguments: list[str], name: str, command: list[str]) -> None:
    assert parse("exec", *arguments) == {"name": name, "pod": "shipper", "command": tuple(command)}


def test_exec_without_a_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("exec", "shipper", "--") == 2
    assert "expected a command" in capsys.readouterr().err


def test_bad_pod_option_is_one_line_and_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("up", "--pod", "web") == 2
    assert capsys.readouterr().err == (
        "nodeseal: --pod web: expected NAME:NODE or NAME:NODE:plain, for example web:node2\n"
    )


@pytest.mark.parametrize("arguments", [["up"], ["down"], ["demo"]])
def test_not_root_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"nodeseal: nodeseal lab {arguments[0]} needs root")
    assert error.count("\n") == 1


def test_status_of_a_lab_that_is_up_is_roots_too(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lab(root, Plan.build("lab"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run("status") == 1
    assert capsys.readouterr().err.startswith("nodeseal: nodeseal lab status needs root: ")


@pytest.mark.usefixtures("as_root")
def test_demo_names_every_missing_tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert run("demo") == 1
    assert "apt-get install tcpdump curl iproute2" in capsys.readouterr().err


@pytest.mark.usefixtures("root")
def test_status_without_a_lab_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status") == 1
    assert capsys.readouterr().err == "nodeseal: no lab named 'lab' is up; start it with: nodeseal lab up --name lab\n"


def test_unknown_pod_names_the_known_ones(root: Path, as_root: None, capsys: pytest.CaptureFixture[str]) -> None:
    write_lab(root, Plan.build())
    for arguments in (["exec", "nope", "--", "true"], ["enrol", "nope"], ["mode", "nope", "strict"]):
        assert run(*arguments) == 1
        assert "unknown pod 'nope': this lab has shipper, siem, pipeline, intruder" in capsys.readouterr().err


@pytest.mark.usefixtures("as_root")
def test_second_lab_of_a_name_is_refused(tmp_path: Path) -> None:
    write_lab(tmp_path, Plan.build())
    with pytest.raises(LabExistsError, match="a lab named 'lab' is up already"):
        Lab.up(Plan.build(), root=tmp_path)


@pytest.mark.usefixtures("as_root")
def test_left_over_namespaces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "list_namespaces", lambda beginning: [f"{beginning}node1"])
    with pytest.raises(LabExistsError, match="1 network namespaces of a lab named 'lab' are left"):
        Lab.up(Plan.build(), root=tmp_path)


def test_broken_state_says_how_to_get_rid_of_it(tmp_path: Path) -> None:
    lab = write_lab(tmp_path, Plan.build())
    (lab.directory / "lab.json").write_text('{"plan": {}}')
    with pytest.raises(LabError, match="remove the lab with: nodeseal lab down --name lab"):
        Lab.open("lab", tmp_path)


def test_unknown_lab_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoLabError, match="no lab named 'other' is up"):
        Lab.open("other", tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("command", ["up", "down"])
def test_changing_the_host_from_inside_a_pod_is_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODESEAL_LAB_PROCESS", "0123456789abcdef")
    assert run(command) == 1
    assert f"nodeseal lab {command} was started inside a pod of a lab" in capsys.readouterr().err


@pytest.mark.usefixtures("as_root")
def test_down_of_nothing_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "remove_topology", lambda name: [])
    report = take_down("lab", tmp_path / "absent")
    assert (report.namespaces, report.processes, report.failures) == ((), (), ())


def test_status_of_a_lab_whose_agents_are_gone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lab(root, Plan.build())
    assert run("status", "-o", "json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["supervisor_pid"] is None
    assert status["nodes"][0] == {
        "name": "node1",
        "netns": "nodeseal-lab-node1",
        "address": "10.77.0.1",
        "addresses": ["10.77.0.1"],
        "agent_pid": None,
        "core_pids": [],
        "trust_domain": "example.org",
    }
    assert status["pods"][0] == {
        "name": "shipper",
        "node": "node1",
        "netns": "nodeseal-lab-shipper",
        "address": "10.77.1.10",
        "addresses": ["10.77.1.10"],
        "enrolled": False,
        "identity": None,
    }


def test_status_of_a_lab_with_ipv6(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lab(root, Plan.build(ipv6=True))
    assert run("status", "-o", "json") == 0
    status = json.loads(capsys.readouterr().out)
    for one, addresses in (
        (status["nodes"][0], ["10.77.0.1", "fd77::1"]),
        (status["pods"][0], ["10.77.1.10", "fd77::1:10"]),
    ):
        assert (one["address"], one["addresses"]) == (addresses[0], addresses)
    assert run("status") == 0
    assert "shipper   node1  fd77::1:10  no        -" in capsys.readouterr().out.splitlines()


def test_status_tells_trust_domains_where_there_are_several(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lab(root, Plan.build(trust_domains=[TrustDomainRequest("node2", "partner.example")]))
    assert run("status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("TRUST DOMAIN")
    assert [line.split()[-1] for line in lines[1:3]] == ["example.org", "partner.example"]


@pytest.mark.parametrize("addresses", [["10.77.50.209"], ["10.77.50.209", "fd77::50:209"]])
def test_status_tables_fit_100_columns(addresses: list[str]) -> None:
    pod = {
        "name": "p" * 15,
        "node": "node50",
        "addresses": addresses,
        "enrolled": True,
        "identity": "spiffe://example.org/ns/default/sa/" + "p" * 15,
    }
    node = {
        "name": "node50",
        "addresses": ["10.77.0.50"],
        "agent_pid": 4194303,
        "core_pids": [4194302],
        "netns": "nodeseal-abcdefghijklmnop-node50",
    }
    text = status_tables(msgspec.convert({"nodes": [node], "pods": [pod]}, LabStatus))
    assert max(len(line) for line in text.splitlines()) <= 100
