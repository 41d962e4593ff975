"""What a workload's new connections do when the agent and the core of its node are both gone: the choice of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeseal_lab.mesh_state import change_workloads
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import BOTH_FAMILIES, Programs

pytestmark = pytest.mark.ebpf_only("no rule can tell whether somebody holds a listener")

CARD = b"card=4111 1111 1111 1111;"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """shipper is open on failure, siem on the same node is not."""
    with running_lab(tmp_path_factory.mktemp("failure"), ipv6=True) as lab:
        choose(lab, "open")
        yield lab


@pytest.fixture(autouse=True)
def everything_is_back(lab: RunningLab) -> Iterator[None]:
    yield
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")


def choose(lab: RunningLab, choice: str) -> None:
    change_workloads(lab.lab.mesh, {"shipper": {"on_failure": choice}})
    wait_for(lambda: lab.workload("shipper")["on_failure"] == choice, f"shipper is {choice} on failure")
    wait_for(lambda: lab.enrolled("shipper", "siem"), "both are enrolled")


def everything_dies(lab: RunningLab) -> None:
    lab.kill_agent("node1")
    lab.kill_core("node1")


def fails(programs: Programs, pod: str, address: tuple[str, int]) -> bool:
    """Whether a new connection gets no answer."""
    try:
        return not echoes(programs.dial(pod, address, timeout=1), CARD)
    except (OSError, EOFError):
        return True


@BOTH_FAMILIES
def test_open_workload_goes_direct_and_its_neighbour_does_not(lab: RunningLab, programs: Programs) -> None:
    outside = programs.serve("intruder")
    inside = {pod: programs.serve(pod) for pod in ("shipper", "siem")}
    everything_dies(lab)
    assert echoes(programs.dial("shipper", outside.address))
    assert echoes(programs.dial("intruder", inside["shipper"].address))
    assert fails(programs, "siem", outside.address)
    assert fails(programs, "intruder", inside["siem"].address)


@BOTH_FAMILIES
def test_enrolled_peer_that_is_well_refuses_what_comes_in_plaintext(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    everything_dies(lab)
    assert fails(programs, "shipper", server.address)
    assert server.accepted == []


def test_connections_that_went_direct_go_on_when_the_agent_is_back(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("intruder")
    everything_dies(lab)
    direct = programs.dial("shipper", server.address)
    assert echoes(direct)
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled again")
    assert echoes(direct)
    captured = programs.dial("shipper", server.address)
    assert echoes(captured)
    assert lab.outbound(captured)["reason"] == "destination-not-enrolled"
    assert direct.getsockname()[1] in {
        int(row["source"].rpartition(":")[2]) for row in lab.connections("node1") if row["core"] is None
    }


@pytest.mark.parametrize("dead", ["agent", "core"])
def test_one_of_the_two_is_enough_to_hold_the_connections(lab: RunningLab, programs: Programs, dead: str) -> None:
    server = programs.serve("pipeline")
    if dead == "agent":
        lab.kill_agent("node1")
    else:
        lab.kill_core("node1")
    with programs.sniff() as wire:
        assert echoes(programs.dial("shipper", server.address), CARD)
        assert not wire.carries(CARD)


def test_choice_is_changed_live_and_survives_the_agent(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("intruder")
    old = programs.dial("shipper", server.address)
    assert echoes(old)
    choose(lab, "closed")
    assert echoes(old)
    lab.restart_agent("node1")
    everything_dies(lab)
    assert fails(programs, "shipper", server.address)
    lab.start_agents()
    everything_dies(lab)
    # Changed while nobody is there to see it.
    change_workloads(lab.lab.mesh, {"shipper": {"on_failure": "open"}})
    lab.start_agents()
    wait_for(lambda: lab.workload("shipper")["on_failure"] == "open", "the agent has seen it")
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
    everything_dies(lab)
    assert echoes(programs.dial("shipper", server.address))
