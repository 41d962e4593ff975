"""Addresses, devices, routes and rules of a network namespace, through rtnetlink.

Functions here are to be called inside the namespace (NetworkNamespace.run). Adding what is there and removing what is
not there is harmless, so that every step can be done again after a crash.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeseal.linux.errors import LinuxError
from nodeseal.mesh.address import Address

LOOPBACK = 1
"""The index of lo in every namespace."""
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
"""By the version of an address."""
_IFF_UP = 0x1
_FULL_MASK = 0xFFFFFFFF
_STATIC = 4  # RTPROT_STATIC
_SCOPE_HOST = 254
_TO_TABLE, _UNREACHABLE = 1, 7  # FR_ACT_TO_TBL, FR_ACT_UNREACHABLE of linux/fib_rules.h
_IFA_F_DADFAILED, _IFA_F_OPTIMISTIC, _IFA_F_TENTATIVE = 0x08, 0x04, 0x40  # linux/if_addr.h


@dataclass(frozen=True, slots=True)
class Device:
    """A network device other than lo."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in the namespace. `addresses`: all of them, those of lo included. Of these, `tentative` cannot be used
    yet, and `duplicate` not at all: another host has them (RFC 4862 section 5.4).
    """

    devices: tuple[Device, ...]
    addresses: frozenset[Address]
    loopback_up: bool
    ipv6_on_loopback: bool
    tentative: frozenset[Address] = frozenset()
    duplicate: frozenset[Address] = frozenset()

    @property
    def global_addresses(self) -> frozenset[Address]:
        """Those that mean something beyond the machine and the link."""
        return frozenset(one for one in self.addresses if not (one.is_loopback or one.is_link_local))


@dataclass(frozen=True, slots=True)
class Route:
    """A route for all destinations. `device`: the index of the one by which everything is delivered here, with `source`
    as the own address; None: it cannot be reached.
    """

    metric: int
    device: int | None = None
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets with this mark are routed by this table; None: not at all."""

    version: int
    mark: int
    priority: int
    table: int | None


@contextmanager
def explained(what: str) -> Iterator[None]:
    """What rtnetlink refuses becomes a LinuxError, "cannot `what`: ..."."""
    try:
        yield
    except NetlinkError as error:
        raise LinuxError(f"cannot {what}: {error.args[-1] if error.args else error}") from None


def survey() -> Survey:
    """Look at the namespace of the calling thread."""
    with IPRoute() as ipr:
        links = list(ipr.get_links())
        found = list(ipr.get_addr())
    addresses: dict[Address, int] = {}
    for item in found:
        if item["family"] in FAMILIES.values():
            address = ip_address(item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS"))
            addresses[address] = int(item.get_attr("IFA_FLAGS") or 0)
    return Survey(
        devices=tuple(
            Device(link["index"], link.get_attr("IFLA_IFNAME")) for link in links if link["index"] != LOOPBACK
        ),
        addresses=frozenset(addresses),
        loopback_up=any(link["index"] == LOOPBACK and link["flags"] & _IFF_UP for link in links),
        ipv6_on_loopback=_ipv6_is_on("lo"),
        tentative=frozenset(
            address
            for address, flags in addresses.items()
            if flags & (_IFA_F_TENTATIVE | _IFA_F_OPTIMISTIC) == _IFA_F_TENTATIVE
        ),
        duplicate=frozenset(address for address, flags in addresses.items() if flags & _IFA_F_DADFAILED),
    )


def _ipv6_is_on(device: str) -> bool:
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").read_text().strip() == "0"
    except OSError:  # a kernel without IPv6
        return False


def set_up(device: int) -> None:
    """Switch on the device with this index. Raises LinuxError."""
    with IPRoute() as ipr, explained(f"switch on the device {device}"):
        ipr.link("set", index=device, state="up")


def add_routes(version: int, table: int, routes: Iterable[Route]) -> None:
    """Put routes of this version of IP into a table. Raises LinuxError."""
    with IPRoute() as ipr, explained(f"fill the routing table {table}"):
        for route in routes:
            try:
                # append, as there may be several with the same metric
                ipr.route("append", family=FAMILIES[version], proto=_STATIC, table=table, **_attributes(route))
            except NetlinkError as error:
                if error.code == errno.ENETDOWN:  # a device that is down carries nothing
                    continue
                if error.code != errno.EEXIST:
                    raise


def remove_table(version: int, table: int) -> bool:
    """Empty the table. True when it held anything. Raises LinuxError."""
    family = FAMILIES[version]
    with IPRoute() as ipr, explained(f"empty the routing table {table}"):
        if not list(ipr.get_routes(family=family, table=table)):
            return False
        ipr.flush_routes(family=family, table=table)
    return True


def table_in_use(version: int, table: int) -> bool:
    """Whether the table holds routes, or a rule refers to it."""
    family = FAMILIES[version]
    with IPRoute() as ipr:
        rules = list(ipr.get_rules(family=family))
        return bool(list(ipr.get_routes(family=family, table=table))) or any(
            rule.get_attr("FRA_TABLE") == table for rule in rules
        )


def marks_in_use() -> set[int]:
    """The marks that rules ask for, of either family."""
    with IPRoute() as ipr:
        rules = [rule for family in FAMILIES.values() for rule in ipr.get_rules(family=family)]
    return {rule.get_attr("FRA_FWMARK") or 0 for rule in rules}


def add_rules(rules: Iterable[Rule]) -> None:
    """Raises LinuxError."""
    with IPRoute() as ipr:
        for rule in rules:
            with explained(f"add the routing rule for mark {rule.mark:#x}"):
                try:
                    ipr.rule("add", **_selector(rule))
                except NetlinkError as error:
                    if error.code != errno.EEXIST:
                        raise


def remove_rules(rules: Iterable[Rule]) -> bool:
    """False when there were none. Raises LinuxError."""
    done = False
    with IPRoute() as ipr:
        for rule in rules:
            with explained(f"remove the routing rule for mark {rule.mark:#x}"):
                try:
                    ipr.rule("del", **_selector(rule))
                    done = True
                except NetlinkError as error:
                    if error.code not in (errno.ENOENT, errno.ESRCH):
                        raise
    return done


def _attributes(route: Route) -> dict[str, Any]:
    found = {"dst": "default", "priority": route.metric}
    if route.device is None:
        return {**found, "type": "unreachable"}
    return {**found, "type": "local", "scope": _SCOPE_HOST, "prefsrc": str(route.source), "oif": route.device}


def _selector(rule: Rule) -> dict[str, Any]:
    action = {"action": _UNREACHABLE} if rule.table is None else {"table": rule.table, "action": _TO_TABLE}
    return {
        "family": FAMILIES[rule.version],
        "fwmark": rule.mark,
        "fwmask": _FULL_MASK,
        "priority": rule.priority,
        **action,
    }
