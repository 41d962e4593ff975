"""Workloads with several addresses of each family, with agents and cores: every one is dialled and dialled from in
mutual TLS; addresses come and go; what is not attributed or contested is named, and nothing goes there in plaintext.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.plan import IPV4_LENGTH, IPV6_LENGTH
from support.connection import echoes, endpoint, family_of
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.netfilter import rule
from support.patience import wait_for
from support.programs import Programs

CARD = b"card=4111 1111 1111 1111;"
FURTHER = 100
"""How far a pod's further address is from its first one, which is in the same subnet."""
VIRTUAL = "10.99.9.9"
REFUSED = (ConnectionError, EOFError)
ENROLLED = ("shipper", "pipeline", "siem")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Each enrolled pod has a further address of each family, by the mesh state too."""
    with running_lab(tmp_path_factory.mktemp("lab"), ipv6=True) as lab:
        for pod in ENROLLED:
            add_addresses(lab, pod, FURTHER)
        attribute(lab, dict.fromkeys(ENROLLED, (0, FURTHER)))
        wait_for(lambda: all(len(lab.workload(pod)["addresses"]) == 4 for pod in ENROLLED), "the further addresses")
        wait_for(lambda: not astray(lab, "node1") and not astray(lab, "node2"), "nothing is wrong")
        yield lab


def nth(lab: RunningLab, pod: str, offset: int, version: int = 4) -> str:
    """An address of the pod, by its distance from the first one."""
    return str(ip_address(lab.address(pod, version)) + offset)


def add_addresses(lab: RunningLab, pod: str, offset: int) -> None:
    for version, length in ((4, IPV4_LENGTH), (6, IPV6_LENGTH)):
        ip(lab, pod, "add", f"{nth(lab, pod, offset, version)}/{length}", *(["nodad"] if version == 6 else []))


def ip(lab: RunningLab, pod: str, verb: str, address: str, *more: str) -> None:
    command = ["ip", "-n", lab.lab.plan.pod(pod).netns, "address", verb, address, "dev", "eth0", *more]
    subprocess.run(command, check=True, timeout=10)


def attribute(lab: RunningLab, offsets: dict[str, tuple[int, ...]], **more: Any) -> None:
    """What the mesh state says that the pods have."""
    changes = {
        pod: {"addresses": [nth(lab, pod, offset, version) for offset in given for version in (4, 6)], **more}
        for pod, given in offsets.items()
    }
    change_workloads(lab.lab.mesh, changes)


def problems(lab: RunningLab, node: str) -> list[dict[str, Any]]:
    words = ("address-", "family-", "plaintext-from")
    return [one for one in lab.status(node)["problems"] if one["word"].startswith(words)]


def astray(lab: RunningLab, node: str) -> list[dict[str, Any]]:
    """Without what is told for some minutes."""
    return [one for one in problems(lab, node) if one["word"] != "plaintext-from-enrolled"]


def named(lab: RunningLab, node: str, word: str) -> str:
    """The text of the problem, once it is there."""
    found = wait_for(
        lambda: next((one["text"] for one in problems(lab, node) if one["word"] == word), ""), f"{word} on {node}", 90
    )
    return str(found)


def dial_from(programs: Programs, pod: str, source: str, address: tuple[str, int]) -> socket.socket:
    def connect() -> socket.socket:
        made = socket.socket(family_of(address[0]))
        made.settimeout(10)
        made.bind((source, 0))
        made.connect(address)
        return made

    made = programs.lab.run(pod, connect)
    programs.at_end(made.close)
    return made


def reaches(programs: Programs, address: tuple[str, int]) -> bool:
    try:
        return echoes(programs.dial("shipper", address))
    except REFUSED:
        return False


@pytest.mark.parametrize("programs", [4, 6], ids=["ipv4", "ipv6"], indirect=True)
@pytest.mark.parametrize("to", [0, FURTHER])
@pytest.mark.parametrize("source", [0, FURTHER])
@pytest.mark.parametrize(("client", "server"), [("shipper", "pipeline"), ("pipeline", "shipper")])
def test_every_address_is_dialled_and_dialled_from_in_mutual_tls(
    lab: RunningLab, programs: Programs, client: str, server: str, source: int, to: int
) -> None:
    version = programs.version
    served = programs.serve(server, host=nth(lab, server, to, version))
    near = nth(lab, client, source, version)
    with programs.sniff() as wire:
        dialled = dial_from(programs, client, near, served.address)
        assert echoes(dialled, CARD * 100)
        packets = wire.cut()
    assert not any(CARD in packet.payload for packet in packets)
    row = lab.connection(lab.node_of(client), "outbound", endpoint(dialled.getsockname()))
    assert (row["mtls"], row["peer"]) == (True, lab.identity(server))
    far = lab.connection(lab.node_of(server), "inbound", endpoint(dialled.getsockname()))
    assert (far["mtls"], far["peer"]) == (True, lab.identity(client))
    # The application sees the address that its client is bound to.
    assert served.peers[-1][0] == near


def test_tunnels_arrive_at_each_address(lab: RunningLab, programs: Programs) -> None:
    """A stranger finds the core at each, and nothing at an address that is not attributed."""
    for offset in (0, FURTHER):
        programs.dial("intruder", (nth(lab, "pipeline", offset), HBONE_PORT)).close()


def test_virtual_address_that_is_translated_on_the_way_is_refused_and_named(
    lab: RunningLab, programs: Programs
) -> None:
    """Somebody's load balancer on the client's node, of which the mesh state knows nothing."""
    served = programs.serve("pipeline")
    node = lab.lab.plan.node("node1").netns
    with rule(
        node, "type nat hook prerouting priority -100", f"ip daddr {VIRTUAL} dnat ip to {programs.at('pipeline')}"
    ):
        assert echoes(programs.dial("intruder", served.address))
        with pytest.raises(REFUSED):
            echoes(programs.dial("shipper", (VIRTUAL, served.address[1])), CARD)
    assert len(served.peers) == 1
    text = named(lab, "node2", "plaintext-from-enrolled")
    assert "default/pipeline: plaintext of default/shipper (on node1" in text
    # The client's node has seen a destination outside the mesh, and can know no more.
    rows = [row for row in lab.connections("node1") if row["destination"] == f"{VIRTUAL}:{served.address[1]}"]
    assert not any(row["mtls"] for row in rows)


def test_address_that_two_workloads_claim_is_neithers_and_both_nodes_name_both(
    lab: RunningLab, programs: Programs
) -> None:
    served = programs.serve("pipeline", host=nth(lab, "pipeline", FURTHER))
    older = programs.dial("shipper", served.address)
    assert echoes(older)
    contested = nth(lab, "pipeline", FURTHER)
    both = [nth(lab, "siem", 0), nth(lab, "siem", 0, 6), contested]
    change_workloads(lab.lab.mesh, {"siem": {"addresses": both}})
    try:
        for node in ("node1", "node2"):
            text = named(lab, node, "address-claimed-twice")
            assert all(part in text for part in ("default/pipeline (on node2)", "default/siem (on node1)", contested))
        with programs.sniff() as wire:
            with pytest.raises(REFUSED):
                echoes(programs.dial("shipper", served.address), CARD)
            assert not wire.carries(CARD)
        (row,) = [row for row in lab.connections("node1") if row["reason"] == "contested-address"]
        assert row["destination"] == endpoint(served.address)
        # What ran goes on, and so does what has other addresses.
        assert echoes(older)
        assert echoes(programs.dial("shipper", programs.serve("pipeline").address))
    finally:
        attribute(lab, {"siem": (0, FURTHER)})
    wait_for(lambda: not astray(lab, "node1") and not astray(lab, "node2"), "nothing is wrong")
    # An agent knows it a moment before its core does.
    wait_for(lambda: reaches(programs, served.address), "the address is the pipeline's alone")


def test_addresses_come_and_go_in_the_mesh_state_while_connections_go_on(lab: RunningLab, programs: Programs) -> None:
    served = programs.serve("pipeline")
    older = [dial_from(programs, "shipper", nth(lab, "shipper", offset), served.address) for offset in (0, FURTHER)]
    attribute(lab, {"shipper": (0,)})
    assert nth(lab, "shipper", FURTHER) in named(lab, "node1", "address-not-attributed")
    assert all(echoes(one) for one in older)
    attribute(lab, {"shipper": (0, FURTHER)})
    wait_for(lambda: not astray(lab, "node1"), "the address is attributed again")
    assert all(echoes(one) for one in older)
    assert lab.workload("shipper")["enrolled"]


def test_address_that_is_not_attributed_is_named_and_enrolled_peers_are_refused_there(
    lab: RunningLab, programs: Programs
) -> None:
    attribute(lab, {"pipeline": (0,)})
    text = named(lab, "node2", "address-not-attributed")
    further = nth(lab, "pipeline", FURTHER)
    assert further in text
    served = programs.serve("pipeline", host=further)
    try:
        # One that is not enrolled is served.
        assert echoes(programs.dial("intruder", served.address))
        with pytest.raises(REFUSED):
            echoes(programs.dial("shipper", served.address), CARD)
        assert len(served.peers) == 1
        told = wait_for(lambda: any(f"to {further}" in one["text"] for one in problems(lab, "node2")), "it is told", 90)
        assert told
        # Dialled from there, it is captured like from any other.
        dialled = dial_from(programs, "pipeline", further, programs.serve("shipper").address)
        assert echoes(dialled)
        assert lab.connection("node2", "outbound", endpoint(dialled.getsockname()))["mtls"]
    finally:
        attribute(lab, {"pipeline": (0, FURTHER)})
        wait_for(lambda: not astray(lab, "node2"), "the address is attributed again")
