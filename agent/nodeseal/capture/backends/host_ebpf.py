"""Capture of a workload that is a process of the node: known by its cgroup and its ports, in the node's own namespace.

What differs from a namespace of its own (pod_ebpf.py), where everything belongs to one workload:

* its connections are marked by programs at its own cgroup (bpf/mark_host.c), each workload with a mark, a rule and a
  table of its own; the kernel runs them for the cgroup and for those below it, and for no other process;
* on lo, bpf/note_loopback.c and bpf/lookup_host.c give a marked SYN to the listener of the workload whose mark it has;
  or it is parked in that workload's ring, and what the core sends in its stead has a mark and a rule of its own;
* a SYN that the core sends out for a connection that is to be native has no mark, so that the node's rules treat it as
  the process's own; what makes the socket lose its mark then is a notice of it on lo (bpf/lib/let_out.h);
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
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from nodeseal.capture import constants, removal, routing, settings
from nodeseal.capture.backends import untracked
from nodeseal.capture.bpf import cgroup_links, maps, steering
from nodeseal.capture.bpf.pins import STEER_PREFIX, opened, pinned_or_new, put_link, remove_all, remove_link
from nodeseal.capture.bpf.runtime import Runtime
from nodeseal.capture.errors import CaptureError, CgroupGoneError
from nodeseal.capture.journal import BackendName, Entry, Journal, Link
from nodeseal.capture.removal import Step
from nodeseal.linux import bpf, rtnetlink, sysctls
from nodeseal.linux.cgroups import CgroupTree
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import LOOPBACK, Survey

log = logging.getLogger("nodeseal.capture")

_LO = Link("lo", LOOPBACK)
_SHARED_MAPS = ("places", "looped", "host_listeners", "host_rings", "settings", "self")
_OWN_MAPS = ("host", "parked")
_SHARED_MARKS = (constants.MARK_TO_APP, constants.MARK_NATIVE)
# What is looped back from a device has lost its route, and its source is the node's own address: fib_validate_source().
_SETTINGS = {4: {"net/ipv4/conf/lo/accept_local": "1"}}


def shared_pins(entry: Entry) -> str:
    """The directory, below the BPF file system, of what the workloads of the entry's namespace share."""
    return f"ns-{entry.cookie}-host"


class HostEbpfBackend:
    """For processes of the node; see Backend. It is prepared after PodEbpfBackend: keep_mark.c serves both."""

    name: BackendName = "ebpf"
    of_processes = True
    needs_keepalive = False
    tunnels_anywhere = False
    # What the core accepts from a process of the node answers to the node's own address, on lo in any case; it has a
    # mark of its own, by which the node's rules and devices leave it alone.
    accepted_mark = constants.MARK_ANSWER

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pins = runtime.pins
        self._journal: Journal | None = None
        self._devices: dict[int, frozenset[int]] = {}  # by cookie: those that were covered last
        self.tracked = ""
        """Why no rule can keep what is captured from the node's NAT; "" if one can."""

    @property
    def cgroups(self) -> CgroupTree:
        """The cgroups of the node, after prepare()."""
        return self._runtime.cgroups

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """See Backend."""
        self._runtime.prepare(undo)
        self._journal = journal

    def begin(self, entry: Entry, namespace: NetworkNamespace, neighbours: Collection[Entry]) -> None:
        """See Backend: a number and a mark that are free in the namespace."""
        taken = {other.number for other in neighbours}
        in_use = namespace.run(rtnetlink.marks_in_use)
        free = (one for one in constants.HOST_NUMBERS if one not in taken and in_use.isdisjoint(_marks_of(one)))
        entry.number = next(free, 0)
        if not entry.number:
            raise CaptureError(
                f"cannot capture {entry.name}: {len(constants.HOST_NUMBERS)} processes of the node are captured"
            )
        entry.marks = [*_marks_of(entry.number), *_SHARED_MARKS]

    def plan(self, entry: Entry, survey: Survey) -> None:
        """See Backend: settings, and what holds the rules of untracked.py."""
        if not self._runtime.tcx:
            # The clsact qdisc that a filter needs would take every device of the node out of service for a moment.
            raise CaptureError(f"cannot capture {entry.name}: processes of the node need TCX links (Linux 6.6)")
        self._plan_parking(entry)
        wanted = {path: value for version in entry.versions for path, value in _SETTINGS.get(version, {}).items()}
        settings.plan(entry, wanted)
        if not entry.untracked:
            try:
                name = untracked.name_of(self._runtime.run_dir)
                entry.untracked = [f"{holder} {name}" for holder in untracked.choose(entry.versions)]
                self.tracked = ""
            except LinuxError as error:
                if not self.tracked:
                    log.warning("no rule can keep captured connections from the NAT of this node: %s", error)
                self.tracked = str(error)

    def install(self, entry: Entry, namespace: NetworkNamespace, survey: Survey, listeners: Mapping[int, int]) -> None:
        """See Backend: the connections of the entry's cgroup and ports."""
        self._install(entry, namespace, listeners, capturing=True)

    def configure(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend."""
        try:
            with contextlib.ExitStack() as stack:
                self._set_parking(entry, self._rings(entry, stack))
            with opened(self._pins / entry.pins / "host") as host:
                maps.enter_host(host, entry, maps.state_of(entry))
            with opened(self._pins / shared_pins(entry) / "places") as places:
                maps.claim_places(places, entry, maps.state_of(entry))
        except OSError as error:
            raise CaptureError(f"cannot change how {entry.name} is captured: {error.strerror}") from None

    def refresh(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend: devices and a cgroup that came since, rules that somebody removed. A cgroup that is gone is no
        error.
        """
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

    def stop_new(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend: the entry says that the workload leaves."""
        self.configure(entry, namespace)

    def remove(
        self, entry: Entry, namespace: NetworkNamespace | None, neighbours: Collection[Entry]
    ) -> Iterator[str | CaptureError]:
        """See Backend. The first of the neighbours goes on needing what they share, and is to restore the settings in
        the end.
        """
        where = f"{entry.name} ({entry.cgroup})"
        shared = self._pins / shared_pins(entry)
        steps: list[Step] = [
            (f"ring of {where}", partial(self._forget_ring, entry)),
            (f"BPF programs at the cgroup of {where}", partial(remove_all, self._pins / entry.pins)),
            (f"claimed ports of {where}", partial(_release_places, shared, entry)),
            (f"native totals of {where}", partial(_forget_totals, self._pins / "native_totals", entry)),
        ]
        if namespace is not None:
            steps += routing.removals(entry, namespace, where)
        if neighbours:
            heir = next(iter(neighbours))
            heir.sysctls += entry.sysctls
            heir.untracked = heir.untracked or entry.untracked
            entry.sysctls, entry.untracked = [], []
            return removal.carried_out(steps)
        if namespace is not None:
            for one in entry.untracked:
                holder, name = one.split()
                erase = partial(namespace.run, partial(untracked.remove, holder, name))
                steps.append((f"rules {name} in {holder} of the node", erase))
        steps.append(("BPF maps and links of the node's namespace", partial(remove_all, shared)))
        if namespace is not None:
            steps += settings.removals(entry, namespace, "the node")
        return removal.carried_out(steps)

    def give_listeners(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """See Backend. Programs that another version of nodeseal attached are replaced now; a workload that leaves goes
        on leaving.
        """
        if entry.programs != self._runtime.programs.version:
            self._renew(entry, namespace, listeners)
            return
        try:
            with opened(self._pins / shared_pins(entry) / "host_listeners") as fd:
                maps.enter_host_listeners(fd, entry, listeners)
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
            with opened(self._pins / shared_pins(entry) / "host_listeners") as fd:
                return maps.live_host_listeners(fd, entry)
        except OSError:
            return frozenset()

    def close(self) -> None:
        """See Backend."""
        self._runtime.close()

    # ---- inside

    def _plan_parking(self, entry: Entry) -> None:
        """The part of plan() that a workload which leaves needs too, if an older version captured it."""
        wanted = (*_marks_of(entry.number), *_SHARED_MARKS)
        entry.marks += [mark for mark in wanted if mark not in entry.marks]

    def _rings(self, entry: Entry, stack: contextlib.ExitStack) -> dict[str, int]:
        """The maps of rings, the workload's own among them, until the stack ends."""
        shared = self._pins / shared_pins(entry)
        where = {"parked": self._pins / entry.pins, "host_rings": shared, "settings": shared}
        return {name: stack.enter_context(opened(path / name)) for name, path in where.items()}

    def _set_parking(self, entry: Entry, own: Mapping[str, int]) -> None:
        """Put in force what the entry says of it. Raises OSError."""
        assert self._journal is not None
        rings = self._runtime.maps["rings"]
        if entry.parking:
            maps.enter_ring(rings, entry, own["parked"])
            maps.enter_host_ring(own["host_rings"], entry, own["parked"])
        else:
            maps.remove_host_ring(own["host_rings"], entry)
            maps.remove_ring(rings, entry)
        parked = [one for one in (entry, *self._journal.neighbours(entry)) if one.parking]
        # All are of one configuration; a core that is just given the ring of another one may send SYNs on as well.
        maps.enter_host_settings(own["settings"], parking=bool(parked), native=any(one.native for one in parked))

    def _forget_ring(self, entry: Entry) -> bool:
        """Nothing of the workload's is parked any more."""
        found = False
        for path, remove in (
            (self._pins / "rings", maps.remove_ring),
            (self._pins / shared_pins(entry) / "host_rings", maps.remove_host_ring),
        ):
            with contextlib.suppress(FileNotFoundError), opened(path) as rings:  # nothing was prepared
                found = remove(rings, entry) or found
        return found

    def _renew(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        assert self._journal is not None
        capturing = entry.state == "capturing"
        survey = namespace.run(rtnetlink.survey)
        namespace.run(lambda: self.plan(entry, survey) if capturing else self._plan_parking(entry))
        self._journal.save()
        self._install(entry, namespace, listeners, capturing=capturing)
        self._journal.save()

    def _install(
        self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int], *, capturing: bool
    ) -> None:
        programs = self._runtime.programs
        directory, shared = self._pins / entry.pins, self._pins / shared_pins(entry)
        state = constants.STATE_CAPTURE if capturing else constants.STATE_LEAVE
        replace = entry.programs != programs.version
        try:
            with contextlib.ExitStack() as stack:
                for path in (directory, shared):
                    path.mkdir(mode=0o700, exist_ok=True)
                own: dict[str, int] = {}
                for name in (*_SHARED_MAPS, *_OWN_MAPS):
                    where = (directory if name in _OWN_MAPS else shared) / name
                    own[name], new = pinned_or_new(where, partial(programs.new_map, name), partial(programs.fits, name))
                    stack.callback(os.close, own[name])
                    replace = replace or new
                maps.enter_host_listeners(own["host_listeners"], entry, listeners)
                maps.enter_host(own["host"], entry, state)
                maps.enter_host_self(own["self"], entry)
                self._set_parking(entry, own)
                namespace.run(lambda: _prepare_routing(entry))
                self._attach_shared(shared, namespace, own, replace=replace)
                self._cover_devices(entry, namespace, replace=replace)
                maps.claim_places(own["places"], entry, state)
            # Only for one that comes anew the service has to run: else it is waited for, see refresh().
            with contextlib.suppress(*(() if entry.state == "installing" else (CgroupGoneError,))):
                self._attach_cgroup(entry, replace=replace)
            entry.programs = programs.version
        except OSError as error:
            raise CaptureError(f"cannot capture {entry.name} on this node: {error.strerror}") from None

    def _attach_shared(
        self, shared: Path, namespace: NetworkNamespace, own: Mapping[str, int], *, replace: bool
    ) -> None:
        with contextlib.ExitStack() as stack:
            lookup = self._runtime.load(stack, "lookup_host", own)
            create = partial(bpf.link_create, lookup, namespace.fd, bpf.ATTACH_SK_LOOKUP)
            put_link(shared / "lookup", lookup, create, replace=replace)
            note = self._runtime.load(stack, "note_loopback", own)
            restore = self._runtime.load(stack, "restore_mark", own)

            def body() -> None:
                steering.add_link(_LO, note, steering.pin_of(shared, _LO), replace=replace)
                pin = steering.pin_of(shared, _LO, egress=True)
                steering.add_link(_LO, restore, pin, replace=replace, attach_type=bpf.ATTACH_TCX_EGRESS)

            namespace.run(body)

    def _cover_devices(self, entry: Entry, namespace: NetworkNamespace, *, replace: bool = False) -> None:
        """Attach return_host.c to the devices that are there, and forget those that are gone."""
        shared = self._pins / shared_pins(entry)
        try:
            with contextlib.ExitStack() as stack:
                places = stack.enter_context(opened(shared / "places"))
                program = self._runtime.load(stack, "return_host", {"places": places})

                def body() -> frozenset[int]:
                    present = socket.if_nameindex()
                    for index, name in present:
                        if index != LOOPBACK:
                            link = Link(name, index)
                            pin = steering.pin_of(shared, link)
                            egress = bpf.ATTACH_TCX_EGRESS
                            steering.add_link(link, program, pin, replace=replace, attach_type=egress)
                    return frozenset(index for index, _ in present)

                present = namespace.run(body)
            for pin in shared.glob(f"{STEER_PREFIX}*"):
                if int(pin.name.removeprefix(STEER_PREFIX)) not in present:
                    remove_link(pin)
        except OSError as error:
            raise CaptureError(f"cannot cover the devices of the node for {entry.name}: {error.strerror}") from None
        self._devices[entry.cookie] = present

    def _attach_cgroup(self, entry: Entry, *, replace: bool = False) -> None:
        """Attach the connect programs to the cgroup; anew if it was made anew, as services that start again are."""
        pins = self._pins / entry.pins

        def load(stack: contextlib.ExitStack, function: str) -> int:
            host = stack.enter_context(opened(pins / "host"))
            listeners = stack.enter_context(opened(self._pins / shared_pins(entry) / "host_listeners"))
            return self._runtime.load(stack, function, {"host": host, "host_listeners": listeners})

        cgroup_links.attach(entry.name, self.cgroups.directory(entry.cgroup), pins, load, replace=replace)


def _marks_of(number: int) -> tuple[int, int]:
    """What packets of the process with this number carry: its own, and SYNs of it that are released."""
    return constants.host_mark(number), constants.host_released_mark(number)


def _prepare_routing(entry: Entry) -> None:
    sysctls.apply(entry.sysctls)
    _put_untracked(entry)
    # No routes by other devices: sockets of the node that are bound to one are not for the mesh to redirect.
    routing.put(entry, ())


def _put_untracked(entry: Entry) -> None:
    for one in entry.untracked:
        untracked.put(*one.split())


def _forget_totals(path: Path, entry: Entry) -> bool:
    try:
        with opened(path) as native_totals:
            return maps.remove_totals(native_totals, entry)
    except FileNotFoundError:  # nothing was prepared
        return False


def _release_places(shared: Path, entry: Entry) -> bool:
    try:
        with opened(shared / "places") as places:
            return maps.release_places(places, entry)
    except FileNotFoundError:
        return False
