"""Enrolling and un-enrolling live: what is open goes on, what is new goes the new way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal_lab.mesh_state import SETTLE, change_workloads
from support.connection import echoes, endpoint, family_of, silent
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Lines, Programs
from support.sniffer import ports_used
from support.tcp_table import LISTEN, tcp_table

IP_VERSIONS = (4, 6)
CARD = b"card=4111 1111 1111 1111;"
COMERS = ("comer", "haven")
PODS = ("guest:node1:plain", "comer:node1:plain", "haven:node2:plain")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """As the shared one, and two pods that come and go: comer on node1, haven on node2."""
    with running_lab(tmp_path_factory.mktemp("enrolment"), more_pods=PODS, ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def as_it_was(lab: RunningLab) -> Iterator[None]:
    """What a test enrolled is un-enrolled, down to the last connection; strict modes are over."""
    yield
    lab.lab.unenrol(*COMERS)
    for pod in COMERS:
        wait_for(lambda pod=pod: lab.workload(pod)["phase"] == "absent", f"{pod} has left the mesh")
    for pod in ("pipeline", "haven"):
        if lab.workload(pod)["mode"] != "permissive":
            lab.lab.set_mode(pod, "permissive")


@pytest.mark.both_backends
@pytest.mark.parametrize("pods", [("comer",), ("haven",), COMERS], ids="+".join)
def test_old_connection_outlives_enrolment_and_unenrolment(
    lab: RunningLab, programs: Programs, pods: tuple[str, ...]
) -> None:
    server = programs.serve("haven")
    lines = Lines(programs, "comer", server.address)
    lines.goes_on()
    lab.lab.enrol(*pods)
    lines.goes_on()
    lab.lab.unenrol(*pods)
    lines.goes_on()
    assert lines.finish() >= 60


def test_old_connection_is_shown_with_its_reason(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    old = programs.dial("comer", server.address)
    assert echoes(old, CARD)
    lab.lab.enrol(*COMERS)
    assert echoes(old, CARD)
    source = endpoint(old.getsockname())
    for node in ("node1", "node2"):
        rows = [row for row in lab.connections(node) if row["source"] == source]
        assert [(row["mtls"], row["reason"]) for row in rows] == [(False, "opened-before-enrolment")]


@pytest.mark.both_backends
def test_new_connections_are_tunnelled_beside_an_old_one(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lines = Lines(programs, "comer", server.address)
    lab.lab.enrol(*COMERS)
    with programs.sniff() as wire:
        new = programs.dial("comer", server.address)
        assert echoes(new, CARD)
        packets = wire.cut()
    assert not any(CARD in packet.payload for packet in packets)
    assert lab.outbound(new)["peer"] == lab.identity("haven")
    lines.goes_on()
    lines.finish()


@pytest.mark.both_backends
def test_captured_connection_outlives_unenrolment(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lab.lab.enrol(*COMERS)
    lines = Lines(programs, "comer", server.address)
    lines.goes_on()
    assert lab.outbound(lines.connection)["mtls"]
    lab.lab.unenrol(*COMERS)
    # By then what is left of a workload is only what its connections need.
    wait_for(lambda: not any(takes_tunnels(lab, pod) for pod in COMERS), "nothing listens on port 15008 any more")
    with programs.sniff() as wire:
        lines.goes_on()
        packets = wire.cut()
    # It still is what it was: not a byte of it in plaintext.
    assert not any(b"line 0" in packet.payload for packet in packets)
    assert {
        row["mtls"] for row in lab.connections("node1") if row["source"] == endpoint(lines.connection.getsockname())
    } == {True}
    assert [lab.workload(pod)["phase"] for pod in COMERS] == ["leaving", "leaving"]
    lines.finish()


@pytest.mark.both_backends
def test_new_connections_go_direct_after_unenrolment(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lab.lab.enrol(*COMERS)
    lines = Lines(programs, "comer", server.address)
    lines.goes_on()
    lab.lab.unenrol(*COMERS)
    with programs.sniff() as wire:
        new = programs.dial("comer", server.address)
        assert echoes(new, CARD)
        packets = wire.cut()
    assert any(CARD in packet.payload for packet in packets)
    assert ports_used(packets) == {server.address[1]}
    source = endpoint(new.getsockname())
    through_core = [row for row in lab.connections("node1") if row["source"] == source and row["id"] is not None]
    assert through_core == []
    lines.finish()


def test_unenrolled_workload_keeps_nothing_when_its_last_connection_ends(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lab.lab.enrol(*COMERS)
    client = programs.dial("comer", server.address)
    assert echoes(client)
    lab.lab.unenrol(*COMERS)
    assert lab.workload("comer")["phase"] == "leaving"
    client.close()
    for pod in COMERS:
        wait_for(lambda pod=pod: lab.workload(pod)["phase"] == "absent", f"{pod} has left the mesh")


def test_enrolment_again_while_old_connections_drain(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lab.lab.enrol(*COMERS)
    lines = Lines(programs, "comer", server.address)
    lab.lab.unenrol(*COMERS)
    lab.lab.enrol(*COMERS)
    new = programs.dial("comer", server.address)
    assert echoes(new)
    assert lab.outbound(new)["peer"] == lab.identity("haven")
    lines.goes_on()
    lines.finish()


def test_connections_opened_while_enrolling_all_work(tmp_path: Path) -> None:
    """In every moment of two nodes' coming and going: a client that opens one connection after the other."""
    with running_lab(tmp_path, more_pods=PODS, settings={"settle": SETTLE}, ipv6=True) as lab:
        for version in IP_VERSIONS:
            with Programs(lab, version) as programs:
                enrol_and_unenrol_under_connections(lab, programs)


def enrol_and_unenrol_under_connections(lab: RunningLab, programs: Programs) -> None:
    """Raises what a connection raises that does not work."""
    server = programs.serve("haven")
    stop = threading.Event()
    programs.at_end(stop.set)
    opened = 0

    def client() -> None:
        nonlocal opened
        while not stop.is_set():
            connection = programs.dial("comer", server.address)
            assert echoes(connection)
            connection.close()
            opened += 1

    worker = programs.thread(client)
    for step in (lab.lab.enrol, lab.lab.unenrol):
        step(*COMERS)
        wanted = opened + 10
        wait_for(lambda wanted=wanted: opened >= wanted or not worker.running, "the client goes on")
    stop.set()
    worker.result()


@pytest.mark.parametrize("pod", COMERS)
def test_enrolment_and_unenrolment_lose_no_packet(lab: RunningLab, programs: Programs, pod: str) -> None:
    """UDP, which nobody sends again, and which is not captured: numbered datagrams from the pod to another one."""

    def listen() -> socket.socket:
        receiver = socket.socket(family_of(programs.at("siem")), socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        receiver.settimeout(PATIENCE)
        receiver.bind((programs.at("siem"), 0))
        return receiver

    receiver = lab.run("siem", listen)
    sender = lab.run(pod, lambda: socket.socket(receiver.family, socket.SOCK_DGRAM))
    programs.at_end(receiver.close)
    programs.at_end(sender.close)
    stop = threading.Event()
    programs.at_end(stop.set)

    def send() -> int:
        sent = 0
        while not stop.wait(0.0002):
            sender.sendto(b"%d" % sent, receiver.getsockname())
            sent += 1
        # What comes after the last one says that nothing is still to come.
        sender.sendto(b"end", receiver.getsockname())
        return sent

    sending = programs.thread(send)
    lab.lab.enrol(pod)
    lab.lab.unenrol(pod)
    wait_for(lambda: lab.workload(pod)["phase"] == "absent", f"{pod} has left the mesh")
    stop.set()
    received = set()
    while (datagram := receiver.recv(100)) != b"end":
        received.add(int(datagram))
    assert set(range(sending.result())) - received == set()


def test_strict_resets_a_live_plaintext_connection(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", silent)
    client = programs.dial("guest", server.address)
    client.sendall(b"x")
    assert server.connection().recv(1) == b"x"
    lab.lab.set_mode("pipeline", "strict")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    # The application behind it is told as well: ECONNABORTED is what its own kernel says (SOCK_DESTROY).
    with pytest.raises((ConnectionResetError, ConnectionAbortedError)):
        server.connection().recv(1)


def test_strict_refuses_a_new_plaintext_connection(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.lab.set_mode("pipeline", "strict")
    guest = next(pod for pod in lab.lab.plan.pods if pod.name == "guest")
    source = str(guest.addresses[programs.version == 6])
    # One that another test had open was ended for it, and is counted there.
    before = sum(row["count"] for row in lab.refused("node2", source=source, reason="strict"))
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # noqa: PT012
        client = programs.dial("guest", server.address)
        client.recv(1)
    assert server.peers == []
    there = endpoint(server.address)
    (row,) = lab.refused("node2", destination=there)
    assert (row["kind"], row["reason"], row["count"]) == ("plaintext", "strict", before + 1)
    assert row["source"] == source
    assert row["source_workload"] == "default/guest"
    assert [row for row in lab.connections("node2") if row["destination"] == there] == []


def test_strict_disturbs_no_tunnelled_connection(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lines = Lines(programs, "shipper", server.address)
    lines.goes_on()
    lab.lab.set_mode("pipeline", "strict")
    lines.goes_on()
    assert echoes(programs.dial("shipper", server.address))
    lab.lab.set_mode("pipeline", "permissive")
    lines.goes_on()
    lines.finish()


def test_permissive_again_lets_plaintext_in(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.lab.set_mode("pipeline", "strict")
    lab.lab.set_mode("pipeline", "permissive")
    assert echoes(programs.dial("guest", server.address))


def test_both_ends_enrolled_never_open_plaintext_again(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("haven")
    lab.lab.enrol(*COMERS)
    with programs.sniff() as wire:
        for _ in range(50):
            assert echoes(programs.dial("comer", server.address), CARD)
        packets = wire.cut()
    assert ports_used(packets) <= {HBONE_PORT}
    assert not any(CARD in packet.payload for packet in packets)


@pytest.mark.parametrize("kept", IP_VERSIONS)
def test_family_that_a_workload_gives_up_and_takes_again_is_followed_live(lab: RunningLab, kept: int) -> None:
    """What is dialled in the family that is left goes through a tunnel. In the other one nobody knows whose address it
    is: it comes in plaintext, and is refused, since both ends are enrolled. The status says which address it is."""
    lab.lab.enrol("haven")
    both = [lab.address("haven", version) for version in IP_VERSIONS]
    given_up = lab.address("haven", 10 - kept)
    for addresses in ([lab.address("haven", kept)], both):
        change_workloads(lab.lab.mesh, {"haven": {"addresses": addresses}})
        wait_for(lambda wanted=addresses: has_addresses(lab, "haven", wanted), "haven is enrolled with its addresses")
        for version in IP_VERSIONS:
            way = "mtls" if lab.address("haven", version) in addresses else "refused"
            with Programs(lab, version) as programs:
                wait_for(lambda: way_of(programs) == way, f"IPv{version} goes its way")  # noqa: B023
        detail = lab.workload("haven")["detail"]
        assert detail is None if addresses == both else detail.startswith(f"it has {given_up}, which the mesh state")


def has_addresses(lab: RunningLab, pod: str, addresses: list[str]) -> bool:
    workload = lab.workload(pod)
    return bool(workload["enrolled"]) and workload["addresses"] == addresses


def way_of(programs: Programs) -> str:
    """How a connection of shipper to haven goes; for a moment shipper's node may not know yet what haven's does."""
    server = programs.serve("haven")
    try:
        client = programs.dial("shipper", server.address)
        if not echoes(client):
            return "broken"
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    except (OSError, EOFError):
        return "broken"
    return "mtls" if programs.lab.outbound(client)["mtls"] else "plaintext"


def takes_tunnels(lab: RunningLab, pod: str) -> bool:
    """Whether somebody listens on port 15008 in the pod."""

    return any(one.state == LISTEN and one.local[1] == HBONE_PORT for one in lab.run(pod, tcp_table))
