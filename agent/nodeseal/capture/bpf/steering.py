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
from collections.abc import Callable, Iterable
from pathlib import Path

from nodeseal.capture import probe, routing
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry, Link
from nodeseal.linux import syscalls
from nodeseal.linux.namespace import NetworkNamespace

PIN_PREFIX = "steer-"
HOLD_PREFIX = "hold-"
_LOOPBACK = 1
# mov r0, -1 (TCX_NEXT); exit
_DO_NOTHING = bytes.fromhex("b7000000ffffffff") + bytes.fromhex("9500000000000000")


def probe_tcx() -> bool:
    """Whether the kernel attaches programs by TCX links: found out by doing it, in a network namespace made for it."""

    def attempt() -> None:
        program = load_nothing()
        try:
            os.close(syscalls.tcx_link_create(program, _LOOPBACK))
        finally:
            os.close(program)

    try:
        probe.in_new_namespace(attempt)
    except OSError:
        return False
    return True


def load_nothing() -> int:
    """A program that lets everything pass, to try things with; its descriptor. Raises OSError."""
    return syscalls.program_load(syscalls.PROG_SCHED_CLS, 0, _DO_NOTHING, "nodeseal_probe")


def plan(entry: Entry, devices: Iterable[routing.Device], *, tcx: bool) -> None:
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
    for item in routing.plan_filters(unheld, egress=True):
        # The qdisc of an older version's filter is ours too: whichever of the two goes last takes it away.
        before = steered.get((item.device, item.index))
        item.qdisc = item.qdisc or (before is not None and before.qdisc)
        entry.filters.append(item)
    entry.filters += routing.plan_filters(new)


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
    attach_type = syscalls.ATTACH_TCX_EGRESS if egress else syscalls.ATTACH_TCX_INGRESS

    def body() -> None:
        for link in entry.links:
            if link.index in present:
                pin = pin_of(directory, link, egress=egress)
                add_link(link, program, pin, replace=replace, attach_type=attach_type)
        for item in entry.filters:
            if item.index in present and item.egress is egress:
                routing.add_filter(item, program, replace=replace)

    namespace.run(body)


def removals(
    entry: Entry, namespace: NetworkNamespace | None, directory: Path, *, egress: bool = False
) -> list[tuple[str, Callable[[], bool]]]:
    """The steps that detach again what attach() attached: what each removes, and the action. An action returns False
    when there was nothing to do; it raises CaptureError or OSError.
    """
    at = "at the egress of" if egress else "on"
    steps = [
        (f"TCX link {at} {link.device}", _later(remove_link, pin_of(directory, link, egress=egress)))
        for link in entry.links
    ]
    if namespace is not None:
        steps += [
            (f"tc filter {at} {item.device}", _inside(namespace, _later(routing.remove_filter, item)))
            for item in entry.filters
            if item.egress is egress
        ]
    return steps


def pin_of(directory: Path, link: Link, *, egress: bool = False) -> Path:
    """Where a link is pinned."""
    return directory / f"{HOLD_PREFIX if egress else PIN_PREFIX}{link.index}"


def add_link(
    plan: Link,
    program: int,
    pin: Path,
    *,
    replace: bool = False,
    attach_type: int = syscalls.ATTACH_TCX_INGRESS,
) -> None:
    """Attach the program to what comes in by the device, or goes out. To be called inside its namespace. Raises
    CaptureError."""
    try:
        if link_exists(plan, pin, attach_type):
            if replace:
                _replace_program(pin, program)
            return
        remove_link(pin)
        fd = syscalls.tcx_link_create(program, plan.index, attach_type)
        try:
            syscalls.pin(fd, pin)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.ENODEV:  # gone since the survey
            return
        raise CaptureError(f"cannot attach to what goes by {plan.device}: {error.strerror}") from None


def _replace_program(pin: Path, program: int) -> None:
    fd = syscalls.pinned(pin)
    try:
        syscalls.link_update(fd, program)
    finally:
        os.close(fd)


def remove_link(pin: Path) -> bool:
    """The opposite, from anywhere. False when nothing is pinned there. Raises OSError."""
    try:
        fd = syscalls.pinned(pin)
    except FileNotFoundError:
        return False
    try:
        syscalls.link_detach(fd)
    except OSError as error:
        if error.errno != errno.ENOLINK:  # ENOLINK: the device is gone, and the attachment with it
            raise
    finally:
        os.close(fd)
    pin.unlink(missing_ok=True)
    return True


def link_exists(plan: Link, pin: Path, attach_type: int = syscalls.ATTACH_TCX_INGRESS) -> bool:
    """Whether the pinned link is on the device: its index may have passed to another one. To be called inside."""
    try:
        fd = syscalls.pinned(pin)
    except FileNotFoundError:
        return False
    try:
        return syscalls.link_program(fd) in syscalls.tcx_programs(plan.index, attach_type)
    finally:
        os.close(fd)


def _later(action: Callable[..., bool], *arguments: object) -> Callable[[], bool]:
    return lambda: action(*arguments)


def _inside(namespace: NetworkNamespace, action: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: namespace.run(action)
