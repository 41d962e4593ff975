"""Capture of a workload with a network namespace of its own by eBPF: what node.py asks for, done by programs in bpf/.

How a connection is captured is told at the head of each program. What is in the kernel, and what keeps it there when no
process of ours runs (besides what runtime.py has, below run_dir/bpf):

    connect4, connect6, setsockopt,     cgroup links, one of each per run directory, pinned; the map `enrolled` says
    sockops                             whom they concern, so several nodes can share a machine
    ns-<cookie>/{lookup,listeners,...}  per namespace: the sk_lookup link and the maps, pinned
    ns-<cookie>/steer-<index>           per device of it: the TCX link of steer_ingress.c, pinned
    ns-<cookie>/park                    that of park_loopback.c at lo, pinned
    rules, routes, sysctls              in the namespace; written down in run_dir/capture.json
    clsact qdiscs, tc filters           the same, instead of TCX links where the kernel has none (steering.py)

The listening sockets are held by the core and by the agent. While one of them lives, capture works; when both are dead,
captured connections are dropped (fail closed) until an agent comes, adopts what is there and puts in new listeners.

Every step looks before it leaps, so that install() completes what a crash left half done, and remove() undoes whatever
of it is there. The order of install(): what receives comes before what sends there, so that at no time is a connection
steered to where nobody listens; what holds back comes before anything is captured. The order of remove(): what steers
goes first; the rules go before sk_lookup, since a captured packet that sk_lookup does not take would find a wildcard
listener of the application; what holds back goes after the rules.

SYNs are parked (park_loopback.c) as long as the entry says so: from when a core has the workload's ring. The ring is
pinned, and outlives the core; what waits in it is the next one's.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from nodeseal.capture import constants, removal, routing, settings
from nodeseal.capture.bpf import maps, steering
from nodeseal.capture.bpf.pins import opened, pinned_or_new, put_link, remove_all
from nodeseal.capture.bpf.runtime import Runtime
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.capture.listeners import OUTBOUND, SHARED, STEERED
from nodeseal.capture.removal import Step
from nodeseal.linux import bpf, rtnetlink, sysctls
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import Survey

log = logging.getLogger("nodeseal.capture")

CGROUP_LINKS = {
    "connect4": ("mark_connect4", bpf.ATTACH_CGROUP_INET4_CONNECT),
    "connect6": ("mark_connect6", bpf.ATTACH_CGROUP_INET6_CONNECT),
    "setsockopt": ("keep_mark", bpf.ATTACH_CGROUP_SETSOCKOPT),
    "sockops": ("watch_dials", bpf.ATTACH_CGROUP_SOCK_OPS),
}
"""Name of the pin -> function, attach type."""
_MAPS = ("listeners", "own", "settings", "revisited", "parked", "self")


class PodEbpfBackend:
    """The backend for workloads with a network namespace of their own; see Backend."""

    name: BackendName = "ebpf"
    of_processes = False
    needs_keepalive = False
    tunnels_anywhere = True
    # The application's own, which leads what it sends to lo.
    accepted_mark = constants.MARK_CAPTURED

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pins = runtime.pins
        self._journal: Journal | None = None

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """See Backend: the runtime, and the programs at the root of the cgroup tree, keep_mark.c among them, which
        processes of the node need too. Those that another version left are replaced.
        """
        self._runtime.prepare(undo)
        version = self._runtime.programs.version
        replace = self._runtime.renewed or journal.programs != version
        self._journal = journal
        try:
            if replace:
                # What a former agent's map said, should this one be new.
                for entry in journal.entries.values():
                    if entry.state != "installing" and entry.backend == self.name and not entry.cgroup:
                        self._enrol(entry)
                        self._enter_ring(entry)
            self._attach_root(undo, replace=replace)
        except OSError as error:
            raise CaptureError(f"cannot prepare capture in {self._runtime.run_dir}: {error.strerror}") from None
        if replace:
            journal.programs = version
            if journal.entries:
                log.info("the BPF programs of the node were replaced by those of this version, %s", version)
                journal.save()

    def begin(self, entry: Entry, namespace: NetworkNamespace, neighbours: Collection[Entry]) -> None:
        """See Backend: it has no neighbours."""

    def plan(self, entry: Entry, survey: Survey) -> None:
        """See Backend: links or filters, and settings."""
        steering.plan(entry, survey.devices, tcx=self._runtime.tcx)
        self._plan_parking(entry)
        settings.plan(entry, settings.of_pod(entry))

    def install(self, entry: Entry, namespace: NetworkNamespace, survey: Survey, listeners: Mapping[int, int]) -> None:
        """See Backend."""
        self._install(entry, namespace, survey, listeners, capturing=True)

    def configure(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend."""
        try:
            if entry.parking:
                self._enter_ring(entry)
            with opened(self._pins / entry.pins / "settings") as fd:
                maps.enter_settings(fd, entry)
            if not entry.parking:
                maps.remove_ring(self._runtime.maps["rings"], entry)
            self._enrol(entry)
        except OSError as error:
            raise CaptureError(f"cannot change how {entry.name} is captured: {error.strerror}") from None

    def refresh(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend: devices that came since are covered when the workload is enrolled again."""

    def stop_new(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend. Rules and sk_lookup stay: they serve the captured connections, and the SYNs under way."""
        try:
            maps.enter_enrolment(self._runtime.maps["enrolled"], entry, constants.STATE_LEAVE)
            for _, detach in steering.removals(entry, namespace, self._pins / entry.pins):
                detach()
        except OSError as error:
            raise CaptureError(f"cannot stop capturing {entry.name}: {error.strerror}") from None

    def remove(
        self, entry: Entry, namespace: NetworkNamespace | None, neighbours: Collection[Entry]
    ) -> Iterator[str | CaptureError]:
        """See Backend."""
        where = f"{entry.name} ({entry.netns})"
        directory = self._pins / entry.pins
        steps: list[Step] = [
            (f"capture of {where}", partial(self._forget, "enrolled", maps.remove_enrolment, entry)),
            (f"addresses of {where}", partial(self._forget, "owned", maps.release_owned, entry)),
            (f"ring of {where}", partial(self._forget, "rings", maps.remove_ring, entry)),
            (f"native totals of {where}", partial(self._forget, "native_totals", maps.remove_totals, entry)),
        ]
        steps += _named(steering.removals(entry, namespace, directory), where)
        if namespace is not None:
            steps += routing.removals(entry, namespace, where)
        steps += _named(steering.loopback_removals(entry, namespace, directory), where)
        steps += _named(steering.removals(entry, namespace, directory, egress=True), where)
        steps.append((f"BPF maps and links of {where}", partial(remove_all, directory)))
        if namespace is not None:
            steps += settings.removals(entry, namespace, where)
        return removal.carried_out(steps)

    def give_listeners(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """See Backend. Programs that another version of nodeseal attached are replaced now, when there is something to
        steer to.
        """
        if entry.programs != self._runtime.programs.version:
            self._renew(entry, namespace, listeners)
            return
        try:
            with opened(self._pins / entry.pins / "listeners") as fd:
                _enter_listeners(fd, listeners)
            maps.enter_guard(self._runtime.maps["guards"], entry, listeners[OUTBOUND])
        except OSError as error:
            raise CaptureError(f"cannot give {entry.name} its listeners: {error.strerror}") from None

    def ring(self, entry: Entry, namespace: NetworkNamespace, held: int | None) -> int | None:
        """See Backend."""
        try:
            return bpf.pinned(self._pins / entry.pins / "parked")
        except OSError as error:
            raise CaptureError(f"cannot open the ring of {entry.name}: {error.strerror}") from None

    def live_listeners(self, entry: Entry, namespace: NetworkNamespace) -> frozenset[int]:
        """See Backend. None when nothing is installed."""
        try:
            with opened(self._pins / entry.pins / "listeners") as fd:
                return maps.live_listeners(fd)
        except OSError:
            return frozenset()

    def close(self) -> None:
        """See Backend."""
        self._runtime.close()

    # ---- inside

    def _plan_parking(self, entry: Entry) -> None:
        """The part of plan() that a workload which leaves needs too, if an older version captured it."""
        steering.plan_loopback(entry, tcx=self._runtime.tcx)
        if constants.MARK_RELEASED not in entry.marks:
            entry.marks.append(constants.MARK_RELEASED)

    def _renew(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        assert self._journal is not None
        survey = namespace.run(rtnetlink.survey)
        capturing = entry.state == "capturing"
        namespace.run(lambda: self.plan(entry, survey) if capturing else self._plan_parking(entry))
        self._journal.save()
        self._install(entry, namespace, survey, listeners, capturing=capturing)
        self._journal.save()

    def _install(
        self,
        entry: Entry,
        namespace: NetworkNamespace,
        survey: Survey,
        listeners: Mapping[int, int],
        *,
        capturing: bool,
    ) -> None:
        """`capturing`: False for a workload that leaves, of which only what its captured connections need is there.

        What is attached by programs of another version stays attached, while the program in its link is exchanged
        (BPF_LINK_UPDATE). Maps that fit are kept; in the place of others come new ones, which are filled before a
        program reads them, while the old ones live as long as an old program does.
        """
        runtime, directory = self._runtime, self._pins / entry.pins
        replace = entry.programs != runtime.programs.version
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            with contextlib.ExitStack() as stack:
                own: dict[str, int] = {}
                for name in _MAPS:
                    make, fits = partial(runtime.programs.new_map, name), partial(runtime.programs.fits, name)
                    own[name], new = pinned_or_new(directory / name, make, fits)
                    replace = replace or new
                    stack.callback(os.close, own[name])
                maps.enter_own(own["own"], entry, survey.addresses)
                maps.enter_owned(runtime.maps["owned"], entry, survey.global_addresses)
                if entry.parking:
                    maps.enter_ring(runtime.maps["rings"], entry, own["parked"])
                maps.enter_self(own["self"], entry)
                maps.enter_settings(own["settings"], entry)
                _enter_listeners(own["listeners"], listeners)
                maps.enter_guard(runtime.maps["guards"], entry, listeners[OUTBOUND])

                namespace.run(lambda: _prepare_routing(entry, survey))

                lookup = runtime.load(stack, "assign_lookup", own)
                create = partial(bpf.link_create, lookup, namespace.fd, bpf.ATTACH_SK_LOOKUP)
                put_link(directory / "lookup", lookup, create, replace=replace)
                present = {device.index for device in survey.devices}
                park = runtime.load(stack, "park_loopback", own)
                steering.attach_loopback(entry, namespace, park, directory, tcx=runtime.tcx, replace=replace)
                hold = runtime.load(stack, "hold_egress", own)
                steering.attach(entry, namespace, present, hold, directory, egress=True, replace=replace)
                if capturing:
                    steer = runtime.load(stack, "steer_ingress", own)
                    steering.attach(entry, namespace, present, steer, directory, replace=replace)
            if capturing:
                maps.enter_enrolment(runtime.maps["enrolled"], entry, constants.STATE_CAPTURE)
            entry.programs = runtime.programs.version
        except OSError as error:
            raise CaptureError(f"cannot capture {entry.name} in {entry.netns}: {error.strerror}") from None

    def _attach_root(self, undo: contextlib.ExitStack, *, replace: bool) -> None:
        cgroup = self._runtime.cgroup
        with contextlib.ExitStack() as stack:
            target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, target)
            for name, (function, attach_type) in CGROUP_LINKS.items():
                path = self._pins / name
                if not path.exists():
                    undo.callback(partial(path.unlink, missing_ok=True))
                program = self._runtime.load(stack, function, {})
                try:
                    put_link(path, program, partial(bpf.link_create, program, target, attach_type), replace=replace)
                except OSError as error:
                    raise CaptureError(
                        f"cannot attach to the cgroup {cgroup}: {error.strerror}; another program there may be "
                        "exclusive"
                    ) from None

    def _enrol(self, entry: Entry) -> None:
        maps.enter_enrolment(self._runtime.maps["enrolled"], entry, maps.state_of(entry))

    def _enter_ring(self, entry: Entry) -> None:
        # One whose namespace is gone has no ring: it is about to be forgotten.
        with contextlib.suppress(FileNotFoundError):
            if entry.parking:
                with opened(self._pins / entry.pins / "parked") as ring:
                    maps.enter_ring(self._runtime.maps["rings"], entry, ring)

    def _forget(self, name: str, remove: Callable[[int, Entry], bool], entry: Entry) -> bool:
        """Remove the workload from the map of this name."""
        try:
            with opened(self._pins / name) as fd:
                return remove(fd, entry)
        except FileNotFoundError:  # nothing was prepared
            return False


def _prepare_routing(entry: Entry, survey: Survey) -> None:
    sysctls.apply(entry.sysctls)
    routing.put(entry, survey.devices)


def _enter_listeners(fd: int, listeners: Mapping[int, int]) -> None:
    for role in (*STEERED, *SHARED):
        if role in listeners:
            maps.enter_listener(fd, role, listeners[role])


def _named(steps: list[Step], where: str) -> list[Step]:
    return [(f"{what} of {where}", step) for what, step in steps]
