"""Netfilter rules as other programs have them on real nodes, for the nodes of a lab: `lab up --node-rules KIND`. Pure,
but for put_rules().

kube-proxy-iptables   kube-proxy in its iptables mode (pkg/proxy/iptables/proxier.go of Kubernetes): services are
                      translated, what comes from outside of the node's pods is marked 0x4000 and masqueraded
kube-proxy-nftables   the same in its nftables mode (pkg/proxy/nftables/proxier.go)
docker                a container with a published port, and marks that are saved into conntrack and restored, as
                      routing by marks and meshes of containers do it
firewalld             a zone for the lab's network; what conntrack calls invalid is dropped
ufw                   the same by iptables

The chains are theirs in name, order and priority; what they do for services without endpoints, for node ports and for
logs is left out. A firewall that is to run with nodeseal has to let in port 15008 and the workloads' ports, which here
means the lab's network.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nodeseal.mesh.address import Address
from nodeseal_lab.errors import LabError, MissingToolError
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import Node, Plan

_BRIDGE = "nsbr0"
_LAB = {4: "10.77.0.0/16", 6: "fd77::/64"}
_CONTAINERS = {4: "172.17.0.0/16", 6: "fd17::/64"}
_CONTAINER = {4: "172.17.0.2", 6: "[fd17::2]"}
_PUBLISHED_PORT = 8443
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is given to one program on its standard input."""

    command: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Forward:
    """A port of a service, and where its one endpoint is, of the same family."""

    service: Address
    port: int
    endpoint: Address
    target: int

    @property
    def destination(self) -> str:
        return f"[{self.endpoint}]:{self.target}" if self.endpoint.version == 6 else f"{self.endpoint}:{self.target}"


def rulesets(kind: str, plan: Plan, node: Node) -> list[Ruleset]:
    """The rules of this kind on a node. `kind`: one of KINDS."""
    versions = (4, 6) if plan.ipv6 else (4,)
    return [ruleset for version in versions for ruleset in _KINDS[kind](plan, node, version)]


def put_rules(plan: Plan, node: Node) -> None:
    """Give a node the rules of the plan. Raises LabError."""
    for ruleset in rulesets(plan.node_rules, plan, node):
        _run(node.netns, ruleset)


def _run(netns: str, ruleset: Ruleset) -> None:
    if shutil.which(ruleset.command[0]) is None:
        raise MissingToolError([ruleset.command[0]])
    done = run_in(
        netns,
        lambda: subprocess.run(
            ruleset.command, input=ruleset.text, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        ),
    )
    if done.returncode != 0:
        raise LabError(f"cannot make the rules of {netns}: {ruleset.command[0]}: {done.stderr.strip()}")


def _kube_proxy_iptables(plan: Plan, node: Node, version: int) -> Iterator[Ruleset]:
    services, targets = [], []
    for number, one in enumerate(_forwards(plan, version)):
        service = f"-d {one.service}/{one.service.max_prefixlen} -p tcp -m tcp --dport {one.port}"
        chain, endpoint = f"KUBE-SVC-{number:016d}", f"KUBE-SEP-{number:016d}"
        services.append(f"-A KUBE-SERVICES {service} -j {chain}")
        targets += [
            f":{chain} - [0:0]",
            f":{endpoint} - [0:0]",
            f"-A {chain} ! -s {_pods_of(node, version)} {service} -j KUBE-MARK-MASQ",
            f"-A {chain} -j {endpoint}",
            f"-A {endpoint} -s {one.endpoint} -j KUBE-MARK-MASQ",
            f"-A {endpoint} -p tcp -m tcp -j DNAT --to-destination {one.destination}",
        ]
    yield _iptables(
        version,
        "*nat",
        *(f":KUBE-{name} - [0:0]" for name in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ")),
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *targets,
        *services,
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "COMMIT",
        "*filter",
        ":KUBE-FORWARD - [0:0]",
        "-A FORWARD -j KUBE-FORWARD",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT",
    )


def _kube_proxy_nftables(plan: Plan, node: Node, version: int) -> Iterator[Ruleset]:
    family = "ip6" if version == 6 else "ip"
    elements, targets, addresses = [], [], []
    for number, one in enumerate(_forwards(plan, version)):
        chain, endpoint = f"service-{number}", f"endpoint-{number}"
        addresses.append(str(one.service))
        elements.append(f"{one.service} . tcp . {one.port} : goto {chain}")
        targets += [
            f"chain {endpoint} {{",
            f"{family} saddr {one.endpoint} jump mark-for-masquerade",
            f"meta l4proto tcp dnat to {one.destination}",
            "}",
            f"chain {chain} {{",
            f"{family} daddr {one.service} tcp dport {one.port} {family} saddr != {_pods_of(node, version)} "
            "jump mark-for-masquerade",
            f"numgen random mod 1 vmap {{ 0 : goto {endpoint} }}",
            "}",
        ]
    yield _nft(
        f"table {family} kube-proxy {{",
        "chain mark-for-masquerade { meta mark set meta mark or 0x4000; }",
        "chain masquerading {",
        "meta mark & 0x4000 == 0 return",
        "meta mark set meta mark xor 0x4000",
        "masquerade fully-random",
        "}",
        *targets,
        f"set cluster-ips {{ type ipv{version}_addr; elements = {{ {', '.join(addresses)} }}; }}",
        f"map service-ips {{ type ipv{version}_addr . inet_proto . inet_service : verdict;",
        f"elements = {{ {', '.join(elements)} }}; }}",
        f"chain cluster-ips-check {{ {family} daddr @cluster-ips reject; }}",
        f"chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}",
        "chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }",
        "chain filter-forward { type filter hook forward priority -110; ct state new jump cluster-ips-check; }",
        "chain nat-prerouting { type nat hook prerouting priority -100; jump services; }",
        "chain nat-output { type nat hook output priority -100; jump services; }",
        "chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }",
        "}",
    )


def _docker(plan: Plan, node: Node, version: int) -> Iterator[Ruleset]:
    loopback = "::1/128" if version == 6 else "127.0.0.0/8"
    yield _iptables(
        version,
        "*nat",
        ":DOCKER - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        f"-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER",
        f"-A POSTROUTING -s {_CONTAINERS[version]} ! -o docker0 -j MASQUERADE",
        f"-A DOCKER ! -i docker0 -p tcp -m tcp --dport {_PUBLISHED_PORT} -j DNAT "
        f"--to-destination {_CONTAINER[version]}:80",
        "COMMIT",
        "*mangle",
        "-A PREROUTING -j CONNMARK --restore-mark",
        "-A OUTPUT -j CONNMARK --restore-mark",
        "-A POSTROUTING -j CONNMARK --save-mark",
        "COMMIT",
        "*filter",
        ":FORWARD DROP [0:0]",
        ":DOCKER-USER - [0:0]",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        # As a network plugin for pods has it.
        *(f"-A DOCKER-USER {way} {_BRIDGE} -j ACCEPT" for way in ("-i", "-o")),
        "COMMIT",
    )


def _ufw(plan: Plan, node: Node, version: int) -> Iterator[Ruleset]:
    pings = [] if version == 4 else ["-A ufw-before-input -p ipv6-icmp -j ACCEPT"]
    yield _iptables(
        version,
        "*filter",
        ":INPUT DROP [0:0]",
        ":ufw-before-input - [0:0]",
        ":ufw-before-output - [0:0]",
        "-A INPUT -j ufw-before-input",
        "-A OUTPUT -j ufw-before-output",
        "-A ufw-before-input -i lo -j ACCEPT",
        "-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A ufw-before-input -m conntrack --ctstate INVALID -j DROP",
        *pings,
        f"-A ufw-before-input -s {_LAB[version]} -j ACCEPT",
        "-A ufw-before-output -o lo -j ACCEPT",
        "-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT",
    )


def _firewalld(plan: Plan, node: Node, version: int) -> Iterator[Ruleset]:
    if version == 6:
        return  # its table is for both
    zones = [f"ip saddr {_LAB[4]} accept", *([f"ip6 saddr {_LAB[6]} accept"] if plan.ipv6 else [])]
    yield _nft(
        "table inet firewalld {",
        "chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; }",
        "chain nat_OUTPUT { type nat hook output priority -90; policy accept; }",
        "chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }",
        "chain filter_PREROUTING { type filter hook prerouting priority 10; policy accept;",
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept",
        "meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
        "}",
        "chain filter_INPUT { type filter hook input priority 10; policy accept;",
        "ct state { established, related } accept",
        "ct status dnat accept",
        'iifname "lo" accept',
        "ct state invalid drop",
        *zones,
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept",
        "reject with icmpx admin-prohibited",
        "}",
        "chain filter_FORWARD { type filter hook forward priority 10; policy accept;",
        "ct state { established, related } accept",
        "ct status dnat accept",
        'iifname "lo" accept',
        "ct state invalid drop",
        f'iifname "{_BRIDGE}" accept',
        f'oifname "{_BRIDGE}" accept',
        "reject with icmpx admin-prohibited",
        "}",
        "chain filter_OUTPUT { type filter hook output priority 10; policy accept;",
        "ct state { established, related } accept",
        'oifname "lo" accept',
        "}",
        "}",
    )


_KINDS: dict[str, Callable[[Plan, Node, int], Iterator[Ruleset]]] = {
    "kube-proxy-iptables": _kube_proxy_iptables,
    "kube-proxy-nftables": _kube_proxy_nftables,
    "docker": _docker,
    "firewalld": _firewalld,
    "ufw": _ufw,
}


def _forwards(plan: Plan, version: int) -> Iterator[_Forward]:
    for service in plan.services:
        endpoint = plan.pod(service.endpoints[0])
        for address in service.addresses:
            for end in endpoint.addresses:
                if address.version == end.version == version:
                    for port, target in service.ports:
                        yield _Forward(address, port, end, target)


def _pods_of(node: Node, version: int) -> str:
    """The network of the node's own pods."""
    return f"fd77::{node.number}:0/112" if version == 6 else str(node.pod_network)


def _iptables(version: int, *lines: str) -> Ruleset:
    program = "ip6tables-restore" if version == 6 else "iptables-restore"
    return Ruleset((program, "--noflush"), "\n".join([*lines, ""]))


def _nft(*lines: str) -> Ruleset:
    return Ruleset(("nft", "-f", "-"), "\n".join([*lines, ""]))
