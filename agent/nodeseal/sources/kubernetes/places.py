"""Where a pod of this node is: its network namespace, or its cgroup if it is of the host network. Found by its UID.

A pod is known by its UID and its sandbox, never by its name or address alone: StatefulSets make pods of the same name
again, addresses are given to the next pod, a sandbox that died is made anew under the same UID, and after a reboot two
pods may have each other's addresses while the API server still tells the old ones.

How it is found. The kubelet puts a pod's processes into a cgroup that has the UID in its name:
`/kubepods/burstable/pod<uid>` (driver cgroupfs) or `/kubepods.slice/.../kubepods-burstable-pod<uid>.slice` with
underscores in the UID (driver systemd), below whatever --cgroup-root says. The oldest process there is the sandbox's
(where the runtime keeps none, a container's, which lives in the same namespace). All cgroups of pods are listed in one
go, so that many pods that start at once cost little more than one. A CNI plugin knows the sandbox before any process
is in it: what it tells (`hint`) comes first.

The namespace's addresses are read in it. What the API server says of a pod is believed only as far as they agree.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux import process_cgroups
from nodeseal.linux.addresses import node_addresses
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.process_cgroups import Process
from nodeseal.mesh.address import Address

log = logging.getLogger("nodeseal.agent")

_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")
"""The name of a pod's cgroup. 32 digits: of a static pod, whose UID is a digest."""
_KUBEPODS = "kubepods"
_DEPTH = 4
"""How deep below the root the kubelet's own cgroup may be."""
_CLASSES = ("burstable", "besteffort")
_LOOK_S, _SCAN_S = 1.0, 2.0
"""Not more often: for the kubelet's cgroups when there are none, for all processes."""


@dataclass(frozen=True, slots=True)
class Place:
    """`netns`: a path that leads to the pod's namespace as long as that is there; `number`: the namespace's, by which
    another one at that path is known."""

    netns: str
    number: int
    addresses: frozenset[Address] = frozenset()
    """That are in the namespace."""
    cgroup: str = ""
    """Of the pod, in the v2 tree; "" when it is in none."""
    of_node: bool = False
    """The namespace is the node's own."""

    @property
    def holds(self) -> bool:
        """Whether it is still there. One stat(2)."""
        try:
            return Path(self.netns).stat().st_ino == self.number
        except OSError:
            return False


class Places:
    """All methods block for some milliseconds and belong to one thread at a time, but `hint` and `forget`."""

    def __init__(self, root: Path | None = None) -> None:
        """`root`: of the v2 tree, if it is not to be found."""
        self._root = root
        self._hints: dict[str, str] = {}
        self._looked: float | None = None
        self._scanned: float | None = None
        self._bases: list[tuple[Path, Path]] = []
        """(root of the hierarchy, the kubelet's cgroup of all pods in it)"""

    def hint(self, uid: str, netns: str) -> None:
        """A sandbox of the pod has this namespace. Before any process is in it."""
        self._hints[uid] = netns

    def forget(self, uid: str, netns: str | None = None) -> bool:
        """The pod is gone, or the sandbox with this namespace; whether it is what was told last."""
        if netns is not None and self._hints.get(uid) != netns:
            return False
        return self._hints.pop(uid, None) is not None

    def find(self, uids: Iterable[str]) -> dict[str, Place]:
        """The places of those that are there."""
        own = process_cgroups.own_namespace()
        named = process_cgroups.named_namespaces()
        cgroups = self._cgroups()
        found, missing = {}, []
        for uid in uids:
            place = self._hinted(uid, own) or _of_cgroups(cgroups.get(uid, ()), own, named)
            if place is not None:
                found[uid] = place
            else:
                missing.append(uid)
        if missing:
            found |= self._scan(frozenset(missing), own, named)
        return found

    def _hinted(self, uid: str, own: int) -> Place | None:
        netns = self._hints.get(uid)
        if netns is None:
            return None
        try:
            number = Path(netns).stat().st_ino
        except OSError:
            # Meanwhile another sandbox may have been told of.
            self.forget(uid, netns)
            return None
        return _place(netns, number, own, "")

    def _cgroups(self) -> dict[str, list[tuple[Path, Path]]]:
        """UID -> (root of a hierarchy, the pod's cgroup in it), the v2 tree first."""
        found: dict[str, list[tuple[Path, Path]]] = {}
        if not all(base.is_dir() for _, base in self._bases):
            self._bases = []
        if not self._bases:
            self._look_for_bases()
        for root, base in self._bases:
            names = _below(base)
            classes = [name for name in names if any(one in name for one in _CLASSES) and _POD.search(name) is None]
            for parent, children in ((base, names), *((base / name, _below(base / name)) for name in classes)):
                for name in children:
                    if (match := _POD.search(name)) is not None:
                        found.setdefault(match[1].replace("_", "-"), []).append((root, parent / name))
        return found

    def _look_for_bases(self) -> None:
        now = time.monotonic()
        if self._looked is not None and now - self._looked < _LOOK_S:
            return
        self._looked = now
        roots = process_cgroups.hierarchies()
        if self._root is not None:
            roots = [self._root, *(root for root in roots if root != self._root)]
        self._bases = [(root, base) for root in roots for base in _bases(root, _DEPTH)]

    def _scan(self, uids: frozenset[str], own: int, named: dict[int, str]) -> dict[str, Place]:
        """By every process's own word; seldom."""
        now = time.monotonic()
        if self._bases or (self._scanned is not None and now - self._scanned < _SCAN_S):
            return {}
        self._scanned = now
        oldest: dict[str, tuple[Process, str]] = {}
        for pid, text in process_cgroups.all_cgroups():
            for uid, cgroup in _pods_in(text):
                if uid in uids and (one := process_cgroups.process(pid)) is not None:
                    known = oldest.get(uid)
                    if known is None or _age(one) < _age(known[0]):
                        oldest[uid] = (one, cgroup)
        return {
            uid: place
            for uid, (one, cgroup) in oldest.items()
            if (place := _place_of(one, own, named, cgroup)) is not None
        }


def _of_cgroups(directories: Sequence[tuple[Path, Path]], own: int, named: dict[int, str]) -> Place | None:
    """`directories`: of one pod, each with the root of its hierarchy."""
    for _root, directory in directories:
        oldest = min(process_cgroups.first_processes(directory), key=_age, default=None)
        if oldest is not None:
            in_v2 = (f"/{one.relative_to(root)}" for root, one in directories if (root / "cgroup.controllers").exists())
            return _place_of(oldest, own, named, next(in_v2, ""))
    return None


def _bases(directory: Path, depth: int) -> Iterator[Path]:
    """The kubelets' cgroups of all pods."""
    for name in _below(directory):
        if _KUBEPODS in name:
            yield directory / name
        elif depth > 1:
            yield from _bases(directory / name, depth - 1)


def _below(directory: Path) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(names)


def _pods_in(text: str) -> Iterator[tuple[str, str]]:
    """(UID, path of the pod's cgroup in the v2 tree or "") that a /proc/PID/cgroup names."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        path = rest.partition(":")[2]
        parts = path.split("/")
        for index, part in enumerate(parts):
            if (match := _POD.search(part)) is not None:
                yield match[1].replace("_", "-"), "/".join(parts[: index + 1]) if number == "0" else ""
                break


def _age(one: Process) -> tuple[int, int]:
    return one.started, one.pid


def _place_of(one: Process, own: int, named: dict[int, str], cgroup: str) -> Place | None:
    return _place(named.get(one.namespace, one.path), one.namespace, own, cgroup)


def _place(netns: str, number: int, own: int, cgroup: str) -> Place | None:
    """None when the namespace is gone by now."""
    if number == own:
        return Place(netns, number, frozenset(), cgroup, of_node=True)
    try:
        with NetworkNamespace.open(netns) as namespace:
            if namespace.inode != number:
                return None
            return Place(netns, number, namespace.run(node_addresses), cgroup)
    except (LinuxError, OSError) as error:
        log.debug("%s: %s", netns, error)
        return None
