"""The plan of a lab: which nodes and pods there are, and their names and addresses. Pure: nothing is made here.

Addresses (all inside the lab's own namespaces, so two labs may use the same ones):

* 10.77.0.N      the uplink of node N, on the network between the nodes
* 10.77.N.1      node N's bridge, the gateway of its pods
* 10.77.N.10...  the pods of node N
* 10.77.200.1    the virtual address of the service `pipeline`

A lab with IPv6 has these as well, of the same numbers as they are written: fd77::N, fd77::N:1, fd77::N:10... and
fd77::200:1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

from nodeseal.mesh.address import Address
from nodeseal_lab.errors import LabPlanError, UnknownPodError

DEFAULT_NAME = "lab"
NODE_RULES = ("kube-proxy-iptables", "kube-proxy-nftables", "docker", "firewalld", "ufw")
"""What the nodes of a lab may have of other programs' netfilter rules, see node_rules.py."""
ISSUERS = ("embedded", "service")
"""Where certificates come from: each agent issues itself, or asks the certificate service of the lab."""
NAMESPACE = "default"
TRUST_DOMAIN = "example.org"
MAX_NODES = 50
MAX_PORT = 65535
MAX_PODS_PER_NODE = 200
FIRST_POD_NUMBER = 10
PIPELINE_HTTP_PORT = 8080
PIPELINE_LINES_PORT = 7000
SIEM_HTTP_PORT = 9000
SERVICE_ADDRESS = IPv4Address("10.77.200.1")
SERVICE_ADDRESS_6 = IPv6Address("fd77::200:1")
IPV4_LENGTH, IPV6_LENGTH = 24, 112
"""Of the prefixes of the networks, between the nodes and of pods."""

# What agents and `nodeseal ca serve` take, but for agents: what a lab can bear.
_LEAST_LIFETIME, _LEAST_LIFETIME_OF_SERVICE = timedelta(seconds=5), timedelta(seconds=10)
_LONGEST_LIFETIME = timedelta(days=365)
_FABRIC_NETWORK = IPv4Network("10.77.0.0/24")
# No hyphen in a lab's name: "nodeseal-a-" must not be a prefix of another lab's namespaces.
_LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
_POD_NAME = re.compile(r"[a-z]([a-z0-9-]{0,13}[a-z0-9])?")
_HOST_WORKLOAD = re.compile(r"([^:]+):([^:]+):([1-9][0-9]{0,4})(:plain)?")
# Of a SPIFFE id, and a part of file names of the lab.
_TRUST_DOMAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_RESERVED_POD_NAME = re.compile(r"fabric|localhost|node[0-9]+")


@dataclass(frozen=True, slots=True)
class PodRequest:
    """A pod as it was asked for: its name, its node's name, and whether it is enrolled from the start."""

    name: str
    node: str
    enrolled: bool = True
    port: int = 0
    """Of a host workload; 0: it is a pod."""

    @classmethod
    def parse(cls, text: str) -> PodRequest:
        """From `NAME:NODE` or `NAME:NODE:plain`. Raises LabPlanError."""
        name, _, rest = text.partition(":")
        node, colon, kind = rest.partition(":")
        if not node or (colon and kind != "plain"):
            raise LabPlanError(f"--pod {text}: expected NAME:NODE or NAME:NODE:plain, for example web:node2")
        return cls(name, node, enrolled=not kind)

    @classmethod
    def parse_host_workload(cls, text: str) -> PodRequest:
        """From `NAME:NODE:PORT` or `NAME:NODE:PORT:plain`. Raises LabPlanError."""
        match = _HOST_WORKLOAD.fullmatch(text)
        if match is None or int(match[3]) > MAX_PORT:
            raise LabPlanError(
                f"--host-workload {text}: expected NAME:NODE:PORT or NAME:NODE:PORT:plain, such as vector:node1:9100"
            )
        return cls(match[1], match[2], enrolled=match[4] is None, port=int(match[3]))


@dataclass(frozen=True, slots=True)
class TrustDomainRequest:
    """A node that is of another trust domain than the lab's own."""

    node: str
    trust_domain: str

    @classmethod
    def parse(cls, text: str) -> TrustDomainRequest:
        """From `NODE:TRUST_DOMAIN`. Raises LabPlanError."""
        node, _, domain = text.partition(":")
        if not node or not _TRUST_DOMAIN.fullmatch(domain):
            raise LabPlanError(
                f"--trust-domain {text}: expected NODE:TRUST_DOMAIN, the latter of a-z, 0-9, '.', '_' and '-', such as "
                "node2:partner.example"
            )
        return cls(node, domain)


DEFAULT_PODS = (
    PodRequest("shipper", "node1"),
    PodRequest("siem", "node1"),
    PodRequest("pipeline", "node2"),
    PodRequest("intruder", "node2", enrolled=False),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A node: a routed hop with an uplink (`eth0`) and a bridge (`nsbr0`) for its pods."""

    name: str
    number: int
    netns: str
    ipv6: bool = False
    trust_domain: str = TRUST_DOMAIN
    """Whose identities its pods have."""

    @property
    def address(self) -> IPv4Address:
        return _FABRIC_NETWORK[self.number]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """`address`, and the IPv6 one if the lab has IPv6."""
        return (self.address, IPv6Address(f"fd77::{self.number}")) if self.ipv6 else (self.address,)

    @property
    def pod_network(self) -> IPv4Network:
        return IPv4Network(f"10.77.{self.number}.0/24")

    @property
    def gateway(self) -> IPv4Address:
        return self.pod_network[1]

    @property
    def gateways(self) -> tuple[Address, ...]:
        """Of the pods, one of each family that the lab has."""
        return (self.gateway, IPv6Address(f"fd77::{self.number}:1")) if self.ipv6 else (self.gateway,)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: one interface (`eth0`) on its node's bridge. `link` names the other end, in the node's namespace.

    Or a host workload: a process in the node's own namespace, with its addresses, in a cgroup."""

    name: str
    node: str
    netns: str
    address: IPv4Address
    enrolled_from_start: bool
    address6: IPv6Address | None = None
    cgroup: str = ""
    """Of a host workload; "": it is a pod."""
    port: int = 0
    """Where a host workload is reached."""
    named_ipv4: bool = False
    """Its name stands for the IPv4 address also in a lab that has IPv6."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """`address`, and the IPv6 one if the lab has IPv6."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)

    @property
    def named_address(self) -> Address:
        """What its name stands for, and the lab's own programs dial: the IPv6 one if there is one, but for
        `named_ipv4`."""
        return self.address if self.named_ipv4 else self.addresses[-1]

    @property
    def link(self) -> str:
        return f"pod{self.address.packed[-1]}"


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual address, or one of each family, in front of pods: {port: port of the endpoints}."""

    name: str
    addresses: tuple[Address, ...]
    ports: tuple[tuple[int, int], ...]
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a lab consists of."""

    name: str
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    ipv6: bool = False
    """Everything has an IPv6 address as well."""
    node_rules: str = ""
    """Which netfilter rules the nodes have, one of NODE_RULES; "": none."""
    issuer: str = ISSUERS[0]
    """One of ISSUERS: what the nodes of the lab's own trust domain have. Those of others issue by themselves."""
    certificate_lifetime: str = ""
    """Of workloads, "90s"; "": as it is without the setting."""

    @classmethod
    def build(
        cls,
        name: str = DEFAULT_NAME,
        *,
        nodes: int = 2,
        more_pods: Sequence[PodRequest] = (),
        enrol: bool = True,
        ipv6: bool = False,
        ipv6_names: bool = True,
        node_rules: str = "",
        issuer: str = ISSUERS[0],
        trust_domains: Sequence[TrustDomainRequest] = (),
        certificate_lifetime: str = "",
    ) -> Plan:
        """The default pods plus `more_pods` on `nodes` nodes; `enrol` False starts with nobody enrolled; `ipv6_names`:
        with `ipv6`, the pods' names stand for their IPv6 addresses; `node_rules` is one of NODE_RULES, or "";
        `issuer` is one of ISSUERS; `trust_domains`: the nodes that are of others; `certificate_lifetime`: see there.

        Raises LabPlanError for a name, a number of nodes, a pod, rules or whatever else cannot be."""
        if issuer not in ISSUERS:
            raise LabPlanError(f"--issuer {issuer}: expected one of {', '.join(ISSUERS)}")
        if node_rules and node_rules not in NODE_RULES:
            raise LabPlanError(f"--node-rules {node_rules}: expected one of {', '.join(NODE_RULES)}")
        check_lab_name(name)
        if not 2 <= nodes <= MAX_NODES:
            raise LabPlanError(f"--nodes {nodes}: expected 2 to {MAX_NODES}")
        if certificate_lifetime:
            _check_lifetime(certificate_lifetime, issuer)
        domains = _domains_of_nodes(trust_domains, [f"node{n}" for n in range(1, nodes + 1)])
        planned = tuple(
            Node(node, number, prefix(name) + node, ipv6, domain)
            for number, (node, domain) in enumerate(domains.items(), start=1)
        )
        by_name = {node.name: node for node in planned}
        numbers = dict.fromkeys(by_name, FIRST_POD_NUMBER)
        pods: dict[str, Pod] = {}
        for request in (*DEFAULT_PODS, *more_pods):
            _check_pod(request, by_name, pods)
            if request.port:
                pods[request.name] = _host_workload(request, by_name[request.node], name, enrol=enrol)
                continue
            number = numbers[request.node]
            numbers[request.node] += 1
            if number >= FIRST_POD_NUMBER + MAX_PODS_PER_NODE:
                raise LabPlanError(f"--pod {request.name}: {request.node} has {MAX_PODS_PER_NODE} pods already")
            pods[request.name] = Pod(
                name=request.name,
                node=request.node,
                netns=prefix(name) + request.name,
                address=by_name[request.node].pod_network[number],
                enrolled_from_start=enrol and request.enrolled,
                address6=IPv6Address(f"fd77::{by_name[request.node].number}:{number}") if ipv6 else None,
                named_ipv4=not ipv6_names,
            )
        return cls(name, planned, tuple(pods.values()), ipv6, node_rules, issuer, certificate_lifetime)

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The lab's own first."""
        return tuple(dict.fromkeys((TRUST_DOMAIN, *(node.trust_domain for node in self.nodes))))

    def trust_domain_of(self, pod: str) -> str:
        """Whose identity a pod has. Raises UnknownPodError."""
        return self.node(self.pod(pod).node).trust_domain

    @property
    def fabric(self) -> str:
        """The namespace whose bridge is the network between the nodes."""
        return prefix(self.name) + "fabric"

    @property
    def services(self) -> tuple[Service, ...]:
        port = PIPELINE_HTTP_PORT
        addresses = (SERVICE_ADDRESS, SERVICE_ADDRESS_6) if self.ipv6 else (SERVICE_ADDRESS,)
        return (Service("pipeline", addresses, ((port, port),), ("pipeline",)),)

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.fabric, *(node.netns for node in self.nodes), *(pod.netns for pod in self.pods if not pod.cgroup))

    def pod(self, name: str) -> Pod:
        """Raises UnknownPodError, which names those that exist."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise UnknownPodError(name, (pod.name for pod in self.pods))

    def node(self, name: str) -> Node:
        """Raises LabPlanError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabPlanError(f"unknown node '{name}': this lab has {', '.join(n.name for n in self.nodes)}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in the state file; `from_json` is its inverse."""
        return {
            "name": self.name,
            "ipv6": self.ipv6,
            "node_rules": self.node_rules,
            "issuer": self.issuer,
            "certificate_lifetime": self.certificate_lifetime,
            "nodes": [
                {"name": node.name, "number": node.number, "netns": node.netns, "trust_domain": node.trust_domain}
                for node in self.nodes
            ],
            "pods": [
                {
                    "name": pod.name,
                    "node": pod.node,
                    "netns": pod.netns,
                    "address": str(pod.address),
                    "enrolled_from_start": pod.enrolled_from_start,
                    "address6": str(pod.address6) if pod.address6 is not None else None,
                    "cgroup": pod.cgroup,
                    "port": pod.port,
                    "named_ipv4": pod.named_ipv4,
                }
                for pod in self.pods
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """Raises KeyError, TypeError or ValueError when it is not what to_json gives."""
        ipv6 = bool(value["ipv6"])
        return cls(
            name=str(value["name"]),
            ipv6=ipv6,
            node_rules=str(value.get("node_rules", "")),
            issuer=str(value.get("issuer", ISSUERS[0])),
            certificate_lifetime=str(value.get("certificate_lifetime", "")),
            nodes=tuple(
                Node(node["name"], node["number"], node["netns"], ipv6, node.get("trust_domain", TRUST_DOMAIN))
                for node in value["nodes"]
            ),
            pods=tuple(
                Pod(
                    name=pod["name"],
                    node=pod["node"],
                    netns=pod["netns"],
                    address=IPv4Address(pod["address"]),
                    enrolled_from_start=pod["enrolled_from_start"],
                    address6=IPv6Address(pod["address6"]) if pod["address6"] is not None else None,
                    cgroup=pod.get("cgroup", ""),
                    port=pod.get("port", 0),
                    named_ipv4=pod.get("named_ipv4", False),
                )
                for pod in value["pods"]
            ),
        )

    def hosts_file(self) -> str:
        """What /etc/hosts says inside `lab exec`: every pod by its name, every service as NAME.svc. A name stands for
        one address, so that what is dialled by it is known."""
        lines = ["127.0.0.1 localhost", *(["::1 localhost"] if self.ipv6 else [])]
        lines += [f"{pod.named_address} {pod.name}" for pod in self.pods]
        lines += [f"{service.addresses[-1]} {service.name}.svc" for service in self.services]
        lines += [f"{node.addresses[-1]} {node.name}" for node in self.nodes]
        return "\n".join(lines) + "\n"


def prefix(name: str) -> str:
    """How the names of all network namespaces of the lab `name` begin."""
    return f"nodeseal-{name}-"


def in_url(address: Address) -> str:
    """An address as it stands before a colon and a port: an IPv6 one in brackets (RFC 3986 section 3.2.2)."""
    return f"[{address}]" if address.version == 6 else str(address)


def check_lab_name(name: str) -> None:
    """Raises LabPlanError unless the name can be a lab's."""
    if not _LAB_NAME.fullmatch(name):
        raise LabPlanError(f"--name {name}: expected 1 to 16 lower case letters and digits, a letter first")


def _domains_of_nodes(requests: Sequence[TrustDomainRequest], nodes: Sequence[str]) -> dict[str, str]:
    """The trust domain of each node."""
    domains = dict.fromkeys(nodes, TRUST_DOMAIN)
    for request in requests:
        option = f"--trust-domain {request.node}:{request.trust_domain}"
        if request.node not in domains:
            raise LabPlanError(f"{option}: no node '{request.node}': this lab has {', '.join(nodes)}")
        if request.node == nodes[0]:
            raise LabPlanError(
                f"{option}: {nodes[0]} is of the lab's own trust domain, {TRUST_DOMAIN}; name another node"
            )
        if request.trust_domain == TRUST_DOMAIN:
            raise LabPlanError(f"{option}: that is the lab's own trust domain; name another one")
        if domains[request.node] not in (TRUST_DOMAIN, request.trust_domain):
            raise LabPlanError(f"{option}: {request.node} is of {domains[request.node]} already")
        domains[request.node] = request.trust_domain
    return domains


def _check_lifetime(text: str, issuer: str) -> None:
    """Raises LabPlanError unless agents, and the certificate service if it is that, take it."""
    least = _LEAST_LIFETIME_OF_SERVICE if issuer == "service" else _LEAST_LIFETIME
    from nodeseal.documents.durations import parse_duration

    try:
        parsed: timedelta | None = parse_duration(text)
    except ValueError:
        parsed = None
    if parsed is None or not least <= parsed <= _LONGEST_LIFETIME:
        seconds = int(least.total_seconds())
        raise LabPlanError(
            f"--certificate-lifetime {text}: expected a number with s, m, h or d, from {seconds}s to 365d, such as 90s"
        )


def _host_workload(request: PodRequest, node: Node, lab: str, *, enrol: bool) -> Pod:
    address6 = node.addresses[1] if node.ipv6 else None
    assert address6 is None or isinstance(address6, IPv6Address)
    return Pod(
        name=request.name,
        node=node.name,
        netns=node.netns,
        address=node.address,
        enrolled_from_start=enrol and request.enrolled,
        address6=address6,
        cgroup=f"/nodeseal-lab-{lab}/{request.name}",
        port=request.port,
    )


def _check_pod(request: PodRequest, nodes: dict[str, Node], pods: dict[str, Pod]) -> None:
    option = "--host-workload" if request.port else "--pod"
    if not _POD_NAME.fullmatch(request.name) or _RESERVED_POD_NAME.fullmatch(request.name):
        raise LabPlanError(
            f"{option} {request.name}: expected 1 to 15 lower case letters, digits and hyphens, a letter first, "
            "and not a node's name"
        )
    if request.name in pods:
        raise LabPlanError(f"{option} {request.name}: the lab has a pod of this name already")
    if request.node not in nodes:
        raise LabPlanError(f"{option} {request.name}: no node '{request.node}': this lab has {', '.join(nodes)}")
    if any(pod.node == request.node and pod.port == request.port for pod in pods.values() if request.port):
        raise LabPlanError(f"{option} {request.name}: another one on {request.node} has port {request.port}")
