"""Samples the stacks of running processes with perf.

The event is cpu-clock, a timer that every machine has, also a virtual one without performance counters. A sample that
falls on kernel code with interrupts off shows at the place where it turns them on again (_raw_spin_unlock_irqrestore,
finish_task_switch).

Stacks are unwound from copies of the stack (--call-graph dwarf): neither the core nor Debian's libraries keep frame
pointers, and OpenSSL's assembler keeps them least, so that frame pointers end in the middle of libcrypto. 8 KiB of
stack hold all of the core's callers, and cost about 4 MB/s of recording at this rate.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.stacks import Folded, fold_script

FREQUENCY = 499
"""Samples a second and CPU: prime, so that it does not fall into step with the core's own timers."""
_EVENT = ("-e", "cpu-clock", "-F", str(FREQUENCY))
_STACKS = ("--call-graph", "dwarf,8192")
_FIELDS = "comm,pid,tid,ip,sym,dso"
_READY_SECONDS = 20.0
_END_SECONDS = 30.0
_UNWIND_SECONDS = 300.0


def perf_missing() -> str | None:
    """Why perf cannot be used here, in one line; None when it can."""
    if shutil.which("perf") is None:
        return "perf is missing: apt-get install linux-perf"
    with tempfile.TemporaryDirectory() as directory:
        command = ["perf", "record", "-q", *_EVENT, "-g", "-o", f"{directory}/data", "--", "true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    return f"perf cannot sample here: {said[:200]} (perf_event_open needs CAP_PERFMON, also in a container)"


@dataclass
class Sampler:
    """Records some processes into one file after another."""

    data: Path

    @contextlib.contextmanager
    def sampling(self, pids: Sequence[int]) -> Iterator[None]:
        """Samples all threads of the processes from the beginning of the block to its end. Raises BenchError."""
        from_us, to_perf = os.pipe()
        answers, from_perf = os.pipe()
        # -D -1: it opens its events without counting; "enable" begins, and is acknowledged.
        command = ["perf", "record", "-q", *_EVENT, *_STACKS, "-o", str(self.data), "-D", "-1"]
        command += ["--control", f"fd:{from_us},{from_perf}", "-p", ",".join(map(str, pids))]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=(from_us, from_perf),
        )  # fmt: skip
        os.close(from_us)
        os.close(from_perf)
        try:
            self._enable(process, to_perf, answers)
            yield
            # SIGINT is perf's orderly end; the file is complete when it has gone.
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=_END_SECONDS)
            # It then ends by the signal, or with 0.
            if process.returncode not in (0, -signal.SIGINT, 128 + signal.SIGINT):
                raise BenchError(f"perf record failed: {_last_line(errors) or process.returncode}")
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"perf record did not end within {_END_SECONDS:.0f} s") from error
        finally:
            os.close(to_perf)
            os.close(answers)
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()

    @staticmethod
    def _enable(process: subprocess.Popen[bytes], to_perf: int, answers: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(to_perf, b"enable\n")
        answered = select.select([answers], [], [], _READY_SECONDS)[0] and os.read(answers, 16)
        if not answered:
            process.kill()
            _, errors = process.communicate()
            raise BenchError(f"perf record did not start: {_last_line(errors) or 'it said nothing'}")

    def fold(self, side_of: Callable[[int], str]) -> Folded:
        """The stacks of the last recording. Raises BenchError."""
        command = ["perf", "script", "-i", str(self.data), "--no-inline", "-F", _FIELDS]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=_UNWIND_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"perf script did not end within {_UNWIND_SECONDS:.0f} s") from error
        folded = fold_script(done.stdout, side_of)
        if done.returncode != 0 or not folded:
            raise BenchError(f"perf script found no samples: {_last_line(done.stderr.encode()) or 'it said nothing'}")
        return folded


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
