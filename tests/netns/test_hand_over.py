"""Several agents of one node: the one that comes takes over, those that let go stand by. Nothing is cut, and what a
probe of each process sees is told by that process alone."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.daemon.process_health import ALIVE, READY
from nodeseal.local import run_directory
from nodeseal_lab import agents
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.processes import start_time
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.process import end_process
from support.programs import Dials, Lines, Programs
from support.settings import add_settings

NODE = "node1"
CARD = b"card=4111 1111 1111 1111;"


@dataclass
class Agent:
    """One agent process of the node, in a "container" of its own: its configuration, its log, its probes."""

    lab: RunningLab
    directory: Path
    pid: int

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    @property
    def runs(self) -> bool:
        return start_time(self.pid) is not None

    @property
    def is_active(self) -> bool:
        return agents.agent_pid(self.lab.run_dir(NODE)) == self.pid

    @property
    def is_ready(self) -> bool:
        """As a probe sees it: the file is fresh."""
        return self._fresh(READY)

    @property
    def is_alive(self) -> bool:
        return self._fresh(ALIVE)

    def _fresh(self, name: str) -> bool:
        try:
            return time.time() - (self.directory / "health" / name).stat().st_mtime < 10
        except FileNotFoundError:
            return False

    def end(self, number: int = signal.SIGTERM) -> None:
        end_process(self.pid, number)


class Rollout:
    """Starts agents of the node, as new pods of a DaemonSet do."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.agents: list[Agent] = []

    def start(self, **settings: object) -> Agent:
        directory = self.directory / f"agent{len(self.agents)}"
        directory.mkdir()
        config = directory / "agent.yaml"
        config.write_text((self.lab.run_dir(NODE) / "agent.yaml").read_text())
        add_settings(config, {"hand_over": True, "health_directory": str(directory / "health")} | settings)
        command = [*agents.AGENT_COMMAND, "--config", str(config)]
        node = self.lab.lab.plan.node(NODE)
        record = self.lab.lab.processes.start(
            f"another agent {len(self.agents)}", command, netns=node.netns, output=directory / "agent.log"
        )
        assert record.pid is not None
        agent = Agent(self.lab, directory, record.pid)
        self.agents.append(agent)
        return agent

    def ready(self, **settings: object) -> Agent:
        agent = self.start(**settings)
        wait_for(lambda: agent.is_ready or not agent.runs, "the new agent is ready")
        assert agent.runs, agent.log
        return agent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab in which the agent of node1 is each test's own."""
    pods = ("comer:node1:plain",)
    with running_lab(tmp_path_factory.mktemp("handover"), more_pods=pods) as lab:
        lab.kill_agent(NODE, signal.SIGTERM)
        yield lab


@pytest.fixture
def rollout(lab: RunningLab, tmp_path: Path) -> Iterator[Rollout]:
    rollout = Rollout(lab, tmp_path)
    yield rollout
    for agent in rollout.agents:
        if agent.runs:
            agent.end(signal.SIGKILL)


@pytest.fixture
def first(rollout: Rollout) -> Agent:
    """The agent that is active."""
    return rollout.ready()


def test_new_agent_takes_over_and_nothing_is_cut(
    lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent
) -> None:
    server = programs.serve("pipeline")
    publication = lab.lab.mesh / "enrolled" / f"{NODE}.yaml"
    wait_for(lambda: "shipper" in publication.read_text(), "shipper is published")
    over = threading.Event()

    def is_published_all_the_time() -> None:
        while not over.wait(0.002):
            assert "shipper" in publication.read_text()

    watch = programs.thread(is_published_all_the_time)
    programs.at_end(over.set)
    lines, dials = Lines(programs, "shipper", server.address), Dials(programs, "shipper", server.address)
    core = lab.core_pid(NODE)
    second = rollout.ready()
    assert second.is_active
    wait_for(lambda: not first.is_ready, "the first agent is not ready any more")
    assert first.runs
    assert first.is_alive
    assert lab.status(NODE)["agent"]["standby"] == [first.pid]
    assert "hands over" in second.log
    lines.goes_on()
    first.end()
    assert lab.status(NODE)["agent"]["standby"] == []
    lines.goes_on()
    assert (lines.finish() > 0, dials.finish() > 0) == (True, True)
    assert lab.core_pid(NODE) == core
    # No peer took the node's workloads for un-enrolled.
    over.set()
    watch.result()


def test_one_that_let_go_takes_over_again(lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    second = rollout.ready()
    assert not first.is_active
    second.end(signal.SIGKILL)
    wait_for(lambda: first.is_ready, "the first agent is ready again")
    assert first.is_active
    change_workloads(lab.lab.mesh, {"comer": {"enrolled": True}})
    wait_for(lambda: lab.enrolled("comer"), "it enrols")
    change_workloads(lab.lab.mesh, {"comer": {"enrolled": False}})
    wait_for(lambda: lab.workload("comer")["phase"] == "absent", "comer has left the mesh")
    assert lines.finish() > 0


def test_third_agent_beside_two(lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    second = rollout.ready()
    third = rollout.ready()
    assert third.is_active
    assert sorted(lab.status(NODE)["agent"]["standby"]) == sorted([first.pid, second.pid])
    # The kubelet's second SIGTERM comes while the first is being heeded.
    os.kill(second.pid, signal.SIGTERM)
    second.end()
    first.end()
    assert third.is_ready
    assert lines.finish() > 0


def test_two_that_come_at_once(lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    others = [rollout.start(), rollout.start()]
    # Each takes over in its turn, and the one that was first lets go for the other.
    wait_for(lambda: all("agent is ready" in one.log or "takes over" in one.log for one in others), "both were active")
    wait_for(lambda: sum(one.is_ready for one in others) == 1, "one of them is ready")
    assert not first.is_active
    assert lines.finish() > 0


def test_agent_that_cannot_do_it_leaves_the_other_alone(
    lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent, tmp_path: Path
) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    other = tmp_path / "mesh"
    other.mkdir()
    (other / "mesh.yaml").write_text("trust_domain: 7\n")
    failing = rollout.start(mesh=str(other))
    wait_for(lambda: "cannot take over yet: the mesh state cannot be used" in failing.log, "it says why it waits")
    assert first.is_ready
    assert first.is_active
    assert not failing.is_ready
    assert failing.is_alive
    failing.end()
    assert lines.finish() > 0


def test_agent_that_fails_after_it_has_taken_over(
    lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent, tmp_path: Path
) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    # All that can be looked at ahead is as it should be; but the core is one of another trust domain.
    init_authority(tmp_path / "ca", trust_domain="other.example", now=datetime.now(UTC))
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    (mesh / "mesh.yaml").write_text("trust_domain: other.example\n")
    failing = rollout.start(mesh=str(mesh), ca=str(tmp_path / "ca"))
    wait_for(lambda: not failing.runs, "it has ended")
    assert "is for the trust domain" in failing.log.splitlines()[-1]
    wait_for(lambda: first.is_ready, "the first agent is ready again")
    assert first.is_active
    assert lab.status(NODE)["agent"]["pid"] == first.pid
    assert lines.finish() > 0


def test_signals_that_come_again_do_no_harm(lab: RunningLab, rollout: Rollout) -> None:
    agent = rollout.ready()
    process = os.pidfd_open(agent.pid)
    while not select.select([process], [], [], 0.002)[0]:
        signal.pidfd_send_signal(process, signal.SIGTERM)
    os.close(process)
    assert os.waitstatus_to_exitcode(os.waitpid(agent.pid, 0)[1]) == 0
    assert not (lab.run_dir(NODE) / run_directory.AGENT_PID).exists()


def test_second_agent_is_refused_where_nobody_asked_for_a_hand_over(
    lab: RunningLab, rollout: Rollout, first: Agent
) -> None:
    second = rollout.start(hand_over=False)
    wait_for(lambda: not second.runs, "it has ended")
    last = second.log.splitlines()[-1]
    assert last == f"nodeseal: another agent (pid {first.pid}) runs for {lab.run_dir(NODE)}; stop it first"
    assert first.is_active


def test_agent_that_does_not_hand_over_is_waited_for(lab: RunningLab, rollout: Rollout) -> None:
    plain = rollout.ready(hand_over=False)
    second = rollout.start()
    wait_for(lambda: "has no 'hand_over: true'" in second.log, "it says what it waits for")
    assert plain.is_active
    plain.end()
    wait_for(lambda: second.is_ready, "it takes over at the end of the other")


def test_cleanup_ends_those_that_stand_by(lab: RunningLab, rollout: Rollout, first: Agent) -> None:
    second = rollout.ready()
    done = lab.command("cleanup", "--run-dir", str(lab.run_dir(NODE)))
    assert done.returncode == 0, done.stderr
    assert f"agent, pid {first.pid} (it stood by, and was ended)" in done.stdout
    assert not first.runs
    assert not second.runs
    assert run_directory.own_files(lab.run_dir(NODE)) == [
        path for path in run_directory.own_files(lab.run_dir(NODE)) if not path.exists()
    ]


def test_new_connections_are_tunnelled_at_the_moment_of_a_hand_over(
    lab: RunningLab, programs: Programs, rollout: Rollout, first: Agent
) -> None:
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        second = rollout.start()
        while not second.is_active:
            assert echoes(programs.dial("shipper", server.address), CARD)
        assert not wire.carries(CARD)
