"""What runs on a node of a cluster has a few capabilities alone: those that the chart leaves it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from nodeseal.manifests.chart import Chart
from nodeseal_lab import agents
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Lines, Programs

NODE = "node1"
CARD = b"card=4111 1111 1111 1111;"
LAST = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
# capabilities(7)
NUMBERS = {
    "dac_override": 1, "net_bind_service": 10, "net_admin": 12, "net_raw": 13, "ipc_lock": 14,
    "sys_ptrace": 19, "sys_admin": 21, "sys_resource": 24, "mknod": 27,
}  # fmt: skip


def confinement() -> list[str]:
    """The beginning of the agent's command in its container."""
    chart = Chart()
    (agent,) = (one for one in chart.manifests("x", chart.values([])) if one.kind == "DaemonSet")
    (container,) = yaml.safe_load(agent.text)["spec"]["template"]["spec"]["containers"]
    command: list[str] = container["command"]
    return command[: command.index("--") + 1]


def kept() -> set[str]:
    return set(re.findall(r"\+([a-z_]+)", " ".join(confinement())))


@pytest.fixture(scope="module", params=["ebpf", "iptables"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    root = tmp_path_factory.mktemp("capabilities")
    core = {"own_cgroup": True, "image_directory": str(root / "image")}
    settings = {"core": core, "hand_over": True, "capture": request.param}
    confined = mock.patch.object(agents, "AGENT_COMMAND", (*confinement(), *agents.AGENT_COMMAND))
    with confined, running_lab(root / "r", settings=settings, ipv6=True) as lab:
        yield lab
        # As in a pod that cleans its node: what is left is looked for by the lab.
        for run_dir in lab.lab.run_dirs.values():
            done = lab.command("cleanup", "--run-dir", str(run_dir), prefix=confinement())
            assert done.returncode == 0, done.stderr
            assert "core, pid" in done.stdout


def capabilities(pid: int) -> dict[str, set[str]]:
    """By the kinds of proc_pid_status(5): numbers of those that have no name here."""
    text = Path(f"/proc/{pid}/status").read_text()
    names = {number: name for name, number in NUMBERS.items()}
    return {
        kind: {names.get(number, str(number)) for number in range(LAST + 1) if int(mask, 16) >> number & 1}
        for kind, mask in re.findall(r"^Cap(\w+):\s+([0-9a-f]+)$", text, re.MULTILINE)
    }


def test_agent_and_core_have_these_and_no_others(lab: RunningLab) -> None:
    # The machine of the tests may have fewer itself.
    expected = kept() & capabilities(os.getpid())["Bnd"]
    assert {"sys_admin", "net_admin"} <= expected
    for pid in (lab.agent_pid(NODE), lab.core_pid(NODE)):
        found = capabilities(pid)
        assert (found["Eff"], found["Bnd"], found["Prm"]) == (expected, expected, expected)
        assert found["Inh"] == found["Amb"] == set()
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("version", [4, 6])
def test_traffic_is_tunnelled(lab: RunningLab, version: int) -> None:
    with Programs(lab, version) as programs:
        server = programs.serve("pipeline", port=80)
        with programs.sniff() as wire:
            assert echoes(programs.dial("shipper", server.address), CARD)
            assert not wire.carries(CARD)


def test_client_may_have_a_port_below_1024(lab: RunningLab) -> None:
    """The core dials the application from there."""
    with Programs(lab) as programs:
        server = programs.serve("pipeline")
        dialled = lab.run("shipper", lambda: from_port(600, server.address))
        programs.at_end(dialled.close)
        assert echoes(dialled)


def from_port(port: int, address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=PATIENCE, source_address=("", port))


def test_agent_and_core_are_replaced(lab: RunningLab) -> None:
    with Programs(lab) as programs:
        lines = Lines(programs, "shipper", programs.serve("pipeline").address)
        lines.goes_on()
        lab.restart_agent(NODE)
        lines.goes_on()
        assert lab.command("upgrade-core", "--run-dir", str(lab.run_dir(NODE))).returncode == 0
        lines.goes_on()
        assert lines.finish() > 0
    wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
    assert lab.status(NODE)["problems"] == []


def test_nothing_was_forbidden(lab: RunningLab) -> None:
    for name, text in lab.logs():
        assert not re.findall(r".*(?:not permitted|denied|cannot be locked).*", text), name
