"""Cores that are replaced under live connections, by command, by a new version, and after a crash."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import nodeseal
from nodeseal_lab import agents
from nodeseal_lab.mesh_state import change_workloads
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import BOTH_FAMILIES, Dials, Lines, Programs

CARD = b"card=4111 1111 1111 1111;"
NODES = ("node1", "node2")
PATHS = (("shipper", "pipeline"), ("pipeline", "siem"), ("shipper", "siem"), ("guest", "pipeline"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose cores are replaced."""
    pods = ("guest:node1:plain", "comer:node1:plain")
    with running_lab(tmp_path_factory.mktemp("upgrade"), more_pods=pods, ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def one_core_each(lab: RunningLab) -> Iterator[None]:
    """After each test, also one that failed half way."""
    yield
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")
    wait_for(lambda: all(len(cores(lab, node)) == 1 for node in NODES), "the cores that were replaced have ended")


def cores(lab: RunningLab, node: str) -> list[int]:
    """The pids of the node's cores, the newest first."""
    return agents.core_pids(lab.run_dir(node))


def echo_on(client: socket.socket) -> None:
    """Until the connection is cut."""
    while True:
        assert echoes(client)


def upgrade(lab: RunningLab, node: str) -> dict[str, object]:
    """`nodeseal upgrade-core`; its answer."""
    done = lab.command("upgrade-core", "--run-dir", str(lab.run_dir(node)), "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["nodes"][0]


@BOTH_FAMILIES
def test_no_connection_is_cut_by_upgrades_in_a_row(lab: RunningLab, programs: Programs) -> None:
    first = [cores(lab, node) for node in NODES]
    lines = [Lines(programs, source, programs.serve(target).address) for source, target in PATHS]
    for _ in range(2):
        for node in NODES:
            upgrade(lab, node)
            for one in lines:
                one.goes_on()
    for node, before in zip(NODES, first, strict=True):
        # Each generation still carries what it began.
        assert cores(lab, node)[-1:] == before
    assert [one.finish() > 0 for one in lines] == [True] * len(lines)


def test_replaced_core_goes_by_itself_with_its_last_connection(lab: RunningLab, programs: Programs) -> None:
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client)
    before = cores(lab, "node1")
    upgrade(lab, "node1")
    (older,) = lab.status("node1")["older_cores"]
    assert (older["pid"], older["retired"]) == (before[0], True)
    assert older["connections"] >= 1
    assert echoes(client)
    assert lab.outbound(client)["core"] == older["generation"]
    client.close()
    wait_for(lambda: before[0] not in cores(lab, "node1"), "the core that was replaced has ended")
    wait_for(lambda: lab.status("node1")["older_cores"] == [], "the status shows it no more")
    assert lab.status("node1")["core"]["crashes"] == 0


@pytest.mark.parametrize("node", NODES)
@BOTH_FAMILIES
def test_connections_dialled_all_through_an_upgrade_are_all_served(
    lab: RunningLab, programs: Programs, node: str
) -> None:
    """As a client, and as a server to a peer whose tunnels come from before."""
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        dials = Dials(programs, "shipper", server.address)
        for _ in range(3):
            upgrade(lab, node)
        wait_for(lambda: len(cores(lab, node)) == 1 or not dials.running, "the cores before have ended")
        assert dials.finish() > 0
        assert not wire.carries(b"00000001")


def test_decisions_follow_the_mesh_state_in_older_cores_too(lab: RunningLab, programs: Programs) -> None:
    """Strict mode cuts what runs in plaintext, whichever core carries it."""
    client = programs.dial("guest", programs.serve("pipeline").address)
    assert echoes(client)
    upgrade(lab, "node2")
    assert echoes(client)
    lab.lab.set_mode("pipeline", "strict")
    try:
        with pytest.raises((ConnectionResetError, EOFError)):
            echo_on(client)
    finally:
        lab.lab.set_mode("pipeline", "permissive")


def test_workload_leaves_with_connections_in_two_cores(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.lab.enrol("comer")
    old = programs.dial("comer", server.address)
    assert echoes(old)
    upgrade(lab, "node1")
    new = programs.dial("comer", server.address)
    assert echoes(new)
    change_workloads(lab.lab.mesh, {"comer": {"enrolled": False}})
    wait_for(lambda: lab.workload("comer")["draining"], "comer drains")
    assert lab.workload("comer")["connections"] == 2
    for client in (new, old):
        assert echoes(client)
        client.close()
    wait_for(lambda: lab.workload("comer")["phase"] == "absent", "comer has left the mesh")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_agent_restart_finds_all_generations(lab: RunningLab, programs: Programs, number: int) -> None:
    lines = [Lines(programs, "shipper", programs.serve("pipeline").address)]
    upgrade(lab, "node1")
    lines.append(Lines(programs, "shipper", programs.serve("pipeline").address))
    before = cores(lab, "node1")
    assert len(before) == 2
    lab.restart_agent("node1", number)
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
    assert cores(lab, "node1") == before
    (older,) = lab.status("node1")["older_cores"]
    assert (older["pid"], older["retired"]) == (before[1], True)
    for one in lines:
        one.goes_on()
        one.finish()


def test_command_inside_a_nodes_namespace_is_about_that_node(lab: RunningLab) -> None:
    before = {node: cores(lab, node)[0] for node in NODES}
    netns = lab.lab.plan.node("node2").netns
    done = lab.command("upgrade-core", prefix=["nsenter", f"--net=/run/netns/{netns}"])
    assert done.returncode == 0, done.stderr
    assert f"pid {before['node2']}" in done.stdout
    assert cores(lab, "node1") == [before["node1"]]
    assert cores(lab, "node2")[0] != before["node2"]


@pytest.mark.parametrize("command", ["upgrade-core", "cleanup"])
def test_command_from_outside_changes_no_node_without_being_told_which(lab: RunningLab, command: str) -> None:
    before = {node: (cores(lab, node), agents.agent_pid(lab.run_dir(node))) for node in NODES}
    # A namespace in which there is no node: the machine's own may have one.
    done = lab.command(command, prefix=["unshare", "--net"])
    assert (done.returncode, done.stdout) == (2, "")
    # What is wrong, and a command for each node; one for all of them is the last.
    lines = done.stderr.splitlines()
    assert lines[0].endswith("nodes are on this machine, and none in this network namespace; say which:")
    assert f"nodeseal {command} --all" in lines[-1]
    assert {node: (cores(lab, node), agents.agent_pid(lab.run_dir(node))) for node in NODES} == before


def test_status_shows_nodes_wherever_their_run_directories_lie(lab: RunningLab) -> None:
    done = lab.command("status", "-o", "json", prefix=["unshare", "--net"])
    shown = {node["run_dir"] for node in json.loads(done.stdout)["nodes"]}
    assert {str(lab.run_dir(node)) for node in NODES} <= shown


def test_agent_of_a_new_version_replaces_the_core_by_itself(
    lab: RunningLab, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    before = cores(lab, "node2")
    package = Path(nodeseal.__file__).parent
    shutil.copytree(package, tmp_path / "agent" / "nodeseal", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "agent" / "nodeseal" / "__init__.py").write_text('"""Another version."""\n\n__version__ = "9.9.9"\n')
    with monkeypatch.context() as newer:
        newer.setenv("PYTHONPATH", str(tmp_path / "agent"))
        lab.restart_agent("node2")
    wait_for(lambda: cores(lab, "node2")[0] != before[0], "the new agent has started its own core")
    retired = [(before[0], True)]
    wait_for(
        lambda: [(one["pid"], one["retired"]) for one in lab.status("node2")["older_cores"]] == retired,
        "and retired the one before",
    )
    status = lab.status("node2")
    assert (status["agent"]["version"], status["core"]["version"]) == ("9.9.9", "9.9.9")
    assert not status["core"]["outdated"]
    lines.goes_on()
    # And back again, as after an upgrade that disappoints.
    lab.restart_agent("node2")
    wait_for(lambda: lab.status("node2")["core"]["version"] == nodeseal.__version__, "the version before is back")
    lines.goes_on()
    assert cores(lab, "node2")[-1:] == before  # it has carried the lines all the time
    lines.finish()


def test_core_that_crashes_in_an_upgrade_leaves_older_connections_alone(lab: RunningLab, programs: Programs) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    upgrade(lab, "node1")
    newest = cores(lab, "node1")[0]
    lab.kill_core("node1")
    wait_for(lambda: cores(lab, "node1")[0] not in (newest, cores(lab, "node1")[-1]), "another core runs")
    lines.goes_on()
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client)
    lines.finish()
    assert lab.status("node1")["core"]["crashes"] >= 1


def test_drain_limit_ends_what_is_left(lab: RunningLab, programs: Programs) -> None:
    lab.restart_agent("node1", drain_limit="1s")
    try:
        client = programs.dial("shipper", programs.serve("pipeline").address)
        assert echoes(client)
        upgrade(lab, "node1")
        with pytest.raises((ConnectionResetError, EOFError)):
            echo_on(client)
    finally:
        lab.restart_agent("node1", drain_limit="none")
