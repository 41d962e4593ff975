"""Warm tunnels: a peer that was used lately is dialled again without any request, when its tunnel is gone."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.sources.directory.publications import withdraw
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.peer import DOUBLE, Tunnels, dial_double, publish_double, tls_context
from support.programs import Programs


@pytest.fixture
def lab(lab_root: Path) -> Iterator[RunningLab]:
    """Certificates are renewed about every three seconds. `double` stands in for a peer."""
    settings = {"certificate_lifetime": "6s", "preconnect": "10m"}
    with running_lab(lab_root, more_pods=("double:node2:plain",), settings=settings) as lab:
        yield lab


def test_tunnel_to_a_used_peer_is_replaced_after_renewal_without_a_request(
    lab: RunningLab, programs: Programs, tmp_path: Path
) -> None:
    tunnels = Tunnels(programs, tls_context(lab, ssl.PROTOCOL_TLS_SERVER, DOUBLE, tmp_path))
    programs.at_end(tunnels.close)
    publish_double(lab)
    shown = wait_for(lambda: dial_double(lab, programs, tunnels), "the core of node1 knows the double")
    for _ in range(2):
        wait_for(lambda shown=shown: tunnels.serials[-1] != shown, "a tunnel with the next certificate")
        shown = tunnels.serials[-1]


def test_peer_that_left_the_mesh_is_not_dialled(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    tunnels = Tunnels(programs, tls_context(lab, ssl.PROTOCOL_TLS_SERVER, DOUBLE, tmp_path))
    programs.at_end(tunnels.close)
    publish_double(lab)
    wait_for(lambda: dial_double(lab, programs, tunnels), "the core of node1 knows the double")
    epoch = lab.status("node1")["mesh"]["epoch"]
    withdraw(lab.lab.mesh, "node9")
    wait_for(lambda: lab.status("node1")["mesh"]["epoch"] > epoch, "node1 knows that the double has left")
    wait_for_renewal(lab)  # what was on its way when it left has arrived
    count = len(tunnels.serials)
    wait_for_renewal(lab)
    wait_for(lambda: lab.workload("shipper")["tunnels"] == 0, "the old tunnel has gone")
    assert len(tunnels.serials) == count


def wait_for_renewal(lab: RunningLab) -> None:
    """Returns when shipper has another certificate than now."""
    old = lab.workload("shipper")["certificate"]["serial"]
    wait_for(lambda: lab.workload("shipper")["certificate"]["serial"] != old, "a renewal")
