"""From the version before this one to this one, agent and core of each node, under traffic: nothing is cut.

The former version comes out of git, built beside this one, and brings up its own lab, whose agents this version's then
replace, as an upgrade of the package and a restart of the service do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nodeseal import __version__
from nodeseal_lab.lab import LAB_ROOT, Lab, take_down
from support.former import build, is_there
from support.lab import RunningLab
from support.patience import wait_for
from support.programs import Dials, Lines, Programs

FORMER = "1cdbd50530ca9a52f8ffdff7216087dfb3a07747"
OLDER = "1008fd92d61c6873226de42afc9d7f68408b281f"
"""Its local API is another."""
NODES = ("node1", "node2")
CLOSED = 9
PATHS = (("shipper", "pipeline"), ("pipeline", "siem"), ("shipper", "siem"), ("guest", "pipeline"))

pytestmark = [
    pytest.mark.skipif(
        not (is_there(FORMER) and is_there(OLDER)), reason=f"no git history here that has {FORMER[:7]} and {OLDER[:7]}"
    ),
]


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment in which `nodeseal` is the former version."""
    return build(request.param, tmp_path_factory.mktemp("former"))


@pytest.fixture
def lab(former: dict[str, str]) -> Iterator[RunningLab]:
    """A lab of the former version, whose agents nobody starts again."""
    name = f"former{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "nodeseal",
        "lab",
        "up",
        "--name",
        name,
        "--pod",
        "guest:node1:plain",
        "--unsupervised",
    ]
    try:
        up = subprocess.run(command, env=former, capture_output=True, text=True, timeout=180)
        assert up.returncode == 0, up.stderr
        yield RunningLab(Lab.open(name))
    finally:
        report = take_down(name, LAB_ROOT)
    assert report.failures == ()


def upgrade(lab: RunningLab, node: str) -> None:
    """The service is restarted with this version; its agent replaces the core by its own."""
    before = lab.core_pid(node)
    lab.restart_agent(node)
    wait_for(lambda: lab.core_pid(node) != before, f"{node} has a core of this version")
    wait_for(lambda: not lab.status(node)["core"]["outdated"], f"{node} uses the core of this version")


@pytest.mark.parametrize("former", [FORMER], indirect=True, ids=["former"])
def test_nothing_is_cut_by_an_upgrade_of_agent_and_core(lab: RunningLab) -> None:
    with Programs(lab, 4) as programs:
        lines = [Lines(programs, source, programs.serve(target).address) for source, target in PATHS]
        dials = Dials(programs, "shipper", programs.serve("pipeline").address)
        for node in NODES:
            first = lab.core_pid(node)
            upgrade(lab, node)
            for one in lines:
                one.goes_on()
            assert lab.core_pids(node)[-1] == first, "the former core still carries what it began"
            older = {one["generation"] for one in lab.status(node)["older_cores"]}
            assert older, "the former core is shown"
            wait_for(
                lambda node=node, older=older: older < {row["core"] for row in lab.connections(node)},
                "its connections are listed beside those of the new core",
            )
            for pod in ("shipper", "siem", "pipeline"):
                if lab.node_of(pod) == node:
                    wait_for(lambda pod=pod: lab.workload(pod)["connect"] == "truthful", f"connect() of {pod} is true")
        wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")
        assert dials.finish() > 0
        with pytest.raises(ConnectionRefusedError):
            programs.dial("shipper", (programs.at("pipeline"), CLOSED))
        assert [one.finish() > 0 for one in lines] == [True] * len(lines)


@pytest.mark.parametrize("former", [OLDER], indirect=True, ids=["older"])
def test_command_and_agent_of_two_versions_say_what_to_do(lab: RunningLab, former: dict[str, str]) -> None:
    run_dir = str(lab.run_dir("node1"))

    def said(environment: dict[str, str]) -> str:
        command = [sys.executable, "-m", "nodeseal", "status", "--run-dir", run_dir]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    present = said(dict(os.environ))
    assert present.startswith(f"nodeseal: the agent at {run_dir}/agent.sock is of another version than this command")
    assert present.endswith("; start the agent anew\n")
    lab.restart_agent("node1")
    text = "than this command: run the one that is installed\n"
    assert said(former) == f"nodeseal: the agent is of a newer version ({__version__}) {text}"
