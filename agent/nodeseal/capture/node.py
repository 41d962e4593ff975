"""Capture of one node's workloads: the journal, the listeners, and the backends that capture them (selection.py).

A backend is found by the journal's entry, not chosen once: that is why there is one class for the agent, whatever
captures its workloads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from nodeseal.capture import constants, listeners
from nodeseal.capture.backends import ruleset
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.backends.selection import Selection
from nodeseal.capture.bypass import Bypass
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.capture.natives import Log, Native, Owner, Place, Total
from nodeseal.capture.survey import in_place, near_of, survey_for
from nodeseal.capture.workload import Addresses, Captured, CaptureTarget, new_entry, ranges_of, takes, target_of
from nodeseal.linux import bpf, packet_queue, rtnetlink
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NamespaceGoneError, NetworkNamespace
from nodeseal.linux.rtnetlink import Survey
from nodeseal.mesh.exclusions import Excluded
from nodeseal.mesh.workload import primaries_of


class NodeCapture:
    """Capture for one node. Everything blocks for milliseconds (prepare: a second); one thread at a time.

    Methods raise LinuxError: what the machine refuses as it is, the rest as the CaptureError that they name.
    """

    def __init__(
        self, run_dir: Path, cgroup: Path | None = None, choice: Choice = Choice.AUTO, *, truthful: bool = False
    ) -> None:
        """`run_dir`: this node's own directory; `cgroup`: root of the cgroup v2 tree, None to find it; `truthful`: no
        backend will do that cannot park what new workloads dial."""
        self._run_dir = run_dir
        self._backends = Selection(run_dir, cgroup, choice, truthful=truthful)
        self._captured: dict[str, Captured] = {}
        self._journal: Journal | None = None

    # ---- the node

    def prepare(self) -> None:
        """Find out which backend can be used, and prepare it; so too the one that captured what is there already.

        Raises CaptureError, with everything undone that this call did.
        """
        with contextlib.ExitStack() as undo:
            try:
                journal = Journal.load(self._run_dir)
                self._backends.prepare(journal, undo)
                self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise CaptureError(f"cannot prepare capture in {self._run_dir}: {error.strerror}") from None
            undo.pop_all()
        self._journal = journal

    @property
    def backend(self) -> BackendName | None:
        """Which one captures new workloads, after prepare()."""
        return self._backends.chosen

    @property
    def why(self) -> str:
        """Why `auto` did not choose eBPF; "" when it did, or when there was no choice."""
        return self._backends.why

    @property
    def early(self) -> str:
        """Why what workloads dial that iptables captures is early; "" when it need not be, or when there are none."""
        return (self.has_rules and self._backends.iptables.cannot_park) or ""

    @property
    def tracked(self) -> str:
        """Why the node's NAT applies to what its processes dial through the core; "" when it does not."""
        return self._backends.host.tracked

    def close(self) -> None:
        """Let go of all descriptors. Capture stays as it is, for the next agent to adopt."""
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()
        self._backends.close()

    def bypass(self) -> Bypass:
        """What bypasses the core, after prepare(); the caller closes it. Of workloads that iptables captures see
        set_bypass().
        """
        self._ready()
        return self._backends.runtime.bypass()

    @property
    def has_rules(self) -> bool:
        """Whether some workloads are captured by iptables, or may be."""
        return self._backends.chosen == "iptables" or bool(self._by_iptables())

    def set_bypass(self, bypass: Mapping[str, Excluded]) -> None:
        """Workload -> what comes in and is left to the application, for those that iptables captures. Raises
        LinuxError.
        """
        self._ready()
        self._backends.iptables.set_bypass(bypass, self._by_iptables())

    def errors(self, *, quick: bool = False) -> dict[str, int]:
        """Name -> how often, for everything that a BPF program or a rule counted: constants.COUNTERS and
        ruleset.COUNTERS. `quick`: without those of rules, which take milliseconds for each workload.
        """
        self._ready()
        totals = dict.fromkeys((*constants.COUNTERS, *ruleset.COUNTERS), 0) | self._backends.runtime.counters()
        if not quick:
            for name, count in self._backends.iptables.counters(self._by_iptables()).items():
                totals[name] += count
        return totals

    def natives(self) -> dict[int, Native]:
        """See Runtime.natives. Raises OSError."""
        self._ready()
        return self._backends.runtime.natives()

    def native_totals(self) -> dict[Place, Total]:
        """See Runtime.native_totals. Raises OSError."""
        self._ready()
        return self._backends.runtime.native_totals()

    def native_log(self, first: Sequence[int] = (), *, wanted: bool) -> Log:
        """See Runtime.native_log. Raises OSError."""
        self._ready()
        return self._backends.runtime.native_log(first, wanted=wanted)

    def owners(self) -> dict[Owner, str]:
        """Whose native connections are which workload's."""
        return {Owner(entry.cookie, entry.number): entry.name for entry in self._ready().entries.values()}

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
        known = self._captured.get(target.name)
        try:
            self._release_stale(target, namespace)
            known = self._captured.get(target.name)
            survey = survey_for(target, namespace)
            entry = journal.entries.get(target.name)
            fresh = entry is None
            if entry is None:
                assert self._backends.chosen is not None
                entry = new_entry(target, namespace, self._backends.chosen)
            entry.open_on_failure = target.open_on_failure
            entry.addresses = [str(address) for address in target.addresses]
            _compare(entry, target, survey, known)
            if target.host is not None:
                entry.cgroup, entry.ports = target.host.cgroup, ranges_of(target.host)
            backend = self._backends.of(entry)
            if fresh:
                backend.begin(entry, namespace, journal.neighbours(entry))
            if backend.tunnels_anywhere:
                further = in_place(target, survey) - set(primaries_of(target.addresses))
                listeners.check_free(namespace, further)
            sockets = dict(known.listeners) if known else {}
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
            sockets |= self._ring(entry, namespace, besides=sockets)
            entry.state = "capturing"
            journal.save()
        except BaseException:
            listeners.close_all(made)
            if fresh:
                with contextlib.suppress(LinuxError):  # what resists stays in the journal, for cleanup
                    self._remove(entry, namespace)
            elif entry.state == "leaving":
                backend.stop_new(entry, namespace)
            namespace.close()
            raise
        if known:
            namespace.close()
            known.target, known.phase, known.listeners = target, "capturing", sockets
        else:
            known = self._captured[target.name] = Captured(target, namespace, "capturing", entry.backend, sockets)
        known.addresses, known.seen = Addresses.of(entry), _seen(survey)
        known.parking, known.native = entry.parking, entry.native
        return known

    def configure(self, target: CaptureTarget) -> None:
        """What may change while a workload is captured: `open_on_failure`. Raises CaptureError."""
        journal = self._ready()
        entry = journal.entries.get(target.name)
        captured = self._captured.get(target.name)
        if entry is None or captured is None or entry.open_on_failure == target.open_on_failure:
            return
        entry.open_on_failure = target.open_on_failure
        journal.save()
        self._backends.of(entry).configure(entry, captured.namespace)

    def park(self, captured: Captured, *, on: bool, native: bool = False) -> None:
        """Whether what the workload dials waits in its ring from now on: for when a core reads it. What waits there
        when this is turned off is dialled again by the application's kernel, and accepted at once then. `native`: so
        does what dials the workload, and the core sends on what is to be plaintext. Raises CaptureError.
        """
        journal = self._ready()
        entry = journal.entries[captured.target.name]
        if (entry.parking, entry.native) != (on, on and native):
            entry.parking, entry.native = on, on and native
            journal.save()
            self._backends.of(entry).configure(entry, captured.namespace)
        captured.parking, captured.native = entry.parking, entry.native

    def look_again(self, name: str) -> bool:
        """Whether the devices or addresses of a captured workload's namespace are other ones than when it was enrolled;
        it should be enrolled again then, which covers what has come. Raises LinuxError."""
        captured = self._captured.get(name)
        if captured is None or captured.phase != "capturing" or captured.target.host is not None:
            return False
        survey = captured.namespace.run(rtnetlink.survey)
        if captured.seen is None:
            # An earlier agent has enrolled it, who wrote down the addresses alone.
            found = captured.addresses
            known = {*map(str, captured.target.addresses), *found.unattributed, *found.uncaptured} - {*found.absent}
            captured.seen = _seen(survey)
            return known != set(map(str, survey.global_addresses))
        return _seen(survey) != captured.seen

    def refresh(self) -> None:
        """Cover what has come to the node since: devices, and the cgroups of processes that were started again. Raises
        CaptureError."""
        journal = self._ready()
        for captured in self._captured.values():
            entry = journal.entries.get(captured.target.name)
            if entry is not None:
                self._backends.of(entry).refresh(entry, captured.namespace)

    def has_cgroup(self, path: str) -> bool:
        """Whether the cgroup of a process of the node is there."""
        return self._backends.runtime.prepared and self._backends.host.cgroups.has(path)

    def nearest(self, path: str) -> Path:
        """The directory in which the next part of a cgroup's path is, or would be made. Raises CaptureError."""
        if not self._backends.runtime.prepared:
            raise CaptureError("processes of the node are captured by eBPF only, which cannot be used here")
        return self._backends.host.cgroups.nearest(path)

    def cgroups_of(self, path: str) -> frozenset[int]:
        """The numbers of a cgroup and of those below it; none when it is not there."""
        return self._backends.host.cgroups.numbers(path) if self._backends.runtime.prepared else frozenset()

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
            self._backends.of(entry).stop_new(entry, captured.namespace)
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
            target = target_of(entry)
            captured = Captured(target, namespace, entry.state, entry.backend)
            captured.addresses = Addresses.of(entry)
            captured.parking, captured.native = entry.parking, entry.native
            self._captured[entry.name] = captured
            if entry.state == "leaving":
                self._backends.of(entry).stop_new(entry, namespace)
        return list(self._captured.values())

    def live_listeners(self, captured: Captured) -> frozenset[int]:
        """The roles (outbound and inbound) whose listeners get the captured connections now.

        A role that is missing has no listener: its connections are dropped.
        """
        journal = self._ready()
        entry = journal.entries[captured.target.name]
        return self._backends.of(entry).live_listeners(entry, captured.namespace)

    def take_listeners(self, captured: Captured, held: Mapping[int, int]) -> list[int]:
        """Give an adopted workload its listeners: duplicates of those that the core still holds, new ones for the rest.

        `held`: role -> descriptor, which stays the caller's. Returns the roles that were made anew, to be handed to the
        core; so is the ring, if the core holds another than is in use. A leaving workload gets the outbound one and the
        ring only. Raises AddressInUseError, CaptureError.
        """
        journal = self._ready()
        entry = journal.entries[captured.target.name]
        backend = self._backends.of(entry)
        addresses = entry.target_addresses
        roles = listeners.roles_of(addresses) if captured.phase == "capturing" else (listeners.OUTBOUND,)
        for role in roles:
            if role in held and role not in captured.listeners:
                captured.listeners[role] = os.dup(held[role])
        # The other roles are not to be made either.
        besides = captured.listeners.keys() | (set(listeners.roles_of(addresses)) - set(roles))
        made = self._make_listeners(entry, captured.namespace, besides=besides)
        captured.listeners.update(made)
        if listeners.OUTBOUND not in made:
            # An older version may have given it another mark.
            listeners.set_mark(captured.listeners[listeners.OUTBOUND], backend.accepted_mark)
        backend.give_listeners(entry, captured.namespace, {role: captured.listeners[role] for role in roles})
        ring = self._ring(entry, captured.namespace, besides=captured.listeners, held=held.get(listeners.PARKED))
        captured.listeners.update(ring)
        journal.save()
        other = {role for role in ring if role in held and not _same_ring(held[role], ring[role])}
        return [*made, *other]

    # ---- inside

    def _ready(self) -> Journal:
        if self._journal is None:
            raise CaptureError("capture is not prepared: call prepare() first")
        return self._journal

    def _by_iptables(self) -> list[tuple[Entry, NetworkNamespace]]:
        journal = self._ready()
        return [
            (journal.entries[name], captured.namespace)
            for name, captured in self._captured.items()
            if captured.backend == "iptables"
        ]

    def _make_listeners(self, entry: Entry, namespace: NetworkNamespace, *, besides: Container[int]) -> dict[int, int]:
        """Those that are missing, by role; all or none. Processes of a node share the sockets at port 15008."""
        made: dict[int, int] = {}
        roles = listeners.roles_of(entry.target_addresses)
        backend = self._backends.of(entry)
        try:
            for role in listeners.SHARED:
                shared = self._of_neighbour(entry, role)
                if role not in besides and shared is not None:
                    made[role] = os.dup(shared)
            made |= listeners.make_listeners(
                namespace,
                entry.target_addresses,
                besides=[role for role in roles if role in besides or role in made],
                dual=6 in entry.versions,
                keepalive=backend.needs_keepalive,
                mark=backend.accepted_mark,
            )
        except BaseException:
            listeners.close_all(made)
            raise
        return made

    def _ring(
        self, entry: Entry, namespace: NetworkNamespace, *, besides: Container[int], held: int | None = None
    ) -> dict[int, int]:
        """The workload's ring, by its role; nothing where there is none, or it is held already."""
        if listeners.PARKED in besides:
            return {}
        ring = self._backends.of(entry).ring(entry, namespace, held)
        return {} if ring is None else {listeners.PARKED: ring}

    def _of_neighbour(self, entry: Entry, role: int) -> int | None:
        """The listener that another workload of the namespace has at the same address."""
        for other in self._ready().neighbours(entry):
            captured = self._captured.get(other.name)
            if captured is not None and other.addresses == entry.addresses and role in captured.listeners:
                return captured.listeners[role]
        return None

    def _remove(self, entry: Entry, namespace: NetworkNamespace | None) -> None:
        journal = self._ready()
        found = None
        if namespace is None:
            with contextlib.suppress(NamespaceGoneError):
                namespace = found = NetworkNamespace.find(entry.netns, entry.cookie)
        results = list(self._backends.of(entry).remove(entry, namespace, journal.neighbours(entry)))
        if found:
            found.close()
        for result in results:
            if isinstance(result, CaptureError):
                raise result
        journal.entries.pop(entry.name, None)
        journal.save()

    def _release_stale(self, target: CaptureTarget, namespace: NetworkNamespace) -> None:
        """The same name in another namespace, or with another primary address, is a new workload: its pod was made
        again."""
        journal = self._ready()
        for entry in list(journal.entries.values()):
            same = entry.cookie == namespace.cookie and _takes(entry, target)
            same = same and bool(entry.cgroup) == (target.host is not None)
            if entry.name == target.name and (not same or entry.state == "installing"):
                self.release(target_of(entry))
            elif entry.name != target.name and entry.cookie == namespace.cookie:
                if entry.cgroup and target.host is not None:
                    continue
                raise CaptureError(
                    f"cannot capture {target.name}: its network namespace {target.netns} is {entry.name}'s, which is "
                    "enrolled"
                )


def _same_ring(one: int, other: int) -> bool:
    return bpf.same_map(one, other) or packet_queue.same_socket(one, other)


def _takes(entry: Entry, target: CaptureTarget) -> bool:
    if target.host is not None:
        return entry.target_addresses == target.addresses
    return takes(target_of(entry).addresses, entry.near_addresses, target.addresses)


def _seen(survey: Survey) -> tuple[object, ...]:
    return survey.devices, survey.addresses, survey.tentative


def _compare(entry: Entry, target: CaptureTarget, survey: Survey, known: Captured | None) -> None:
    """Has the journal say what is captured of the namespace's addresses, and how they differ from the target's."""
    further: set[int] = set()
    if entry.backend == "ebpf" and target.host is None:
        further.add(4)
        # Sockets that were made for IPv4 alone take nothing else.
        if known is None or listeners.takes_ipv6(known.listeners.get(listeners.OUTBOUND)):
            further.add(6)
    before = [] if target.host is not None else map(ip_address, entry.near)
    near = near_of(target, survey, before, further=further)
    entry.near = list(map(str, near))
    captured = {address.version for address in near}
    others = sorted(survey.global_addresses - set(target.addresses), key=str)
    entry.uncaptured = [str(one) for one in others if one.version not in captured]
    # Which of a node's addresses its processes use is nobody's to say.
    entry.unattributed = [str(one) for one in others if one.version in captured and target.host is None]
    entry.absent = [str(one) for one in target.addresses if one not in in_place(target, survey)]


def _check_table(entry: Entry) -> None:
    """Find a table that nobody uses, upwards from the usual one."""
    while any(rtnetlink.table_in_use(version, entry.table) for version in entry.versions):
        entry.table += 1
