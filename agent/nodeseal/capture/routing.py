"""Rules, routes and (see steering.py) tc filters of a workload's network namespace, through rtnetlink.

Functions here are to be called inside the namespace (NetworkNamespace.run). Adding what is there and removing what is
not there is harmless, so that every step can be done again after a crash.

The table that marked packets are routed by holds, for the workload at 10.0.0.5 with the device eth0:

    local default dev lo src 10.0.0.5 metric 1   everything is delivered here, to the core
    local default dev eth0 metric 2              the same for a socket of the application that is bound to eth0: for it
                                                 no other device's route exists (listeners with SO_BINDTODEVICE)
    unreachable default metric 3                 what matches neither fails; it must never go on to the main table

and each mark has a rule that leads there. IPv6 has a table, under the same number, and rules of its own. There a bound
socket passes over the unreachable route as well, which belongs to lo; so a second rule for each mark, right behind the
first, ends what comes out of the table.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Filter
from nodeseal.mesh.address import Address

_LOOPBACK = 1
_CLSACT = 0xFFFFFFF1
_INGRESS = 0xFFFFFFF2
_EGRESS = 0xFFFFFFF3
_IFF_UP = 0x1
_ETH_P_ALL = 0x0003
_HANDLE = 0x4E53
_FILTER_NAME = "nodeseal"
_FULL_MASK = 0xFFFFFFFF
_TO_TABLE, _UNREACHABLE = 1, 7  # FR_ACT_TO_TBL, FR_ACT_UNREACHABLE of linux/fib_rules.h
_IFA_F_DADFAILED, _IFA_F_OPTIMISTIC, _IFA_F_TENTATIVE = 0x08, 0x04, 0x40  # linux/if_addr.h
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
"""By the version of an address."""


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


@contextmanager
def _explain(what: str) -> Any:
    try:
        yield
    except NetlinkError as error:
        raise CaptureError(f"cannot {what}: {error.args[-1] if error.args else error}") from None


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
            Device(link["index"], link.get_attr("IFLA_IFNAME")) for link in links if link["index"] != _LOOPBACK
        ),
        addresses=frozenset(addresses),
        loopback_up=any(link["index"] == _LOOPBACK and link["flags"] & _IFF_UP for link in links),
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


# ---- rules and routes


def add_table(table: int, source: Address, devices: Iterable[Device]) -> None:
    """Fill the table of the family of `source`, which is what a captured socket gets as its own address.

    Raises CaptureError.
    """
    local = {"dst": "default", "table": table, "type": "local", "scope": 254, "prefsrc": str(source)}
    routes: list[dict[str, Any]] = [
        {**local, "oif": _LOOPBACK, "priority": 1},
        *({**local, "oif": device.index, "priority": 2} for device in devices),
        {"dst": "default", "table": table, "type": "unreachable", "priority": 3},
    ]
    with IPRoute() as ipr, _explain(f"fill the routing table {table}"):
        for route in routes:
            try:
                # append, as the routes by several devices have the same metric
                ipr.route("append", family=FAMILIES[source.version], proto=4, **route)
            except NetlinkError as error:
                if error.code == errno.ENETDOWN:  # a device that is down carries no connection to be captured
                    continue
                if error.code != errno.EEXIST:
                    raise


def remove_table(version: int, table: int) -> bool:
    """Empty the table. True when it held anything."""
    family = FAMILIES[version]
    with IPRoute() as ipr, _explain(f"empty the routing table {table}"):
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


def add_rule(version: int, mark: int, table: int, priority: int) -> None:
    """Packets with this mark are routed by this table, and by no other. Raises CaptureError."""
    with IPRoute() as ipr, _explain(f"add the routing rule for mark {mark:#x}"):
        for rule in _rules(version, mark, table, priority):
            try:
                ipr.rule("add", **rule)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise


def remove_rule(version: int, mark: int, table: int, priority: int) -> bool:
    """The opposite of add_rule. False when there was none."""
    done = False
    with IPRoute() as ipr, _explain(f"remove the routing rule for mark {mark:#x}"):
        for rule in _rules(version, mark, table, priority):
            try:
                ipr.rule("del", **rule)
                done = True
            except NetlinkError as error:
                if error.code not in (errno.ENOENT, errno.ESRCH):
                    raise
    return done


def _rules(version: int, mark: int, table: int, priority: int) -> list[dict[str, Any]]:
    match = {"family": FAMILIES[version], "fwmark": mark, "fwmask": _FULL_MASK}
    rules = [{**match, "table": table, "priority": priority, "action": _TO_TABLE}]
    if version == 6:
        rules.append({**match, "priority": priority + 1, "action": _UNREACHABLE})
    return rules


# ---- tc filters


def plan_filters(devices: Sequence[Device], *, egress: bool = False) -> list[Filter]:
    """A free place for our filter on each device, as far forward as there is one; none on a device whose qdisc has no
    such hook: somebody's `ingress` has no egress.
    """
    plans = []
    with IPRoute() as ipr:
        for device in devices:
            if egress and _qdisc(ipr, device.index) == "ingress":
                continue
            taken = {item["info"] >> 16 for item in _filters(ipr, device.index, _EGRESS if egress else _INGRESS)}
            priority = next(number for number in range(1, 0xFFFF) if number not in taken)
            plans.append(
                Filter(
                    device=device.name,
                    index=device.index,
                    priority=priority,
                    handle=_HANDLE,
                    qdisc=not _has_ingress(ipr, device.index),
                    protocol=_ETH_P_ALL,
                    egress=egress,
                )
            )
    return plans


def add_filter(plan: Filter, program_fd: int, *, replace: bool = False) -> None:
    """Attach the program to what goes by the device; `replace`: also in the place of our own filter there, of which no
    packet notices. Raises CaptureError."""
    with IPRoute() as ipr, _explain(f"attach the tc filter to {plan.device}"):
        if not _has_ingress(ipr, plan.index):
            ipr.tc("add", "clsact", plan.index)
        ours = _ours(ipr, plan)
        if ours and not replace:
            return
        ipr.tc(
            "replace-filter" if ours else "add-filter",
            "bpf",
            plan.index,
            plan.handle,
            parent=_parent(plan),
            prio=plan.priority,
            protocol=plan.protocol,
            fd=program_fd,
            name=_FILTER_NAME,
            direct_action=True,
        )


def remove_filter(plan: Filter) -> bool:
    """Detach the program; take away the qdisc if it was made for us and is empty. False: there was nothing to do."""
    done = False
    with IPRoute() as ipr, _explain(f"remove the tc filter from {plan.device}"):
        names = [link.get_attr("IFLA_IFNAME") for link in ipr.get_links() if link["index"] == plan.index]
        if not names or not _has_ingress(ipr, plan.index):
            return False
        if _ours(ipr, plan):
            ipr.tc(
                "del-filter",
                "bpf",
                plan.index,
                plan.handle,
                parent=_parent(plan),
                prio=plan.priority,
                protocol=plan.protocol,
            )
            done = True
        if (
            plan.qdisc
            and not list(_filters(ipr, plan.index, _INGRESS))
            and not list(_filters(ipr, plan.index, _EGRESS))
        ):
            ipr.tc("del", "clsact", plan.index)
            done = True
    return done


def filter_exists(plan: Filter) -> bool:
    """Whether our filter is on its device."""
    with IPRoute() as ipr:
        return _has_ingress(ipr, plan.index) and _ours(ipr, plan)


def _parent(plan: Filter) -> int:
    return _EGRESS if plan.egress else _INGRESS


def _qdisc(ipr: Any, index: int) -> str | None:
    kinds = (item.get_attr("TCA_KIND") for item in ipr.get_qdiscs(index))
    return next((kind for kind in kinds if kind in ("clsact", "ingress")), None)


def _has_ingress(ipr: Any, index: int) -> bool:
    return _qdisc(ipr, index) is not None


def _filters(ipr: Any, index: int, parent: int) -> list[Any]:
    if not _has_ingress(ipr, index):
        return []
    return [item for item in ipr.get_filters(index, parent=parent) if item["handle"]]


def _ours(ipr: Any, plan: Filter) -> bool:
    for item in _filters(ipr, plan.index, _parent(plan)):
        if item["handle"] == plan.handle and item["info"] >> 16 == plan.priority:
            options = item.get_attr("TCA_OPTIONS")
            return options is not None and options.get_attr("TCA_BPF_NAME") == _FILTER_NAME
    return False
