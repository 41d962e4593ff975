"""Plaintext is native, with agents and cores: from kernel to kernel, decided once, listed, counted, and ended when it
is refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nodeseal.linux import socket_options
from support.connection import echoes, endpoint
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

pytestmark = pytest.mark.ebpf_only("with iptables plaintext goes through the core")
IP_VERSIONS = (4, 6)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    pods = ("guest:node1:plain", "visitor:node2:plain")
    with running_lab(tmp_path_factory.mktemp("native"), more_pods=pods, ipv6=True) as lab:
        yield lab


def row_of(lab: RunningLab, node: str, direction: str, source: str) -> dict[str, Any]:
    return lab.connection(node, direction, source)


def native(lab: RunningLab, pod: str) -> dict[str, int]:
    counted: dict[str, int] = lab.workload(pod)["native"]
    return counted


def test_outbound_to_a_workload_that_is_not_enrolled(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("visitor")
    before = native(lab, "shipper")
    client = programs.dial("shipper", server.address)
    assert echoes(client, b"12345")
    assert client.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 0
    assert server.sources == [client.getsockname()[:2]]
    row = row_of(lab, "node1", "outbound", endpoint(client.getsockname()))
    assert (row["native"], row["core"], row["mtls"]) == (True, None, False)
    assert (row["reason"], row["bytes_sent"], row["bytes_received"]) == ("destination-not-enrolled", 5, 5)
    assert native(lab, "shipper")["open"] == before["open"] + 1
    client.close()
    wait_for(lambda: native(lab, "shipper")["closed"] == before["closed"] + 1, "it is counted")
    assert native(lab, "shipper")["bytes_acknowledged"] == before["bytes_acknowledged"] + 5


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_one_that_was_closed_is_listed_for_a_while(lab: RunningLab, programs: Programs, direction: str) -> None:
    outbound = direction == "outbound"
    server = programs.serve("visitor" if outbound else "pipeline")
    client = programs.dial("shipper" if outbound else "visitor", server.address)
    assert echoes(client, b"12345")
    node, source = "node1" if outbound else "node2", endpoint(client.getsockname())
    before = row_of(lab, node, direction, source)
    client.close()

    def closed() -> dict[str, Any] | None:
        row = row_of(lab, node, direction, source)
        return row if row["state"] == "closed" else None

    row = wait_for(closed, "it is closed")
    for key in ("id", "workload", "destination", "reason", "native"):
        assert row[key] == before[key]
    assert row["bytes_sent"] == 5
    assert row["closed_seconds"] < row["age_seconds"]


def test_while_its_workload_drains_it_is_listed_and_can_be_ended(lab: RunningLab, programs: Programs) -> None:
    servers = programs.serve("siem"), programs.serve("pipeline")
    native_one, tunnelled = programs.dial("guest", servers[0].address), programs.dial("siem", servers[1].address)
    assert all(map(echoes, (native_one, tunnelled)))
    lab.lab.unenrol("siem")
    try:
        wait_for(lambda: lab.workload("siem")["draining"], "its other connection goes on")
        row = row_of(lab, "node1", "inbound", endpoint(native_one.getsockname()))
        assert (row["native"], row["state"], row["workload"]) == (True, "open", "default/siem")
        new = programs.dial("guest", servers[0].address)
        assert echoes(new)
        assert not [one for one in lab.connections("node1") if one["source"] == endpoint(new.getsockname())]
        lab.lab.set_mode("siem", "strict")
        native_one.settimeout(10)
        with pytest.raises(ConnectionResetError):
            native_one.recv(1)
        assert all(map(echoes, (new, tunnelled)))
    finally:
        tunnelled.close()
        lab.lab.set_mode("siem", "permissive")
        lab.lab.enrol("siem")


def test_inbound_from_a_workload_that_is_not_enrolled(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("visitor", server.address)
    assert echoes(client, b"12345")
    assert server.sources == [client.getsockname()[:2]]
    assert server.connection().getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 0
    row = row_of(lab, "node2", "inbound", endpoint(client.getsockname()))
    assert (row["native"], row["core"], row["reason"]) == (True, None, "source-not-enrolled")
    assert (row["bytes_sent"], row["bytes_received"]) == (5, 5)


def test_closed_ports_refuse_by_themselves(lab: RunningLab, programs: Programs) -> None:
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", (programs.at("visitor"), 9999))
    with pytest.raises(ConnectionRefusedError):
        programs.dial("visitor", (programs.at("pipeline"), 9999))


def test_between_enrolled_workloads_nothing_is_native(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    row = row_of(lab, "node1", "outbound", endpoint(client.getsockname()))
    assert (row["native"], row["mtls"]) == (False, True)


def test_connections_outlive_agents_and_cores(lab: RunningLab, programs: Programs) -> None:
    servers = programs.serve("visitor"), programs.serve("pipeline")
    clients = programs.dial("shipper", servers[0].address), programs.dial("visitor", servers[1].address)
    assert all(map(echoes, clients))
    for node in ("node1", "node2"):
        lab.kill_agent(node)
        lab.kill_core(node)
    assert all(map(echoes, clients))
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "pipeline"), "both are enrolled again")
    assert all(map(echoes, clients))
    assert row_of(lab, "node1", "outbound", endpoint(clients[0].getsockname()))["native"]
    assert row_of(lab, "node2", "inbound", endpoint(clients[1].getsockname()))["native"]


def test_strict_mode_ends_what_was_admitted_and_refuses_what_comes(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("visitor", server.address)
    assert echoes(client)
    ended = native(lab, "pipeline")["ended"]
    lab.lab.set_mode("pipeline", "strict")
    try:
        client.settimeout(10)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            programs.dial("visitor", server.address)
        assert native(lab, "pipeline")["ended"] == ended + 1
        source = client.getsockname()[0] if programs.version == 4 else programs.at("visitor")
        assert lab.refused("node2", source=source, reason="strict", kind="plaintext")
    finally:
        lab.lab.set_mode("pipeline", "permissive")


def test_enrolment_of_the_peer_ends_nothing(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("guest")
    client = programs.dial("pipeline", server.address)
    back = programs.dial("guest", programs.serve("pipeline").address)
    assert echoes(client)
    assert echoes(back)
    lab.lab.enrol("guest")
    try:
        wait_for(lambda: lab.enrolled("guest"), "it is enrolled")
        assert echoes(client)
        assert echoes(back)
        row = row_of(lab, "node2", "outbound", endpoint(client.getsockname()))
        assert (row["native"], row["reason"]) == (True, "opened-before-enrolment")
    finally:
        lab.lab.unenrol("guest")
