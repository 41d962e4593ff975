"""Whatever rules do to marks and addresses, nothing of a captured connection leaves in plaintext.

With eBPF a program at the way out drops it, by the mark of its socket; with iptables a rule does, by its conntrack
entry. In a node's namespace more is there: see test_node_rules.py for the rules of known programs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nodeseal.capture.journal import Journal
from nodeseal.capture.node import NodeCapture
from nodeseal.linux import tc_filters
from support.connection import echoes
from support.connection import echoes as echoes_of
from support.hosts import HOSTS, PORTS, Host
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.netfilter import nft, rule, ruleset
from support.patience import PATIENCE, wait_for
from support.pods import CLIENT, SERVER, Pods
from support.programs import Programs
from support.sniffer import Sniffer, ports_used

CARD = "card=4111 1111 1111 1111;"
IP_VERSIONS = (4, 6)
SERVER_PORT = 8080
NODES = pytest.mark.ebpf_only("processes of a node are captured by eBPF only")

# Rules that send what is dialled at SERVER_PORT on another way, or change what tells whose it is.
ANEW = "type route hook output priority -149"  # right after mangle: routed anew when the mark has changed
TO_SERVER = f"tcp dport {SERVER_PORT}"
REWRITING = {
    "another mark": (ANEW, f"{TO_SERVER} meta mark set 0x7"),
    "a bit of kube-proxy's": (ANEW, f"{TO_SERVER} meta mark set meta mark or 0x4000"),
    "no mark": (ANEW, f"{TO_SERVER} meta mark set 0"),
    "before all others": ("type route hook output priority -600", f"{TO_SERVER} meta mark set 0"),
    "another port": (ANEW, f"{TO_SERVER} tcp dport set 8081 meta mark set 0x7"),
}


# ---- pods


@pytest.fixture(params=["links", "filters"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, tcx=request.param == "links") as pods:
        yield pods


def held(capture: NodeCapture) -> int:
    errors = capture.errors()
    return errors["egress_held"] + errors["postrouting_held"]


@contextlib.contextmanager
def copied(netns: str, family: str, gateway: str) -> Iterator[None]:
    """Meanwhile what the namespace sends to SERVER_PORT is sent to the gateway as well."""
    table = f"table {family} copies"
    copying = f'{TO_SERVER} dup to {gateway} device "eth0"'
    nft(netns, f"{table} {{ chain one {{ type filter hook output priority 0; {copying}; }}; }}")
    try:
        yield
    finally:
        nft(netns, f"delete {table}")


@contextlib.contextmanager
def sniffed(pods: Pods) -> Iterator[Sniffer]:
    """The wire between client and router."""
    marks = [(pods.client.name, "10.91.1.1"), (pods.router.name, CLIENT)]
    with Sniffer(pods.client.name, "eth0", marks) as wire:
        yield wire


@pytest.mark.both_backends
@pytest.mark.parametrize("what", REWRITING)
def test_a_rule_in_a_pod_does_not_take_a_new_connection_past_the_core(pods: Pods, what: str) -> None:
    pods.echo(pods.server)
    pods.echo(pods.server, 8081)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    chain, statement = REWRITING[what]
    with sniffed(pods) as wire, rule(pods.client.name, chain, statement):
        with contextlib.suppress(OSError):  # held, or captured all the same, as iptables does with some of them
            assert echoes_of(pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=2), CARD.encode())
            assert len(relay.flows) == 1
        packets = wire.cut()
    # The relay's own way to the server is the one connection that may be seen.
    assert not relay.flows or ports_used(packets) <= {SERVER_PORT, 8081}
    if not relay.flows:
        assert packets == []
        assert held(capture) > 0


@pytest.mark.both_backends
@pytest.mark.parametrize("what", ["another mark", "no mark", "another port"])
def test_a_rule_in_a_pod_holds_an_open_connection_up_until_it_is_gone(pods: Pods, what: str) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=PATIENCE)
    assert echoes_of(connection)
    assert len(relay.flows) == 1
    port = connection.getsockname()[1]
    chain, statement = REWRITING[what]
    with sniffed(pods) as wire, rule(pods.client.name, chain, f"tcp sport {port} {statement}"):
        connection.sendall(CARD.encode())
        wait_for(lambda: held(capture) > 0, "what the application sent is held")
        assert not [packet for packet in wire.cut() if port in (packet.source_port, packet.destination_port)]
    received = b""
    while len(received) < len(CARD):
        received += connection.recv(4096)
    assert received == CARD.encode()


@pytest.mark.both_backends
def test_a_rule_in_a_pod_does_not_take_its_answers_past_the_core(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    pods.relay(capture.enrol(pods.server_target))
    connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=PATIENCE)
    assert echoes_of(connection)
    with rule(pods.server.name, ANEW, f"tcp sport {SERVER_PORT} oif lo meta mark set 0"):
        connection.sendall(CARD.encode())
        wait_for(lambda: held(capture) > 0, "the answer is held")
    assert connection.recv(4096) == CARD.encode()


@pytest.mark.both_backends
def test_an_address_that_a_rule_in_a_pod_translates_is_captured_as_that(pods: Pods) -> None:
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    with sniffed(pods) as wire:
        with rule(pods.client.name, "type nat hook output priority -100", f"ip daddr 10.99.0.1 dnat ip to {SERVER}"):
            connection = pods.dial(pods.client, ("10.99.0.1", SERVER_PORT), timeout=PATIENCE)
            assert echoes_of(connection, CARD.encode())
        port = connection.getsockname()[1]
        assert not [packet for packet in wire.cut() if packet.source_port == port]
    assert [flow.destination for flow in relay.flows] == [(SERVER, SERVER_PORT)]


@pytest.mark.both_backends
def test_a_copy_of_what_a_pod_sends_does_not_leave(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    with copied(pods.client.name, "ip", "10.91.1.1"), sniffed(pods) as wire:
        connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=PATIENCE)
        assert echoes_of(connection, CARD.encode())
        port = connection.getsockname()[1]
        assert not [packet for packet in wire.cut() if packet.source_port == port]
    assert len(relay.flows) == 1
    assert held(capture) > 0


@pytest.mark.parametrize("device", ["lo", "eth0"])
def test_a_mark_that_is_changed_on_arrival_lets_nothing_out(pods: Pods, device: str) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.server_target))
    marks = [(pods.server.name, "10.91.2.1"), (pods.router.name, SERVER)]
    with (
        Sniffer(pods.server.name, "eth0", marks) as wire,
        rule(pods.server.name, "type filter hook prerouting priority -140", f'iifname "{device}" meta mark set 0x7'),
    ):
        connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=2)
        with contextlib.suppress(OSError):
            assert echoes_of(connection, CARD.encode())
        packets = wire.cut()
    # The relay answers on the client's own connection; what it has with the application has another port.
    port = connection.getsockname()[1]
    sent = [packet for packet in packets if packet.source == SERVER and packet.payload]
    assert not [packet for packet in sent if packet.destination_port != port]
    assert len(relay.flows) == 1


def test_it_stays_while_the_workload_leaves_and_is_gone_then(pods: Pods) -> None:
    before = pods.client.state()
    pods.echo(pods.server)
    capture = pods.capture()
    pods.relay(capture.enrol(pods.client_target))
    connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=PATIENCE)
    assert echoes_of(connection)
    capture.stop_new(pods.client_target)
    chain, statement = REWRITING["no mark"]
    with rule(pods.client.name, chain, f"tcp sport {connection.getsockname()[1]} {statement}"):
        connection.sendall(CARD.encode())
        wait_for(lambda: held(capture) > 0, "what the application sent is held")
        assert echoes_of(pods.dial(pods.client, (SERVER, SERVER_PORT)))
    assert connection.recv(4096) == CARD.encode()
    connection.close()
    capture.release(pods.client_target)
    assert pods.client.state() == before


@pytest.mark.ebpf_only("programs")
def test_what_an_older_version_captured_is_held_too(pods: Pods) -> None:
    before = pods.client.state()
    pods.echo(pods.server)
    capture = pods.capture()
    captured = capture.enrol(pods.client_target)
    relay = pods.relay(captured)
    # As it was before anything held: no programs at the egress, and a journal that knows of none.
    journal = Journal.load(pods.run_dir())
    entry = journal.entries["default/client"]
    for path in (pods.run_dir() / "bpf" / entry.pins).glob("hold-*"):
        path.unlink()
    for item in [item for item in entry.filters if item.egress]:
        pods.client.run(partial(tc_filters.remove_filter, item))
    entry.filters = [item for item in entry.filters if not item.egress]
    entry.programs = "older"
    journal.save()
    connection = pods.dial(pods.client, (SERVER, SERVER_PORT), timeout=PATIENCE)
    assert echoes_of(connection)
    later = NodeCapture(pods.run_dir(), choice=pods.backend)
    later.prepare()
    pods.at_end(later.close)
    for adopted in later.adopt():
        later.take_listeners(adopted, captured.listeners)
    chain, statement = REWRITING["no mark"]
    with rule(pods.client.name, chain, f"tcp sport {connection.getsockname()[1]} {statement}"):
        connection.sendall(CARD.encode())
        wait_for(lambda: held(later) > 0, "what the application sent is held")
    assert connection.recv(4096) == CARD.encode()
    assert len(relay.flows) == 1
    pods.cleanup()
    assert pods.client.state() == before


# ---- processes of a node


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("held"), host_workloads=HOSTS, ipv6=True) as lab:
        yield lab


def held_on(lab: RunningLab) -> int:
    return int(lab.status("node1")["capture"]["held"]["packets"])


def node1(lab: RunningLab) -> str:
    return lab.lab.plan.node("node1").netns


@NODES
@pytest.mark.parametrize("what", REWRITING)
def test_a_rule_of_the_node_does_not_take_a_process_past_the_core(
    lab: RunningLab, programs: Programs, host: Host, what: str
) -> None:
    server = programs.serve("pipeline", port=SERVER_PORT)
    process = host.process("vector")
    before = held_on(lab)
    chain, statement = REWRITING[what]
    with programs.sniff("node1") as wire:
        with rule(node1(lab), chain, statement), contextlib.suppress(TimeoutError):
            process.dial(server.address, timeout=1.5)
        packets = wire.cut()
    assert held_on(lab) > before
    assert ports_used(packets) <= {HBONE_PORT}
    done = lab.command("status", "--run-dir", str(lab.run_dir("node1")))
    assert "plaintext-held: " in done.stdout
    assert process.dial(server.address).echoes(CARD)


@NODES
def test_a_translation_that_nothing_keeps_it_from_does_not_take_a_process_past_the_core(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    """What kube-proxy does, with a rule before that takes away by what nodeseal's own would know the connection."""
    programs.serve("pipeline", port=SERVER_PORT)
    process = host.process("vector")
    family = "ip6" if programs.version == 6 else "ip"
    service = str(lab.lab.plan.services[0].addresses[programs.version == 6])
    to_service = f"{family} daddr {service}"
    before = held_on(lab)
    with (
        programs.sniff("node1") as wire,
        rule(node1(lab), "type filter hook output priority -600", f"{to_service} meta mark set 0"),
        rule(
            node1(lab), "type nat hook output priority -100", f"{to_service} dnat {family} to {programs.at('pipeline')}"
        ),
        rule(node1(lab), "type nat hook postrouting priority 100", f"tcp dport {SERVER_PORT} masquerade fully-random"),
    ):
        with contextlib.suppress(TimeoutError):
            process.dial((service, SERVER_PORT), timeout=1.5)
        packets = wire.cut()
    assert held_on(lab) > before
    assert ports_used(packets) <= {HBONE_PORT}


@NODES
def test_a_mark_that_is_changed_on_arrival_at_lo_lets_no_answer_out(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = programs.serve("pipeline", port=SERVER_PORT)
    host.server("vector")
    process = host.process("vector")
    with (
        programs.sniff("node1") as wire,
        rule(node1(lab), "type filter hook prerouting priority -140", 'iifname "lo" meta mark set 0x7'),
    ):
        assert process.dial(server.address).echoes(CARD)
        with pytest.raises(OSError):  # noqa: PT011 - connected or not, it gets no answer
            echoes(programs.dial("pipeline", (host.address, PORTS["vector"]), timeout=2), CARD.encode())
        packets = wire.cut()
    assert not any(CARD.encode() in packet.payload for packet in packets)
    assert {packet.source_port for packet in packets if packet.payload} <= {HBONE_PORT} | {
        packet.source_port for packet in packets if packet.destination_port == HBONE_PORT
    }


@NODES
def test_a_copy_of_what_a_process_sends_does_not_leave(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline", port=SERVER_PORT)
    process = host.process("vector")
    gateway = programs.lab.lab.plan.node("node2").addresses[programs.version == 6]
    family = "ip6" if programs.version == 6 else "ip"
    before = held_on(lab)
    with copied(node1(lab), family, str(gateway)), programs.sniff("node1") as wire:
        assert process.dial(server.address).echoes(CARD)
        packets = wire.cut()
    assert held_on(lab) > before
    assert ports_used(packets) <= {HBONE_PORT}
    assert not any(CARD.encode() in packet.payload for packet in packets)


@NODES
def test_a_mark_that_is_changed_on_the_way_to_lo_is_set_right(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline", port=SERVER_PORT)
    host.server("vector")
    other = host.process()
    other.listen(SERVER_PORT)  # it would get what nobody else claims
    process = host.process("vector")
    before = held_on(lab)
    with rule(node1(lab), "type filter hook postrouting priority -150", "meta mark set 0x7"):
        dialled = process.dial(server.address)
        assert dialled.echoes(CARD)
        assert lab.connection("node1", "outbound", host.source_of(dialled))["peer"] == lab.identity("pipeline")
        assert echoes(programs.dial("pipeline", (host.address, PORTS["vector"])), CARD.encode())
    assert other.peers() == []
    assert held_on(lab) == before


@NODES
@pytest.mark.parametrize("statement", ["tcp sport set 9101", "tcp sport set 9101 meta mark set 0x7"])
def test_an_answer_that_a_rule_rewrites_does_not_leave(
    lab: RunningLab, programs: Programs, host: Host, statement: str
) -> None:
    host.server("vector")
    client = programs.dial("pipeline", (host.address, PORTS["vector"]))
    assert echoes(client)
    before = held_on(lab)
    answers = f"tcp sport {PORTS['vector']} oif != lo"
    with programs.sniff("node1") as wire:
        with rule(node1(lab), "type filter hook output priority 0", f"{answers} {statement}"):
            client.sendall(CARD.encode())
            wait_for(lambda: held_on(lab) > before, "the answer is held")
        packets = wire.cut()
    assert client.recv(4096) == CARD.encode()
    assert not any(CARD.encode() in packet.payload for packet in packets)
    assert ports_used(packets) <= {HBONE_PORT}


@NODES
def test_rules_that_somebody_flushed_come_back(lab: RunningLab) -> None:
    before = ruleset(node1(lab))
    assert "notrack" in before
    nft(node1(lab), "flush ruleset\n")
    wait_for(lambda: "notrack" in ruleset(node1(lab)), "the rules are back")
    assert ruleset(node1(lab)) == before
