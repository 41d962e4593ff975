"""Removing every trace of capture from the machine, with no agent running.

Works from the journal and from what is pinned, as often as one likes, and touches nothing that another run directory
put there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nodeseal.capture.backends import host_ebpf, iptables
from nodeseal.capture.backends.pod_ebpf import BPF_DIRECTORY, CGROUP_LINKS
from nodeseal.capture.bpf import installation, program_cache
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Journal
from nodeseal.linux import syscalls
from nodeseal.linux.namespace import NamespaceGoneError, NetworkNamespace


@dataclass(slots=True)
class Report:
    """One line for each thing that was removed, and for each that could not be. A vanished namespace is no failure."""

    removed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def cleanup(run_dir: Path) -> Report:
    """Undo everything that capture did for this run directory. Never raises for what it finds; see Report.failed.

    An agent or core that still runs should be ended before: connections that go through the core end with it.
    """
    report = Report()
    pins = run_dir / BPF_DIRECTORY
    try:
        journal = Journal.load(run_dir)
    except CaptureError as error:
        report.failed.append(str(error))
        journal = None

    # The programs at the cgroup tree go first: nothing new is captured while the rest is taken down.
    for name in CGROUP_LINKS:
        _attempt(report, f"BPF program {pins / name}", partial(_detach, pins / name))
    enrolled = None
    with contextlib.suppress(OSError):
        enrolled = syscalls.pinned(pins / "enrolled")
    try:
        for entry in list(journal.entries.values()) if journal else []:
            namespace = None
            with contextlib.suppress(NamespaceGoneError):
                try:
                    namespace = NetworkNamespace.find(entry.netns, entry.cookie)
                except NamespaceGoneError:
                    raise
                except CaptureError as error:
                    report.failed.append(str(error))
                    continue
            before = len(report.failed)
            if entry.cgroup:
                others = host_ebpf.neighbours(entry, journal.entries.values()) if journal else []
                results = host_ebpf.remove(entry, namespace, pins, heir=others[0] if others else None)
            elif entry.backend == "iptables":
                results = iptables.remove(entry, namespace)
            else:
                results = installation.remove(entry, namespace, enrolled, pins)
            for result in results:
                (report.failed if isinstance(result, CaptureError) else report.removed).append(str(result))
            if namespace:
                namespace.close()
            if len(report.failed) == before and journal:
                del journal.entries[entry.name]
    finally:
        if enrolled is not None:
            os.close(enrolled)

    _remove_pins(report, pins)
    _attempt(report, f"compiled programs {run_dir / program_cache.FILE_NAME}", partial(program_cache.remove, run_dir))
    if journal is not None:
        try:
            if journal.entries:
                journal.save()
            else:
                _attempt(report, f"journal {journal.path}", journal.delete)
        except CaptureError as error:
            report.failed.append(str(error))
    return report


def _attempt(report: Report, what: str, action: Callable[[], bool]) -> None:
    try:
        if action():
            report.removed.append(what)
    except OSError as error:
        report.failed.append(f"cannot remove {what}: {error.strerror}")


def _detach(path: Path) -> bool:
    try:
        fd = syscalls.pinned(path)
    except FileNotFoundError:
        return False
    try:
        syscalls.link_detach(fd)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
    return True


def _remove_pins(report: Report, pins: Path) -> None:
    if pins.resolve() in syscalls.mounts("bpf"):
        # Namespaces that no journal tells of: their links still have to go.
        for directory in sorted(pins.glob("ns-*")):
            _attempt(
                report,
                f"BPF maps and links in {directory}",
                partial(installation.remove_pins, directory),
            )

        def unmount() -> bool:
            for path in pins.iterdir():
                if not path.name.endswith(".debug"):  # the kernel's own, in every BPF file system
                    path.unlink()
            syscalls.unmount(pins)
            return True

        _attempt(report, f"BPF file system {pins}", unmount)
    _attempt(report, f"directory {pins}", partial(_remove_directory, pins))


def _remove_directory(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return False
    return True
