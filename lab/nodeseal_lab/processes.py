"""The processes of a lab: each has a record on disk from before it starts until after it has ended.

A record is one JSON file in the lab's directory `processes/`: {"id", "role", "pid", "start", "argv"}. `pid` and
`start` (the process's start time in clock ticks since boot, /proc/PID/stat field 22) are null until the process runs;
they tell it from another that got the same pid later. A record that has no pid because the lab's own command was
killed at the wrong moment is still found: the process carries the record's id in its environment, in
NODESEAL_LAB_PROCESS.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from nodeseal.linux.pidfd import open_process
from nodeseal_lab.errors import LabError
from nodeseal_lab.files import write_atomically
from nodeseal_lab.namespaces import run_in

MARKER = "NODESEAL_LAB_PROCESS"
GRACE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of the lab. `role` says what it is for: "agent node1", "app siem", "exec shipper", "tcpdump
    node1"."""

    id: str
    role: str
    argv: tuple[str, ...]
    pid: int | None = None
    start: int | None = None

    @property
    def alive(self) -> bool:
        return self.pid is not None and start_time(self.pid) == self.start


class ProcessTable:
    """The records in one directory, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def records(self) -> Iterator[ProcessRecord]:
        """Those on disk, unreadable ones left out (a record is written whole or not at all)."""
        for path in sorted(self.directory.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                value = json.loads(path.read_text())
                yield ProcessRecord(value["id"], value["role"], tuple(value["argv"]), value["pid"], value["start"])

    def new_record(self, role: str, argv: Sequence[str]) -> ProcessRecord:
        """Writes the record of a process that does not run yet."""
        record = ProcessRecord(secrets.token_hex(8), role, tuple(argv))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write(record)
        return record

    def running_as(self, record: ProcessRecord, pid: int) -> ProcessRecord:
        """Notes that the record's process is `pid`."""
        record = replace(record, pid=pid, start=start_time(pid))
        self._write(record)
        return record

    def start(self, role: str, argv: Sequence[str], *, netns: str, output: Path) -> ProcessRecord:
        """Starts a process in a session of its own inside the namespace, stdout and stderr appended to `output`.

        Raises LabError when it cannot be started."""
        record = self.new_record(role, argv)
        environment = child_environment() | {MARKER: record.id}
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # Python ignores SIGPIPE, and what is ignored stays ignored across exec.
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]

        def spawn() -> int:
            return os.posix_spawnp(
                argv[0], list(argv), environment, file_actions=actions, setsid=True, setsigdef=defaults
            )

        try:
            pid = run_in(netns, spawn)
        except OSError as error:
            self.forget(record)
            raise LabError(f"cannot start {argv[0]} ({role}): {error.strerror}") from error
        return self.running_as(record, pid)

    def forget(self, record: ProcessRecord) -> None:
        (self.directory / f"{record.id}.json").unlink(missing_ok=True)

    def forget_ended(self) -> None:
        """Removes the records of processes that ran and have ended."""
        for record in self.records():
            if record.pid is not None and not record.alive:
                self.forget(record)

    def end(self, records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
        """Ends these processes, SIGTERM first and SIGKILL after a grace time, and removes their records.

        Returns those that are still there all the same (in the kernel's hands); their records stay."""
        waiting: list[tuple[ProcessRecord, int]] = []
        ended: list[ProcessRecord] = []
        for record in records:
            pids = [record.pid] if record.pid is not None else find_by_marker(record.id)
            handles = [handle for pid in pids if (handle := _open_process(pid, record)) is not None]
            waiting += [(record, handle) for handle in handles]
            ended += [] if handles else [record]
        try:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                for _, handle in waiting:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, signal_number)
                remaining = _wait_ended(waiting)
                ended += [record for record, handle in waiting if handle not in {h for _, h in remaining}]
                for _, handle in set(waiting) - set(remaining):
                    os.close(handle)
                waiting = remaining
        finally:
            for _, handle in waiting:
                os.close(handle)
        stuck = {record.id for record, _ in waiting}
        for record in ended:
            _reap(record.pid)
            if record.id not in stuck:
                self.forget(record)
        return [record for record, _ in waiting]

    def _write(self, record: ProcessRecord) -> None:
        write_atomically(self.directory / f"{record.id}.json", json.dumps(asdict(record)) + "\n")


def start_time(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot; None when there is none, or only a zombie is left of
    it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may itself hold blanks and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def find_by_marker(value: str) -> list[int]:
    """The processes whose environment holds NODESEAL_LAB_PROCESS=value; a child inherits it."""
    processes = psutil.process_iter(["environ"])
    return [one.pid for one in processes if (one.info["environ"] or {}).get(MARKER) == value]


def child_environment() -> dict[str, str]:
    """This process's environment; PYTHONPATH made absolute, since the child may change its directory."""
    environment = dict(os.environ)
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in path.split(os.pathsep))
    return environment


def _open_process(pid: int, record: ProcessRecord) -> int | None:
    """A pidfd of the record's process, or None when it has ended: the start time is read after the pidfd is open, so
    that the pid cannot pass to another process in between."""
    try:
        handle = open_process(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) is None or (record.start is not None and start_time(pid) != record.start):
        os.close(handle)
        return None
    return handle


def _wait_ended(waiting: Sequence[tuple[ProcessRecord, int]]) -> list[tuple[ProcessRecord, int]]:
    """Waits until all have ended or the grace time is over; returns those that have not ended."""
    poll = select.poll()
    for _, handle in waiting:
        poll.register(handle, select.POLLIN)
    alive = {handle for _, handle in waiting}
    deadline = time.monotonic() + GRACE_SECONDS
    while alive and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            alive.discard(handle)
    return [(record, handle) for record, handle in waiting if handle in alive]


def _reap(pid: int | None) -> None:
    """Takes the exit status of a child of this very process, which would stay a zombie otherwise."""
    if pid is not None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
