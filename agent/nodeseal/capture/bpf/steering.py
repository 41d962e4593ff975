"""Attaching steer_ingress.c and hold_egress.c to the devices of a namespace: by TCX links, or by tc filters where the
kernel has no TCX.

A TCX link (Linux 6.6, BPF_LINK_CREATE with BPF_TCX_INGRESS) changes nothing but the list of programs that run on what
comes in. A tc filter needs the clsact qdisc, and adding or deleting that one takes the device out of service for two
RCU grace periods (qdisc_graft() in net/sched/sch_api.c calls dev_deactivate() for ingress qdiscs too): the pod loses
everything that it sends meanwhile. So filters are the second choice.

A link is pinned beside the namespace's maps: it outlives the agent, and goes with its pin or its device. Removing it
needs neither the journal nor the namespace.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from nodeseal.capture.bpf.pins import HOLD_PREFIX, PARK, STEER_PREFIX, opened, put_link, remove_link
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry, Link
from nodeseal.capture.removal import Step
from nodeseal.linux import bpf, tc_filters
from nodeseal.linux.namespace import NetworkNamespace, in_new_namespace
from nodeseal.linux.rtnetlink import LOOPBACK, Device

# mov r0, -1 (TCX_NEXT); exit
_DO_NOTHING = bytes.fromhex("b7000000ffffffff") + bytes.fromhex("9500000000000000")


def probe_tcx() -> bool:
    """Whether the kernel attaches programs by TCX links: found out by doing it, in a network namespace made for it."""

    def attempt() -> None:
        program = load_nothing()
        try:
            os.close(bpf.tcx_link_create(program, LOOPBACK))
        finally:
            os.close(program)

    try:
        in_new_namespace(attempt)
    except OSError:
        return False
    return True


def load_nothing() -> int:
    """A program that lets everything pass, to try things with; its descriptor. Raises OSError."""
    return bpf.program_load(bpf.PROG_SCHED_CLS, 0, _DO_NOTHING, "nodeseal_probe")


def plan(entry: Entry, devices: Iterable[Device], *, tcx: bool) -> None:
    """Enter the devices that are new into the journal's entry. To be called inside the namespace."""
    linked = {(item.device, item.index) for item in entry.links}
    steered = {(item.device, item.index): item for item in entry.filters if not item.egress}
    held = {(item.device, item.index) for item in entry.filters if item.egress}
    unlinked = [device for device in devices if (device.name, device.index) not in linked]
    new = [device for device in unlinked if (device.name, device.index) not in steered]
    if tcx:
        entry.links += [Link(device.name, device.index) for device in new]
        return
    unheld = [device for device in unlinked if (device.name, device.index) not in held]
    for item in tc_filters.plan_filters(unheld, egress=True):
        # The qdisc of an older version's filter is ours too: whichever of the two goes last takes it away.
        before = steered.get((item.device, item.index))
        item.qdisc = item.qdisc or (before is not None and before.qdisc)
        entry.filters.append(item)
    entry.filters += tc_filters.plan_filters(new)


def attach(
    entry: Entry,
    namespace: NetworkNamespace,
    present: set[int],
    program: int,
    directory: Path,
    *,
    egress: bool = False,
    replace: bool = False,
) -> None:
    """Attach the program to what comes in by the planned devices that are present (their indices), or with `egress` to
    what goes out; what is attached already stays, or, with `replace`, has this program from now on.

    `directory`: where the links are pinned. Raises CaptureError.
    """
    attach_type = bpf.ATTACH_TCX_EGRESS if egress else bpf.ATTACH_TCX_INGRESS

    def body() -> None:
        for link in entry.links:
            if link.index in present:
                pin = pin_of(directory, link, egress=egress)
                add_link(link, program, pin, replace=replace, attach_type=attach_type)
        for item in entry.filters:
            if item.index in present and item.egress is egress:
                tc_filters.add_filter(item, program, replace=replace)

    namespace.run(body)


def plan_loopback(entry: Entry, *, tcx: bool) -> None:
    """The same as plan() of what comes in by lo, which no other function here concerns. A link needs no plan."""
    if not tcx and not any(item.index == LOOPBACK for item in entry.filters):
        entry.filters += tc_filters.plan_filters([Device(LOOPBACK, "lo")])


def attach_loopback(
    entry: Entry, namespace: NetworkNamespace, program: int, directory: Path, *, tcx: bool, replace: bool = False
) -> None:
    """Attach the program to what comes in by lo, as attach() does it. Raises CaptureError."""

    def body() -> None:
        if tcx and not any(item.index == LOOPBACK for item in entry.filters):
            add_link(Link("lo", LOOPBACK), program, directory / PARK, replace=replace)
        for item in entry.filters:
            if item.index == LOOPBACK:
                tc_filters.add_filter(item, program, replace=replace)

    namespace.run(body)


def loopback_removals(entry: Entry, namespace: NetworkNamespace | None, directory: Path) -> list[Step]:
    """What detaches it again."""
    steps: list[Step] = [("TCX link on lo", partial(remove_link, directory / PARK))]
    if namespace is not None:
        steps += [
            ("tc filter on lo", partial(namespace.run, partial(tc_filters.remove_filter, item)))
            for item in entry.filters
            if item.index == LOOPBACK
        ]
    return steps


def removals(entry: Entry, namespace: NetworkNamespace | None, directory: Path, *, egress: bool = False) -> list[Step]:
    """What detaches again what attach() attached; steps of links need no namespace."""
    at = "at the egress of" if egress else "on"
    steps: list[Step] = [
        (f"TCX link {at} {link.device}", partial(remove_link, pin_of(directory, link, egress=egress)))
        for link in entry.links
    ]
    if namespace is not None:
        steps += [
            (f"tc filter {at} {item.device}", partial(namespace.run, partial(tc_filters.remove_filter, item)))
            for item in entry.filters
            if item.egress is egress and item.index != LOOPBACK
        ]
    return steps


def pin_of(directory: Path, link: Link, *, egress: bool = False) -> Path:
    """Where a link is pinned."""
    return directory / f"{HOLD_PREFIX if egress else STEER_PREFIX}{link.index}"


def add_link(
    plan: Link,
    program: int,
    pin: Path,
    *,
    replace: bool = False,
    attach_type: int = bpf.ATTACH_TCX_INGRESS,
) -> None:
    """Attach the program to what comes in by the device, or goes out. To be called inside its namespace. Raises
    CaptureError."""
    try:
        if not link_exists(plan, pin, attach_type):
            remove_link(pin)
        put_link(pin, program, partial(bpf.tcx_link_create, program, plan.index, attach_type), replace=replace)
    except OSError as error:
        if error.errno == errno.ENODEV:  # gone since the survey
            return
        raise CaptureError(f"cannot attach to what goes by {plan.device}: {error.strerror}") from None


def link_exists(plan: Link, pin: Path, attach_type: int = bpf.ATTACH_TCX_INGRESS) -> bool:
    """Whether the pinned link is on the device: its index may have passed to another one. To be called inside."""
    try:
        with opened(pin) as fd:
            return bpf.link_program(fd) in bpf.tcx_programs(plan.index, attach_type)
    except FileNotFoundError:
        return False
