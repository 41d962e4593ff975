"""Capture of a workload that is a process of the node: known by its cgroup and its ports, in the node's own namespace.

What differs from a namespace of its own (installation.py), where everything belongs to one workload:

* its connections are marked by programs at its own cgroup (bpf/mark_host.c), each workload with a mark, a rule and a
  table of its own; the kernel runs them for the cgroup and for those below it, and for no other process;
* on lo, bpf/note_loopback.c and bpf/lookup_host.c give a marked SYN to the listener of the workload whose mark it has;
* bpf/lookup_host.c gives what arrives at one of the ports to that workload's inbound listener;
* the core's connection to the application carries TO_APP, but the application's answers do not: the settings that
  would make them (tcp_fwmark_accept, fwmark_reflect) concern every process of the node, and the marks of whatever else
  marks packets there. bpf/return_host.c turns the answers round at the devices instead; `accept_local` of lo lets the
  kernel take back what the node itself has sent;
* the node's own netfilter rules see these packets before lo does: untracked.py keeps its NAT from them, what else they
  do to marks is undone at lo (bpf/restore_mark.c), and what would leave by a device is dropped (bpf/return_host.c);
* several workloads share the address, and so the sockets at port 15008: see `Tunnel.by_name` in nodeseal.mesh.decide.

What the workloads of one namespace share is pinned in ns-<cookie>-host, what is one's own in ns-<cookie>-<number>.

Found out in namespaces that stood for a node and a client, on Linux 6.18, for IPv4 and IPv6, with SYN cookies and
without, rp_filter strict everywhere: marks survive lo; the destination may be foreign, because what is looped keeps the
route that it was sent by; a SYN that meets TIME_WAIT comes by sk_lookup again, with the note of the same turn; without
accept_local no answer comes back (IPv4). bpf_skc_lookup_tcp runs the sk_lookup programs itself, which is why one
note_loopback serves all workloads. tests/netns/test_host_capture.py has all of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from nodeseal.capture import constants, routing
from nodeseal.capture.backends import untracked
from nodeseal.capture.bpf import steering
from nodeseal.capture.bpf.installation import mapped, pinned_or_new, put_link, remove_pins
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.errors import CaptureError, CgroupGoneError
from nodeseal.capture.journal import Entry, Link
from nodeseal.capture.listeners import STEERED
from nodeseal.linux import syscalls, sysctls
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.mesh.address import Address

log = logging.getLogger("nodeseal.capture")

NUMBERS = range(1, 256)
_LOOPBACK = Link("lo", 1)
_SHARED_MAPS = ("places", "looped", "host_listeners")
_CONNECT = {
    "connect4": ("mark_host4", syscalls.ATTACH_CGROUP_INET4_CONNECT),
    "connect6": ("mark_host6", syscalls.ATTACH_CGROUP_INET6_CONNECT),
}
_PLACE_SIZE = 20
_ANY: dict[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}
_ANYWHERE = tuple(map(mapped, _ANY.values()))
_CLAIM = struct.Struct("=III")
# What is looped back from a device has lost its route, and its source is the node's own address: fib_validate_source().
_SYSCTLS = {4: {"net/ipv4/conf/lo/accept_local": "1"}}


def mark_of(number: int) -> int:
    """The mark of the connections of the workload with this number."""
    return constants.MARK_HOST | number


def shared_pins(entry: Entry) -> str:
    """The directory, below the BPF file system, of what the workloads of the entry's namespace share."""
    return f"ns-{entry.cookie}-host"


def neighbours(entry: Entry, entries: Iterable[Entry]) -> list[Entry]:
    """The other workloads in the same namespace."""
    return [other for other in entries if other is not entry and other.cgroup and other.cookie == entry.cookie]


class HostInstallation:
    """Puts workloads into the node's namespace; the journal's entry has been written before. Methods raise CaptureError
    and can be repeated: they complete what is not there.
    """

    def __init__(self, programs: Programs, shared: Mapping[str, int], pins: Path, cgroups: Path) -> None:
        """`shared`: the maps of the run directory; `pins`: the bpffs directory; `cgroups`: the root of the tree."""
        self._programs = programs
        self._shared = shared
        self._pins = pins
        self._cgroups = cgroups
        self._devices: dict[int, frozenset[int]] = {}  # by cookie: those that were covered last
        self.tracked = ""
        """Why no rule can keep what is captured from the node's NAT; "" if one can."""

    def plan(self, entry: Entry, *, tcx: bool) -> None:
        """Enter into the entry what install() is going to change. To be called inside the namespace."""
        if not tcx:
            # The clsact qdisc that a filter needs would take every device of the node out of service for a moment.
            raise CaptureError(f"cannot capture {entry.name}: processes of the node need TCX links (Linux 6.6)")
        settings = {change.path for change in entry.sysctls}
        wanted = {path: value for version in entry.versions for path, value in _SYSCTLS.get(version, {}).items()}
        entry.sysctls += sysctls.plan({path: value for path, value in wanted.items() if path not in settings})
        if not entry.untracked:
            try:
                name = untracked.name_of(self._pins.parent)
                entry.untracked = [f"{holder} {name}" for holder in untracked.choose(entry.versions)]
                self.tracked = ""
            except CaptureError as error:
                if not self.tracked:
                    log.warning("no rule can keep captured connections from the NAT of this node: %s", error)
                self.tracked = str(error)

    def install(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """Capture the connections of the entry's cgroup and ports. `listeners`: role -> descriptor."""
        self._install(entry, namespace, listeners, capturing=True)

    def renew(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """Put programs of this version in the place of those that are attached. One that leaves goes on leaving."""
        self._install(entry, namespace, listeners, capturing=entry.state == "capturing")

    def give_listeners(self, entry: Entry, listeners: Mapping[int, int]) -> None:
        """Hand the connections of each role to its listener from now on."""
        try:
            fd = syscalls.pinned(self._pins / shared_pins(entry) / "host_listeners")
            try:
                _enter_listeners(fd, entry, listeners)
            finally:
                os.close(fd)
        except OSError as error:
            raise CaptureError(f"cannot give {entry.name} its listeners: {error.strerror}") from None

    def live_listeners(self, entry: Entry) -> frozenset[int]:
        """The roles whose listeners some process holds open."""
        try:
            fd = syscalls.pinned(self._pins / shared_pins(entry) / "host_listeners")
        except OSError:
            return frozenset()
        try:
            return frozenset(role for role in STEERED if syscalls.map_lookup(fd, _listener_key(entry, role), 8))
        finally:
            os.close(fd)

    def configure(self, entry: Entry) -> None:
        """Put what the entry says of its state and of `open_on_failure` in force."""
        try:
            fd = syscalls.pinned(self._pins / entry.pins / "host")
            try:
                _enter_host(fd, entry)
            finally:
                os.close(fd)
            self._enter_places(entry)
        except OSError as error:
            raise CaptureError(f"cannot change how {entry.name} is captured: {error.strerror}") from None

    def has_cgroup(self, path: str) -> bool:
        """Whether there is such a cgroup now."""
        return (self._cgroups / path.lstrip("/")).is_dir()

    def nearest(self, path: str) -> Path:
        """The directory in which the next part of a cgroup's path is, or would be made."""
        parent = (self._cgroups / path.lstrip("/")).parent
        while not parent.is_dir() and parent != self._cgroups:
            parent = parent.parent
        return parent

    def cgroups_of(self, path: str) -> frozenset[int]:
        """The numbers of a cgroup and of those below it."""
        found = set()
        for directory, _, _ in os.walk(self._cgroups / path.lstrip("/")):
            with contextlib.suppress(FileNotFoundError):
                found.add(Path(directory).stat().st_ino)
        return frozenset(found)

    def refresh(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """Cover devices and a cgroup that came since, put back rules that somebody removed; a cgroup that is gone is no
        error. Cheap when nothing happened."""
        if entry.state == "capturing":
            with contextlib.suppress(CgroupGoneError):
                self._attach_cgroup(entry)

        def look() -> tuple[frozenset[int], bool]:
            gone = any(untracked.is_gone(*one.split()) for one in entry.untracked)
            return frozenset(index for index, _ in socket.if_nameindex()), gone

        present, gone = namespace.run(look)
        if present != self._devices.get(entry.cookie):
            self._cover_devices(entry, namespace)
        if gone:
            log.warning("somebody removed the rules that keep captured connections from NAT; they are put back")
            namespace.run(lambda: _put_untracked(entry))

    # ---- inside

    def _install(
        self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int], *, capturing: bool
    ) -> None:
        directory, shared = self._pins / entry.pins, self._pins / shared_pins(entry)
        replace = entry.programs != self._programs.version
        try:
            with contextlib.ExitStack() as stack:
                for path in (directory, shared):
                    path.mkdir(mode=0o700, exist_ok=True)
                maps: dict[str, int] = {}
                for name in (*_SHARED_MAPS, "host"):
                    where = (directory if name == "host" else shared) / name
                    maps[name], new = pinned_or_new(
                        where, partial(self._programs.new_map, name), partial(self._programs.fits, name)
                    )
                    stack.callback(os.close, maps[name])
                    replace = replace or new
                _enter_listeners(maps["host_listeners"], entry, listeners)
                _enter_host(maps["host"], entry, capturing=capturing)
                namespace.run(lambda: _prepare_routing(entry))
                self._attach_shared(shared, namespace, maps, replace=replace)
            self._cover_devices(entry, namespace, replace=replace)
            self._enter_places(entry, capturing=capturing)
            # Only for one that comes anew the service has to run: else it is waited for, see refresh().
            with contextlib.suppress(*(() if entry.state == "installing" else (CgroupGoneError,))):
                self._attach_cgroup(entry, replace=replace)
            entry.programs = self._programs.version
        except OSError as error:
            raise CaptureError(f"cannot capture {entry.name} on this node: {error.strerror}") from None

    def _attach_shared(
        self, shared: Path, namespace: NetworkNamespace, maps: Mapping[str, int], *, replace: bool
    ) -> None:
        with contextlib.ExitStack() as stack:
            lookup = self._load(stack, "lookup_host", maps)
            put_link(
                shared / "lookup",
                lookup,
                lambda: syscalls.link_create(lookup, namespace.fd, syscalls.ATTACH_SK_LOOKUP),
                replace=replace,
            )
            note = self._load(stack, "note_loopback", maps)
            restore = self._load(stack, "restore_mark", maps)

            def body() -> None:
                steering.add_link(_LOOPBACK, note, steering.pin_of(shared, _LOOPBACK), replace=replace)
                pin = steering.pin_of(shared, _LOOPBACK, egress=True)
                egress = syscalls.ATTACH_TCX_EGRESS
                steering.add_link(_LOOPBACK, restore, pin, replace=replace, attach_type=egress)

            namespace.run(body)

    def _cover_devices(self, entry: Entry, namespace: NetworkNamespace, *, replace: bool = False) -> None:
        """Attach return_host.c to the devices that are there, and forget those that are gone."""
        shared = self._pins / shared_pins(entry)
        try:
            with contextlib.ExitStack() as stack:
                places = syscalls.pinned(shared / "places")
                stack.callback(os.close, places)
                program = self._load(stack, "return_host", {"places": places})

                def body() -> frozenset[int]:
                    present = socket.if_nameindex()
                    for index, name in present:
                        if index != _LOOPBACK.index:
                            link = Link(name, index)
                            steering.add_link(
                                link,
                                program,
                                steering.pin_of(shared, link),
                                replace=replace,
                                attach_type=syscalls.ATTACH_TCX_EGRESS,
                            )
                    return frozenset(index for index, _ in present)

                present = namespace.run(body)
            for pin in shared.glob(f"{steering.PIN_PREFIX}*"):
                if int(pin.name.removeprefix(steering.PIN_PREFIX)) not in present:
                    steering.remove_link(pin)
        except OSError as error:
            raise CaptureError(f"cannot cover the devices of the node for {entry.name}: {error.strerror}") from None
        self._devices[entry.cookie] = present

    def _attach_cgroup(self, entry: Entry, *, replace: bool = False) -> None:
        """Attach the connect programs to the cgroup; anew if it was made anew, as services that start again are."""
        directory = self._pins / entry.pins
        path = self._cgroups / entry.cgroup.lstrip("/")
        try:
            cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise CgroupGoneError(
                f"cgroup not found: {path} of {entry.name} does not exist; does the service run on this node?"
            ) from None
        try:
            with contextlib.ExitStack() as stack:
                # The number of a cgroup is the inode of its directory.
                number = os.fstat(cgroup).st_ino
                for name, (function, attach_type) in _CONNECT.items():
                    pin = directory / name
                    attached = _attached_cgroup(pin)
                    if attached == number and not replace:
                        continue
                    if attached is not None and not replace:
                        # Every millisecond counts: the service may dial already.
                        program = _program_of(pin)
                        stack.callback(os.close, program)
                    else:
                        program = self._load_mark(stack, function, entry)
                    if attached not in (number, None):
                        pin.unlink(missing_ok=True)
                    create = partial(syscalls.link_create, program, cgroup, attach_type)
                    put_link(pin, program, create, replace=replace)
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed since it was opened
                raise CgroupGoneError(f"cgroup not found: {path} of {entry.name} was removed just now") from None
            raise CaptureError(
                f"cannot attach to the cgroup {path}: {error.strerror}; another program there may be exclusive"
            ) from None
        finally:
            os.close(cgroup)

    def _load_mark(self, stack: contextlib.ExitStack, function: str, entry: Entry) -> int:
        maps = {}
        for name, directory in (("host", entry.pins), ("host_listeners", shared_pins(entry))):
            maps[name] = syscalls.pinned(self._pins / directory / name)
            stack.callback(os.close, maps[name])
        return self._load(stack, function, maps)

    def _enter_places(self, entry: Entry, *, capturing: bool | None = None) -> None:
        """Claim the workload's ports at its addresses, and no others. Raises OSError."""
        capturing = entry.state == "capturing" if capturing is None else capturing
        state = constants.STATE_CAPTURE if capturing else constants.STATE_LEAVE
        claim = _CLAIM.pack(entry.number, state, entry.open_on_failure)
        fd = syscalls.pinned(self._pins / shared_pins(entry) / "places")
        try:
            wanted = set(_places(entry))
            _release_places(fd, entry, wanted)
            for place in wanted:
                if not place.startswith(_ANYWHERE) or not _is_anothers(fd, place, entry):
                    syscalls.map_update(fd, place, claim)
        finally:
            os.close(fd)

    def _load(self, stack: contextlib.ExitStack, name: str, maps: Mapping[str, int]) -> int:
        program = self._programs.load(name, {**self._shared, **maps})
        stack.callback(os.close, program)
        return program


def remove(
    entry: Entry, namespace: NetworkNamespace | None, pins: Path, *, heir: Entry | None
) -> Iterator[str | CaptureError]:
    """Undo everything. `heir`: another workload of the namespace, which goes on needing what they share, and is to
    restore the settings in the end; None: there is none.

    As installation.remove: yields a line for each thing that was there, a CaptureError for what failed.
    """
    where = f"{entry.name} ({entry.cgroup})"
    shared = pins / shared_pins(entry)
    steps: list[tuple[str, Callable[[], bool]]] = [
        (f"BPF programs at the cgroup of {where}", lambda: remove_pins(pins / entry.pins)),
        (f"claimed ports of {where}", lambda: _release_all(shared, entry)),
    ]
    if namespace is not None:
        for version in entry.versions:
            for mark in entry.marks:
                rule = partial(routing.remove_rule, version, mark, entry.table, entry.rule_priority)
                steps.append((f"IPv{version} routing rule for mark {mark:#x} of {where}", _inside(namespace, rule)))
            table = partial(routing.remove_table, version, entry.table)
            steps.append((f"IPv{version} routing table {entry.table} of {where}", _inside(namespace, table)))
    if heir is not None:
        heir.sysctls += entry.sysctls
        heir.untracked = heir.untracked or entry.untracked
        entry.sysctls, entry.untracked = [], []
    else:
        if namespace is not None:
            for one in entry.untracked:
                holder, name = one.split()
                erase = _inside(namespace, partial(untracked.remove, holder, name))
                steps.append((f"rules {name} in {holder} of the node", erase))
        steps.append(("BPF maps and links of the node's namespace", lambda: remove_pins(shared)))
        if namespace is not None:
            for change in entry.sysctls:
                restore = _inside(namespace, partial(sysctls.restore, change))
                steps.append((f"setting {change.path} of the node", restore))
    for what, step in steps:
        try:
            if step():
                yield what
        except CaptureError as error:
            yield error
        except OSError as error:
            yield CaptureError(f"cannot remove {what}: {error.strerror}")


def _inside(namespace: NetworkNamespace, action: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: namespace.run(action)


def _put_untracked(entry: Entry) -> None:
    for one in entry.untracked:
        untracked.put(*one.split())


def _prepare_routing(entry: Entry) -> None:
    sysctls.apply(entry.sysctls)
    _put_untracked(entry)
    for address in entry.target_addresses:
        # No routes by other devices: sockets of the node that are bound to one are not for the mesh to redirect.
        routing.add_table(entry.table, address, ())
        for mark in entry.marks:
            routing.add_rule(address.version, mark, entry.table, entry.rule_priority)


def _places(entry: Entry) -> Iterator[bytes]:
    """At its own addresses, and at those of the node that are no workload's: there is no way round the core."""
    for address in entry.target_addresses:
        for first, last in entry.ports:
            for port in range(first, last + 1):
                for where in (address, _ANY[address.version]):
                    yield mapped(where) + struct.pack("!HH", port, 0)


def _is_anothers(fd: int, place: bytes, entry: Entry) -> bool:
    """Whether a workload with another address has claimed the port first."""
    value = syscalls.map_lookup(fd, place, _CLAIM.size)
    return value is not None and _CLAIM.unpack(value)[0] != entry.number


def _release_places(fd: int, entry: Entry, kept: set[bytes]) -> bool:
    released = False
    for place in list(syscalls.map_keys(fd, _PLACE_SIZE)):
        value = syscalls.map_lookup(fd, place, _CLAIM.size)
        if value is not None and _CLAIM.unpack(value)[0] == entry.number and place not in kept:
            released = syscalls.map_delete(fd, place) or released
    return released


def _release_all(shared: Path, entry: Entry) -> bool:
    try:
        fd = syscalls.pinned(shared / "places")
    except FileNotFoundError:
        return False
    try:
        return _release_places(fd, entry, set())
    finally:
        os.close(fd)


def _listener_key(entry: Entry, role: int) -> bytes:
    return struct.pack("=I", entry.number * len(STEERED) + role)


def _enter_listeners(fd: int, entry: Entry, listeners: Mapping[int, int]) -> None:
    for role in STEERED:
        if role in listeners:
            syscalls.map_update(fd, _listener_key(entry, role), struct.pack("=Q", listeners[role]))


def _enter_host(fd: int, entry: Entry, *, capturing: bool | None = None) -> None:
    capturing = entry.state == "capturing" if capturing is None else capturing
    state = constants.STATE_CAPTURE if capturing else constants.STATE_LEAVE
    packed = {address.version: address.packed for address in entry.target_addresses}
    ipv4, ipv6 = packed.get(4, b""), packed.get(6, b"")
    value = struct.pack("=QIII4s16s", entry.cookie, mark_of(entry.number), state, entry.open_on_failure, ipv4, ipv6)
    syscalls.map_update(fd, bytes(4), value)


def _program_of(pin: Path) -> int:
    """The program of a pinned link, which keeps it although its cgroup is gone."""
    fd = syscalls.pinned(pin)
    try:
        return syscalls.program_by_identifier(syscalls.link_program(fd))
    finally:
        os.close(fd)


def _attached_cgroup(pin: Path) -> int | None:
    """The number of the cgroup that a pinned link is attached to; 0: it was removed; None: there is no link."""
    try:
        fd = syscalls.pinned(pin)
    except FileNotFoundError:
        return None
    try:
        return syscalls.link_cgroup(fd)
    finally:
        os.close(fd)
