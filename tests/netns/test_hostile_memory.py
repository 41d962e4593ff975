"""A peer with a proper certificate that sends what nobody reads: what the core's process holds, and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from interop.certificates import issue
from interop.hbone import client_context
from interop.hoard import Hoard
from nodeseal_lab.mesh_state import change_workloads
from support.connection import echoes, silent
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

pytestmark = pytest.mark.alone

MIB = 1 << 20
LIMIT = 32 * MIB
TUNNELS, STREAMS = 3, 60
BUFFERS = f"4096 16384 {1 << 16}"
"""Of the kernel towards the application: most of what is sent is the core's to keep."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(
        tmp_path_factory.mktemp("hostile"), settings={"workers": 1}, more_pods=("edge:node1:plain",)
    ) as lab:
        yield lab


def resident(pid: int) -> int:
    """Bytes of a process."""
    return psutil.Process(pid).memory_info().rss


def test_a_peer_makes_the_core_hold_its_part_and_all_is_given_back(
    lab: RunningLab, programs: Programs, tmp_path: Path
) -> None:
    for name in ("tcp_wmem", "tcp_rmem"):
        lab.sysctl("pipeline", f"ipv4/{name}", BUFFERS)
    change_workloads(lab.lab.mesh, {"pipeline": {"limits": {"memory": "32MiB"}}})
    wait_for(lambda: lab.workload("pipeline")["limits"]["memory"]["limit"] == LIMIT, "the core goes by the limit")
    server, deaf = programs.serve("pipeline"), programs.serve("pipeline", silent)
    running = programs.dial("shipper", server.address)
    assert echoes(running)
    pid = lab.core_pid("node2")
    before = resident(pid)
    issue(lab.directory / "ca", "edge").write(tmp_path / "edge")
    context = client_context(tmp_path / "edge", lab.directory / "ca" / "root.pem")
    hoards = [Hoard(lab, "edge", context, ("pipeline", deaf.address)) for _ in range(TUNNELS)]
    most = 0
    try:
        for hoard in hoards:
            hoard.open(STREAMS)
        # Until they have been granted nothing for longer than a second, after which windows are looked at anew.
        while sum([hoard.send() for hoard in hoards]):
            most = max(most, resident(pid))
            assert most - before < LIMIT, "the core holds more than the limit"
            assert echoes(programs.dial("shipper", server.address))
        assert lab.workload("pipeline")["memory"] >= LIMIT // 8, "the core holds much"
        assert not any(limit["refused"] for limit in lab.workload("pipeline")["limits"].values())
        assert echoes(running)
    finally:
        for hoard in hoards:
            hoard.close()
    wait_for(lambda: lab.workload("pipeline")["memory"] == 0, "nothing is held any more")
    wait_for(lambda: resident(pid) <= 1.5 * before, "the core has given its memory back", 90)
    assert echoes(running)
