"""Probes from the node with the iptables backend, which sees their address and no more: the node's own addresses pass
to permissive workloads, those that the operator names to all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.namespaces import run_in
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path, ipv6=True, settings={"capture": "iptables"}) as lab:
        yield lab


def probed(lab: RunningLab, address: tuple[str, int], node: str = "node2", timeout: float = PATIENCE) -> bool:
    """Whether the node reaches an echo server."""
    netns = lab.lab.plan.node(node).netns
    with suppress(OSError, EOFError), run_in(netns, lambda: socket.create_connection(address, timeout)) as connection:
        return echoes(connection)
    return False


def refusing(lab: RunningLab) -> list[str]:
    """What the status of node2 says of probes that are refused."""
    return [one["text"] for one in lab.status("node2")["problems"] if one["word"] == "probes-refused"]


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_node_reaches_permissive_workloads_without_agent_and_core(lab: RunningLab, version: int) -> None:
    with Programs(lab, version) as programs:
        server = programs.serve("pipeline")
        lab.kill_agent("node2")
        lab.kill_core("node2")
        assert probed(lab, server.address)
        assert not probed(lab, server.address, "node1", timeout=1)


def test_node_reaches_strict_workloads_where_its_address_is_named(lab: RunningLab) -> None:
    with Programs(lab) as programs:
        server = programs.serve("pipeline")
        assert probed(lab, server.address)
        assert not refusing(lab)
        lab.lab.set_mode("pipeline", "strict")
        wait_for(lambda: not probed(lab, server.address), "strict refuses what has the node's address")
        # It is told by the status, and beforehand by `check` in the node's namespace.
        (told,) = refusing(lab)
        assert told.startswith("default/pipeline is strict and captured by iptables")
        netns = lab.lab.plan.node("node2").netns
        config = str(lab.run_dir("node2") / "agent.yaml")
        checked = lab.command("check", "--config", config, "-o", "json", prefix=("ip", "netns", "exec", netns))
        assert any(line.startswith(told) for line in json.loads(checked.stdout)["warnings"]), checked
        lab.restart_agent("node2", node_addresses=["10.77.2.1"])
        wait_for(lambda: probed(lab, server.address), "the address is in force")
        assert not refusing(lab)
        assert not probed(lab, server.address, "node1")


def test_port_that_is_excluded_for_probes_is_reached_and_no_other(lab: RunningLab) -> None:
    """The way out that does not let in what the node forwards."""
    with Programs(lab) as programs:
        probe, service = programs.serve("pipeline"), programs.serve("pipeline")
        change = {"mode": "strict", "exclude": {"inbound": {"ports": [probe.address[1]]}}}
        change_workloads(lab.lab.mesh, {"pipeline": change})
        wait_for(lambda: not probed(lab, service.address, timeout=1), "the service is strict")
        wait_for(lambda: probed(lab, probe.address), "the node reaches the port of its probes")
        assert not refusing(lab)
