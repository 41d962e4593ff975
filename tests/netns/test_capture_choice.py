"""Agents with one capture backend or the other: chosen, changed, and side by side on two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest

from nodeseal.linux.cgroups import find_cgroup
from nodeseal_lab import agents
from support.connection import echoes
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import wait_for
from support.process import nodeseal
from support.programs import Lines, Programs
from support.sniffer import ports_used

CARD = b"card=4111 1111 1111 1111;"
NO_CGROUP = "no cgroup v2 tree is mounted in the mount namespace of this process"
# What `ip netns exec` does to /sys, among other things.
HIDE = ("unshare", "--mount", "sh", "-c", 'umount --all --lazy --types cgroup2 && exec "$@"', "sh")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab with agents that do not find what eBPF needs."""
    with hidden_cgroups(), running_lab(tmp_path_factory.mktemp("choice"), settings={"capture": "auto"}) as lab:
        yield lab


def hidden_cgroups() -> AbstractContextManager[object]:
    """While it is entered, the agents of labs see no cgroup v2 tree."""
    return mock.patch("nodeseal_lab.agents.AGENT_COMMAND", (*HIDE, *agents.AGENT_COMMAND))


def assert_tunnelled(lab: RunningLab, source: str, target: str) -> None:
    """A new connection between pods of two nodes crosses in TLS, with the right identity."""
    with Programs(lab) as programs:
        server = programs.serve(target)
        with programs.sniff() as wire:
            client = programs.dial(source, server.address)
            assert echoes(client, CARD * 100)
            packets = wire.cut()
        assert not any(CARD in packet.payload for packet in packets)
        assert ports_used(packets) <= {HBONE_PORT}
        assert lab.outbound(client)["peer"] == lab.identity(target)


def test_auto_takes_iptables_and_says_why(lab: RunningLab) -> None:
    capture = lab.status("node1")["capture"]
    assert capture["backend"] == "iptables"
    assert NO_CGROUP in capture["why"]
    assert lab.workload("shipper")["capture"] == "iptables"
    text = nodeseal("status", "--run-dir", str(lab.run_dir("node1"))).stdout
    assert "capture by iptables" in text
    first = text.splitlines()[0]
    assert first.startswith("capture-fallback: capture is by iptables, not by eBPF, with 15 promises less ")
    assert f"{NO_CGROUP}, though the machine has one at {find_cgroup()}: 'ip netns exec' hides it" in first
    assert f"say 'nsenter --net=/run/netns/{lab.lab.plan.node('node1').netns}' in its place" in first
    assert "capture is by iptables, not by eBPF" in (lab.run_dir("node1") / "agent.log").read_text()
    assert_tunnelled(lab, "shipper", "pipeline")


def test_ebpf_that_was_asked_for_is_not_replaced(lab: RunningLab, tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text((lab.run_dir("node1") / "agent.yaml").read_text().replace("capture: auto", "capture: ebpf"))
    result = nodeseal("check", "--config", str(path), "-o", "json", prefix=HIDE)
    assert result.returncode == 1
    lab.kill_agent("node1")
    try:
        result = nodeseal("agent", "--config", str(path), prefix=HIDE)
        assert (result.returncode, NO_CGROUP in result.stderr) == (1, True)
    finally:
        lab.start_agent("node1")
    wait_for(lambda: lab.enrolled("shipper"), "the shipper is enrolled still")


def test_workload_moves_to_the_other_backend_when_it_is_enrolled_again(lab: RunningLab) -> None:
    """Nothing is cut, and the two backends understand each other, on one node and across two."""
    with Programs(lab) as programs:
        server = programs.serve("pipeline")
        lines = Lines(programs, "shipper", server.address)
        lines.goes_on()
        with mock.patch("nodeseal_lab.agents.AGENT_COMMAND", agents.AGENT_COMMAND[len(HIDE) :]):
            lab.restart_agent("node1", capture="ebpf", cgroup=str(find_cgroup()))
        wait_for(lambda: lab.enrolled("shipper", "siem"), "the workloads are adopted")
        lines.goes_on()
        assert lab.status("node1")["capture"] == {
            "backend": "ebpf",
            "why": None,
            "held": {"packets": 0, "last_seconds": None},
            "tracked": None,
            "early": None,
        }
        assert lab.workload("shipper")["capture"] == "iptables"
        assert_tunnelled(lab, "shipper", "pipeline")
        lab.lab.unenrol("shipper")
        lines.goes_on()
        assert lines.finish() >= 60
        programs.dial("shipper", server.address).close()
    wait_for(lambda: lab.workload("shipper")["phase"] == "absent", "the shipper has left the mesh")
    lab.lab.enrol("shipper")
    assert {pod: lab.workload(pod)["capture"] for pod in ("shipper", "siem")} == {"shipper": "ebpf", "siem": "iptables"}
    assert_tunnelled(lab, "shipper", "pipeline")
    assert_tunnelled(lab, "pipeline", "shipper")
    with Programs(lab) as programs:
        server = programs.serve("siem")
        with programs.sniff_pod("siem") as wire:
            assert echoes(programs.dial("shipper", server.address), CARD)
            assert not wire.carries(CARD)
