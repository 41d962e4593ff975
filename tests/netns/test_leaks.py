"""A node holds the same of Linux after many rounds of everything as after one. `make chaos` has more rounds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from nodeseal.contracts.api import UPGRADE_CORE
from nodeseal_lab import agents
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.resources import Resources, node_resources
from support.server import Server

pytestmark = pytest.mark.alone

NODES = ("node1", "node2")
ENROLLED = ("shipper", "siem", "pipeline", "comer")
ROUNDS = 5
GENERATIONS = 3
SAME = 4
"""Snapshots in a row that have to be equal before one counts: some things end a moment after what they were for."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Every round here starts from the same: all enrolled, nothing connected."""
    settings = {"settle": "100ms"}
    with running_lab(tmp_path_factory.mktemp("leaks"), more_pods=("comer:node1",), settings=settings, ipv6=True) as lab:
        yield lab


def enrolment(lab: RunningLab, programs: Programs, server: Server) -> None:
    """Two workloads leave and come back, and talk before, between and after."""
    for change in (lab.lab.unenrol, lab.lab.enrol):
        client = programs.dial("comer", server.address)
        assert echoes(client)
        client.close()
        change("comer", "pipeline")


def core_upgrade(lab: RunningLab, programs: Programs, server: Server) -> None:
    """The cores are replaced, while something is connected through the old ones."""
    client = programs.dial("shipper", server.address)
    for node in NODES:
        agents.ask_agent(lab.run_dir(node), UPGRADE_CORE)
        assert echoes(client)
    client.close()


def core_crash(lab: RunningLab, programs: Programs, server: Server) -> None:
    """A core is killed, and its agent starts another."""
    old = lab.core_pid("node1")
    lab.kill_core("node1")
    wait_for(lambda: lab.core_pids("node1") not in ([], [old]), "another core runs")


def agent_crash(lab: RunningLab, programs: Programs, server: Server) -> None:
    """An agent is killed, and another adopts what is there."""
    lab.restart_agent("node2", signal.SIGKILL)


def crash_of_both(lab: RunningLab, programs: Programs, server: Server) -> None:
    """An agent and its core are killed: nobody of theirs is left to tidy up."""
    lab.kill_agent("node1")
    lab.kill_core("node1")
    lab.start_agent("node1")


@pytest.mark.parametrize(
    ("happens", "rounds"),
    [(enrolment, ROUNDS), *((one, GENERATIONS) for one in (core_upgrade, core_crash, agent_crash, crash_of_both))],
)
def test_node_holds_the_same_after_many_rounds_as_after_one(
    lab: RunningLab, programs: Programs, happens: Callable[[RunningLab, Programs, Server], None], rounds: int
) -> None:
    server = programs.serve("pipeline")
    happens(lab, programs, server)
    before = at_rest(lab)
    for _ in range(rounds):
        happens(lab, programs, server)
    assert differences(before, at_rest(lab)) == []


def at_rest(lab: RunningLab) -> dict[str, Resources]:
    """Of each node, when everything is enrolled, one core runs on each, and nothing changes any more."""
    wait_for(lambda: lab.enrolled(*ENROLLED), "everything is enrolled")
    wait_for(lambda: all(len(lab.core_pids(node)) == 1 for node in NODES), "one core runs on each node")
    last: list[dict[str, Resources]] = []

    def settled() -> bool:
        last.append({node: node_resources(lab.lab, node) for node in NODES})
        return len(last) > SAME and not any(differences(older, last[-1]) for older in last[-SAME:-1])

    wait_for(settled, "the nodes hold the same for a while")
    return last[-1]


def differences(before: dict[str, Resources], after: dict[str, Resources]) -> list[str]:
    """All of them, with the node's name."""
    return [f"{node}: {line}" for node in NODES for line in before[node].differences(after[node])]
