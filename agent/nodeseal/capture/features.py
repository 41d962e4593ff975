"""What of this machine each capture backend can use: every feature tried by itself, and nothing changed.

Features are found by doing the thing, in a network namespace made for it, never by comparing versions: distributions
move features into old kernels and take them out of new ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from nodeseal.capture import constants
from nodeseal.capture.backends import ruleset
from nodeseal.capture.backends.iptables import cannot_park, sample
from nodeseal.capture.bpf import shipped, steering
from nodeseal.capture.bpf.compile import Compiled, compile_in_child
from nodeseal.capture.bpf.programs import PROGRAMS, Programs
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName
from nodeseal.linux import capabilities, cgroups, conntrack, rtnetlink, tc_filters, xtables
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import in_new_namespace
from nodeseal.linux.rtnetlink import LOOPBACK, Device, Route, Rule

# Whom a feature is for: a backend, or both of them.
For = Literal["ebpf", "iptables", "both"]
PARKING = "NFQUEUE"
"""The feature without which iptables captures, but cannot park."""
_LOOPBACK_ADDRESSES = {4: "127.0.0.1", 6: "::1"}
# What each part of the rules is tried by: target or match -> a rule.
_PARTS = {
    "TPROXY": "-A PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1",
    "marks": "-A OUTPUT -p tcp -m mark ! --mark 0x1 -j MARK --set-xmark 0x1/0xffffffff",
    "conntrack marks": "-A OUTPUT -p tcp -m connmark --mark 0x1 -j CONNMARK --set-xmark 0x1/0xffffffff",
    "conntrack states": "-A OUTPUT -p tcp -m conntrack --ctstate INVALID -j DROP",
    "address types": "-A PREROUTING -m addrtype --dst-type LOCAL -j RETURN",
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was looked for. `detail`: what was found, or what is missing and what to do about it, one line.

    `needed`: whether the backend cannot do without it.
    """

    name: str
    use: For
    found: bool
    detail: str
    needed: bool = True


def survey(cgroup: Path | None) -> Iterator[Feature]:
    """Every feature, in the order in which a person would look. `cgroup`: the root of the cgroup v2 tree, None to find
    it. Needs root to find anything but its own lack of privileges.
    """
    yield _try("privileges", "both", lambda: _privileges(bpf=False))
    for version in (4, 6):

        def route(version: int = version) -> str:
            return in_new_namespace(lambda: _routing(version))

        yield _try(f"policy routing IPv{version}", "both", route, needed=version == 4)
    yield _try("BPF privileges", "ebpf", lambda: _privileges(bpf=True))
    yield _try("cgroup v2", "ebpf", lambda: str(cgroups.check_cgroup(cgroup or cgroups.find_cgroup())))
    yield from _programs()
    yield _try("TCX or clsact", "ebpf", _steering)
    for family in (4, 6):
        yield from _iptables(family)
    yield _try("conntrack's list", "iptables", lambda: in_new_namespace(_conntrack_list))
    yield _try(PARKING, "iptables", _parking, needed=False)


def lacking(features: list[Feature], backend: BackendName, *, truthful: bool = False) -> list[Feature]:
    """The features that a backend needs and this machine lacks. `truthful`: it must be able to park."""
    return [
        one
        for one in features
        if one.use in ("both", backend) and (one.needed or (truthful and one.name == PARKING)) and not one.found
    ]


def _try(name: str, use: For, attempt: Callable[[], str], *, needed: bool = True) -> Feature:
    try:
        return Feature(name, use, True, attempt(), needed)
    except LinuxError as error:
        return Feature(name, use, False, str(error), needed)
    except OSError as error:
        return Feature(name, use, False, f"{error.strerror or error}; run as root", needed)


def _privileges(*, bpf: bool) -> str:
    capabilities.check_privileges(bpf=bpf)
    names = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN", *(["CAP_BPF"] if bpf else []))
    return f"user {os.geteuid()} with {', '.join(names)}"


def _routing(version: int) -> str:
    table = constants.ROUTE_TABLE
    rtnetlink.set_up(LOOPBACK)
    rtnetlink.add_routes(version, table, [Route(1, LOOPBACK, ip_address(_LOOPBACK_ADDRESSES[version])), Route(2)])
    rtnetlink.add_rules([Rule(version, constants.MARK_CAPTURED, constants.RULE_PRIORITY, table)])
    return "rules by mark, tables of their own"


def _programs() -> Iterator[Feature]:
    """The compiler, where one is needed, and each program as the kernel sees it."""
    compiled: list[Compiled] = []

    def compile_all() -> str:
        if (there := shipped.load()) is not None:
            compiled.append(there)
            return "none is needed: the programs came compiled"
        compiled.append(compile_in_child())
        return "bcc compiles bpf/*.c"

    yield _try("BPF compiler", "ebpf", compile_all)
    for name in PROGRAMS:

        def load(name: str = name) -> str:
            if not compiled:
                raise CaptureError("not tried: there is nothing to load without the compiler")
            Programs(compiled[0]).probe([name])
            return "the kernel takes it"

        yield _try(f"BPF {name}", "ebpf", load)


def _steering() -> str:
    if steering.probe_tcx():
        return "TCX links"

    def attempt() -> None:
        program = steering.load_nothing()
        try:
            (plan,) = tc_filters.plan_filters([Device(LOOPBACK, "lo")])
            tc_filters.add_filter(plan, program)
        finally:
            os.close(program)

    in_new_namespace(attempt)
    return "tc filters, as there is no TCX: what a pod sends as it is enrolled can be lost for some milliseconds"


def _iptables(family: int) -> Iterator[Feature]:
    """`needed` for IPv4: a machine without IPv6 can do without its rules."""
    needed = family == 4
    found: list[str] = []

    def choose() -> str:
        found.append(in_new_namespace(lambda: xtables.choose(family)))
        return f"{found[0]}, where a namespace does not use the other flavour"

    yield _try(f"iptables IPv{family}", "iptables", choose, needed=needed)
    for part, rule in _PARTS.items():

        def attempt(rule: str = rule) -> str:
            if not found:
                raise CaptureError("not tried: there is no program to try it with")
            text = "\n".join(["*mangle", rule, "COMMIT", ""])
            in_new_namespace(lambda: xtables.restore(found[0], text))
            return "the kernel takes it"

        yield _try(f"{part} IPv{family}", "iptables", attempt, needed=needed)

    def whole() -> str:
        if not found:
            raise CaptureError("not tried: there is no program to try it with")
        in_new_namespace(lambda: xtables.restore(found[0], sample(family)))
        return f"chains {ruleset.OUTPUT}, {ruleset.PREROUTING} and {ruleset.POSTROUTING}"

    yield _try(f"all rules IPv{family}", "iptables", whole, needed=needed)


def _parking() -> str:
    if (why := cannot_park()) is not None:
        raise CaptureError(f"connections are early: {why}")
    return "what workloads dial can wait until the far side is there"


def _conntrack_list() -> str:
    conntrack.marked_connections(constants.MARK_CAPTURED)
    return "by netlink"
