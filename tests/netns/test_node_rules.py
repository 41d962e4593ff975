"""Processes of a node in the mesh, beside the netfilter rules that other programs have on real nodes.

node1: vector (port 9100) and registry (port 5000), enrolled; node2: the pods pipeline (enrolled) and intruder (not).
All nodes have the rules of one kind. Without what nodeseal does about them, kube-proxy's send what vector dials at the
service's address to node2 in plaintext.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal_lab.plan import NODE_RULES, PIPELINE_HTTP_PORT
from support.connection import echoes, endpoint
from support.hosts import HOSTS, PORTS, Host
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.netfilter import rule, ruleset, tracked
from support.programs import Programs
from support.sniffer import ports_used

pytestmark = pytest.mark.ebpf_only("processes of a node are captured by eBPF only")

IP_VERSIONS = (4, 6)
CARD = "card=4111 1111 1111 1111;"
MUCH = b"card=4111 1111 1111 1111;" * 20000


@pytest.fixture(scope="module", params=NODE_RULES)
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningLab]:
    with running_lab(
        tmp_path_factory.mktemp("rules"), host_workloads=HOSTS, ipv6=True, node_rules=request.param
    ) as lab:
        yield lab


def dialled_by_the_node(lab: RunningLab) -> set[tuple[str, int]]:
    """Where the connections go that conntrack of node1 knows."""
    return {destination for _, destination in tracked(lab.lab.plan.node("node1").netns)}


def service_address(lab: RunningLab, programs: Programs) -> tuple[str, int]:
    (service,) = lab.lab.plan.services
    return next(str(one) for one in service.addresses if one.version == programs.version), PIPELINE_HTTP_PORT


def test_a_service_is_dialled_through_the_mesh_by_its_own_address(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    service = service_address(lab, programs)
    process = host.process("vector")
    with programs.sniff("node1") as wire:
        dialled = process.dial(service)
        assert dialled.echoes(CARD)
        own = lab.connection("node1", "outbound", host.source_of(dialled))
        assert (own["mtls"], own["destination"], own["peer"]) == (True, endpoint(service), lab.identity("pipeline"))
        packets = wire.cut()
    assert not any(CARD.encode() in packet.payload for packet in packets)
    assert ports_used(packets) <= {HBONE_PORT}
    assert (lab.connection("node2", "inbound", host.source_of(dialled)))["peer"] == lab.identity("vector")
    assert service not in dialled_by_the_node(lab)


def test_a_process_of_no_workload_is_served_by_the_nodes_rules(lab: RunningLab, programs: Programs, host: Host) -> None:
    programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    service = service_address(lab, programs)
    if not lab.lab.plan.node_rules.startswith("kube-proxy"):
        pytest.skip("nobody here translates the service's address")
    with programs.sniff("node1") as wire:
        assert host.process().dial(service).echoes(CARD)
        assert wire.carries(CARD.encode())
    assert service in dialled_by_the_node(lab)


def test_who_is_not_enrolled_is_dialled_natively_through_the_nodes_rules(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    """At a virtual address that they translate, and that the mesh state does not have."""
    server = programs.serve("intruder")
    family, virtual = ("ip", "10.99.0.1") if programs.version == 4 else ("ip6", "fd99::1")
    translation = f"{family} daddr {virtual} dnat {family} to {server.address[0]}"
    with rule(lab.lab.plan.node("node1").netns, "type nat hook output priority -100", translation):
        dialled = host.process("vector").dial((virtual, server.address[1]))
        assert dialled.echoes(CARD)
        assert (virtual, server.address[1]) in dialled_by_the_node(lab)
    row = lab.connection("node1", "outbound", host.source_of(dialled))
    assert (row["native"], row["destination"]) == (True, endpoint((virtual, server.address[1])))
    assert [address for address, _ in server.sources] == [host.address]
    assert host.process("vector").dial(server.address).echoes(CARD)


def test_a_pod_is_dialled_through_the_mesh(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline")
    with programs.sniff("node1") as wire:
        for name in PORTS:
            dialled = host.process(name).dial(server.address)
            assert dialled.echoes(CARD)
            assert lab.connection("node2", "inbound", host.source_of(dialled))["peer"] == lab.identity(name)
        packets = wire.cut()
    assert not any(CARD.encode() in packet.payload for packet in packets)
    assert ports_used(packets) <= {HBONE_PORT}
    assert server.address not in dialled_by_the_node(lab)


def test_a_process_is_dialled_through_the_mesh(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = host.server("vector")
    with programs.sniff("node1") as wire:
        client = programs.dial("pipeline", (host.address, PORTS["vector"]))
        assert echoes(client, MUCH)
        assert lab.outbound(client)["peer"] == lab.identity("vector")
        packets = wire.cut()
    assert not any(CARD.encode() in packet.payload for packet in packets)
    assert ports_used(packets) <= {HBONE_PORT}
    assert [address for address, _ in server.peers()] == [programs.at("pipeline")]


def test_a_client_that_is_not_enrolled_reaches_a_process_in_plaintext(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = host.server("vector")
    assert echoes(programs.dial("intruder", (host.address, PORTS["vector"])), MUCH)
    assert [address for address, _ in server.peers()] == [programs.at("intruder")]


def test_a_captured_connection_goes_on_when_its_workload_leaves_and_comes_back(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = programs.serve("pipeline")
    process = host.process("vector")
    captured = process.dial(server.address)
    assert captured.echoes(CARD)
    lab.lab.unenrol("vector")
    try:
        assert captured.echoes(CARD)
        direct = process.dial(server.address)
        assert direct.echoes(CARD)
        assert server.address in dialled_by_the_node(lab)
    finally:
        lab.lab.enrol("vector")
    assert captured.echoes(CARD)
    assert direct.echoes(CARD)


def test_nothing_was_about_to_leave_in_plaintext(lab: RunningLab) -> None:
    assert lab.status("node1")["capture"]["held"]["packets"] == 0


def test_cleanup_leaves_the_nodes_rules_alone(lab_root: Path) -> None:
    with running_lab(lab_root, host_workloads=HOSTS, node_rules="kube-proxy-nftables") as lab:
        netns = lab.lab.plan.node("node1").netns
        assert "notrack" in ruleset(netns)
        with_ours = ruleset(netns)
        run_dir = str(lab.run_dir("node1"))
        done = lab.command("cleanup", "--run-dir", run_dir)
        assert done.returncode == 0, done.stderr
        assert "in nftables of the node" in done.stdout
        left = ruleset(netns)
        assert "notrack" not in left
        assert "chain nat-output" in left
        assert left in with_ours
        again = lab.command("cleanup", "--run-dir", run_dir)
        assert (again.returncode, ruleset(netns)) == (0, left)
