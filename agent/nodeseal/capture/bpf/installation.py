"""One workload's capture: putting it into its network namespace and taking it out again.

Every step looks before it leaps, so that install() completes what a crash left half done, and remove() undoes whatever
of it is there. The caller has written the journal entry before.

The order of install(): what receives comes before what sends there, so that at no time is a connection steered to where
nobody listens; what holds back comes before anything is captured. The order of remove(): what steers goes first; the
rules go before sk_lookup, since a captured packet that sk_lookup does not take would find a wildcard listener of the
application; what holds back goes after the rules.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from nodeseal.capture import constants, routing
from nodeseal.capture.bpf import steering
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry
from nodeseal.capture.listeners import OUTBOUND, STEERED
from nodeseal.linux import syscalls, sysctls
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.mesh.address import Address

# All found to be needed by leaving them out, with SYN cookies and without, rp_filter strict on every device (see
# tests/netns/test_capture_settings.py). accept_local and src_valid_mark are not: what is looped through lo keeps the
# route that it was sent by, so the kernel never validates its source again.
SYSCTLS = {
    # The application's accepted socket takes the mark of the core's SYN (TO_APP), so that its answers, which are
    # addressed to the far client, follow the rule back to the core. Without it the SYN-ACK leaves for the real client.
    # It is the same setting for IPv6.
    "net/ipv4/tcp_fwmark_accept": "1",
}
SYSCTLS_OF_VERSION = {
    # The same for what the kernel answers without a socket: the RST of a closed port. Without it the core's connection
    # to a port where nobody listens hangs instead of being refused.
    4: {"net/ipv4/fwmark_reflect": "1"},
    6: {"net/ipv6/fwmark_reflect": "1"},
}


def plan(entry: Entry, survey: routing.Survey, *, tcx: bool) -> None:
    """Fill in what install() is going to change: links or filters, and settings. To be called inside the namespace.

    `tcx`: whether the kernel has TCX links. What the entry holds already stays: it tells how things were before
    nodeseal came. Raises CaptureError.
    """
    steering.plan(entry, survey.devices, tcx=tcx)
    settings = {change.path for change in entry.sysctls}
    wanted = dict(SYSCTLS)
    for version in entry.versions:
        wanted |= SYSCTLS_OF_VERSION[version]
    entry.sysctls += sysctls.plan({path: value for path, value in wanted.items() if path not in settings})


def install(
    entry: Entry,
    namespace: NetworkNamespace,
    survey: routing.Survey,
    programs: Programs,
    shared: Mapping[str, int],
    pins: Path,
    listeners: Mapping[int, int],
    *,
    capturing: bool = True,
) -> None:
    """Capture the namespace's connections. `shared`: the maps that all workloads share; `pins`: the bpffs directory;
    `capturing`: False for a workload that leaves, of which only what its captured connections need is there.

    What is attached by programs of another version stays attached, while the program in its link is exchanged
    (BPF_LINK_UPDATE). Maps that fit are kept; in the place of others come new ones, which are filled before a program
    reads them, while the old ones live as long as an old program does. Raises CaptureError, and leaves undoing to the
    caller; it can be done again.
    """
    directory = pins / entry.pins
    replace = entry.programs != programs.version
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            maps = {"counters": shared["counters"], "bypass": shared["bypass"]}
            for name in ("listeners", "own", "settings", "revisited"):
                make, fits = partial(programs.new_map, name), partial(programs.fits, name)
                maps[name], new = pinned_or_new(directory / name, make, fits)
                replace = replace or new
                stack.callback(os.close, maps[name])
            for address in survey.addresses:
                syscalls.map_update(maps["own"], mapped(address), b"\x01")
            enter_settings(maps["settings"], entry)
            for role in STEERED:
                if role in listeners:
                    enter_listener(maps["listeners"], role, listeners[role])
            enter_guard(shared["guards"], entry, listeners[OUTBOUND])

            namespace.run(lambda: _prepare_routing(entry, survey))

            lookup = programs.load("assign_lookup", maps)
            stack.callback(os.close, lookup)
            put_link(
                directory / "lookup",
                lookup,
                lambda: syscalls.link_create(lookup, namespace.fd, syscalls.ATTACH_SK_LOOKUP),
                replace=replace,
            )
            present = {device.index for device in survey.devices}
            hold = programs.load("hold_egress", maps)
            stack.callback(os.close, hold)
            steering.attach(entry, namespace, present, hold, directory, egress=True, replace=replace)
            if capturing:
                steer = programs.load("steer_ingress", maps)
                stack.callback(os.close, steer)
                steering.attach(entry, namespace, present, steer, directory, replace=replace)
        if capturing:
            set_state(shared["enrolled"], entry, constants.STATE_CAPTURE)
        entry.programs = programs.version
    except OSError as error:
        raise CaptureError(f"cannot capture {entry.name} in {entry.netns}: {error.strerror}") from None


def stop_new(entry: Entry, namespace: NetworkNamespace, enrolled: int, pins: Path) -> None:
    """New connections go direct from here on, in both directions. Raises CaptureError.

    Rules and sk_lookup stay: they serve the captured connections, and the SYNs that are under way.
    """
    try:
        set_state(enrolled, entry, constants.STATE_LEAVE)
        for _, detach in steering.removals(entry, namespace, pins / entry.pins):
            detach()
    except OSError as error:
        raise CaptureError(f"cannot stop capturing {entry.name}: {error.strerror}") from None


def remove(
    entry: Entry, namespace: NetworkNamespace | None, enrolled: int | None, pins: Path
) -> Iterator[str | CaptureError]:
    """Undo everything. `namespace`: None when it is gone, and its rules, filters and settings with it.

    Does as much as it can: yields a line for each thing that was there and is removed, a CaptureError for what failed.
    """
    where = f"{entry.name} ({entry.netns})"
    directory = pins / entry.pins
    steps: list[tuple[str, Callable[[], bool]]] = []
    if enrolled is not None:
        steps.append((f"capture of {where}", lambda: syscalls.map_delete(enrolled, _key(entry))))
    steps += [(f"{what} of {where}", step) for what, step in steering.removals(entry, namespace, directory)]
    if namespace is not None:
        for version in entry.versions:
            for mark in entry.marks:
                rule = _inside(namespace, routing.remove_rule, version, mark, entry.table, entry.rule_priority)
                steps.append((f"IPv{version} routing rule for mark {mark:#x} of {where}", rule))
            table = _inside(namespace, routing.remove_table, version, entry.table)
            steps.append((f"IPv{version} routing table {entry.table} of {where}", table))
    holds = steering.removals(entry, namespace, directory, egress=True)
    steps += [(f"{what} of {where}", step) for what, step in holds]
    steps.append((f"BPF maps and links of {where}", lambda: remove_pins(directory)))
    if namespace is not None:
        for change in entry.sysctls:
            steps.append((f"setting {change.path} of {where}", _inside(namespace, sysctls.restore, change)))
    for what, step in steps:
        try:
            if step():
                yield what
        except CaptureError as error:
            yield error
        except OSError as error:
            yield CaptureError(f"cannot remove {what}: {error.strerror}")


def enter_listener(fd: int, role: int, listener: int) -> None:
    """Put a listening socket into the `listeners` map. Raises OSError."""
    syscalls.map_update(fd, struct.pack("=I", role), struct.pack("=Q", listener))


def enter_guard(guards: int, entry: Entry, listener: int) -> None:
    """The connect program sees by it whether anybody holds the outbound listener. Raises OSError."""
    syscalls.map_update(guards, _key(entry), struct.pack("=Q", listener))


def enter_settings(settings: int, entry: Entry) -> None:
    """What the namespace's own programs have to know of the workload. Raises OSError."""
    bits = sum(constants.FAMILIES[version] for version in entry.versions)
    if entry.open_on_failure:
        bits |= constants.SETTING_OPEN
    syscalls.map_update(settings, bytes(4), struct.pack("=I", bits))


def configure(entry: Entry, enrolled: int, pins: Path) -> None:
    """Puts what the entry says of `open_on_failure` in force. Raises CaptureError."""
    try:
        settings = syscalls.pinned(pins / entry.pins / "settings")
        try:
            enter_settings(settings, entry)
        finally:
            os.close(settings)
        set_state(enrolled, entry, constants.STATE_LEAVE if entry.state == "leaving" else constants.STATE_CAPTURE)
    except OSError as error:
        raise CaptureError(f"cannot change how {entry.name} is captured: {error.strerror}") from None


def live_listeners(pins: Path, entry: Entry) -> frozenset[int]:
    """The roles whose listeners some process holds open. Empty when nothing is installed."""
    try:
        fd = syscalls.pinned(pins / entry.pins / "listeners")
    except OSError:
        return frozenset()
    try:
        found = {role: syscalls.map_lookup(fd, struct.pack("=I", role), 8) for role in STEERED}
    finally:
        os.close(fd)
    return frozenset(role for role, value in found.items() if value is not None)


def set_state(enrolled: int, entry: Entry, state: int) -> None:
    """What the connect program does with the namespace's sockets. Raises OSError."""
    packed = {address.version: address.packed for address in entry.target_addresses}
    value = struct.pack("=II4s16s", state, entry.open_on_failure, packed.get(4, b""), packed.get(6, b""))
    syscalls.map_update(enrolled, _key(entry), value)


def mapped(address: Address) -> bytes:
    """The form in which the BPF programs know an address: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def remove_pins(directory: Path) -> bool:
    """Detach the links and forget the maps that are pinned in a directory; then the directory. Raises OSError."""
    if not directory.is_dir():
        return False
    for path in sorted(directory.iterdir()):
        if path.name.startswith((steering.PIN_PREFIX, steering.HOLD_PREFIX)):
            steering.remove_link(path)
        elif path.name in ("lookup", "connect4", "connect6"):
            with contextlib.suppress(FileNotFoundError):
                fd = syscalls.pinned(path)
                try:
                    syscalls.link_detach(fd)
                except OSError:  # the namespace is gone, and the attachment with it
                    pass
                finally:
                    os.close(fd)
        path.unlink(missing_ok=True)
    directory.rmdir()
    return True


def _key(entry: Entry) -> bytes:
    return struct.pack("=Q", entry.cookie)


def _inside(namespace: NetworkNamespace, action: Callable[..., bool], *arguments: object) -> Callable[[], bool]:
    return lambda: namespace.run(lambda: action(*arguments))


def _prepare_routing(entry: Entry, survey: routing.Survey) -> None:
    sysctls.apply(entry.sysctls)
    for address in entry.target_addresses:
        routing.add_table(entry.table, address, survey.devices)
        for mark in entry.marks:
            routing.add_rule(address.version, mark, entry.table, entry.rule_priority)


def put_link(path: Path, program: int, create: Callable[[], int], *, replace: bool) -> None:
    """Make and pin a link, unless there is one; `replace`: then it attaches this program from now on. OSError."""
    try:
        fd = syscalls.pinned(path)
    except FileNotFoundError:
        fd = create()
        try:
            syscalls.pin(fd, path)
        finally:
            os.close(fd)
        return
    try:
        if replace:
            syscalls.link_update(fd, program)
    finally:
        os.close(fd)


def pinned_or_new(path: Path, make: Callable[[], int], fits: Callable[[int], bool]) -> tuple[int, bool]:
    """(the map that is pinned at a path, or a new one, which takes the place of one that does not fit; whether it is
    new: then no program reads it yet). Raises OSError."""
    draft = path.with_name(path.name + "-new")
    with contextlib.suppress(FileNotFoundError):
        fd = syscalls.pinned(path)
        if fits(fd):
            return fd, False
        os.close(fd)
    fd = make()
    try:
        draft.unlink(missing_ok=True)
        syscalls.pin(fd, draft)
        draft.rename(path)
    except OSError:
        os.close(fd)
        raise
    return fd, True
