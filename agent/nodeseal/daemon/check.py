"""What `nodeseal check` finds: whether this machine can be a node, by which backend, and with what reservations."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nodeseal.capture import features, other_balancers
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.features import Feature
from nodeseal.capture.journal import BackendName
from nodeseal.capture.reservations import EARLY, RESERVATIONS
from nodeseal.cni.installation import Installation
from nodeseal.daemon.composition import source_of
from nodeseal.daemon.verify import congestion_problem
from nodeseal.linux import addresses, cgroups, openssl
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.openssl import OpenSSLError
from nodeseal.local.config import Config
from nodeseal.local.tls_profile import TlsProfile
from nodeseal.mesh.address import Address
from nodeseal.node import probes
from nodeseal.node.peers import names_of
from nodeseal.sources.source import MeshStateError

_DESCRIPTORS = 65536  # two for each connection through the core
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_IPV6 = Path("/proc/sys/net/ipv6")


@dataclass(frozen=True, slots=True)
class Findings:
    """`wanted`: what the configuration asks for; `chosen`: the backend that will capture, None when none can; `why`:
    the reason for either, one line; `warnings`: what would not work with this configuration and its mesh state, one
    line each.
    """

    features: tuple[Feature, ...]
    wanted: Choice
    chosen: BackendName | None
    why: str
    warnings: tuple[str, ...] = ()

    @property
    def reservations(self) -> tuple[str, ...]:
        """What the chosen backend does not promise."""
        if self.chosen is None:
            return ()
        parks = self.chosen == "ebpf" or any(one.name == features.PARKING and one.found for one in self.features)
        return RESERVATIONS[self.chosen] if parks else (EARLY, *RESERVATIONS[self.chosen])


def check(config: Config | None) -> Findings:
    """Look at this machine; `config`: None for the defaults. Changes nothing; takes a few seconds."""
    found = [
        *_process_features(
            config.congestion_control if config is not None else "",
            config.tls if config is not None else TlsProfile.DEFAULT,
        ),
        *features.survey(config.cgroup if config is not None else None),
    ]
    if config is None:
        return conclude(found, Choice.AUTO)
    findings = conclude(found, config.capture, truthful=config.truthful)
    if findings.chosen is None:
        return findings
    return replace(findings, warnings=tuple(warnings(config, findings.chosen, addresses.node_addresses())))


def warnings(config: Config, chosen: BackendName, local: frozenset[Address]) -> Iterator[str]:
    """What would not work here with this configuration, its mesh state, and these addresses of the node."""
    if config.pod_start is not None:
        yield from Installation(config.pod_start, config.run_dir).look()
    source = source_of(config)
    yield from asyncio.run(source.examine())
    try:
        mesh = asyncio.run(source.load())
    except MeshStateError as error:
        first, *more = str(error).splitlines()
        yield f"the mesh state cannot be used: {first}{f' (and {len(more)} more)' if more else ''}"
        return
    ours = [workload for workload in mesh.workloads.values() if workload.node == config.node]
    if not ours:
        where = source.describe()
        yield f"no workload of the mesh state {where} is on the node {config.node}: is 'node' spelt as there?"
    wanted = [workload for workload in mesh.workloads.values() if workload.wanted]
    if apart := [one.key for one in wanted if any(map(config.extent.is_outside, one.addresses))]:
        yield (
            f"mesh_networks and outside_mesh say that {names_of(apart)} cannot be in the mesh: what is dialled there "
            "before the agent has seen that it is enrolled goes past the core; have the address in mesh_networks"
        )
    with contextlib.suppress(LinuxError, OSError):
        # Without a cgroup v2 tree nothing is attached to one.
        yield from other_balancers.found(config.cgroup or cgroups.find_cgroup())
    if chosen == "iptables" and (text := probes.refused(ours, config.node_addresses, local)):
        yield f"{text}: {probes.REMEDY}"


def conclude(found: Sequence[Feature], wanted: Choice, *, truthful: bool = False) -> Findings:
    """Which backend captures where these features are found. `truthful`: connections must not be early."""
    lacking: dict[BackendName, str] = {
        name: ", ".join(one.name for one in features.lacking(list(found), name, truthful=truthful))
        for name in ("ebpf", "iptables")
    }
    missing_ebpf = f"eBPF lacks: {lacking['ebpf']}"
    missing_iptables = f"iptables lacks: {lacking['iptables']}"
    chosen: BackendName | None = None
    if wanted is not Choice.IPTABLES and not lacking["ebpf"]:
        chosen, why = "ebpf", "this machine has everything that eBPF needs"
    elif wanted is not Choice.EBPF and not lacking["iptables"]:
        chosen = "iptables"
        why = missing_ebpf if wanted is Choice.AUTO else "the configuration asks for it, and everything is here"
    else:
        why = {
            Choice.AUTO: f"{missing_ebpf}; {missing_iptables}",
            Choice.EBPF: missing_ebpf,
            Choice.IPTABLES: missing_iptables,
        }[wanted]
    return Findings(tuple(found), wanted, chosen, why)


def _process_features(congestion_control: str, profile: TlsProfile = TlsProfile.DEFAULT) -> list[Feature]:
    return [
        _feature("core", _core),
        _feature("OpenSSL", lambda: _openssl(profile)),
        _feature("file descriptors", _descriptors, needed=False),
        _feature("congestion control", lambda: _congestion_control(congestion_control), needed=False),
        _feature("IPv6", _ipv6, needed=False),
    ]


class _Missing(Exception):
    """Something is not as it should be; one line."""


def _feature(name: str, look: Callable[[], str], *, needed: bool = True) -> Feature:
    try:
        return Feature(name, "both", True, look(), needed)
    except (_Missing, OSError) as error:
        return Feature(name, "both", False, str(error), needed)


def _core() -> str:
    try:
        importlib.import_module("nodeseal._core")
    except ImportError as error:
        raise _Missing(f"the compiled core cannot be loaded ({error}): install nodeseal again") from None
    return "compiled and loadable"


def _openssl(profile: TlsProfile) -> str:
    try:
        version = openssl.library_version()
        provider = openssl.provider(fips=profile is TlsProfile.FIPS)
    except OpenSSLError as error:
        raise _Missing(str(error)) from None
    return f"{version}; TLS by {provider}, profile {profile}"


def _descriptors() -> str:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise _Missing(
            f"at most {hard}, and each connection through the core takes two: raise the hard limit (systemd: "
            "LimitNOFILE=1048576)"
        )
    return "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"


def _congestion_control(asked: str) -> str:
    problem = congestion_problem(asked)
    if problem is not None:
        raise _Missing(problem)
    return asked or f"{_CONGESTION_CONTROL.read_text().strip()}, the system's own"


def _ipv6() -> str:
    if not _IPV6.is_dir():
        raise _Missing("this kernel has no IPv6: workloads can have IPv4 addresses only")
    return "the kernel has it"
