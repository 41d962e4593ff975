"""The eBPF backend of capture: what node.py asks for, done by the programs in bpf/.

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
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from nodeseal.capture import constants, probe, routing
from nodeseal.capture.backends import host_ebpf
from nodeseal.capture.backends.host_ebpf import HostInstallation
from nodeseal.capture.bpf import installation, program_cache, steering
from nodeseal.capture.bpf.compile import Compiled, compile_in_child
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.bypass import Bypass
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.capture.listeners import OUTBOUND, STEERED
from nodeseal.linux import syscalls
from nodeseal.linux.namespace import NetworkNamespace

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


class EbpfBackend:
    """The eBPF backend for one run directory; see Backend."""

    name: BackendName = "ebpf"
    needs_keepalive = False

    def __init__(self, run_dir: Path, cgroup: Path | None = None) -> None:
        """`cgroup`: root of the cgroup v2 tree, None to find it."""
        self._run_dir = run_dir
        self._pins = run_dir / BPF_DIRECTORY
        self._cgroup = cgroup
        self._programs: Programs | None = None
        self._shared: dict[str, int] = {}
        self._journal: Journal | None = None
        self._tcx = False
        self._hosts: HostInstallation | None = None

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """Probe privileges and features, compile, attach the connect programs or take over those that are pinned."""
        probe.check_privileges()
        cgroup = probe.check_cgroup(self._cgroup or probe.find_cgroup())
        try:
            programs = self._compiled(undo)
            programs.probe()
            self._tcx = steering.probe_tcx()
            self._journal = journal
            self._mount(undo)
            self._attach(programs, cgroup, undo)
            self._hosts = HostInstallation(programs, self._shared, self._pins, cgroup)
        except OSError as error:
            raise CaptureError(f"cannot prepare capture in {self._run_dir}: {error.strerror}") from None
        self._programs = programs

    @property
    def prepared(self) -> bool:
        """Whether this backend is in use."""
        return self._programs is not None

    def close(self) -> None:
        """See Backend."""
        for fd in self._shared.values():
            os.close(fd)
        self._shared.clear()

    def errors(self, captured: Iterable[tuple[Entry, NetworkNamespace]]) -> dict[str, int]:
        """What went wrong in a BPF program or passed by the core, in all workloads' together; bpf/nodeseal.h says what
        each means."""
        totals = {}
        for key, name in enumerate(constants.COUNTERS):
            # The kernel copies one 8-byte value for each possible CPU.
            value = syscalls.map_lookup(self._shared["counters"], struct.pack("=I", key), 8 * probe.possible_cpus())
            totals[name] = sum(item for (item,) in struct.iter_unpack("=Q", value or b""))
        return totals

    def bypass(self) -> Bypass:
        """The map of what passes by the core, after prepare(); the caller closes it."""
        return Bypass(os.dup(self._shared["bypass"]))

    def plan(self, entry: Entry, survey: routing.Survey) -> None:
        """See Backend."""
        if entry.cgroup:
            self.hosts.plan(entry, tcx=self._tcx)
        else:
            installation.plan(entry, survey, tcx=self._tcx)

    def install(
        self, entry: Entry, namespace: NetworkNamespace, survey: routing.Survey, listeners: Mapping[int, int]
    ) -> None:
        """See Backend."""
        programs, _ = self._ready()
        if entry.cgroup:
            self.hosts.install(entry, namespace, listeners)
            return
        installation.install(entry, namespace, survey, programs, self._shared, self._pins, listeners)

    def configure(self, entry: Entry) -> None:
        """See Backend."""
        if entry.cgroup:
            self.hosts.configure(entry)
        else:
            installation.configure(entry, self._shared["enrolled"], self._pins)

    def stop_new(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend."""
        if entry.cgroup:
            self.hosts.configure(entry)
        else:
            installation.stop_new(entry, namespace, self._shared["enrolled"], self._pins)

    def remove(self, entry: Entry, namespace: NetworkNamespace | None) -> Iterator[str | CaptureError]:
        """See Backend."""
        _, journal = self._ready()
        if entry.cgroup:
            others = host_ebpf.neighbours(entry, journal.entries.values())
            return host_ebpf.remove(entry, namespace, self._pins, heir=others[0] if others else None)
        return installation.remove(entry, namespace, self._shared["enrolled"], self._pins)

    def give_listeners(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """See Backend. Programs that another version of nodeseal attached are replaced now, when there is something to
        steer to.
        """
        programs, journal = self._ready()
        if entry.programs != programs.version:
            survey = namespace.run(routing.survey)
            if entry.state == "capturing":
                namespace.run(lambda: self.plan(entry, survey))
                journal.save()
            if entry.cgroup:
                self.hosts.renew(entry, namespace, listeners)
                journal.save()
                return
            capturing = entry.state == "capturing"
            installation.install(
                entry, namespace, survey, programs, self._shared, self._pins, listeners, capturing=capturing
            )
            journal.save()
            return
        if entry.cgroup:
            self.hosts.give_listeners(entry, listeners)
            return
        try:
            fd = syscalls.pinned(self._pins / entry.pins / "listeners")
            try:
                for role in STEERED:
                    if role in listeners:
                        installation.enter_listener(fd, role, listeners[role])
            finally:
                os.close(fd)
            installation.enter_guard(self._shared["guards"], entry, listeners[OUTBOUND])
        except OSError as error:
            raise CaptureError(f"cannot give {entry.name} its listeners: {error.strerror}") from None

    def live_listeners(self, entry: Entry, namespace: NetworkNamespace) -> frozenset[int]:
        """See Backend."""
        return self.hosts.live_listeners(entry) if entry.cgroup else installation.live_listeners(self._pins, entry)

    @property
    def hosts(self) -> HostInstallation:
        """What captures the processes of the node, after prepare()."""
        if self._hosts is None:
            raise CaptureError("processes of the node are captured by eBPF only, which cannot be used here")
        return self._hosts

    # ---- inside

    def _ready(self) -> tuple[Programs, Journal]:
        if self._programs is None or self._journal is None:
            raise CaptureError("capture is not prepared: call prepare() first")
        return self._programs, self._journal

    def _compiled(self, undo: contextlib.ExitStack) -> Programs:
        if not self._run_dir.is_dir():
            self._run_dir.mkdir(mode=0o700, parents=True)
            undo.callback(self._run_dir.rmdir)
        kept = (self._run_dir / program_cache.FILE_NAME).exists()
        programs = Programs(program_cache.load_or_compile(self._run_dir, _compile))
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
                if entry.state in _STATES and entry.backend == self.name and not entry.cgroup:
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


def _compile() -> Compiled:
    log.info("compiling the BPF programs, which takes some seconds and is done once")
    began = time.monotonic()
    compiled = compile_in_child()
    log.info("compiled the BPF programs in %.1f s", time.monotonic() - began)
    return compiled
