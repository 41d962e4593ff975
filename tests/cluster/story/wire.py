"""What crosses the wire between two nodes, and whether it is TLS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.network import UPLINK
from cluster.plan import PODS
from nodeseal_lab.demo.evidence import HBONE_PORT
from nodeseal_lab.demo.pcap import Flow, Packet, streams
from nodeseal_lab.demo.tls import TlsError, parse_client_hello, parse_server_hello
from support.sniffer import Sniffer


class Wire:
    """Between node1 and the others, from now on. A node that is turned off and on again has another: make a new one."""

    def __init__(self, cluster: Cluster) -> None:
        here, *others = (node.plan for node in cluster.nodes)
        marks = [(here.netns, str(others[0].address)), *((node.netns, str(here.address)) for node in others)]
        self._sniffer = Sniffer(here.netns, UPLINK, marks)

    def cut(self) -> list[Packet]:
        """The TCP packets between pods since the last cut; none is missing."""
        return [packet for packet in self._sniffer.cut() if _is_pod(packet.source) and _is_pod(packet.destination)]

    def close(self) -> None:
        """Ends the listening."""
        self._sniffer.close()


def readable(packets: Sequence[Packet], marker: str) -> set[Flow]:
    """The directions of connections in which the marker can be read."""
    return {flow for flow, content in streams(packets).items() if marker.encode() in content}


def other_flows(packets: Iterable[Packet], known: Iterable[Flow]) -> set[Flow]:
    """The connections that carry data beside the tunnels, and beside those that are `known`."""
    allowed = {flow for one in known for flow in (one, (*one[2:], *one[:2]))}
    return {
        packet.flow
        for packet in packets
        if packet.payload and HBONE_PORT not in packet.ports and packet.flow not in allowed
    }


def handshakes(packets: Sequence[Packet]) -> list[tuple[str, str, str]]:
    """(client's address, server's, "TLS 1.3, SUITE") of each tunnel that was opened and had an answer.

    Raises ClusterError where it is not TLS 1.3."""
    found = []
    sent: Mapping[Flow, bytes] = streams(packets)
    for source, source_port, destination, port in {packet.flow for packet in packets if packet.opens}:
        answer = sent.get((destination, port, source, source_port), b"")
        if port != HBONE_PORT or not answer:
            continue
        try:
            offer = parse_client_hello(sent.get((source, source_port, destination, port), b""))
            chosen = parse_server_hello(answer)
        except TlsError as error:
            raise ClusterError(f"{source} -> {destination}:{port} is not TLS: {error}") from error
        if offer.versions != ("TLS 1.3",) or chosen.version != "TLS 1.3":
            raise ClusterError(f"{source} -> {destination}:{port} is not TLS 1.3: {offer.versions}, {chosen.version}")
        found.append((source, destination, f"{chosen.version}, {chosen.cipher_suite}"))
    return found


def _is_pod(address: str) -> bool:
    return ip_address(address) in PODS
