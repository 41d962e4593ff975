"""The agent's configuration file, in the same YAML and with the same kind of messages as the mesh state.

    node: node1                      # this node's name in the mesh state; required where NODESEAL_NODE does not say it
    mesh: /etc/nodeseal/mesh         # required; the mesh state's directory, or Kubernetes, see mesh_source.py
    ca: /etc/nodeseal/ca             # required; made by `nodeseal ca init`, or another issuer, see issuers.py
    issuers: []                      # other issuers for some namespaces, see issuers.py
    crls: []                         # revocation lists of other issuers: files, DER or PEM
    run_dir: /run/nodeseal           # sockets, locks, journal
    workers: 4                       # threads that move bytes; the default is one for every two CPUs, at most 4
    congestion_control: bbr          # between nodes; the default is what each workload's namespace has
    spin: 50us                       # how long a worker looks for more before it sleeps; the default is not at all
    certificate_lifetime: 24h        # renewed at half of it
    certificate_key: p256            # of the workloads' keys: p256, p384 or ed25519
    tls:                             # of tunnels
      profile: default               # or fips: OpenSSL's FIPS module alone
    settle: 2s                       # how long the other nodes get to see a change
    preconnect: 0s                   # peers used within it get a new tunnel ahead of need; 0s: none do
    limits:                          # of each workload, unless the mesh state has others for it; none: no limit
      connections: 20000             # at once
      memory: 256MiB                 # that the core holds for it
      new_connections: 20000         # a second
    drain_limit: none                # how long a core that was replaced may go on with its connections
    unacknowledged_limit: none       # how long a peer may acknowledge nothing of what was sent; 10s, say
    node_addresses: [local]          # from where plaintext reaches every workload: the node itself, addresses, ranges
    mesh_networks: [10.0.0.0/8]      # all ranges of pods and services; none: nothing is certain to be outside the mesh
    outside_mesh: [10.96.0.1]        # outside all the same: addresses, ranges; the API server's, for example
    capture: auto                    # ebpf, iptables, or auto: ebpf where this machine has what it needs
    connect: truthful                # when a workload's connect() returns: once the far side is there, or early
    core: {}                         # where cores run: cgroup, memory, CPUs, files; see core_settings.py
    hand_over: false                 # true: another agent of this run directory takes over, instead of being refused
    health_directory: /run/health    # files for probes of this very process; the default is none
    cni: {on_failure: closed}        # pods start once they are enrolled, see pod_start.py; the default is without
    plaintext: native                # what is decided to be plaintext is native, or goes through the core: proxied

`cgroup`, the root of the cgroup v2 tree, is found; who has several names one (/sys/fs/cgroup/unified, say).
A setting that is given and cannot be met is an error, see verify.py.

Relative paths are relative to the file's own directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv6Network
from pathlib import Path

from nodeseal.capture.backends.backend import Choice
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.documents.document import Node, Scalar, shown
from nodeseal.documents.durations import read_duration, read_optional_duration
from nodeseal.documents.exclude import read_items, read_network
from nodeseal.documents.limits import read_limits
from nodeseal.documents.schema import Fields, Problems, is_name, open_document, read_text
from nodeseal.local import run_directory
from nodeseal.local.core_settings import CoreSettings, read_core_settings
from nodeseal.local.issuers import Ca, NamespaceCa, read_ca, read_issuers
from nodeseal.local.mesh_source import KubernetesMesh, read_mesh
from nodeseal.local.pod_start import PodStart, read_pod_start
from nodeseal.local.tls_profile import TlsProfile, read_tls_profile
from nodeseal.mesh.exclusions import Network
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Connect, PlaintextWay

DEFAULT_RUN_DIR = run_directory.DEFAULT
NODE_VARIABLE = "NODESEAL_NODE"
"""Of the environment: the node's name where the file has none, as in a DaemonSet, whose pods have one file."""
DEFAULT_CONNECT = Connect.TRUTHFUL
_LIFETIME_MIN = timedelta(seconds=2)
_LIFETIME_MAX = timedelta(days=365)
_SETTLE_MAX = timedelta(hours=1)
_SPIN_MAX = timedelta(milliseconds=1)
_PRECONNECT_MAX = timedelta(days=1)
_PRECONNECT_FORMERLY = "warm_tunnels"
_DRAIN_MAX = timedelta(days=365)
_UNACKNOWLEDGED_MIN = timedelta(seconds=1)
_UNACKNOWLEDGED_MAX = timedelta(hours=1)
_LOCAL = "local"
# In the kernel's map IPv4 addresses are below this prefix: a range that holds it would hold all of them.
_V4_MAPPED = IPv6Network("::ffff:0:0/96")
_PATH_EXPECTED = "a path"
_NETWORK_EXPECTED = "an address, or a range of addresses such as 10.0.0.0/24"
# sun_path of a Unix socket holds 108 bytes (unix(7)); "/agent.sock" goes behind the run directory.
_RUN_DIR_MAX = 90


class ConfigError(Exception):
    """The configuration file cannot be used; one line a problem."""


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Where connections come from that reach every workload in plaintext: probes of the kubelet, for example."""

    local: bool = True
    """The addresses of the agent's network namespace, for what a process of this machine has sent from there."""
    trusted: tuple[Network, ...] = ()
    """Named by the operator, and trusted wherever it comes from."""


@dataclass(frozen=True, slots=True)
class Config:
    """See the module's text. `cgroup` is None when it is to be found."""

    node: str
    mesh: Path | KubernetesMesh
    ca: Ca
    run_dir: Path
    workers: int
    congestion_control: str
    """"" for the system's own."""
    spin: timedelta
    certificate_lifetime: timedelta
    settle: timedelta
    preconnect: timedelta
    """Peers that were used within it get a new tunnel ahead of need; 0: none do."""
    drain_limit: timedelta | None
    """None: as long as they last."""
    capture: Choice
    cgroup: Path | None
    node_addresses: NodeAddresses = NodeAddresses()
    extent: Extent = field(default_factory=Extent)
    """What `mesh_networks` and `outside_mesh` say."""
    limits: Limits = field(default_factory=Limits)
    unacknowledged_limit: timedelta | None = None
    """None: as long as any silence of a peer is borne."""
    plaintext: PlaintextWay = PlaintextWay.NATIVE
    """Native where `connect` is truthful; other workloads have it proxied."""
    connect: Connect | None = None
    """Of workloads for which the mesh state does not say; None: DEFAULT_CONNECT, where it can be had."""
    certificate_key: KeyKind = KeyKind.P256
    """Of keys that are made on this node."""
    issuers: tuple[NamespaceCa, ...] = ()
    """Instead of `ca`, for the workloads of some namespaces."""
    tls: TlsProfile = TlsProfile.DEFAULT
    core: CoreSettings = field(default_factory=CoreSettings)
    hand_over: bool = False
    """Another agent of the same run directory takes over from this one, and this one from another."""
    health_directory: Path | None = None
    """Where the process says that it lives and is ready; see daemon/process_health.py."""
    pod_start: PodStart | None = None
    """The network plugin, `cni`; None: there is none."""
    crls: tuple[Path, ...] = ()
    """Revocation lists of other issuers."""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """Setting -> its line in the file, of those that are there."""

    @property
    def truthful(self) -> bool:
        """Whether what captures must have `connect: truthful`."""
        return self.connect is Connect.TRUTHFUL


def load(path: Path) -> Config:
    """Reads a configuration file. Raises ConfigError with every problem in it."""
    problems = Problems(str(path))
    fields = open_document(path, problems)
    if fields is None:
        raise _error(problems)
    base = path.absolute().parent
    config = Config(
        node=_node(fields),
        mesh=read_mesh(fields, "mesh", base),
        ca=read_ca(fields, "ca", base),
        run_dir=base / fields.text("run_dir", str(DEFAULT_RUN_DIR), expected=_PATH_EXPECTED),
        workers=fields.integer("workers", default_workers(), 1, 64, "a number of threads from 1 to 64"),
        congestion_control=fields.text(
            "congestion_control",
            "",
            expected="the name of a congestion control of the kernel, such as cubic or bbr",
            pattern=r"[a-z0-9_-]{0,15}",
        ),
        spin=read_duration(fields, "spin", "0us", timedelta(0), _SPIN_MAX),
        certificate_lifetime=read_duration(fields, "certificate_lifetime", "24h", _LIFETIME_MIN, _LIFETIME_MAX),
        settle=read_duration(fields, "settle", "2s", timedelta(0), _SETTLE_MAX),
        preconnect=_preconnect(fields),
        drain_limit=read_optional_duration(fields, "drain_limit", timedelta(0), _DRAIN_MAX),
        unacknowledged_limit=read_optional_duration(
            fields, "unacknowledged_limit", _UNACKNOWLEDGED_MIN, _UNACKNOWLEDGED_MAX
        ),
        capture=fields.choice("capture", Choice.AUTO),
        cgroup=_optional_path(fields, "cgroup", base),
        node_addresses=_node_addresses(fields),
        extent=_extent(fields),
        limits=read_limits(fields, "limits").over(Limits()),
        plaintext=fields.choice("plaintext", PlaintextWay.NATIVE),
        connect=fields.choice("connect", DEFAULT_CONNECT) if fields.has("connect") else None,
        certificate_key=fields.choice("certificate_key", KeyKind.P256),
        issuers=read_issuers(fields, base),
        tls=read_tls_profile(fields, "tls"),
        crls=_crls(fields, base),
        core=read_core_settings(fields, "core", base),
        hand_over=fields.truth("hand_over", False),
        pod_start=read_pod_start(fields, "cni", base),
        health_directory=_optional_path(fields, "health_directory", base),
        lines={name: fields.line_of(name) for name in Config.__dataclass_fields__ if fields.has(name)},
    )
    if len(os.fsencode(config.run_dir)) > _RUN_DIR_MAX:
        found = f"one of {len(os.fsencode(config.run_dir))}"
        problems.add(fields.line_of("run_dir"), "run_dir", f"a path of at most {_RUN_DIR_MAX} bytes", found)
    if config.tls is TlsProfile.FIPS and config.certificate_key is KeyKind.ED25519:
        expected = "p256 or p384 with the profile fips of 'tls'"
        problems.add(fields.line_of("certificate_key"), "certificate_key", expected, str(config.certificate_key))
    fields.close()
    if problems.found:
        raise _error(problems)
    return config


def default_workers() -> int:
    """Worker threads unless the file says otherwise: one for every two CPUs that this process may use, at most 4.

    The applications need the other CPUs, and fewer workers serve each connection with less CPU (docs/performance.md).
    """
    return max(1, min(len(os.sched_getaffinity(0)) // 2, 4))


def _error(problems: Problems) -> ConfigError:
    return ConfigError("\n".join(str(problem) for problem in problems.found))


def _node(fields: Fields) -> str:
    name = os.environ.get(NODE_VARIABLE, "")
    if fields.has("node") or not name:
        return fields.name("node")
    if not is_name(name):
        fields.problems.add(0, "node", f"a name in {NODE_VARIABLE}", shown(name))
    return fields.name("node", name)


def _optional_path(fields: Fields, name: str, base: Path) -> Path | None:
    text = fields.text(name, "", expected=_PATH_EXPECTED)
    return base / text if text else None


def _crls(fields: Fields, base: Path) -> tuple[Path, ...]:
    nodes = fields.items("crls", "a list of files", required=False)
    return tuple(
        base / read_text(fields.problems, node, f"crls[{index}]", _PATH_EXPECTED) for index, node in enumerate(nodes)
    )


def _node_addresses(fields: Fields) -> NodeAddresses:
    name, expected = "node_addresses", f"{_LOCAL!r}, an address, or a range of addresses such as 10.0.0.0/24"
    nodes = fields.items(name, f"a list of addresses and of {_LOCAL!r}, for those of this machine", required=False)
    if not fields.has(name):
        return NodeAddresses()
    local, trusted = False, []
    for index, node in enumerate(nodes):
        if isinstance(node, Scalar) and node.text == _LOCAL:
            local = True
        elif (network := read_network(fields.problems, node, f"{name}[{index}]", expected)) is not None:
            _not_all(fields.problems, node, f"{name}[{index}]", network)
            trusted.append(network)
    return NodeAddresses(local, tuple(trusted))


def _extent(fields: Fields) -> Extent:
    networks: tuple[Network, ...] = read_items(
        fields, "mesh_networks", "a list of ranges of addresses", _read_smaller_network
    )
    outside: tuple[Network, ...] = read_items(
        fields, "outside_mesh", "a list of addresses and ranges of addresses", _read_smaller_network
    )
    for network in outside:
        if network in networks:
            expected = "addresses that 'mesh_networks' does not have as well"
            fields.problems.add(fields.line_of("outside_mesh"), "outside_mesh", expected, str(network))
    return Extent(networks, outside)


def _read_smaller_network(problems: Problems, node: Node, field: str) -> Network | None:
    network = read_network(problems, node, field, _NETWORK_EXPECTED)
    if network is not None:
        _not_all(problems, node, field, network)
    return network


def _not_all(problems: Problems, node: Node, field: str, network: Network) -> None:
    """The range is to be smaller than all addresses of a family."""
    if network.supernet_of(_V4_MAPPED) if network.version == 6 else not network.prefixlen:
        problems.add(node.line, field, "a smaller range of addresses", str(network))


def _preconnect(fields: Fields) -> timedelta:
    value = read_duration(fields, "preconnect", "0s", timedelta(0), _PRECONNECT_MAX)
    if not fields.has(_PRECONNECT_FORMERLY):
        return value
    if fields.has("preconnect"):
        line = fields.line_of(_PRECONNECT_FORMERLY)
        fields.problems.add(line, _PRECONNECT_FORMERLY, "preconnect alone, which it was renamed to", "both")
    return read_duration(fields, _PRECONNECT_FORMERLY, "0s", timedelta(0), _PRECONNECT_MAX)
