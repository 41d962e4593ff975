"""What processes have used, from the kernel's own accounts in /proc.

CPU time is the sum of every thread's /proc/PID/task/TID/schedstat (nanoseconds;
Documentation/scheduler/sched-stats.rst); how it divides into user and system comes from /proc/PID/stat (10 ms ticks;
proc(5)). Work that the kernel does in soft interrupts while one of the threads runs counts for that thread, for every
peer alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and context switches: a reading, or the difference of two."""

    total_s: float = 0.0
    user_ticks: int = 0
    system_ticks: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0

    def __sub__(self, before: Usage) -> Usage:
        return Usage(
            self.total_s - before.total_s,
            self.user_ticks - before.user_ticks,
            self.system_ticks - before.system_ticks,
            self.voluntary_switches - before.voluntary_switches,
            self.involuntary_switches - before.involuntary_switches,
        )

    @property
    def user_s(self) -> float:
        """The part of total_s in user mode."""
        ticks = self.user_ticks + self.system_ticks
        return self.total_s * self.user_ticks / ticks if ticks else 0.0

    @property
    def system_s(self) -> float:
        """The part of total_s in the kernel."""
        return self.total_s - self.user_s

    @property
    def switches(self) -> int:
        return self.voluntary_switches + self.involuntary_switches


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (10^6 bytes). `pss`: proportional set size, a page shared by n processes counts 1/n for each;
    `private`: pages that no other process has."""

    pss_mb: float = 0.0
    private_mb: float = 0.0
    rss_mb: float = 0.0


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def read_usage(pids: Iterable[int]) -> Usage:
    """What these processes have used since they began. One that has ended counts nothing."""
    nanoseconds = user = system = voluntary = involuntary = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = (_PROC / str(pid) / "stat").read_text()
            # The command's name, in parentheses, may hold blanks; utime and stime are fields 14 and 15.
            fields = text[text.rindex(")") + 2 :].split()
            user, system = user + int(fields[11]), system + int(fields[12])
        for task in _tasks(pid):
            with contextlib.suppress(OSError):
                nanoseconds += int((task / "schedstat").read_text().split()[0])
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        voluntary += int(line.split()[1])
                    elif line.startswith("nonvoluntary_ctxt_switches:"):
                        involuntary += int(line.split()[1])
    return Usage(nanoseconds / 1e9, user, system, voluntary, involuntary)


def read_memory(pids: Iterable[int]) -> Memory:
    """The sum over the processes. One that has ended counts nothing."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid).memory_full_info())
    return Memory(*(sum(getattr(one, part) for one in found) / 1e6 for part in ("pss", "uss", "rss")))


def read_machine_busy() -> float:
    """Seconds that the machine's CPUs have been busy since boot, all processes and interrupts together."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def _tasks(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return []
