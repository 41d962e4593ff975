"""Envoy over IPv6, each way: what the other files of this directory show over IPv4 is not shown again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.certificates import identity, issue
from interop.envoy import Envoy
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.directory.publications import publish
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.plan import NAMESPACE
from support.connection import echoes, endpoint
from support.lab import HBONE_PORT, RunningLab
from support.patience import wait_for
from support.programs import Programs
from support.sniffer import ports_used

pytestmark = pytest.mark.fast

TEST = 9100
ENVOY_NODE = "envoy-node"
CARD = b"4111 1111 1111 1111\n"


@pytest.fixture
def programs(lab: RunningLab) -> Iterator[Programs]:
    """Over IPv6."""
    with Programs(lab, 6) as programs:
        yield programs


def test_envoy_is_the_client_of_our_core(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    credential = issue(lab.directory / "ca", "edge")
    values = {"destination": programs.at("pipeline"), "peer": identity("pipeline")}
    server = programs.serve("pipeline", port=TEST)
    with (
        Envoy(lab, "edge", "client.yaml", tmp_path / "envoy", credential, version=6, **values) as envoy,
        programs.sniff("node2") as wire,
    ):
        client = programs.dial("edge", (programs.at("edge"), TEST))
        source = endpoint(client.getsockname())
        assert echoes(client, CARD)
        packets = wire.cut()
        (row,) = [row for row in lab.connections("node2") if row["source"] == source]
        client.close()
        entry = envoy.entry("client", source)
    assert [host for host, _port in server.peers] == [programs.at("edge")]
    assert (row["mtls"], row["peer"], row["destination"]) == (True, identity("edge"), endpoint(server.address))
    assert (entry["peer"], entry["tls"]) == (identity("pipeline"), "TLSv1.3")
    assert ports_used(packets) == {HBONE_PORT}
    assert not any(CARD in packet.payload for packet in packets)


def test_envoy_is_the_server_of_our_core(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    server = programs.serve("gate", port=TEST)
    change_workloads(lab.lab.mesh, {"gate": {"node": ENVOY_NODE, "enrolled": True}})
    publish(lab.lab.mesh, ENVOY_NODE, [WorkloadName(NAMESPACE, "gate")])
    wait_for(lambda: not reaches_gate(programs), "the agent of node1 sends what is for gate into a tunnel")
    credential = issue(lab.directory / "ca", "gate")
    values = {"peer": identity("shipper"), "tls": "TLSv1_3", "alpn": "h2"}
    with Envoy(lab, "gate", "server.yaml", tmp_path / "envoy", credential, version=6, **values) as envoy:
        client = programs.dial("shipper", server.address)
        source = endpoint(client.getsockname())
        assert echoes(client, CARD)
        row = lab.outbound(client)
        client.close()
        entry = envoy.entry("forwarded", f'for="{source}"')
    assert (row["mtls"], row["peer"], row["endpoint"]) == (True, identity("gate"), endpoint(server.address))
    assert (entry["peer"], entry["tls"], entry["authority"]) == (
        identity("shipper"),
        "TLSv1.3",
        endpoint(server.address),
    )
    assert entry["client"].startswith(f"[{programs.at('shipper')}]:")


def reaches_gate(programs: Programs) -> bool:
    """Whether a connection to gate is made in plaintext. No Envoy runs yet: what goes into a tunnel fails."""
    try:
        return echoes(programs.dial("shipper", (programs.at("gate"), TEST)), CARD)
    except (OSError, EOFError):
        return False
