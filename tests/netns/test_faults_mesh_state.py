"""A mesh state that goes bad, and workloads that cannot be enrolled: the rest goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal.linux import bpf
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.namespaces import remove_namespace
from support.connection import Address, echoes
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import wait_for
from support.process import nodeseal
from support.programs import Lines, Programs

CARD = b"card=4111 1111 1111 1111;"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose mesh state is edited by hand."""
    pods = ("goner:node1", "held:node1:plain")
    with running_lab(tmp_path_factory.mktemp("mesh"), more_pods=pods) as lab:
        yield lab


@pytest.fixture(autouse=True)
def good_state(lab: RunningLab) -> Iterator[None]:
    """The mesh state's files are as they were, and the agents have them."""
    files = {path: path.read_text() for path in lab.lab.mesh.glob("*.yaml")}
    yield
    for path, text in files.items():
        write_atomically(path, text)
    for node in ("node1", "node2"):
        wait_for(lambda node=node: lab.status(node)["mesh"]["error"] is None, f"{node} has a good mesh state")


def bad_field(path: Path) -> None:
    """An address that is none."""
    content = yaml.safe_load(path.read_text())
    content["workloads"][1]["address"] = "10.77.1.999"
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def bad_syntax(path: Path) -> None:
    """Half a file, as an editor that is interrupted leaves it."""
    path.write_text(path.read_text()[: len(path.read_text()) // 2] + "\n  - {name: [")


def unknown_key(path: Path) -> None:
    """A word that was mistyped."""
    path.write_text(path.read_text().replace("enrolled:", "enroled:", 1))


def empty_file(path: Path) -> None:
    """Nothing at all."""
    path.write_text("")


BAD_EDITS = pytest.mark.parametrize("edit", [bad_field, bad_syntax, unknown_key, empty_file])


def show_error(lab: RunningLab, node: str) -> str:
    """Waits until the agent complains of its mesh state."""
    error: str = wait_for(lambda: lab.status(node)["mesh"]["error"], f"{node} shows the error")
    return error


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (bad_field, "workloads[1].address: expected an IPv4 or IPv6 address, found"),
        (bad_syntax, ""),
        (unknown_key, "workloads[0].enroled: "),
        (empty_file, ""),
    ],
)
def test_bad_edit_is_shown_with_file_and_line(lab: RunningLab, edit: Any, text: str) -> None:
    path = lab.lab.mesh / "workloads.yaml"
    edit(path)
    for node in ("node1", "node2"):
        assert text in show_error(lab, node)
        result = nodeseal("status", "--run-dir", str(lab.run_dir(node)))
        assert f"{path.name}:" in result.stdout + result.stderr
        assert text in result.stdout + result.stderr
        shown = json.loads(nodeseal("status", "-o", "json", "--run-dir", str(lab.run_dir(node))).stdout)
        assert text in json.dumps(shown)


def test_bad_edit_names_the_line(lab: RunningLab) -> None:
    path = lab.lab.mesh / "workloads.yaml"
    bad_field(path)
    line = 1 + next(number for number, text in enumerate(path.read_text().splitlines()) if "10.77.1.999" in text)
    assert f"workloads.yaml:{line}: " in show_error(lab, "node1")


@BAD_EDITS
def test_bad_edit_disturbs_nothing(lab: RunningLab, programs: Programs, edit: Any) -> None:
    server = programs.serve("pipeline")
    lines = Lines(programs, "shipper", server.address)
    edit(lab.lab.mesh / "workloads.yaml")
    for node in ("node1", "node2"):
        show_error(lab, node)
    lines.goes_on()
    new = programs.dial("shipper", server.address)
    with programs.sniff() as wire:
        assert echoes(new, CARD)
        assert not wire.carries(CARD)
    assert lab.enrolled("shipper", "siem", "pipeline")
    lines.finish()


def test_fix_clears_the_error(lab: RunningLab) -> None:
    path = lab.lab.mesh / "workloads.yaml"
    good = path.read_text()
    bad_field(path)
    show_error(lab, "node1")
    path.write_text(good)
    wait_for(lambda: lab.status("node1")["mesh"]["error"] is None, "the error is gone")
    result = nodeseal("status", "--run-dir", str(lab.run_dir("node1")))
    assert result.returncode == 0
    assert "workloads.yaml" not in result.stdout + result.stderr


def test_change_that_comes_with_the_fix_is_applied(lab: RunningLab) -> None:
    path = lab.lab.mesh / "workloads.yaml"
    bad_syntax(path)
    show_error(lab, "node2")
    change_workloads_of(path, {"pipeline": {"mode": "strict"}}, lab)
    wait_for(lambda: lab.workload("pipeline")["mode"] == "strict", "pipeline is strict")


def test_state_in_the_bulk_form_is_followed_and_disturbs_nothing(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lines = Lines(programs, "shipper", server.address)
    path, bulk = lab.lab.mesh / "workloads.yaml", lab.lab.mesh / "workloads.json"
    content = yaml.safe_load(path.read_text())
    programs.at_end(lambda: bulk.unlink(missing_ok=True))
    # In both files for a moment: a mistake, which disturbs nothing.
    bulk.write_text(json.dumps(content, indent=1))
    path.unlink()
    wait_for(lambda: lab.status("node1")["mesh"]["error"] is None, "node1 has the state without an error")
    for workload in content["workloads"]:
        if workload["name"] == "pipeline":
            workload["mode"] = "strict"
    bulk.write_text(json.dumps(content))
    wait_for(lambda: lab.workload("pipeline")["mode"] == "strict", "pipeline is strict")
    bulk.write_text(json.dumps(content)[:-1])
    assert "workloads.json:1: expected JSON, found the end of the file" in show_error(lab, "node1")
    lines.goes_on()
    lines.finish()


def test_bad_state_at_the_agents_start_keeps_the_last_good_one(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lines = Lines(programs, "shipper", server.address)
    bad_field(lab.lab.mesh / "workloads.yaml")
    lab.restart_agent("node1")
    show_error(lab, "node1")
    lines.goes_on()
    with programs.sniff() as wire:
        assert echoes(programs.dial("shipper", server.address), CARD)
        assert not wire.carries(CARD)
    lines.finish()


@pytest.mark.parametrize("text", [None, "node: node1\nenrolled: []\n", "not: [what"], ids=["gone", "emptied", "broken"])
def test_publication_that_somebody_changed_is_written_again(
    lab: RunningLab, programs: Programs, text: str | None
) -> None:
    path = lab.lab.mesh / "enrolled" / "node1.yaml"
    good = path.read_text()
    # A test that fails leaves no broken file to the next one.
    programs.at_end(lambda: path.read_text() == good or path.unlink())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    wait_for(lambda: path.exists() and path.read_text() == good, "the agent writes its publication again")
    server = programs.serve("siem")
    wait_for(lambda: reaches(lab, programs, server.address), "pipeline reaches siem in a tunnel")


# ---- workloads that cannot be enrolled


def test_workload_whose_namespace_never_was_is_shown_and_others_go_on(lab: RunningLab, programs: Programs) -> None:
    path = lab.lab.mesh / "more.yaml"
    programs.at_end(lambda: path.unlink(missing_ok=True))
    ghost = {"name": "ghost", "node": "node1", "address": "10.77.1.99", "netns": "nodeseal-ghost", "enrolled": True}
    write_atomically(path, yaml.safe_dump({"workloads": [ghost]}))
    wait_for(lambda: row_of(lab, "ghost").get("reason") == "namespace-gone", "the ghost is shown with its reason")
    assert "nodeseal-ghost" in row_of(lab, "ghost")["detail"]
    assert not row_of(lab, "ghost")["enrolled"]
    result = nodeseal("status", "--run-dir", str(lab.run_dir("node1")))
    assert "namespace-gone" in result.stdout
    assert lab.enrolled("shipper", "siem", "pipeline")
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
    path.unlink()
    wait_for(lambda: row_of(lab, "ghost") == {}, "the ghost is forgotten")


def test_namespace_that_goes_while_enrolled_is_shown_and_others_go_on(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lines = Lines(programs, "shipper", server.address)
    remove_namespace(lab.lab.plan.pod("goner").netns)
    wait_for(lambda: row_of(lab, "goner").get("reason") == "namespace-gone", "the goner is shown with its reason")
    published = yaml.safe_load((lab.lab.mesh / "enrolled" / "node1.yaml").read_text())["enrolled"]
    assert sorted(published) == ["default/shipper", "default/siem"]
    lines.goes_on()
    lines.finish()


def test_port_15008_in_use_is_shown_and_nothing_is_installed(lab: RunningLab, programs: Programs) -> None:
    before = lab.run("held", rules_and_settings)
    holder = lab.run("held", lambda: socket.create_server((lab.address("held"), HBONE_PORT)))
    programs.at_end(holder.close)
    change_workloads(lab.lab.mesh, {"held": {"enrolled": True}})
    wait_for(lambda: lab.workload("held")["reason"] == "address-in-use", "held is shown with its reason")
    assert f"{lab.address('held')}:{HBONE_PORT}" in lab.workload("held")["detail"]
    assert lab.run("held", rules_and_settings) == before
    server = programs.serve("pipeline")
    assert echoes(programs.dial("held", server.address))
    assert lab.enrolled("shipper", "siem", "pipeline")
    # When the port is free again, nobody has to do anything.
    holder.close()
    wait_for(lambda: lab.enrolled("held"), "held is enrolled")


def reaches(lab: RunningLab, programs: Programs, address: Address) -> bool:
    """Whether a new connection from pipeline works, through a tunnel."""
    try:
        client = programs.dial("pipeline", address)
        return echoes(client) and lab.outbound(client)["mtls"]
    except (OSError, EOFError):
        return False


def row_of(lab: RunningLab, name: str) -> dict[str, Any]:
    """A workload in the status of node1's agent; empty when it is not there."""
    rows = [row for row in lab.status("node1")["workloads"] if row["workload"] == f"default/{name}"]
    return rows[0] if rows else {}


def rules_and_settings() -> str:
    """What capture would change in the present namespace."""
    from support.namespaces import _output

    settings = ("tcp_fwmark_accept", "fwmark_reflect", "conf/eth0/accept_local")
    values = [Path("/proc/sys/net/ipv4", name).read_text() for name in settings]
    commands = (("ip", "rule"), ("ip", "route", "show", "table", "all"), ("tc", "qdisc", "show"))
    links = f"tcx {bpf.tcx_programs(socket.if_nametoindex('eth0'))}"
    return "".join([*(_output(*command) for command in commands), *values, links])


def change_workloads_of(path: Path, changes: dict[str, dict[str, Any]], lab: RunningLab) -> None:
    """Writes the lab's workloads anew, with changes: the file itself may be beyond reading."""
    workloads = [
        {
            "name": pod.name,
            "service_account": pod.name,
            "node": pod.node,
            "address": str(pod.address),
            "netns": pod.netns,
            "enrolled": pod.enrolled_from_start,
            **changes.get(pod.name, {}),
        }
        for pod in lab.lab.plan.pods
    ]
    path.write_text(yaml.safe_dump({"workloads": workloads}, sort_keys=False))
