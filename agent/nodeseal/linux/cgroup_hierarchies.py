"""A cgroup of a process's own, in every hierarchy of the machine (cgroups(7)).

cgroup v1 has a hierarchy for each controller or for several together, and named ones that have none; v2 has a single
one. Both may be there at once. Who manages containers ends what is in a container's cgroup in any of them, so a process
that is to outlive its container has to leave it in all.

In a container /sys/fs/cgroup may show the container's own part alone. A hierarchy is used where it is mounted as a
whole: the node's /sys/fs/cgroup mounted at another path, for example.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nodeseal.linux.errors import LinuxError
from nodeseal.linux.mounts import Mount, mounts

T = TypeVar("T")

PROCESSES = "cgroup.procs"
_MEMORY = ("memory.current", "memory.usage_in_bytes")
_MEMORY_LIMIT = ("memory.max", "memory.limit_in_bytes")
_MEMORY_EVENTS = ("memory.events", "memory.oom_control")
"""Of v2 and v1, as all files here."""
_DYING_S = 1.0
_DYING_POLL_S = 0.01
_PERIOD_US = 100_000
_NO_LIMIT = 1 << 60
"""v1 has no word for no limit: what it says then is larger."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """`root`: where it is mounted; `controllers`: of v1, with "name=..." of a named one; of v2 they come and go."""

    root: Path
    unified: bool
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of a cgroup use, and may; None where nobody accounts for it, or where there is no limit."""

    memory: int | None = None
    """Bytes."""
    memory_limit: int | None = None
    cpu_seconds: float | None = None
    cpu_limit: float | None = None
    """CPUs."""
    killed: int = 0
    """Processes that were killed because they needed more memory than the limit."""


def hierarchies() -> list[Hierarchy]:
    """Every one that this process is in and may leave. Raises LinuxError when one is not mounted as a whole."""
    mounted = [mount for kind in ("cgroup", "cgroup2") for mount in mounts(kind) if _usable(mount)]
    found = []
    for controllers, path in _memberships():
        unified = not controllers
        of_it = [
            mount
            for mount in mounted
            if (mount.kind == "cgroup2") == unified and (unified or controllers <= set(mount.super_options))
        ]
        if of_it:
            found.append(Hierarchy(of_it[0].point, unified, controllers))
        elif path != "/":
            name = "v2" if unified else ",".join(sorted(controllers))
            raise LinuxError(
                f"the cgroup hierarchy {name} is not mounted here as a whole and writable: mount the node's "
                "/sys/fs/cgroup, at another path if need be"
            )
    return found


def _memberships() -> Iterator[tuple[frozenset[str], str]]:
    """(controllers, path) of each hierarchy that this process is in; none of v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        yield frozenset(filter(None, controllers.split(","))), path


def _usable(mount: Mount) -> bool:
    """Whether all of it is there, and can be changed. Seen from a cgroup namespace, the true root is "/../.."."""
    whole = re.fullmatch(r"/|(/\.\.)+", mount.root) is not None
    if not whole or "ro" in mount.options:
        return False
    try:
        status = mount.point.stat()
    except OSError:
        return False
    return status.st_dev == mount.device  # nothing is mounted over it


class OwnCgroup:
    """The cgroup `path` ("/nodeseal/core-1") in every hierarchy."""

    def __init__(self, path: str) -> None:
        self.path = path

    def make(self, memory: int | None = None, cpus: float | None = None) -> list[Path]:
        """Makes it, with at most so many bytes of memory and so many CPUs. The files to which who is to be in it writes
        its pid. Raises LinuxError."""
        try:
            return self._make(hierarchies(), memory, cpus)
        except OSError as error:
            raise LinuxError(f"cannot make the cgroup {self.path}: {error.filename}: {error.strerror}") from None

    def usage(self) -> Usage | None:
        """None when there is no such cgroup."""
        places = self._places()
        if not places:
            return None
        memory = _first(
            _number(place / name) for place in places for name in ("memory.current", "memory.usage_in_bytes")
        )
        limit = _first(_number(place / name) for place in places for name in ("memory.max", "memory.limit_in_bytes"))
        micros = _first(_of_stat(place / "cpu.stat", "usage_usec") for place in places)
        nanos = _first(_number(place / "cpuacct.usage") for place in places)
        seconds = micros / 1e6 if micros is not None else nanos / 1e9 if nanos is not None else None
        quota = _first(_quota(place) for place in places)
        killed = _first(_of_stat(place / name, "oom_kill") for place in places for name in _MEMORY_EVENTS)
        return Usage(memory, limit if limit is not None and limit < _NO_LIMIT else None, seconds, quota, killed or 0)

    def limit(self, memory: int | None = None, cpus: float | None = None) -> None:
        """Changes what it may use; None: no limit. Raises OSError, one that is in use may be too large for it."""
        quota = f"{round(cpus * _PERIOD_US)}" if cpus is not None else None
        for place in self._places():
            _write(place, _MEMORY_LIMIT[:1], str(memory) if memory is not None else "max")
            _write(place, _MEMORY_LIMIT[1:], str(memory) if memory is not None else "-1")
            _write(place, ("cpu.max",), f"{quota or 'max'} {_PERIOD_US}")
            _write(place, ("cpu.cfs_quota_us",), quota or "-1")

    def remove(self) -> bool:
        """Whether nothing is left of it. May take a second for one whose last process has just ended."""
        done = True
        for place in self._places():
            if not _remove(place):
                done = False
                continue
            with contextlib.suppress(OSError):
                place.parent.rmdir()  # other cgroups in it keep it
        return done

    def _places(self) -> list[Path]:
        with contextlib.suppress(LinuxError, OSError):
            return [place for one in hierarchies() if (place := one.root / self.path.lstrip("/")).is_dir()]
        return []

    def _make(self, found: Sequence[Hierarchy], memory: int | None, cpus: float | None) -> list[Path]:
        files, lacking = [], {"memory": memory is not None, "cpu": cpus is not None}
        for hierarchy in found:
            place = hierarchy.root
            for part in Path(self.path.lstrip("/")).parts:
                if hierarchy.unified:
                    _delegate(place)
                place /= part
                place.mkdir(exist_ok=True)
                if "cpuset" in hierarchy.controllers:
                    _inherit_cpuset(place)
            if (place / PROCESSES).read_text():
                raise LinuxError(f"the cgroup {place} is in use by another process")
            files.append(place / PROCESSES)
            if memory is not None and _write(place, _MEMORY_LIMIT, str(memory)):
                lacking["memory"] = False
            if cpus is not None:
                quota = round(cpus * _PERIOD_US)
                if _write(place, ("cpu.max",), f"{quota} {_PERIOD_US}") or _write(
                    place, ("cpu.cfs_quota_us",), str(quota)
                ):
                    lacking["cpu"] = False
        for controller, lacks in lacking.items():
            if lacks:
                raise LinuxError(
                    f"no cgroup hierarchy of this machine has the controller {controller}: leave the limit out"
                )
        return files


def children(parent: str) -> set[str]:
    """The names of the cgroups in `parent`, in any hierarchy."""
    found = set()
    with contextlib.suppress(LinuxError, OSError):
        for one in hierarchies():
            with contextlib.suppress(FileNotFoundError):
                found |= {path.name for path in (one.root / parent.lstrip("/")).iterdir() if path.is_dir()}
    return found


def _remove(place: Path) -> bool:
    """The kernel takes a process out of its cgroup a moment after it has told of its end."""
    deadline = time.monotonic() + _DYING_S
    while True:
        try:
            place.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                if (place / PROCESSES).read_text() or time.monotonic() > deadline:
                    return False
                time.sleep(_DYING_POLL_S)
        else:
            return True


def _delegate(place: Path) -> None:
    """What is made below it is accounted for. A controller that v1 has is not here."""
    has = (place / "cgroup.controllers").read_text().split()
    for name in ("memory", "cpu"):
        if name in has and name not in (place / "cgroup.subtree_control").read_text().split():
            (place / "cgroup.subtree_control").write_text(f"+{name}")


def _inherit_cpuset(place: Path) -> None:
    """A new cgroup of v1 has no CPU and no memory node, and takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (place / name).read_text().strip():
            (place / name).write_text((place.parent / name).read_text())


def _write(place: Path, names: Sequence[str], value: str) -> bool:
    for name in names:
        if (place / name).exists():
            (place / name).write_text(value)
            return True
    return False


def _first(values: Iterator[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # not there, or "max"


def _of_stat(path: Path, key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return None


def _quota(place: Path) -> float | None:
    """CPUs that a cgroup may use."""
    with contextlib.suppress(OSError, ValueError):
        if (place / "cpu.max").exists():
            quota, period = (place / "cpu.max").read_text().split()
            return int(quota) / int(period)
        if (quota_us := int((place / "cpu.cfs_quota_us").read_text())) > 0:
            return quota_us / int((place / "cpu.cfs_period_us").read_text())
    return None
