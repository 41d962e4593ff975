"""BPF programs at devices as tc filters (clsact, direct action), through rtnetlink.

Functions here are to be called inside the namespace (NetworkNamespace.run). Adding what is there and removing what is
not there is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from nodeseal.linux.rtnetlink import Device, explained

_INGRESS = 0xFFFFFFF2
_EGRESS = 0xFFFFFFF3
_ETH_P_ALL = 0x0003
_HANDLE = 0x4E53
_FILTER_NAME = "nodeseal"


@dataclass(slots=True)
class Filter:
    """One tc filter, where there is no TCX. `qdisc`: the clsact qdisc was made for it, and goes with it unless others
    use it by then.
    """

    device: str
    index: int
    priority: int
    handle: int
    qdisc: bool
    protocol: int = 0x0800  # of the frames that it sees; before IPv6 was captured, those of IPv4 only
    egress: bool = False  # it sees what goes out


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
    packet notices. Raises LinuxError."""
    with IPRoute() as ipr, explained(f"attach the tc filter to {plan.device}"):
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
    with IPRoute() as ipr, explained(f"remove the tc filter from {plan.device}"):
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
