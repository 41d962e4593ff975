"""What the eBPF backends have in common on this machine: the programs, and the maps of the run directory.

run_dir/bpf            a BPF file system of the run directory's own
run_dir/bpf/enrolled   map: whom the connect programs at the root of the cgroup tree concern, by namespace cookie
run_dir/bpf/owned      map: the addresses of these namespaces
run_dir/bpf/guards     map: the outbound listeners, by the same key
run_dir/bpf/rings      map: the rings of parked SYNs, by namespace and process
run_dir/bpf/bypass     map: which connections bypass the core, of all workloads (bypass.py)
run_dir/bpf/natives    map: native connections (bpf/lib/natives.h); native_totals, native_open: what they come to;
                       native_log, native_told, native_wanted: the last that were opened and closed
run_dir/bpf/let_...    maps: connections that are let go and not established yet
run_dir/bpf/counters   map: what went wrong, counted by all programs
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nodeseal.capture import constants
from nodeseal.capture.bpf import cache, shipped, steering
from nodeseal.capture.bpf.compile import Compiled, compile_in_child
from nodeseal.capture.bpf.pins import pinned_or_new
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.bypass import Bypass, NoBypass
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.natives import Log, Native, Place, Total, open_natives, read_log, totals, want_log
from nodeseal.linux import bpf, capabilities, cgroups, mounts
from nodeseal.linux.cgroups import CgroupTree

log = logging.getLogger("nodeseal.capture")

DIRECTORY = "bpf"
_MAPS = ("enrolled", "counters", "bypass", "guards", "owned", "rings", *constants.NATIVE_MAPS)


class Runtime:
    """The programs and maps of one run directory, in the hands of one agent."""

    def __init__(self, run_dir: Path, cgroup: Path | None = None) -> None:
        """`cgroup`: root of the cgroup v2 tree, None to find it."""
        self.run_dir = run_dir
        self.pins = run_dir / DIRECTORY
        """The BPF file system."""
        self.maps: dict[str, int] = {}
        """Name -> descriptor, of those that all workloads share; empty before prepare()."""
        self.renewed = False
        """Whether one of them had to be made anew: what reads them must be told."""
        self.tcx = False
        """Whether the kernel attaches programs by TCX links."""
        self._cgroup = cgroup
        self._programs: Programs | None = None

    @property
    def prepared(self) -> bool:
        """Whether eBPF is in use."""
        return self._programs is not None

    @property
    def programs(self) -> Programs:
        """What was compiled, after prepare()."""
        if self._programs is None:
            raise CaptureError("capture is not prepared: call prepare() first")
        return self._programs

    @property
    def cgroup(self) -> Path:
        """The root of the cgroup v2 tree, after prepare()."""
        assert self._cgroup is not None
        return self._cgroup

    @property
    def cgroups(self) -> CgroupTree:
        """The tree, after prepare()."""
        return CgroupTree(self.cgroup)

    def prepare(self, undo: contextlib.ExitStack) -> None:
        """Probe privileges and features, compile, mount, make the maps or take over those that are pinned. Harmless
        when repeated. What undoes it goes to `undo`. Raises LinuxError.
        """
        if self.prepared:
            return
        self.renewed = False
        capabilities.check_privileges()
        self._cgroup = cgroups.check_cgroup(self._cgroup or cgroups.find_cgroup())
        try:
            programs = self._compiled(undo)
            programs.probe()
            self.tcx = steering.probe_tcx()
            self._mount(undo)
            undo.callback(self.close)
            for name in _MAPS:
                path = self.pins / name
                if not path.exists():
                    undo.callback(path.unlink)
                make, fits = partial(programs.new_map, name), partial(programs.fits, name)
                self.maps[name], new = pinned_or_new(path, make, fits)
                self.renewed = self.renewed or new
        except OSError as error:
            raise CaptureError(f"cannot prepare capture in {self.run_dir}: {error.strerror}") from None
        self._programs = programs

    def load(self, stack: contextlib.ExitStack, name: str, maps: Mapping[str, int]) -> int:
        """A program that uses these maps, and for the rest the shared ones; it is closed with the stack. Raises
        CaptureError.
        """
        program = self.programs.load(name, {**self.maps, **maps})
        stack.callback(os.close, program)
        return program

    def bypass(self) -> Bypass:
        """The map of what bypasses the core; the caller closes it. One that holds nothing where eBPF is not in use."""
        return Bypass(os.dup(self.maps["bypass"])) if self.prepared else NoBypass()

    def counters(self) -> dict[str, int]:
        """What went wrong in a BPF program or bypassed the core, in all workloads' together; bpf/nodeseal.h says what
        each means. Nothing where eBPF is not in use.
        """
        totals: dict[str, int] = {}
        for key, name in enumerate(constants.COUNTERS) if self.prepared else ():
            # The kernel copies one 8-byte value for each possible CPU.
            value = bpf.map_lookup(self.maps["counters"], struct.pack("=I", key), 8 * bpf.possible_cpus())
            totals[name] = sum(item for (item,) in struct.iter_unpack("=Q", value or b""))
        return totals

    def natives(self) -> dict[int, Native]:
        """Native connections that are open, by the cookie of the workload's socket. None where eBPF is not in use."""
        return open_natives(self.maps["natives"]) if self.prepared else {}

    def native_totals(self) -> dict[Place, Total]:
        """What native connections have come to. Nothing where eBPF is not in use."""
        return totals(self.maps["native_totals"]) if self.prepared else {}

    def native_log(self, first: Sequence[int] = (), *, wanted: bool) -> Log:
        """See read_log and want_log. Nothing where eBPF is not in use."""
        if not self.prepared:
            return Log()
        want_log(self.maps["native_wanted"], wanted=wanted)
        return read_log(self.maps["native_log"], self.maps["native_told"], first)

    def close(self) -> None:
        """Let go of all descriptors; what is installed stays."""
        self._programs = None
        while self.maps:
            os.close(self.maps.popitem()[1])

    # ---- inside

    def _compiled(self, undo: contextlib.ExitStack) -> Programs:
        if not self.run_dir.is_dir():
            self.run_dir.mkdir(mode=0o700, parents=True)
            undo.callback(self.run_dir.rmdir)
        kept = (self.run_dir / cache.FILE_NAME).exists()
        programs = Programs(_compiled(self.run_dir))
        if not kept:
            undo.callback(cache.remove, self.run_dir)
        return programs

    def _mount(self, undo: contextlib.ExitStack) -> None:
        if self.pins.resolve() in mounts.mount_points("bpf"):
            return
        if not self.pins.is_dir():
            self.pins.mkdir(mode=0o700)
            undo.callback(self.pins.rmdir)
        mounts.mount_bpf(self.pins)
        undo.callback(mounts.unmount, self.pins)


def compile_ahead(run_dir: Path) -> None:
    """For an agent that will prepare() here: what it will use is there then. Raises CaptureError."""
    _compiled(run_dir)


def _compiled(run_dir: Path) -> Compiled:
    """Those that came with this installation, or else compiled here. Raises CaptureError."""
    there = shipped.load()
    return there if there is not None else cache.load_or_compile(run_dir, _compile)


def _compile() -> Compiled:
    log.info("compiling the BPF programs, which takes some seconds and is done once")
    began = time.monotonic()
    compiled = compile_in_child()
    log.info("compiled the BPF programs in %.1f s", time.monotonic() - began)
    return compiled
