"""Which mounts of cgroup hierarchies are used: the machine's whole trees, never the part that a container shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.linux import cgroup_hierarchies
from nodeseal.linux.cgroup_hierarchies import Hierarchy, hierarchies
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.mounts import Mount, mounts


class Machine:
    """What /proc says of a machine whose hierarchies are directories here."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.mounts: list[Mount] = []
        self.memberships: list[tuple[frozenset[str], str]] = []
        patch.setattr(cgroup_hierarchies, "mounts", lambda kind: [one for one in self.mounts if one.kind == kind])
        patch.setattr(cgroup_hierarchies, "_memberships", lambda: iter(self.memberships))

    def mount(self, name: str, root: str = "/", options: str = "rw", controllers: str = "") -> Path:
        point = self.directory / name
        point.mkdir(parents=True)
        kind = "cgroup" if controllers else "cgroup2"
        known = ("rw", *controllers.split(","))
        self.mounts.append(Mount(point, kind, root, point.stat().st_dev, tuple(options.split(",")), known))
        return point

    def member(self, controllers: str, path: str) -> None:
        self.memberships.append((frozenset(filter(None, controllers.split(","))), path))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_pure_v2(machine: Machine) -> None:
    root = machine.mount("cgroup")
    machine.member("", "/kubepods/pod1/c1")
    assert hierarchies() == [Hierarchy(root, unified=True)]


def test_hybrid(machine: Machine) -> None:
    together = machine.mount("cpu,cpuacct", controllers="cpu,cpuacct")
    named = machine.mount("systemd", controllers="xattr,name=systemd")
    unified = machine.mount("unified")
    machine.member("cpu,cpuacct", "/pod")
    machine.member("name=systemd", "/pod")
    machine.member("", "/pod")
    assert [one.root for one in hierarchies()] == [together, named, unified]


def test_part_that_a_container_shows_is_not_used(machine: Machine) -> None:
    machine.mount("own", root="/kubepods/pod1/c1", controllers="memory")
    whole = machine.mount("host", controllers="memory")
    machine.member("memory", "/kubepods/pod1/c1")
    assert [one.root for one in hierarchies()] == [whole]


def test_root_as_it_is_seen_from_a_cgroup_namespace(machine: Machine) -> None:
    whole = machine.mount("host", root="/../../..")
    machine.member("", "/")
    assert [one.root for one in hierarchies()] == [whole]


@pytest.mark.parametrize(("root", "options"), [("/kubepods/pod1/c1", "rw"), ("/", "ro")])
def test_what_cannot_be_left_is_an_error(machine: Machine, root: str, options: str) -> None:
    machine.mount("own", root=root, options=options, controllers="memory")
    machine.member("memory", "/kubepods/pod1/c1")
    with pytest.raises(LinuxError, match="hierarchy memory is not mounted here as a whole and writable"):
        hierarchies()


def test_hierarchy_without_a_mount_in_whose_root_one_is_needs_not_be_left(machine: Machine) -> None:
    machine.member("", "/")
    assert hierarchies() == []


def test_those_that_show_most_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "30 1 0:40 /pod /own rw,nosuid - cgroup2 cgroup rw",
        "31 1 0:40 /../.. /host\\040part rw shared:7 master:3 - cgroup2 cgroup rw,nsdelegate",
        "32 1 0:40 / /here rw - cgroup2 cgroup rw",
        "33 1 0:41 / /other rw - cgroup cgroup rw,cpu,cpuacct",
    ]
    monkeypatch.setattr(Path, "read_text", lambda _path, **_options: "\n".join(lines) + "\n")
    assert [str(one.point) for one in mounts("cgroup2")] == ["/host part", "/here", "/own"]
    assert mounts("cgroup")[0].super_options == ("rw", "cpu", "cpuacct")
