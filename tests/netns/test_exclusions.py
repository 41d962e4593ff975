"""Ports and ranges that workloads exclude in the mesh state: live, for new connections, and never plaintext between two
enrolled workloads that only one of them wanted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_network
from typing import Any

import pytest

from nodeseal.capture.backends.backend import Choice
from nodeseal.linux import socket_options
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.plan import PIPELINE_HTTP_PORT, SERVICE_ADDRESS, SERVICE_ADDRESS_6
from support.connection import echoes, endpoint, family_of
from support.lab import RunningLab, running_lab
from support.options import BACKEND
from support.patience import wait_for
from support.programs import Programs

pytestmark = pytest.mark.both_backends

IP_VERSIONS = (4, 6)

CARD = b"card=4111 1111 1111 1111;"
PORT = 9090


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("exclusions"), more_pods=("guest:node1:plain",), ipv6=True) as lab:
        lab.lab.set_mode("pipeline", "strict")
        yield lab


@pytest.fixture
def lab(shared: RunningLab) -> Iterator[RunningLab]:
    yield shared
    exclude(shared, shipper=None, pipeline=None)


def exclude(lab: RunningLab, **workloads: dict[str, Any] | None) -> None:
    """Writes `exclude` of workloads, and waits until it is in force on both nodes: each says so of its own, and a
    change of one that comes later than the other's is told by the epoch."""
    before = {name: lab.status(name)["mesh"]["epoch"] for name in ("node1", "node2")}
    changes = {pod: {"exclude": deepcopy(fields or {})} for pod, fields in workloads.items()}
    if all(lab.workload(pod)["exclude"] == _shown(fields) for pod, fields in workloads.items()):
        return
    change_workloads(lab.lab.mesh, changes)
    for pod, fields in workloads.items():
        wait_for(lambda pod=pod, fields=fields: lab.workload(pod)["exclude"] == _shown(fields), f"{pod} excludes")
    for name, epoch in before.items():
        wait_for(lambda name=name, epoch=epoch: lab.status(name)["mesh"]["epoch"] > epoch, f"{name} knows")


def _shown(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    if not fields:
        return None
    inbound, outbound = fields.get("inbound", {}), fields.get("outbound", {})
    return {
        "inbound": {"ports": [str(port) for port in inbound.get("ports", [])], "from": inbound.get("from", [])},
        "outbound": {"ports": [str(port) for port in outbound.get("ports", [])], "to": outbound.get("to", [])},
    }


def service(programs: Programs) -> str:
    """The virtual address in front of pipeline."""
    return str(SERVICE_ADDRESS if programs.version == 4 else SERVICE_ADDRESS_6)


def directly(lab: RunningLab, node: str, connection: socket.socket) -> list[str]:
    """The reasons that the node's agent shows for a connection of `connection`'s that passes by the core."""
    source = endpoint(connection.getsockname())
    rows = [row for row in lab.connections(node) if row["source"] == source]
    # What is dialled passes by in the sense of iptables: the core sends it on, in plaintext.
    through = BACKEND.asked() is Choice.IPTABLES
    assert all(
        not row["mtls"] and (row["core"] is None or (through and row["direction"] == "outbound")) for row in rows
    )
    return [row["reason"] for row in rows]


@pytest.mark.parametrize(
    ("inbound", "word"),
    [({"ports": [80, "9085-9095"]}, "excluded-port"), ({"from": ["10.77.1.0/24", "fd77::1:0/112"]}, "excluded-range")],
    ids=["port", "range"],
)
def test_inbound_exclusion_of_a_strict_workload(
    lab: RunningLab, programs: Programs, inbound: dict[str, Any], word: str
) -> None:
    server = programs.serve("pipeline", port=PORT)
    exclude(lab, pipeline={"inbound": inbound})
    client = programs.dial("guest", server.address)
    assert echoes(client)
    assert directly(lab, "node2", client) == [word]
    assert [peer[0] for peer in server.peers] == [programs.at("guest")]
    other = programs.serve("pipeline")
    if word == "excluded-port":
        with pytest.raises(ConnectionError):
            assert echoes(programs.dial("guest", other.address))


def test_enrolled_client_tunnels_to_an_excluded_port(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", port=PORT)
    exclude(lab, pipeline={"inbound": {"ports": [PORT]}})
    with programs.sniff() as wire:
        client = programs.dial("shipper", server.address)
        assert echoes(client, CARD)
        assert not wire.carries(CARD)
    assert lab.outbound(client)["peer"] == lab.identity("pipeline")


@pytest.mark.parametrize(
    ("outbound", "word"),
    [({"ports": [PORT]}, "excluded-port"), ({"to": ["10.77.2.0/24", "10.77.1.0/24", "fd77::/64"]}, "excluded-range")],
    ids=["port", "range"],
)
def test_outbound_exclusion_goes_direct_to_who_is_not_enrolled_only(
    lab: RunningLab, programs: Programs, outbound: dict[str, Any], word: str
) -> None:
    outside, enrolled = programs.serve("intruder", port=PORT), programs.serve("pipeline", port=PORT)
    exclude(lab, shipper={"outbound": outbound})
    client = programs.dial("shipper", outside.address)
    assert echoes(client)
    assert directly(lab, "node1", client) == [word]
    with programs.sniff() as wire:
        client = programs.dial("shipper", enrolled.address)
        assert echoes(client, CARD)
        assert not wire.carries(CARD)
    assert lab.outbound(client)["mtls"]


def test_service_that_leads_to_an_enrolled_workload_is_not_excluded(lab: RunningLab, programs: Programs) -> None:
    programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    exclude(
        lab,
        shipper={
            "outbound": {"ports": [PIPELINE_HTTP_PORT], "to": [f"{SERVICE_ADDRESS}/32", f"{SERVICE_ADDRESS_6}/128"]}
        },
        pipeline={"inbound": {"ports": [PIPELINE_HTTP_PORT]}},
    )
    client = programs.dial("shipper", (service(programs), PIPELINE_HTTP_PORT))
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


def test_what_both_exclude_goes_direct(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", port=PORT)
    exclude(
        lab,
        shipper={"outbound": {"to": [str(ip_network(programs.at("pipeline")))]}},
        pipeline={"inbound": {"ports": [PORT]}},
    )
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert directly(lab, "node1", client) == ["excluded-range"]
    # By where it goes: the iptables backend's core dials from a port of its own.
    there = endpoint(server.address)
    rows = [row for row in lab.connections("node2") if row["destination"] == there and row["state"] == "open"]
    assert [(row["mtls"], row["reason"], row["core"]) for row in rows] == [(False, "excluded-port", None)]


def test_change_concerns_new_connections_only(lab: RunningLab, programs: Programs) -> None:
    inside, outside = programs.serve("pipeline", port=PORT), programs.serve("intruder", port=PORT)
    tunnelled, captured = programs.dial("shipper", inside.address), programs.dial("shipper", outside.address)
    assert echoes(tunnelled)
    assert echoes(captured)
    both = {"inbound": {"ports": [PORT]}, "outbound": {"ports": [PORT]}}
    exclude(lab, shipper=both, pipeline=both)
    direct, direct_outside = programs.dial("shipper", inside.address), programs.dial("shipper", outside.address)
    guest = programs.dial("guest", inside.address)
    everything = (tunnelled, captured, direct, direct_outside, guest)
    assert all(echoes(one) for one in everything)
    exclude(lab, shipper=None, pipeline=None)
    assert all(echoes(one) for one in everything)
    assert lab.outbound(tunnelled)["mtls"]
    # It is not shown as excluded: it is native for the core's decision, or it is the core's.
    row = lab.outbound(captured)
    assert (row["reason"], row["native"] or row["core"] is not None) == ("destination-not-enrolled", True)
    assert lab.outbound(programs.dial("shipper", inside.address))["mtls"]
    with pytest.raises(ConnectionError):
        assert echoes(programs.dial("guest", inside.address))


def test_exclusions_hold_without_agent_and_core(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", port=PORT)
    exclude(lab, pipeline={"inbound": {"ports": [PORT]}})
    lab.kill_agent("node2")
    lab.kill_core("node2")
    try:
        client = programs.dial("guest", server.address)
        assert echoes(client)
    finally:
        lab.start_agents()
        wait_for(lambda: lab.enrolled("pipeline"), "pipeline is enrolled again")
    assert echoes(client)
    assert echoes(programs.dial("guest", server.address))
    assert lab.workload("pipeline")["exclude"] is not None


def test_mistake_is_named_and_changes_nothing(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", port=PORT)
    exclude(lab, pipeline={"inbound": {"ports": [PORT]}})
    change_workloads(lab.lab.mesh, {"pipeline": {"exclude": {"inbound": {"ports": ["9090-80"]}}}})
    try:
        error = wait_for(lambda: lab.status("node2")["mesh"]["error"], "the mistake is seen")
        assert "exclude.inbound.ports[0]: expected a range whose first port is not behind its last" in error
        assert echoes(programs.dial("guest", server.address))
    finally:
        change_workloads(lab.lab.mesh, {"pipeline": {"exclude": {"inbound": {"ports": [PORT]}}}})
        wait_for(lambda: not lab.status("node2")["mesh"]["error"], "the mistake is gone")


# ---- marks of applications


def dial_with_mark(lab: RunningLab, programs: Programs, address: tuple[str, int]) -> socket.socket:
    def connect() -> socket.socket:
        made = socket.socket(family_of(address[0]))
        made.settimeout(60)
        made.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, 77)
        made.connect(address)
        return made

    connection = lab.run("shipper", connect)
    programs.at_end(connection.close)
    return connection


def test_mark_of_an_application_gives_way_to_mutual_tls(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        client = dial_with_mark(lab, programs, server.address)
        assert echoes(client, CARD)
        assert not wire.carries(CARD)
    assert lab.outbound(client)["peer"] == lab.identity("pipeline")


def test_mark_of_an_application_gives_way_for_a_service(lab: RunningLab, programs: Programs) -> None:
    programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    client = dial_with_mark(lab, programs, (service(programs), PIPELINE_HTTP_PORT))
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


@pytest.mark.ebpf_only("with iptables the application's mark gives way always")
def test_mark_of_an_application_stays_towards_others(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("intruder")
    client = dial_with_mark(lab, programs, server.address)
    assert echoes(client)
    assert client.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 77
    assert directly(lab, "node1", client) == ["application-mark"]
