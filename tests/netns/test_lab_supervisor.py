"""A supervised lab: what dies is started again, `lab status` shows it, and `lab down` is the end of all of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal_lab.lab import take_down
from nodeseal_lab.namespaces import list_namespaces
from nodeseal_lab.plan import prefix
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.process import end_process
from support.programs import Lines, Programs

NODES = ("node1", "node2")
ENDINGS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab as `lab up` makes it."""
    with running_lab(tmp_path_factory.mktemp("supervised"), supervised=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def all_runs(lab: RunningLab) -> None:
    """Before each test."""
    if lab.lab.supervisor_pid() is None:
        lab.lab.start_supervisor()
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")


def processes(lab: RunningLab, node: str) -> tuple[int | None, list[int]]:
    """(agent, cores) of a node, as `lab status -o json` says."""
    rows: list[dict[str, Any]] = msgspec.to_builtins(lab.lab.status().nodes)
    row = rows[NODES.index(node)]
    return row["agent_pid"], row["core_pids"]


@ENDINGS
def test_agent_that_dies_is_started_again(lab: RunningLab, programs: Programs, number: int) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    old, cores = processes(lab, "node1")
    lab.kill_agent("node1", number)
    wait_for(lambda: processes(lab, "node1")[0] not in (None, old), "the status shows another agent")
    wait_for(lambda: lab.enrolled("shipper", "siem"), "the new agent has adopted what is there")
    assert processes(lab, "node1")[1] == cores
    lines.goes_on()
    lines.finish()


def test_core_that_dies_is_started_again(lab: RunningLab) -> None:
    agent, cores = processes(lab, "node1")
    lab.kill_core("node1")
    wait_for(lambda: processes(lab, "node1")[1] not in ([], cores), "the status shows another core")
    assert processes(lab, "node1")[0] == agent


def test_agent_and_core_that_die_together_are_started_again(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    agent, cores = processes(lab, "node2")
    # The agent first: it would start the next core.
    lab.kill_agent("node2")
    lab.kill_core("node2")
    wait_for(lambda: processes(lab, "node2")[0] not in (None, agent), "the status shows another agent")
    wait_for(lambda: processes(lab, "node2")[1] not in ([], cores), "the status shows another core")
    wait_for(lambda: lab.enrolled("pipeline"), "pipeline is enrolled")
    assert echoes(programs.dial("shipper", server.address))


def test_agent_is_started_again_as_it_was(lab: RunningLab) -> None:
    old = lab.agent_pid("node1")
    command = _command(old)
    lab.kill_agent("node1")
    wait_for(lambda: processes(lab, "node1")[0] not in (None, old), "the status shows another agent")
    assert _command(lab.agent_pid("node1")) == command


def test_agents_outlive_the_supervisor(lab: RunningLab) -> None:
    before = [processes(lab, node) for node in NODES]
    supervisor = lab.lab.supervisor_pid()
    assert supervisor is not None
    end_process(supervisor)
    assert lab.lab.status().supervisor_pid is None
    assert [processes(lab, node) for node in NODES] == before


def test_new_supervisor_takes_up_the_work(lab: RunningLab) -> None:
    supervisor, old = lab.lab.supervisor_pid(), lab.agent_pid("node2")
    assert supervisor is not None
    end_process(supervisor)
    lab.kill_agent("node2")
    lab.lab.start_supervisor()
    wait_for(lambda: processes(lab, "node2")[0] not in (None, old), "the new supervisor starts the agent")


def test_nothing_comes_back_after_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("down")
    with running_lab(root, supervised=True) as lab:
        name, supervisor = lab.lab.plan.name, lab.lab.supervisor_pid()
        assert supervisor is not None
        # Some are being started again while the lab is taken down.
        for node in NODES:
            os.kill(lab.agent_pid(node), signal.SIGKILL)
        report = take_down(name, root)
        assert report.failures == ()
        assert "supervisor" in report.processes
    assert list_namespaces(prefix(name)) == []
    assert not root.exists()


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
