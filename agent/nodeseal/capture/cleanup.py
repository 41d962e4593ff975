"""Removing every trace of capture from the machine, with no agent running.

Works from the journal and from what is pinned, as often as one likes, and touches nothing that another run directory
put there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nodeseal.capture.backends.pod_ebpf import CGROUP_LINKS
from nodeseal.capture.backends.selection import Selection
from nodeseal.capture.bpf import cache, pins
from nodeseal.capture.bpf.runtime import DIRECTORY
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry, Journal
from nodeseal.linux import mounts
from nodeseal.linux.errors import LinuxError
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
    directory = run_dir / DIRECTORY
    try:
        journal = Journal.load(run_dir)
    except CaptureError as error:
        report.failed.append(str(error))
        journal = None

    # The programs at the cgroup tree go first: nothing new is captured while the rest is taken down.
    for name in CGROUP_LINKS:
        _attempt(report, f"BPF program {directory / name}", partial(pins.remove_link, directory / name))
    if journal is not None:
        backends = Selection(run_dir)
        for entry in list(journal.entries.values()):
            _remove(report, backends, journal, entry)
    _remove_pins(report, directory)
    _attempt(report, f"compiled programs {run_dir / cache.FILE_NAME}", partial(cache.remove, run_dir))
    if journal is not None:
        try:
            if journal.entries:
                journal.save()
            else:
                _attempt(report, f"journal {journal.path}", journal.delete)
        except CaptureError as error:
            report.failed.append(str(error))
    return report


def _remove(report: Report, backends: Selection, journal: Journal, entry: Entry) -> None:
    """What the entry tells of; the entry too, unless something failed."""
    namespace = None
    try:
        namespace = NetworkNamespace.find(entry.netns, entry.cookie)
    except NamespaceGoneError:
        pass
    except LinuxError as error:
        report.failed.append(str(error))
        return
    before = len(report.failed)
    for result in backends.of(entry).remove(entry, namespace, journal.neighbours(entry)):
        (report.failed if isinstance(result, CaptureError) else report.removed).append(str(result))
    if namespace:
        namespace.close()
    if len(report.failed) == before:
        del journal.entries[entry.name]


def _attempt(report: Report, what: str, action: Callable[[], bool]) -> None:
    try:
        if action():
            report.removed.append(what)
    except OSError as error:
        report.failed.append(f"cannot remove {what}: {error.strerror}")


def _remove_pins(report: Report, root: Path) -> None:
    if root.resolve() in mounts.mount_points("bpf"):
        # Namespaces that no journal tells of: their links still have to go.
        for directory in sorted(root.glob("ns-*")):
            _attempt(report, f"BPF maps and links in {directory}", partial(pins.remove_all, directory))

        def unmount() -> bool:
            for path in root.iterdir():
                if not path.name.endswith(".debug"):  # the kernel's own, in every BPF file system
                    path.unlink()
            mounts.unmount(root)
            return True

        _attempt(report, f"BPF file system {root}", unmount)
    _attempt(report, f"directory {root}", partial(_remove_directory, root))


def _remove_directory(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return False
    return True
