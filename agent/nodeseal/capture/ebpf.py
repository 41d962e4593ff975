"""Capture by eBPF: enrolling and un-enrolling workloads of this node.

How a connection is captured is told at the head of each program in bpf/. What is in the kernel, and what keeps it there
when no process of ours runs:

    cgroup links connect4, connect6,
    setsockopt                        one of each per run directory, pinned in run_dir/bpf; the map `enrolled` (by
                                      namespace cookie) says whom they concern, so several nodes can share a machine
    map bypass                        pinned; which connections pass by the core, of all workloads (bypass.py)
    map counters                      pinned; what went wrong, counted by all programs of this run directory
    ns-<cookie>/{lookup,listeners,...}  per namespace: the sk_lookup link and the maps, pinned
    ns-<cookie>/steer-<index>         per device of it: the TCX link of steer_ingress.c, pinned
    rules, routes, sysctls            in the namespace; written down in run_dir/capture.json
    clsact qdiscs, tc filters         the same, instead of TCX links where the kernel has none (steering.py)

The listening sockets are held by the core and by the agent. While one of them lives, capture works; when both are dead,
captured connections are dropped (fail closed) until an agent comes, adopts what is there and puts in new listeners.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nodeseal.capture import constants, installation, listeners, probe, program_cache, routing, steering, syscalls
from nodeseal.capture.bypass import Bypass
from nodeseal.capture.compile import compile_in_child
from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CaptureError
from nodeseal.capture.journal import Entry, Journal
from nodeseal.capture.netns import NamespaceGoneError, NetworkNamespace
from nodeseal.capture.programs import Programs
from nodeseal.capture.workload import Captured, CaptureTarget

__all__ = ["CaptureError", "CaptureTarget", "Captured", "EbpfCapture"]

log = logging.getLogger("nodeseal.capture")

BPF_DIRECTORY = "bpf"
CGROUP_LINKS = {
    "connect4": ("mark_connect4", syscalls.ATTACH_CGROUP_INET4_CONNECT),
    "connect6": ("mark_connect6", syscalls.ATTACH_CGROUP_INET6_CONNECT),
    "setsockopt": ("keep_mark", syscalls.ATTACH_CGROUP_SETSOCKOPT),
}
"""Name of the pin -> function, attach type."""
_SHARED_MAPS = ("enrolled", "counters", "bypass", "guards")
_STATES = {"capturing": constants.STATE_CAPTURE, "leaving": constants.STATE_LEAVE}


class EbpfCapture:
    """Capture for one node. Everything blocks for milliseconds (prepare: a second); one thread at a time."""

    def __init__(self, run_dir: Path, cgroup: Path | None = None) -> None:
        """`run_dir`: this node's own directory; `cgroup`: root of the cgroup v2 tree, None to find it."""
        self._run_dir = run_dir
        self._pins = run_dir / BPF_DIRECTORY
        self._cgroup = cgroup
        self._programs: Programs | None = None
        self._shared: dict[str, int] = {}
        self._captured: dict[str, Captured] = {}
        self._journal: Journal | None = None
        self._tcx = False

    # ---- the node

    def prepare(self) -> None:
        """Probe privileges and features, compile, attach the connect programs or take over those that are pinned.

        Raises CaptureError, with everything undone that this call did.
        """
        probe.check_privileges()
        cgroup = probe.check_cgroup(self._cgroup or probe.find_cgroup())
        with contextlib.ExitStack() as undo:
            try:
                programs = self._compiled(undo)
                programs.probe()
                self._tcx = steering.probe_tcx()
                self._journal = Journal.load(self._run_dir)
                self._mount(undo)
                self._attach(programs, cgroup, undo)
            except OSError as error:
                raise CaptureError(f"cannot prepare capture in {self._run_dir}: {error.strerror}") from None
            undo.pop_all()
        self._programs = programs

    def close(self) -> None:
        """Let go of all descriptors. Capture stays as it is, for the next agent to adopt."""
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()
        for fd in self._shared.values():
            os.close(fd)
        self._shared.clear()

    def errors(self) -> dict[str, int]:
        """Name -> how often, for everything that went wrong in a BPF program or passed by the core; bpf/nodeseal.h says
        what each means."""
        totals = {}
        for key, name in enumerate(constants.COUNTERS):
            # The kernel copies one 8-byte value for each possible CPU.
            value = syscalls.map_lookup(self._shared["counters"], struct.pack("=I", key), 8 * probe.possible_cpus())
            totals[name] = sum(item for (item,) in struct.iter_unpack("=Q", value or b""))
        return totals

    def bypass(self) -> Bypass:
        """The map of what passes by the core, after prepare(); the caller closes it."""
        return Bypass(os.dup(self._shared["bypass"]))

    # ---- workloads

    @property
    def captured(self) -> Mapping[str, Captured]:
        """What this object holds, by workload name."""
        return self._captured

    def enrol(self, target: CaptureTarget) -> Captured:
        """Capture the workload's new connections, both ways. All or nothing.

        Harmless when repeated: what is missing is completed, devices that came since are covered. A workload that is
        leaving is captured again. Raises NamespaceGoneError, AddressInUseError, CaptureError.
        """
        programs, journal = self._ready()
        namespace = NetworkNamespace.open(target.netns)
        held = self._captured.get(target.name)
        try:
            self._release_stale(target, namespace)
            held = self._captured.get(target.name)
            survey = _survey(target, namespace)
            entry = journal.entries.get(target.name)
            fresh = entry is None
            sockets = dict(held.listeners) if held else {}
            made = listeners.make_listeners(namespace, target.addresses, besides=sockets)
        except BaseException:
            namespace.close()
            raise
        if entry is None:
            entry = _new_entry(target, namespace, journal)
        entry.open_on_failure = target.open_on_failure
        try:
            namespace.run(lambda: installation.plan(entry, survey, tcx=self._tcx))
            if fresh:
                namespace.run(lambda: _check_table(entry))
                journal.entries[target.name] = entry
            journal.save()
            sockets |= made
            installation.install(entry, namespace, survey, programs, self._shared, self._pins, sockets)
            entry.state = "capturing"
            journal.save()
        except BaseException:
            listeners.close_all(made)
            if fresh:
                with contextlib.suppress(CaptureError):  # what resists stays in the journal, for cleanup
                    self._remove(entry, namespace)
            elif entry.state == "leaving":
                installation.stop_new(entry, namespace, self._shared["enrolled"], self._pins)
            namespace.close()
            raise
        if held:
            namespace.close()
            held.target, held.phase, held.listeners = target, "capturing", sockets
            return held
        self._captured[target.name] = Captured(target, namespace, "capturing", sockets)
        return self._captured[target.name]

    def configure(self, target: CaptureTarget) -> None:
        """What may change while a workload is captured: `open_on_failure`. Raises CaptureError."""
        _, journal = self._ready()
        entry = journal.entries.get(target.name)
        if entry is None or entry.open_on_failure == target.open_on_failure:
            return
        entry.open_on_failure = target.open_on_failure
        journal.save()
        installation.configure(entry, self._shared["enrolled"], self._pins)

    def stop_new(self, target: CaptureTarget) -> None:
        """First half of un-enrolling: new connections go direct, both ways; captured ones go on, through the core.

        The outbound listener should stay open until release(): a SYN may be under way to it. The inbound and HBONE
        listeners may close as the caller likes. Harmless when repeated, or when the namespace is gone. Raises
        CaptureError.
        """
        _, journal = self._ready()
        entry = journal.entries.get(target.name)
        if entry is None:
            return
        captured = self._captured.get(target.name)
        entry.state = "leaving"
        journal.save()
        if captured is not None:
            installation.stop_new(entry, captured.namespace, self._shared["enrolled"], self._pins)
            captured.phase = "leaving"

    def release(self, target: CaptureTarget) -> None:
        """Second half of un-enrolling, once no captured connection is left: everything is as it was before enrol().

        Closes the listeners and the namespace. Harmless when repeated. Raises CaptureError for the first thing that
        could not be undone; it is tried again by the next release() or by cleanup.
        """
        _, journal = self._ready()
        entry = journal.entries.get(target.name)
        captured = self._captured.pop(target.name, None)
        try:
            if entry is not None:
                self._remove(entry, captured.namespace if captured else None)
        finally:
            if captured:
                captured.close()

    def adopt(self) -> list[Captured]:
        """Take over, after prepare(), what an earlier agent left.

        What it left half done, and what belongs to a namespace that is gone, is removed.
        The result has no listeners yet: ask the core for them and call take_listeners(). Raises CaptureError.
        """
        _, journal = self._ready()
        for entry in list(journal.entries.values()):
            if entry.name in self._captured:
                continue
            try:
                namespace = NetworkNamespace.find(entry.netns, entry.cookie)
            except NamespaceGoneError:
                self._remove(entry, None)
                continue
            if entry.state == "installing":
                with namespace:
                    self._remove(entry, namespace)
                continue
            target = CaptureTarget(entry.name, entry.netns, entry.target_addresses, entry.open_on_failure)
            self._captured[entry.name] = Captured(target, namespace, entry.state)
            if entry.state == "leaving":
                installation.stop_new(entry, namespace, self._shared["enrolled"], self._pins)
        return list(self._captured.values())

    def live_listeners(self, captured: Captured) -> dict[int, int]:
        """Role (outbound and inbound) -> socket cookie of the listeners that get the captured connections now.

        A role that is missing has no listener: its connections are dropped.
        """
        _, journal = self._ready()
        return installation.live_listeners(self._pins, journal.entries[captured.target.name])

    def take_listeners(self, captured: Captured, held: Mapping[int, int]) -> list[int]:
        """Give an adopted workload its listeners: duplicates of those that the core still holds, new ones for the rest.

        `held`: role -> descriptor, which stays the caller's. Returns the roles that were made anew, to be handed to the
        core. A leaving workload gets the outbound one only. Programs that another version of nodeseal attached are
        replaced now, when there is something to steer to. Raises AddressInUseError, CaptureError.
        """
        programs, journal = self._ready()
        entry = journal.entries[captured.target.name]
        addresses = entry.target_addresses
        roles = listeners.roles_of(addresses) if captured.phase == "capturing" else (listeners.OUTBOUND,)
        made = []
        for role in roles:
            if role in captured.listeners:
                continue
            if role in held:
                captured.listeners[role] = os.dup(held[role])
            else:
                captured.listeners[role] = listeners.make_listener(captured.namespace, role, addresses)
                made.append(role)
        if entry.programs != programs.version:
            survey = captured.namespace.run(routing.survey)
            if captured.phase == "capturing":
                captured.namespace.run(lambda: installation.plan(entry, survey, tcx=self._tcx))
                journal.save()
            installation.renew(
                entry, captured.namespace, survey, programs, self._shared, self._pins, captured.listeners
            )
            journal.save()
            return made
        try:
            fd = syscalls.pinned(self._pins / entry.pins / "listeners")
            try:
                for role in roles:
                    if role in listeners.STEERED:
                        installation.enter_listener(fd, role, captured.listeners[role])
            finally:
                os.close(fd)
            installation.enter_guard(self._shared["guards"], entry, captured.listeners[listeners.OUTBOUND])
        except OSError as error:
            raise CaptureError(f"cannot give {entry.name} its listeners: {error.strerror}") from None
        return made

    # ---- inside

    def _ready(self) -> tuple[Programs, Journal]:
        if self._programs is None or self._journal is None:
            raise CaptureError("capture is not prepared: call prepare() first")
        return self._programs, self._journal

    def _remove(self, entry: Entry, namespace: NetworkNamespace | None) -> None:
        _, journal = self._ready()
        found = None
        if namespace is None:
            with contextlib.suppress(NamespaceGoneError):
                namespace = found = NetworkNamespace.find(entry.netns, entry.cookie)
        results = list(installation.remove(entry, namespace, self._shared["enrolled"], self._pins))
        if found:
            found.close()
        for result in results:
            if isinstance(result, CaptureError):
                raise result
        journal.entries.pop(entry.name, None)
        journal.save()

    def _release_stale(self, target: CaptureTarget, namespace: NetworkNamespace) -> None:
        """The same name in another namespace, or with another address, is a new workload: its pod was made again."""
        _, journal = self._ready()
        for entry in list(journal.entries.values()):
            same = (entry.cookie, entry.target_addresses) == (namespace.cookie, target.addresses)
            if entry.name == target.name and (not same or entry.state == "installing"):
                self.release(CaptureTarget(entry.name, entry.netns, entry.target_addresses))
            elif entry.name != target.name and entry.cookie == namespace.cookie:
                raise CaptureError(
                    f"cannot capture {target.name}: its network namespace {target.netns} is {entry.name}'s, which is "
                    "enrolled"
                )

    def _compiled(self, undo: contextlib.ExitStack) -> Programs:
        if not self._run_dir.is_dir():
            self._run_dir.mkdir(mode=0o700, parents=True)
            undo.callback(self._run_dir.rmdir)
        kept = (self._run_dir / program_cache.FILE_NAME).exists()
        programs = Programs(program_cache.load_or_compile(self._run_dir, compile_in_child))
        if not kept:
            undo.callback(program_cache.remove, self._run_dir)
        return programs

    def _mount(self, undo: contextlib.ExitStack) -> None:
        if self._pins.resolve() in syscalls.mounts("bpf"):
            return
        if not self._pins.is_dir():
            self._pins.mkdir(mode=0o700)
            undo.callback(self._pins.rmdir)
        syscalls.mount_bpf(self._pins)
        undo.callback(syscalls.unmount, self._pins)

    def _attach(self, programs: Programs, cgroup: Path, undo: contextlib.ExitStack) -> None:
        """Attaches the connect programs, or puts them in the place of those that another version left."""
        journal = self._journal
        assert journal is not None
        replace = journal.programs != programs.version
        undo.callback(self.close)
        for name in _SHARED_MAPS:
            path = self._pins / name
            if not path.exists():
                undo.callback(path.unlink)
            make, fits = partial(programs.new_map, name), partial(programs.fits, name)
            self._shared[name], new = installation.pinned_or_new(path, make, fits)
            replace = replace or new
        if replace:
            # What a former agent's map said, should this one be new.
            for entry in journal.entries.values():
                if entry.state in _STATES:
                    installation.set_state(self._shared["enrolled"], entry, _STATES[entry.state])
        cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, (function, attach_type) in CGROUP_LINKS.items():
                path = self._pins / name
                if not path.exists():
                    undo.callback(partial(path.unlink, missing_ok=True))
                program = programs.load(function, self._shared)
                try:
                    create = partial(syscalls.link_create, program, cgroup_fd, attach_type)
                    installation.put_link(path, program, create, replace=replace)
                except OSError as error:
                    raise CaptureError(
                        f"cannot attach to the cgroup {cgroup}: {error.strerror}; another program there may be "
                        "exclusive"
                    ) from None
                finally:
                    os.close(program)
        finally:
            os.close(cgroup_fd)
        if replace:
            journal.programs = programs.version
            if journal.entries:
                log.info("the BPF programs of the node were replaced by those of this version, %s", programs.version)
                journal.save()


def _survey(target: CaptureTarget, namespace: NetworkNamespace) -> routing.Survey:
    survey = namespace.run(routing.survey)
    for address in target.addresses:
        if address not in survey.addresses:
            raise AddressNotFoundError(
                f"address not found: {address} of {target.name} is on no interface in {namespace.path}; correct the "
                "workload's address or netns"
            )
        if address in survey.duplicate:
            raise AddressInUseError(
                f"address in use: {address} of {target.name} is another host's as well (duplicate address detection in "
                f"{namespace.path} found it); give one of the two another address"
            )
        if address in survey.tentative:
            raise AddressNotReadyError(
                f"address not ready: {address} of {target.name} is still looked for among its neighbours (duplicate "
                f"address detection in {namespace.path}); this takes a second or two"
            )
    if not survey.loopback_up:
        raise CaptureError(f"lo is down in {namespace.path}: captured connections go by it; ip link set lo up")
    if not survey.ipv6_on_loopback and any(address.version == 6 for address in target.addresses):
        raise CaptureError(
            f"IPv6 is off on lo in {namespace.path}: captured connections go by it; "
            "sysctl net.ipv6.conf.lo.disable_ipv6=0"
        )
    return survey


def _new_entry(target: CaptureTarget, namespace: NetworkNamespace, journal: Journal) -> Entry:
    return Entry(
        name=target.name,
        netns=str(namespace.path),
        cookie=namespace.cookie,
        inode=namespace.inode,
        addresses=[str(address) for address in target.addresses],
        state="installing",
        table=constants.ROUTE_TABLE,
        rule_priority=constants.RULE_PRIORITY,
        marks=list(installation.MARKS),
    )


def _check_table(entry: Entry) -> None:
    """Find a table that nobody uses, upwards from the usual one."""
    while any(routing.table_in_use(version, entry.table) for version in entry.versions):
        entry.table += 1
