"""A root directory and cgroups of its own for a process, as a container has: both can be taken away under it.

The root is an overlay over the machine's own, in a mount namespace of the process. The files of nodeseal that it runs
are only there, in the overlay's upper directory. /proc, /sys, /dev, /run and the directories that are named are the
machine's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import nodeseal
from nodeseal.linux.cgroup_hierarchies import PROCESSES, OwnCgroup, hierarchies
from support.patience import wait_for

_APP = "/nodeseal-app"
_MACHINES = ("/proc", "/sys", "/dev", "/run")


class ContainerRoot:
    """`directory`: a new one for its files; `shared`: directories of the machine that it sees."""

    def __init__(self, directory: Path, name: str, shared: Iterable[Path]) -> None:
        self._directory = directory
        self._shared = [*_MACHINES, *map(str, shared)]
        self.cgroup = OwnCgroup(f"/nodeseal-test-{os.getpid()}/{name}")
        package = directory / "upper" / _APP.lstrip("/") / "nodeseal"
        for part in ("work", "root"):
            (directory / part).mkdir(parents=True)
        shutil.copytree(Path(nodeseal.__file__).parent, package)
        self._joined = self.cgroup.make()

    def command(self, *arguments: str) -> list[str]:
        """Runs a command of this Python in it."""
        root = self._directory / "root"
        layers = f"lowerdir=/,upperdir={self._directory / 'upper'},workdir={self._directory / 'work'}"
        lines = [
            *(f"echo 0 > {shlex.quote(str(path))}" for path in self._joined),
            f"mount -t overlay overlay -o {shlex.quote(layers)} {root}",
            *(f"mkdir -p {root}{path} && mount --rbind {path} {root}{path}" for path in self._shared),
        ]
        path = os.pathsep.join([_APP, *(one for one in sys.path if one.endswith("site-packages"))])
        lines.append(
            f"exec chroot {root} env PYTHONPATH={shlex.quote(path)} {shlex.join([sys.executable, *arguments])}"
        )
        return ["unshare", "--mount", "sh", "-ec", "\n".join(lines)]

    def processes(self) -> set[int]:
        """Those in its cgroup, in any hierarchy."""
        found: set[int] = set()
        for one in hierarchies():
            with contextlib.suppress(FileNotFoundError):
                text = (one.root / self.cgroup.path.lstrip("/") / PROCESSES).read_text()
                found |= set(map(int, text.split()))
        return found

    def take_away(self) -> None:
        """Kills what is in its cgroup, and deletes its files. The mounts went with the last process in there."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self.processes():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        wait_for(self.cgroup.remove, "nothing is left in the cgroup")
        shutil.rmtree(self._directory)
