"""Capture of one node's workloads: the journal, the listeners, and which backend captures whom.

There are two backends (backend.py): eBPF is the better one, iptables is for kernels and policies without the BPF
features. New workloads are captured by the one that the configuration asks for; `auto` tries. Each journal entry says
which backend made it, and keeps it until its workload has left: a connection that one of them captured is of no use to
the other. So an agent whose configuration changed drives both until then, and needs the means of both.

That is why there are not two classes for the agent to choose from, but one that finds the backend by the entry.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Container, Mapping
from pathlib import Path

from nodeseal.capture import constants, listeners, routing
from nodeseal.capture.backends import host_ebpf, ruleset
from nodeseal.capture.backends.backend import Backend, Choice
from nodeseal.capture.backends.iptables import IptablesBackend
from nodeseal.capture.backends.pod_ebpf import EbpfBackend
from nodeseal.capture.bypass import Bypass, NoBypass
from nodeseal.capture.errors import (
    AddressInUseError,
    AddressNotFoundError,
    AddressNotReadyError,
    CaptureError,
    CompilingInterruptedError,
)
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.linux.namespace import NamespaceGoneError, NetworkNamespace
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import Excluded, PortRange
from nodeseal.mesh.host import HostPlace

log = logging.getLogger("nodeseal.capture")

_MARKS = (constants.MARK_CAPTURED, constants.MARK_TO_APP)


class NodeCapture:
    """Capture for one node. Everything blocks for milliseconds (prepare: a second); one thread at a time."""

    def __init__(self, run_dir: Path, cgroup: Path | None = None, choice: Choice = Choice.AUTO) -> None:
        """`run_dir`: this node's own directory; `cgroup`: root of the cgroup v2 tree, None to find it."""
        self._run_dir = run_dir
        self._choice = choice
        self._ebpf = EbpfBackend(run_dir, cgroup)
        self._iptables = IptablesBackend()
        self._backends: dict[BackendName, Backend] = {"ebpf": self._ebpf, "iptables": self._iptables}
        self._captured: dict[str, Captured] = {}
        self._journal: Journal | None = None
        self._chosen: BackendName | None = None
        self._why = ""

    # ---- the node

    def prepare(self) -> None:
        """Find out which backend can be used, and prepare it; so too the one that captured what is there already.

        Raises CaptureError, with everything undone that this call did.
        """
        with contextlib.ExitStack() as undo:
            try:
                journal = Journal.load(self._run_dir)
                chosen = self._choose(journal, undo)
                self._prepare_for(journal, chosen, undo)
                self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise CaptureError(f"cannot prepare capture in {self._run_dir}: {error.strerror}") from None
            undo.pop_all()
        self._journal, self._chosen = journal, chosen

    @property
    def backend(self) -> BackendName | None:
        """Which one captures new workloads, after prepare()."""
        return self._chosen

    @property
    def why(self) -> str:
        """Why `auto` did not choose eBPF; "" when it did, or when there was no choice."""
        return self._why

    @property
    def tracked(self) -> str:
        """Why the node's NAT applies to what its processes dial through the core; "" when it does not."""
        return self._ebpf.hosts.tracked if self._ebpf.prepared else ""

    def close(self) -> None:
        """Let go of all descriptors. Capture stays as it is, for the next agent to adopt."""
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()
        for backend in self._backends.values():
            backend.close()

    def bypass(self) -> Bypass:
        """What passes by the core, after prepare(); the caller closes it. Of workloads that iptables captures see
        pass_by().
        """
        self._ready()
        return self._ebpf.bypass() if self._ebpf.prepared else NoBypass()

    @property
    def has_rules(self) -> bool:
        """Whether some workloads are captured by iptables, or may be."""
        return self._chosen == "iptables" or any(one.backend == "iptables" for one in self._captured.values())

    def pass_by(self, passing: Mapping[str, Excluded]) -> None:
        """Workload -> what comes in and is left to the application, for those that iptables captures. Raises
        CaptureError.
        """
        journal = self._ready()
        mine = [
            (journal.entries[name], captured.namespace)
            for name, captured in self._captured.items()
            if captured.backend == "iptables"
        ]
        self._iptables.pass_by(passing, mine)

    def errors(self, *, quick: bool = False) -> dict[str, int]:
        """Name -> how often, for everything that a BPF program or a rule counted: constants.COUNTERS and
        ruleset.COUNTERS. `quick`: without those of rules, which take milliseconds for each workload.
        """
        journal = self._ready()
        totals = dict.fromkeys((*constants.COUNTERS, *ruleset.COUNTERS), 0)
        for name, backend in self._backends.items():
            if quick and name == "iptables":
                continue
            mine = [
                (journal.entries[captured.target.name], captured.namespace)
                for captured in self._captured.values()
                if captured.backend == name
            ]
            if mine or name == self._chosen:
                for key, count in backend.errors(mine).items():
                    totals[key] += count
        return totals

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
        journal = self._ready()
        namespace = NetworkNamespace.open(target.netns)
        held = self._captured.get(target.name)
        try:
            self._release_stale(target, namespace)
            held = self._captured.get(target.name)
            survey = _survey(target, namespace)
            entry = journal.entries.get(target.name)
            fresh = entry is None
            if entry is None:
                assert self._chosen is not None
                entry = _new_entry(target, namespace, self._chosen)
                if target.host is not None:
                    self._number(entry, namespace)
            entry.open_on_failure = target.open_on_failure
            entry.uncaptured = [str(address) for address in _uncaptured(target, survey)]
            if target.host is not None:
                entry.cgroup, entry.ports = target.host.cgroup, _ranges(target.host)
            backend = self._backends[entry.backend]
            sockets = dict(held.listeners) if held else {}
            made = self._make_listeners(entry, namespace, besides=sockets)
        except BaseException:
            namespace.close()
            raise
        try:
            namespace.run(lambda: backend.plan(entry, survey))
            if fresh:
                namespace.run(lambda: _check_table(entry))
                journal.entries[target.name] = entry
            journal.save()
            sockets |= made
            backend.install(entry, namespace, survey, sockets)
            entry.state = "capturing"
            journal.save()
        except BaseException:
            listeners.close_all(made)
            if fresh:
                with contextlib.suppress(CaptureError):  # what resists stays in the journal, for cleanup
                    self._remove(entry, namespace)
            elif entry.state == "leaving":
                backend.stop_new(entry, namespace)
            namespace.close()
            raise
        if held:
            namespace.close()
            held.target, held.phase, held.listeners = target, "capturing", sockets
        else:
            held = self._captured[target.name] = Captured(target, namespace, "capturing", entry.backend, sockets)
        held.uncaptured = tuple(entry.uncaptured)
        return held

    def configure(self, target: CaptureTarget) -> None:
        """What may change while a workload is captured: `open_on_failure`. Raises CaptureError."""
        journal = self._ready()
        entry = journal.entries.get(target.name)
        if entry is None or entry.open_on_failure == target.open_on_failure:
            return
        entry.open_on_failure = target.open_on_failure
        journal.save()
        self._backends[entry.backend].configure(entry)

    def refresh(self) -> None:
        """Cover what has come to the node since: devices, and the cgroups of processes that were started again. Raises
        CaptureError."""
        journal = self._ready()
        for captured in self._captured.values():
            entry = journal.entries.get(captured.target.name)
            if entry is not None and entry.cgroup:
                self._ebpf.hosts.refresh(entry, captured.namespace)

    def has_cgroup(self, path: str) -> bool:
        """Whether the cgroup of a process of the node is there."""
        return self._ebpf.prepared and self._ebpf.hosts.has_cgroup(path)

    def nearest(self, path: str) -> Path:
        """The directory in which the next part of a cgroup's path is, or would be made. Raises CaptureError."""
        return self._ebpf.hosts.nearest(path)

    def cgroups_of(self, path: str) -> frozenset[int]:
        """The numbers of a cgroup and of those below it; none when it is not there."""
        return self._ebpf.hosts.cgroups_of(path) if self._ebpf.prepared else frozenset()

    def stop_new(self, target: CaptureTarget) -> None:
        """First half of un-enrolling: new connections go direct, both ways; captured ones go on, through the core.

        The outbound listener should stay open until release(): a SYN may be under way to it. The inbound and HBONE
        listeners may close as the caller likes. Harmless when repeated, or when the namespace is gone. Raises
        CaptureError.
        """
        journal = self._ready()
        entry = journal.entries.get(target.name)
        if entry is None:
            return
        captured = self._captured.get(target.name)
        entry.state = "leaving"
        journal.save()
        if captured is not None:
            self._backends[entry.backend].stop_new(entry, captured.namespace)
            captured.phase = "leaving"

    def release(self, target: CaptureTarget) -> None:
        """Second half of un-enrolling, once no captured connection is left: everything is as it was before enrol().

        Closes the listeners and the namespace. Harmless when repeated. Raises CaptureError for the first thing that
        could not be undone; it is tried again by the next release() or by cleanup.
        """
        journal = self._ready()
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
        journal = self._ready()
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
            target = _target_of(entry)
            captured = Captured(target, namespace, entry.state, entry.backend, uncaptured=tuple(entry.uncaptured))
            self._captured[entry.name] = captured
            if entry.state == "leaving":
                self._backends[entry.backend].stop_new(entry, namespace)
        return list(self._captured.values())

    def live_listeners(self, captured: Captured) -> frozenset[int]:
        """The roles (outbound and inbound) whose listeners get the captured connections now.

        A role that is missing has no listener: its connections are dropped.
        """
        journal = self._ready()
        entry = journal.entries[captured.target.name]
        return self._backends[entry.backend].live_listeners(entry, captured.namespace)

    def take_listeners(self, captured: Captured, held: Mapping[int, int]) -> list[int]:
        """Give an adopted workload its listeners: duplicates of those that the core still holds, new ones for the rest.

        `held`: role -> descriptor, which stays the caller's. Returns the roles that were made anew, to be handed to the
        core. A leaving workload gets the outbound one only. Raises AddressInUseError, CaptureError.
        """
        journal = self._ready()
        entry = journal.entries[captured.target.name]
        backend = self._backends[entry.backend]
        addresses = entry.target_addresses
        roles = listeners.roles_of(addresses) if captured.phase == "capturing" else (listeners.OUTBOUND,)
        for role in roles:
            if role in held and role not in captured.listeners:
                captured.listeners[role] = os.dup(held[role])
        # The other roles are not to be made either.
        besides = captured.listeners.keys() | (set(listeners.roles_of(addresses)) - set(roles))
        made = self._make_listeners(entry, captured.namespace, besides=besides)
        captured.listeners.update(made)
        if entry.cgroup and listeners.OUTBOUND not in made:
            # An older version gave it another mark.
            listeners.set_mark(captured.listeners[listeners.OUTBOUND], _mark_of_accepted(entry))
        backend.give_listeners(entry, captured.namespace, {role: captured.listeners[role] for role in roles})
        return list(made)

    # ---- inside

    def _ready(self) -> Journal:
        if self._journal is None:
            raise CaptureError("capture is not prepared: call prepare() first")
        return self._journal

    def _make_listeners(self, entry: Entry, namespace: NetworkNamespace, *, besides: Container[int]) -> dict[int, int]:
        """Those that are missing, by role; all or none. Processes of a node share the sockets at port 15008."""
        made: dict[int, int] = {}
        try:
            for role in (listeners.HBONE, listeners.HBONE6) if entry.cgroup else ():
                shared = self._of_neighbour(entry, role)
                if role not in besides and shared is not None:
                    made[role] = os.dup(shared)
            made |= listeners.make_listeners(
                namespace,
                entry.target_addresses,
                besides=[
                    role for role in listeners.roles_of(entry.target_addresses) if role in besides or role in made
                ],
                keepalive=self._backends[entry.backend].needs_keepalive,
                mark=_mark_of_accepted(entry),
            )
        except BaseException:
            listeners.close_all(made)
            raise
        return made

    def _of_neighbour(self, entry: Entry, role: int) -> int | None:
        """The listener that another process of the node has at the same address."""
        for other in host_ebpf.neighbours(entry, self._ready().entries.values()):
            captured = self._captured.get(other.name)
            if captured is not None and other.addresses == entry.addresses and role in captured.listeners:
                return captured.listeners[role]
        return None

    def _number(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """Give a process of the node a number and a mark that are free in its namespace."""
        if entry.backend != "ebpf":
            raise CaptureError(f"cannot capture {entry.name}: processes of the node are captured by eBPF only")
        taken = {other.number for other in self._ready().entries.values() if other.cookie == entry.cookie}
        in_use = namespace.run(routing.marks_in_use)
        free = (one for one in host_ebpf.NUMBERS if one not in taken and host_ebpf.mark_of(one) not in in_use)
        entry.number = next(free, 0)
        if not entry.number:
            raise CaptureError(
                f"cannot capture {entry.name}: {len(host_ebpf.NUMBERS)} processes of the node are captured"
            )
        entry.marks = [host_ebpf.mark_of(entry.number), constants.MARK_TO_APP]

    def _choose(self, journal: Journal, undo: contextlib.ExitStack) -> BackendName:
        """Prepares the backend of the choice, and says which it is."""
        if self._choice is not Choice.AUTO:
            name: BackendName = "ebpf" if self._choice is Choice.EBPF else "iptables"
            self._backends[name].prepare(journal, undo)
            return name
        try:
            with contextlib.ExitStack() as attempt:
                self._backends["ebpf"].prepare(journal, attempt)
                undo.push(attempt.pop_all())
            return "ebpf"
        except CompilingInterruptedError:
            raise  # the machine may well have eBPF
        except CaptureError as error:
            self._why = str(error)
        try:
            self._backends["iptables"].prepare(journal, undo)
        except CaptureError as error:
            raise CaptureError(f"no capture backend can be used here: ebpf: {self._why}; iptables: {error}") from None
        log.warning("capture is by iptables, not by eBPF: %s", self._why)
        return "iptables"

    def _prepare_for(self, journal: Journal, chosen: BackendName, undo: contextlib.ExitStack) -> None:
        """The backends of what is captured already."""
        for name in sorted({entry.backend for entry in journal.entries.values()} - {chosen}):
            mine = sorted(entry.name for entry in journal.entries.values() if entry.backend == name)
            try:
                self._backends[name].prepare(journal, undo)
            except CaptureError as error:
                raise CaptureError(
                    f"{', '.join(mine)}: captured by {name} before, which cannot be used any more ({error}); correct "
                    f"that, or run `nodeseal cleanup --run-dir {shlex.quote(str(self._run_dir))}` first"
                ) from None
            log.info("still captured by %s until they leave: %s", name, ", ".join(mine))

    def _remove(self, entry: Entry, namespace: NetworkNamespace | None) -> None:
        journal = self._ready()
        found = None
        if namespace is None:
            with contextlib.suppress(NamespaceGoneError):
                namespace = found = NetworkNamespace.find(entry.netns, entry.cookie)
        results = list(self._backends[entry.backend].remove(entry, namespace))
        if found:
            found.close()
        for result in results:
            if isinstance(result, CaptureError):
                raise result
        journal.entries.pop(entry.name, None)
        journal.save()

    def _release_stale(self, target: CaptureTarget, namespace: NetworkNamespace) -> None:
        """The same name in another namespace, or with another address, is a new workload: its pod was made again."""
        journal = self._ready()
        for entry in list(journal.entries.values()):
            same = (entry.cookie, entry.target_addresses) == (namespace.cookie, target.addresses)
            same = same and bool(entry.cgroup) == (target.host is not None)
            if entry.name == target.name and (not same or entry.state == "installing"):
                self.release(_target_of(entry))
            elif entry.name != target.name and entry.cookie == namespace.cookie:
                if entry.cgroup and target.host is not None:
                    continue
                raise CaptureError(
                    f"cannot capture {target.name}: its network namespace {target.netns} is {entry.name}'s, which is "
                    "enrolled"
                )


def _mark_of_accepted(entry: Entry) -> int:
    """What the core accepts from the application in a pod has the application's own mark, which leads its answers to
    lo. What it accepts from a process of the node answers to the node's own address, on lo in any case; it has a mark
    of its own, by which the node's rules and devices leave it alone.
    """
    return constants.MARK_ANSWER if entry.cgroup else constants.MARK_CAPTURED


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


def _uncaptured(target: CaptureTarget, survey: routing.Survey) -> list[Address]:
    """The namespace's addresses of families in which the target has none, but for those that mean nothing elsewhere."""
    versions = {address.version for address in target.addresses}
    return sorted(
        (
            address
            for address in survey.addresses
            if address.version not in versions and not (address.is_loopback or address.is_link_local)
        ),
        key=str,
    )


def _ranges(place: HostPlace) -> list[list[int]]:
    return [[item.first, item.last] for item in place.ports]


def _target_of(entry: Entry) -> CaptureTarget:
    """What the entry was made for."""
    ports = tuple(PortRange(first, last) for first, last in entry.ports)
    place = HostPlace(entry.cgroup, ports) if entry.cgroup else None
    return CaptureTarget(entry.name, entry.netns, entry.target_addresses, entry.open_on_failure, place)


def _new_entry(target: CaptureTarget, namespace: NetworkNamespace, backend: BackendName) -> Entry:
    return Entry(
        name=target.name,
        netns=str(namespace.path),
        cookie=namespace.cookie,
        inode=namespace.inode,
        addresses=[str(address) for address in target.addresses],
        state="installing",
        table=constants.ROUTE_TABLE,
        rule_priority=constants.RULE_PRIORITY,
        marks=list(_MARKS),
        backend=backend,
    )


def _check_table(entry: Entry) -> None:
    """Find a table that nobody uses, upwards from the usual one."""
    while any(routing.table_in_use(version, entry.table) for version in entry.versions):
        entry.table += 1
