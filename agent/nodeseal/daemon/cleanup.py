"""`nodeseal cleanup`: no trace of nodeseal on the node, whatever state it is in.

The order keeps two promises. The core ends before its routes go, and every socket that was captured is ended while
they are still there: one that outlived them would send its next bytes past the tunnel, in plaintext. And the agent
ends first, because it would put everything back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nodeseal.capture import constants
from nodeseal.capture.cleanup import cleanup as cleanup_capture
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Entry, Journal
from nodeseal.cni import installation
from nodeseal.cores import place
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.daemon.composition import source_at
from nodeseal.linux import conntrack, lock_file
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.linux.namespace import NamespaceGoneError, NetworkNamespace
from nodeseal.linux.pidfd import open_process
from nodeseal.linux.sock_diag import DirectError, end_captured
from nodeseal.local import generations, registry, run_directory
from nodeseal.sources.source import PublicationError, SourceAwayError

_AGENT_PATIENCE_S = 30.0
_CORE_PATIENCE_S = 5.0
_KILL_PATIENCE_S = 10.0
_APPLICATION_MARKS = frozenset({constants.MARK_CAPTURED, constants.MARK_TO_APP})


class CleanupError(Exception):
    """Cleanup cannot begin; one line."""


@dataclass(slots=True)
class Report:
    """One line for each thing that was removed, and for each that could not be."""

    removed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def cleanup(run_dir: Path) -> Report:
    """Removes everything that belongs to `run_dir`. Raises CleanupError without root's privileges."""
    if os.geteuid() != 0:
        raise CleanupError("cleanup needs root's privileges: run it as root")
    report = Report()
    if not run_dir.is_dir():
        # Of the machine's former life: the list of network plugins outlives /run.
        _remove_plugin(run_dir, report)
        _forget(run_dir, report)
        return report
    had_lock = (run_dir / run_directory.AGENT_LOCK).exists()
    _end_agents(run_dir, report)
    try:
        lock = LockFile(run_dir / run_directory.AGENT_LOCK)
    except AlreadyLocked as error:
        report.failed.append(f"an agent (pid {error.pid}) was started again for {run_dir}: stop what starts it first")
        return report
    except OSError as error:
        raise CleanupError(f"cannot lock {run_dir / run_directory.AGENT_LOCK}: {error.strerror or error}") from None
    try:
        # While pods still can start and end with it.
        unplugged = _remove_plugin(run_dir, report)
        withdrawn = _withdraw(run_dir, report)
        _end_cores(run_dir, report)
        _forget_places(run_dir, report)
        _end_captured_sockets(run_dir, report)
        capture = cleanup_capture(run_dir)
        report.removed += capture.removed
        report.failed += capture.failed
        # The note of where something is stays for the next try.
        kept = (
            run_directory.CORE_PLACE,
            *(() if withdrawn else (run_directory.PUBLICATION,)),
            *(() if unplugged else (run_directory.PLUGIN_PLACES,)),
        )
        shutil.rmtree(run_dir / run_directory.LET_THROUGH, ignore_errors=True)
        _remove_files(run_dir, report, had_lock=had_lock, kept=kept)
    finally:
        lock.release(remove=True)
    if not report.failed:
        _forget(run_dir, report)
    if report.removed and not report.failed:
        # The lab keeps its own files there, a user perhaps as well: only an empty directory is ours to remove.
        with contextlib.suppress(OSError):
            run_dir.rmdir()
    return report


def _forget(run_dir: Path, report: Report) -> None:
    """Without a word for it, and only when nothing is left that a command would have to find."""
    try:
        registry.forget(run_dir)
    except OSError as error:
        report.failed.append(f"cannot remove the note of {run_dir} in {registry.DIRECTORY}: {error.strerror or error}")


def _remove_plugin(run_dir: Path, report: Report) -> bool:
    """The network plugin, from wherever agents of this run directory have put it. False when it should be tried
    again."""
    removed, failed = installation.remove(run_dir)
    report.removed += removed
    report.failed += failed
    return not failed


def _end_agents(run_dir: Path, report: Report) -> None:
    """Those that stand by first: they would take over."""
    for path in run_directory.standby_locks(run_dir):
        pid = lock_file.holder(path)
        if pid is not None and _end_process(path, pid, _AGENT_PATIENCE_S):
            report.removed.append(f"agent, pid {pid} (it stood by, and was ended)")
    pid = lock_file.holder(run_dir / run_directory.AGENT_LOCK)
    if pid is not None and _end_process(run_dir / run_directory.AGENT_LOCK, pid, _AGENT_PATIENCE_S):
        report.removed.append(f"agent, pid {pid} (it ran, and was ended)")


def _withdraw(run_dir: Path, report: Report) -> bool:
    """Every publication that agents of this run directory have made. False when it should be tried again."""
    try:
        noted = run_directory.remembered_publications(run_dir)
    except (ValueError, OSError) as error:
        report.failed.append(f"the publication of this node was not withdrawn: {error}")
        return isinstance(error, ValueError)
    done = True
    for reference in noted:
        try:
            # Another run directory may publish for this node by now.
            withdrawn = asyncio.run(source_at(reference, run_dir).withdraw())
        except SourceAwayError:
            continue
        except ValueError as error:
            report.failed.append(f"a publication of this node was not withdrawn: {error}")
        except PublicationError as error:
            node = reference.get("node", "?")
            report.failed.append(f"the publication of the node {node} was not withdrawn: {error}")
            done = False
        else:
            if withdrawn is not None:
                report.removed.append(f"publication {withdrawn}")
    return done


def _end_cores(run_dir: Path, report: Report) -> None:
    for generation, pid in generations.running(run_dir).items():
        # Asked first: it then closes its connections by itself. One that does not answer is signalled.
        with contextlib.suppress(CoreError):
            asyncio.run(_stop_core(run_dir, generation, pid))
        if _end_process(generations.lock_path(run_dir, generation), pid, _CORE_PATIENCE_S):
            report.removed.append(f"core, pid {pid}")
        else:
            report.failed.append(f"the core, pid {pid}, does not end")


def _forget_places(run_dir: Path, report: Report) -> None:
    """The cores' cgroups, and the copies of their files."""
    try:
        report.removed += place.tidy(run_dir, generations.running(run_dir))
        report.failed += place.forget(run_dir)
    except OSError as error:
        report.failed.append(f"cannot remove what cores left: {error.filename}: {error.strerror or error}")


async def _stop_core(run_dir: Path, generation: int, pid: int) -> None:
    client = CoreClient(run_dir, generation, _CORE_PATIENCE_S, pid=pid)
    with contextlib.closing(client):
        await client.stop()


def _end_process(lock: Path, pid: int, patience: float) -> bool:
    """Ends the process that holds `lock`: SIGTERM, after `patience` seconds SIGKILL. Whether it has ended."""
    try:
        process = open_process(pid)
    except ProcessLookupError:
        return True
    try:
        # Asked again now that the pid can no longer be another process's.
        if lock_file.holder(lock) != pid:
            return True
        poller = select.poll()
        poller.register(process, select.POLLIN)
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_PATIENCE_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if poller.poll(seconds * 1000):
                return True
        return False
    finally:
        os.close(process)


def _end_captured_sockets(run_dir: Path, report: Report) -> None:
    try:
        entries = Journal.load(run_dir).entries.values()
    except CaptureError:
        return  # cleanup_capture tells of it
    for entry in entries:
        try:
            with NetworkNamespace.find(entry.netns, entry.cookie) as namespace:
                count = namespace.run(partial(_end_sockets, entry))
        except NamespaceGoneError:
            continue
        except (LinuxError, DirectError, OSError) as error:
            report.failed.append(f"captured connections in {entry.netns} were not ended: {error}")
            continue
        if count:
            report.removed.append(f"{count} captured connection{'s' if count != 1 else ''} in {entry.netns}")


def _end_sockets(entry: Entry) -> int:
    if entry.backend != "iptables":
        return end_captured(_APPLICATION_MARKS | frozenset(entry.marks))
    # The application's sockets have no mark, and a SYN that was dropped leaves no entry in conntrack.
    captured = conntrack.marked_connections(constants.MARK_CAPTURED)
    return end_captured(_APPLICATION_MARKS, captured, opening=entry.state == "capturing")


def _remove_files(run_dir: Path, report: Report, *, had_lock: bool, kept: tuple[str, ...]) -> None:
    gone = []
    for path in run_directory.own_files(run_dir):
        if path.name in kept:
            continue
        if path.name == run_directory.AGENT_LOCK:
            if had_lock:
                gone.append(path.name)  # it goes when it is released
            continue
        for file in (path, path.with_name(f"{path.name}.new")):
            try:
                file.unlink()
                gone.append(file.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                report.failed.append(f"cannot remove {file}: {error.strerror}")
    if gone:
        report.removed.append(f"files in {run_dir}: {', '.join(gone)}")
