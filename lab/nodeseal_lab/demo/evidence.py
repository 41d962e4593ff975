"""What captured packets prove: in which streams the card number can be read, and what the TLS handshakes agreed on."""

from __future__ import annotations

from collections.abc import Sequence

from nodeseal_lab.demo.pcap import TCP, Packet, streams
from nodeseal_lab.demo.report import CheckFailed
from nodeseal_lab.demo.tls import ServerHello, TlsError, parse_client_hello, parse_server_hello
from nodeseal_lab.plan import Plan

CARD = "4111 1111 1111 1111"
HBONE_PORT = 15008

PodFlow = tuple[str, str, int]


def with_card(packets: Sequence[Packet]) -> list[Packet]:
    """The packets in which the card number can be read."""
    return [packet for packet in packets if CARD.encode() in packet.payload]


def amount(packets: Sequence[Packet]) -> str:
    """ "26 TCP packets, 674 bytes of payload"."""
    tcp = [packet for packet in packets if packet.protocol == TCP]
    return f"{len(tcp)} TCP packets, {payload(tcp):,} bytes of payload"


def payload(packets: Sequence[Packet]) -> int:
    """Bytes of payload."""
    return sum(len(packet.payload) for packet in packets)


def flow_text(flows: set[PodFlow]) -> str:
    """ "shipper -> pipeline:8080, pipeline -> siem:9000", or "none"."""
    return (
        ", ".join(f"{source} -> {destination}:{port}" for source, destination, port in sorted(flows, reverse=True))
        or "none"
    )


def flows_with_card(plan: Plan, packets: Sequence[Packet]) -> set[PodFlow]:
    """(from pod, to pod, port) of the TCP streams in which the card number can be read."""
    flows = [flow for flow, content in streams(packets).items() if CARD.encode() in content]
    return {(pod_name(plan, source), pod_name(plan, destination), port) for source, _, destination, port in flows}


def handshakes(plan: Plan, packets: Sequence[Packet]) -> list[tuple[str, str, ServerHello]]:
    """(client pod, server pod, what the server chose) for every TLS connection that was opened on port 15008.

    Raises CheckFailed when a client offers anything but TLS 1.3, or when it is not TLS."""
    found = []
    sent = streams(packets)
    for flow in {packet.flow for packet in packets if packet.opens and packet.destination_port == HBONE_PORT}:
        source, source_port, destination, port = flow
        client, server = pod_name(plan, source), pod_name(plan, destination)
        try:
            offer = parse_client_hello(sent.get(flow, b""))
            hello = parse_server_hello(sent.get((destination, port, source, source_port), b""))
        except TlsError as error:
            what = f"{client} -> {server}:{port} is TLS"
            raise CheckFailed(what, expected="two hello messages", seen=error) from error
        if offer.versions != ("TLS 1.3",):
            raise CheckFailed(f"{client} offers TLS 1.3 only", expected="TLS 1.3", seen=offer.versions)
        found.append((client, server, hello))
    return found


def pod_name(plan: Plan, address: str) -> str:
    """The name of the pod with this address, else the address."""
    return next((pod.name for pod in plan.pods if address in map(str, pod.addresses)), address)
