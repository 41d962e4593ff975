"""What every long-running nodeseal process does to itself first: no core dumps, no reading of its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> None:
    """Private keys are in this process's memory: RLIMIT_CORE 0 and PR_SET_DUMPABLE 0 (prctl(2)). Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")


def raise_descriptor_limit(most: Path = Path("/proc/sys/fs/nr_open")) -> int:
    """RLIMIT_NOFILE up to what the kernel gives to anyone (fs.nr_open), or, without CAP_SYS_RESOURCE, up to the hard
    limit; the limit that is now in force."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        highest = int(most.read_text())
        if highest > hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
            return highest
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
