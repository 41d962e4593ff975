"""What is certain to be outside the mesh, with agents and a core: it does not depend on our processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.connection import echoes
from support.lab import running_lab
from support.patience import wait_for
from support.programs import Programs

pytestmark = pytest.mark.ebpf_only("with iptables nothing passes by the core outbound")


def test_what_is_named_outside_is_reached_when_agent_and_core_are_dead(tmp_path: Path) -> None:
    """As the API server is, while destinations inside the mesh stay closed. One that is enrolled is never outside."""
    with (
        running_lab(tmp_path, more_pods=("guest:node2:plain", "neighbour:node2:plain"), ipv6=True) as lab,
        Programs(lab) as programs,
    ):
        outside = [programs.at("guest"), programs.at("pipeline"), lab.address("guest", 6)]
        lab.restart_agent("node1", mesh_networks=["10.77.0.0/16", "fd77::/16"], outside_mesh=outside)
        wait_for(lambda: lab.enrolled("shipper", "pipeline"), "both are enrolled again")
        guests = [programs.serve("guest", host=address) for address in (outside[0], outside[2])]
        enrolled, inside = programs.serve("pipeline"), programs.serve("neighbour")

        client = programs.dial("shipper", guests[0].address)
        assert echoes(client)
        row = lab.outbound(client)
        assert (row["core"], row["mtls"], row["reason"]) == (None, False, "outside-mesh")
        assert lab.status("node1")["past_core"]["outside-mesh"] == 1
        through = programs.dial("shipper", enrolled.address)
        assert echoes(through)
        assert lab.outbound(through)["mtls"]

        lab.kill_agent("node1")
        lab.kill_core("node1")
        assert echoes(client)
        for guest in guests:
            assert echoes(programs.dial("shipper", guest.address))
        for closed in (enrolled, inside):
            with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
                programs.dial("shipper", closed.address, timeout=0.5)
        assert inside.peers == []
