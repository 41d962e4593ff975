"""Which backend captures whom.

Workloads with a network namespace of their own are captured by eBPF, which is the better one, or by iptables, for
kernels and policies without the BPF features; processes of the node by eBPF only. New ones are captured as the
configuration asks; `auto` tries. Each journal entry says what made it, and keeps it until its workload has left: a
connection that one backend captured is of no use to another. So an agent whose configuration changed drives several
until then, and needs the means of all of them.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
from pathlib import Path

from nodeseal.capture.backends.backend import Backend, Choice
from nodeseal.capture.backends.host_ebpf import HostEbpfBackend
from nodeseal.capture.backends.iptables import IptablesBackend
from nodeseal.capture.backends.pod_ebpf import PodEbpfBackend
from nodeseal.capture.bpf.runtime import Runtime
from nodeseal.capture.errors import CaptureError, CompilingInterruptedError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.linux.errors import LinuxError

log = logging.getLogger("nodeseal.capture")


class Selection:
    """The backends of one run directory."""

    def __init__(
        self, run_dir: Path, cgroup: Path | None = None, choice: Choice = Choice.AUTO, *, truthful: bool = False
    ) -> None:
        """`cgroup`: root of the cgroup v2 tree, None to find it; `truthful`: what is chosen must be able to park."""
        self.runtime = Runtime(run_dir, cgroup)
        self.iptables = IptablesBackend()
        self.host = HostEbpfBackend(self.runtime)
        self.chosen: BackendName | None = None
        """Which way new workloads are captured, after prepare()."""
        self.why = ""
        """Why `auto` did not choose eBPF; "" when it did, or when there was no choice."""
        self._choice = choice
        self._truthful = truthful
        # Those of one name are prepared in this order.
        self._all: tuple[Backend, ...] = (PodEbpfBackend(self.runtime), self.host, self.iptables)

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """Find out which can be used for new workloads, and prepare that; so too those that captured what is there
        already. What undoes it goes to `undo`. Raises LinuxError.
        """
        chosen = self._choose(journal, undo)
        for name in sorted({entry.backend for entry in journal.entries.values()} - {chosen}):
            mine = ", ".join(sorted(entry.name for entry in journal.entries.values() if entry.backend == name))
            try:
                self._prepare(name, journal, undo)
            except LinuxError as error:
                cleanup = f"nodeseal cleanup --run-dir {shlex.quote(str(self.runtime.run_dir))}"
                raise CaptureError(
                    f"{mine}: captured by {name} before, which cannot be used any more ({error}); correct that, or run "
                    f"`{cleanup}` first"
                ) from None
            log.info("still captured by %s until they leave: %s", name, mine)
        self.chosen = chosen

    def of(self, entry: Entry) -> Backend:
        """The backend that captures this workload. Raises CaptureError when there is none that could."""
        for backend in self._all:
            if (backend.name, backend.of_processes) == (entry.backend, bool(entry.cgroup)):
                return backend
        raise CaptureError(f"cannot capture {entry.name}: processes of the node are captured by eBPF only")

    def close(self) -> None:
        """Let go of all descriptors; what is installed stays."""
        for backend in self._all:
            backend.close()

    def _choose(self, journal: Journal, undo: contextlib.ExitStack) -> BackendName:
        """Prepares the choice, and says which it is."""
        if self._choice is not Choice.AUTO:
            name: BackendName = "ebpf" if self._choice is Choice.EBPF else "iptables"
            self._prepare_chosen(name, journal, undo)
            return name
        try:
            with contextlib.ExitStack() as attempt:
                self._prepare_chosen("ebpf", journal, attempt)
                undo.push(attempt.pop_all())
            return "ebpf"
        except CompilingInterruptedError:
            raise  # the machine may well have eBPF
        except LinuxError as error:
            self.why = str(error)
        try:
            self._prepare_chosen("iptables", journal, undo)
        except LinuxError as error:
            raise CaptureError(f"no capture backend can be used here: ebpf: {self.why}; iptables: {error}") from None
        log.warning("capture is by iptables, not by eBPF: %s", self.why)
        return "iptables"

    def _prepare_chosen(self, name: BackendName, journal: Journal, undo: contextlib.ExitStack) -> None:
        self._prepare(name, journal, undo)
        if name == "iptables" and self._truthful and (why := self.iptables.cannot_park) is not None:
            raise CaptureError(f"it cannot have 'connect: truthful', say early if that will do: {why}")

    def _prepare(self, name: BackendName, journal: Journal, undo: contextlib.ExitStack) -> None:
        for backend in self._all:
            if backend.name == name:
                backend.prepare(journal, undo)
