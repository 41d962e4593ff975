"""Probes that rules would refuse: named before the kubelet ends a pod."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from nodeseal.daemon.check import warnings
from nodeseal.local.config import NodeAddresses
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.model import Mode, Workload
from nodeseal.node.probes import REMEDY, refused
from support.agent_fakes import agent_config, workload

LOCAL = frozenset({IPv4Address("10.77.2.1"), IPv4Address("192.0.2.7")})
STRICT = workload("siem", "siem", mode=Mode.STRICT)


def excluding(excluded: Excluded) -> Workload:
    return replace(STRICT, exclude=Exclusions(inbound=excluded))


def test_strict_workload_is_named() -> None:
    other = replace(workload("other", "other"), mode=Mode.STRICT)
    assert refused([STRICT], NodeAddresses(), LOCAL) == (
        "default/siem is strict and captured by iptables: probes of this node (the kubelet's) are refused there, and "
        "the kubelet ends a pod whose probe fails"
    )
    assert (refused([STRICT, other], NodeAddresses(), LOCAL) or "").startswith("default/other, default/siem are strict")


@pytest.mark.parametrize(
    "one",
    [
        replace(STRICT, mode=Mode.PERMISSIVE),
        replace(STRICT, wanted=False),
        excluding(Excluded(ports=(PortRange(8081, 8081),))),
        excluding(Excluded(networks=(IPv4Network("10.77.2.0/24"),))),
    ],
)
def test_workload_whose_probes_pass_is_not(one: Workload) -> None:
    assert refused([one], NodeAddresses(), LOCAL) is None


def test_what_lets_in_others_does_not_help() -> None:
    one = excluding(Excluded(networks=(IPv4Network("10.99.0.0/24"),)))
    assert refused([one], NodeAddresses(), LOCAL) is not None


def test_operator_who_has_said_what_he_wants_is_left_alone() -> None:
    assert refused([STRICT], NodeAddresses(local=False), LOCAL) is None
    assert refused([STRICT], NodeAddresses(trusted=(IPv4Network("10.77.2.1/32"),)), LOCAL) is None


def test_check_reads_the_mesh_state(tmp_path: Path) -> None:
    entry = "{name: siem, node: node1, address: 10.77.2.11, netns: siem, enrolled: true, mode: strict}"
    (tmp_path / "m.yaml").write_text(f"trust_domain: example.org\nworkloads:\n- {entry}\n")
    (line,) = warnings(agent_config(tmp_path), "iptables", LOCAL)
    assert line.startswith("default/siem is strict and captured by iptables")
    assert line.endswith(REMEDY)
    assert list(warnings(agent_config(tmp_path), "ebpf", LOCAL)) == []


def test_check_says_what_else_is_wrong_with_the_mesh_state(tmp_path: Path) -> None:
    assert [line.partition(":")[0] for line in warnings(agent_config(tmp_path), "ebpf", LOCAL)] == [
        "the mesh state cannot be used"
    ]
    entry = "{name: siem, node: nod1, address: 10.77.2.11, netns: siem, enrolled: true}"
    (tmp_path / "m.yaml").write_text(f"trust_domain: example.org\nworkloads:\n- {entry}\n")
    (line,) = warnings(agent_config(tmp_path), "ebpf", LOCAL)
    assert line.endswith("is on the node node1: is 'node' spelt as there?")


def test_check_names_workloads_that_the_configuration_has_outside_the_mesh(tmp_path: Path) -> None:
    entries = [
        f"{{name: {name}, node: node1, address: {address}, netns: {name}, enrolled: {enrolled}}}"
        for name, address, enrolled in (
            ("in", "10.77.2.11", "true"),
            ("out", "192.0.2.1", "true"),
            ("plain", "192.0.2.2", "false"),
        )
    ]
    (tmp_path / "m.yaml").write_text("\n- ".join(("trust_domain: example.org\nworkloads:", *entries)))
    extent = Extent((IPv4Network("10.0.0.0/8"),))
    (line,) = warnings(agent_config(tmp_path, extent=extent), "ebpf", LOCAL)
    assert line.startswith("mesh_networks and outside_mesh say that default/out cannot be in the mesh: ")
    assert list(warnings(agent_config(tmp_path), "ebpf", LOCAL)) == []
