"""Load balancers of others at the root of the cgroup tree: found by the names of their programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture import other_balancers
from nodeseal.linux import bpf, cgroups

# r0 = 1; exit: connect() goes on.
_GO_ON = bytes.fromhex("b700000001000000 9500000000000000".replace(" ", ""))


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One of the test's own: it stands for the root."""
    path = cgroups.find_cgroup() / f"nodeseal-test-balancers-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def attach(cgroup: Path, name: str, attach_type: int = bpf.ATTACH_CGROUP_INET4_CONNECT) -> int:
    """Until the descriptor is closed."""
    target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    program = bpf.program_load(bpf.PROG_CGROUP_SOCK_ADDR, attach_type, _GO_ON, name)
    link = bpf.link_create(program, target, attach_type)
    os.close(program)
    os.close(target)
    return link


@pytest.mark.parametrize(
    ("name", "whose", "remedy"),
    [
        ("cil_sock4_connect", "Cilium", "socketLB.hostNamespaceOnly=true"),
        ("calico_connect_v4", "Calico", "bpfConnectTimeLoadBalancing: Disabled"),
    ],
)
def test_it_is_named_once_with_what_to_do(cgroup: Path, name: str, whose: str, remedy: str) -> None:
    links = [attach(cgroup, name), attach(cgroup, name, bpf.ATTACH_CGROUP_INET6_CONNECT)]
    (line,) = other_balancers.found(cgroup)
    assert line.startswith(f"{whose} translates")
    assert name[:15] in line
    assert remedy in line
    for link in links:
        os.close(link)
    assert list(other_balancers.found(cgroup)) == []


def test_programs_of_others_are_passed_over(cgroup: Path) -> None:
    link = attach(cgroup, "mark_connect4")
    assert list(other_balancers.found(cgroup)) == []
    os.close(link)
