"""The parts of the cluster's story that judge: what counts as left behind, and what as not encrypted."""

from __future__ import annotations

import pytest

from cluster.errors import ClusterError
from cluster.story import platform
from cluster.story.footprint import left, normalized, of_kubernetes
from cluster.story.wire import handshakes, other_flows, readable
from nodeseal_lab.demo.pcap import ACK, SYN, TCP, Packet

ONE, OTHER = ("10.244.1.2", 40000), ("10.244.2.2", 15008)
PLAIN = ("10.244.2.2", 8080)


def packet(source: tuple[str, int], target: tuple[str, int], payload: bytes = b"", flags: int = ACK) -> Packet:
    return Packet(TCP, *source, *target, flags, 0, payload)


def test_pods_that_were_started_anew_look_as_before() -> None:
    before = "pod route\t10.244.1.2 dev veth0a1b2c3d scope host"
    assert normalized(before) == normalized("pod route\t10.244.1.77 dev veth99887766 scope host ")
    assert normalized(before) != normalized("pod route\tlocal default dev lo table 20051")


@pytest.mark.parametrize(
    "line",
    [
        "pod rule\t100: from all fwmark 0x4e53/0xffff lookup 20051",
        "node rule\t100: from all fwmark 0x4e53/0xffff lookup 20051",
        "file\t/run/nodeseal/capture.json",
        "file\t/opt/cni/bin/nodeseal-cni",
        "cgroup\t/sys/fs/cgroup/memory: /nodeseal/core-1",
        "process\t/usr/bin/python3 -m nodeseal core --run-dir /run/nodeseal",
        "node iptables-nft\t-A PREROUTING -m mark --mark 0x4e53 -j ACCEPT",
        "pod sysctl\tnet.ipv4.conf.eth0.rp_filter = 2",
    ],
)
def test_what_nodeseal_would_leave_is_seen(line: str) -> None:
    assert not of_kubernetes(normalized(line))
    assert left({"node1": frozenset()}, {"node1": frozenset([line])}) == [f"node1: {line}"]


@pytest.mark.parametrize(
    "line",
    [
        "file\t/run/netns/cni-0db797a8-94e3-fabd-8ed8-c65a8c7f385b",
        "file\t/run/containerd/containerd.sock",
        "mount\t/var/lib/kubelet/pods/x/volumes tmpfs",
        "node iptables-nft\t-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-X",
        "node sysctl\tnet.ipv4.conf.veth0a1b2c3d.rp_filter = 0",
    ],
)
def test_what_kubernetes_makes_and_removes_is_passed_over(line: str) -> None:
    assert of_kubernetes(normalized(line))


def test_marker_is_read_across_segments() -> None:
    first, second = packet(ONE, PLAIN, b"card=41"), packet(ONE, PLAIN, b"11")
    second = Packet(TCP, *ONE, *PLAIN, ACK, 7, b"11")
    assert readable([first, second], "card=4111") == {(*ONE, *PLAIN)}
    assert not readable([first], "card=4111")


def test_data_beside_the_tunnels_is_seen_but_for_what_is_known() -> None:
    packets = [
        packet(ONE, OTHER, b"tls"),
        packet(ONE, PLAIN, b"plain"),
        packet(PLAIN, ONE, b"answer"),
        packet(ONE, PLAIN),
    ]
    assert other_flows(packets, []) == {(*ONE, *PLAIN), (*PLAIN, *ONE)}
    assert not other_flows(packets, [(*ONE, *PLAIN)])


def test_tunnel_that_is_no_tls_is_told() -> None:
    opening = packet(ONE, OTHER, flags=SYN)
    with pytest.raises(ClusterError, match="is not TLS"):
        handshakes([opening, packet(ONE, OTHER, b"GET / HTTP/1.1\r\n"), packet(OTHER, ONE, b"HTTP/1.1 200 OK\r\n")])


def test_tunnel_that_nobody_answered_proves_nothing() -> None:
    assert handshakes([packet(ONE, OTHER, flags=SYN)]) == []


def test_what_talks_to_each_other_is_on_two_nodes() -> None:
    assert platform.NODE_OF["shipper"] != platform.NODE_OF["pipeline"] != platform.NODE_OF["siem"]
    deployments = [one for one in platform.objects() if one["kind"] == "Deployment"]
    pinned = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["nodeSelector"] for one in deployments}
    assert pinned == {name: {"kubernetes.io/hostname": node} for name, node in platform.NODE_OF.items()}
