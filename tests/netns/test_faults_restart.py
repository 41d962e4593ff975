"""Agents and cores that end and come back, under live connections."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from nodeseal_lab import agents
from nodeseal_lab.errors import AgentError
from nodeseal_lab.mesh_state import change_workloads
from support.connection import echoes, endpoint
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Lines, Programs

IP_VERSIONS = (4, 6)

CARD = b"card=4111 1111 1111 1111;"
NODES = ("node1", "node2")
ENDINGS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose agents are restarted."""
    pods = ("guest:node1:plain", "comer:node1:plain")
    with running_lab(tmp_path_factory.mktemp("restart"), more_pods=pods, ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def agents_run(lab: RunningLab) -> Iterator[None]:
    """Before and after each test, also one that failed half way."""
    yield
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")


@ENDINGS
def test_no_connection_is_cut_when_agents_restart(lab: RunningLab, programs: Programs, number: int) -> None:
    cores = [lab.core_pid(node) for node in NODES]
    lines = [
        Lines(programs, source, programs.serve(target).address)
        for source, target in (
            ("shipper", "pipeline"),
            ("pipeline", "siem"),
            ("shipper", "siem"),
            ("guest", "pipeline"),
        )
    ]
    for node in NODES:
        lab.kill_agent(node, number)
        for one in lines:
            one.goes_on()
    lab.start_agents()
    for one in lines:
        one.goes_on()
    assert all(one.finish() > 0 for one in lines)
    assert [lab.core_pid(node) for node in NODES] == cores


@ENDINGS
def test_new_connections_are_tunnelled_while_no_agent_runs(lab: RunningLab, programs: Programs, number: int) -> None:
    servers = [programs.serve("pipeline"), programs.serve("siem")]
    for node in NODES:
        lab.kill_agent(node, number)
    with programs.sniff() as wire:
        assert echoes(programs.dial("shipper", servers[0].address), CARD)
        assert echoes(programs.dial("pipeline", servers[1].address), CARD)
        assert not wire.carries(CARD)
    assert echoes(programs.dial("guest", servers[0].address))


@ENDINGS
def test_what_runs_is_adopted(lab: RunningLab, programs: Programs, number: int) -> None:
    server = programs.serve("pipeline")
    old = programs.dial("shipper", server.address)
    assert echoes(old)
    lab.kill_agent("node1", number)
    meanwhile = programs.dial("shipper", server.address)
    assert echoes(meanwhile)
    lab.start_agent("node1")
    # At once: an agent that adopts does not begin anew.
    assert lab.workload("shipper")["phase"] in ("joining", "enrolled")
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
    rows = {row["source"]: row for row in lab.connections("node1") if row["direction"] == "outbound"}
    for client in (old, meanwhile):
        row = rows[endpoint(client.getsockname())]
        assert (row["state"], row["mtls"], row["peer"]) == ("open", True, lab.identity("pipeline"))
        assert echoes(client)


def test_adopted_workload_can_be_unenrolled(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.lab.enrol("comer")
    lab.restart_agent("node1", signal.SIGKILL)
    lab.lab.unenrol("comer")
    wait_for(lambda: lab.workload("comer")["phase"] == "absent", "comer has left the mesh")
    with programs.sniff() as wire:
        assert echoes(programs.dial("comer", server.address), CARD)
        assert wire.carries(CARD)


def test_change_made_while_no_agent_runs_is_taken_up(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.kill_agent("node1", signal.SIGKILL)
    change_workloads(lab.lab.mesh, {"comer": {"enrolled": True}})
    lab.start_agent("node1")
    wait_for(lambda: lab.enrolled("comer"), "comer is enrolled")
    client = programs.dial("comer", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
    lab.kill_agent("node1", signal.SIGTERM)
    change_workloads(lab.lab.mesh, {"comer": {"enrolled": False}})
    lab.start_agent("node1")
    client.close()
    wait_for(lambda: lab.workload("comer")["phase"] == "absent", "comer has left the mesh")


def test_agent_restarted_over_and_over_cuts_nothing(lab: RunningLab, programs: Programs) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        lab.restart_agent("node2", number)
        lines.goes_on()
    lines.finish()


@pytest.mark.parametrize("node", NODES)
def test_killed_core_is_replaced(lab: RunningLab, programs: Programs, node: str) -> None:
    server = programs.serve("pipeline")
    assert echoes(programs.dial("shipper", server.address))
    old = lab.core_pid(node)
    lab.kill_core(node)
    wait_for(lambda: core_runs(lab, node, other_than=old), "the agent starts another core")
    wait_for(lambda: lab.enrolled("shipper", "pipeline"), "the workloads are in the new core")
    wait_for(lambda: reaches(programs, "shipper", server.address), "new connections work")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["peer"] == lab.identity("pipeline")


def test_connection_dialled_while_no_core_runs_is_served_by_the_next(lab: RunningLab, programs: Programs) -> None:
    """The agent keeps the listeners: what dials meanwhile waits in their backlog."""
    server = programs.serve("pipeline")
    old = lab.core_pid("node1")
    lab.kill_core("node1")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert core_runs(lab, "node1", other_than=old)


def test_agent_and_core_that_died_together_come_back(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    for node in NODES:
        lab.kill_agent(node)
        lab.kill_core(node)
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


def test_mode_is_changed_while_an_agent_starts(lab: RunningLab) -> None:
    lab.kill_agent("node2")
    agents.start_agent(lab.lab.processes, lab.lab.plan.node("node2"), lab.run_dir("node2"))
    wait_for(lambda: answers(lab, "node2"), "the agent answers")
    # It may know of no workload yet.
    lab.lab.set_mode("pipeline", "strict")
    lab.lab.set_mode("pipeline", "permissive")


def answers(lab: RunningLab, node: str) -> bool:
    """Whether the node's agent does, also before it has started."""
    try:
        lab.status(node)
    except AgentError:
        return False
    return True


def core_runs(lab: RunningLab, node: str, *, other_than: int) -> bool:
    """Whether a core runs that is not this one."""
    pids = lab.lab.status().nodes[NODES.index(node)].core_pids
    return bool(pids) and pids != [other_than]


def reaches(programs: Programs, pod: str, address: tuple[str, int]) -> bool:
    """Whether a new connection works."""
    try:
        return echoes(programs.dial(pod, address, timeout=5))
    except (OSError, EOFError):
        return False
