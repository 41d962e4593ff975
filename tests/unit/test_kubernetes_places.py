"""A pod's place is found by the names that the kubelet gives to cgroups, in a tree of directories that stands for them;
tests/netns has real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.linux import process_cgroups
from nodeseal.sources.kubernetes import places as module
from nodeseal.sources.kubernetes.places import Places

UID = "11111111-2222-3333-4444-555555555555"
STATIC = "0123456789abcdef0123456789abcdef"
OWN = 1
"""Stands for the node's namespace."""


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hierarchies, of which v2 is one; the namespace that all processes of the test are in is no node's."""
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "cgroup.controllers").touch()
    (tmp_path / "v1").mkdir()
    monkeypatch.setattr(process_cgroups, "hierarchies", lambda: [tmp_path / "v2", tmp_path / "v1"])
    monkeypatch.setattr(process_cgroups, "own_namespace", lambda: OWN)
    monkeypatch.setattr(process_cgroups, "named_namespaces", dict)
    monkeypatch.setattr(module, "_LOOK_S", 0.0)


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def put(root: Path, cgroup: str, *pids: int) -> None:
    directory = root / cgroup
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


@pytest.mark.parametrize(
    "pod",
    [
        f"kubepods/pod{UID}",
        f"kubepods/burstable/pod{UID}",
        f"kubelet/kubepods/besteffort/pod{UID}",
        "kubepods.slice/kubepods-pod{}.slice".format(UID.replace("-", "_")),
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice".format(UID.replace("-", "_")),
        "a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-besteffort.slice/a-b-kubepods-besteffort-pod{}.slice".format(
            UID.replace("-", "_")
        ),
    ],
)
def test_pod_is_found_whatever_driver_names_its_cgroup(tmp_path: Path, pod: str, child: int) -> None:
    put(tmp_path / "v2", f"{pod}/cri-containerd-1.scope", child)
    found = Places().find([UID, "66666666-2222-3333-4444-555555555555"])
    assert found.keys() == {UID}
    place = found[UID]
    assert place.netns == f"/proc/{child}/ns/net"
    assert place.cgroup == f"/{pod}"
    assert place.holds


def test_static_pod_is_found_by_its_digest(tmp_path: Path, child: int) -> None:
    put(tmp_path / "v2", f"kubepods/pod{STATIC}/c1", child)
    assert Places().find([STATIC]).keys() == {STATIC}


def test_processes_may_be_in_another_hierarchy_than_v2(tmp_path: Path, child: int) -> None:
    (tmp_path / "v2" / "kubepods" / f"pod{UID}" / "c1").mkdir(parents=True)
    put(tmp_path / "v1", f"kubepods/pod{UID}/c1", child)
    place = Places().find([UID])[UID]
    assert (place.number, place.cgroup) == (process_cgroups.process(child).namespace, f"/kubepods/pod{UID}")  # type: ignore[union-attr]


def test_sandbox_is_the_oldest_process(tmp_path: Path, child: int) -> None:
    for name, pid in (("c1", child), ("c2", os.getpid())):
        put(tmp_path / "v2", f"kubepods/pod{UID}/{name}", pid)
    assert Places().find([UID])[UID].netns == f"/proc/{os.getpid()}/ns/net"


def test_name_of_the_namespace_is_better_than_a_process(
    tmp_path: Path, child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "v2", f"kubepods/pod{UID}/c1", child)
    named = tmp_path / "cni-1"
    named.symlink_to(f"/proc/{child}/ns/net")
    monkeypatch.setattr(process_cgroups, "named_namespaces", lambda: {named.stat().st_ino: str(named)})
    assert Places().find([UID])[UID].netns == str(named)


def test_pod_without_a_process_is_nowhere(tmp_path: Path) -> None:
    put(tmp_path / "v2", f"kubepods/pod{UID}/c1")
    assert Places().find([UID]) == {}


def test_what_the_network_plugin_tells_comes_first_until_it_is_gone(tmp_path: Path, child: int) -> None:
    put(tmp_path / "v2", f"kubepods/pod{UID}/c1", os.getpid())
    told = tmp_path / "cni-2"
    told.symlink_to(f"/proc/{child}/ns/net")
    places = Places()
    places.hint(UID, str(told))
    assert places.find([UID])[UID].netns == str(told)
    told.unlink()
    assert places.find([UID])[UID].netns == f"/proc/{os.getpid()}/ns/net"


def test_only_the_sandbox_that_was_told_last_is_forgotten() -> None:
    places = Places()
    places.hint(UID, "/run/netns/cni-2")
    assert not places.forget(UID, "/run/netns/cni-1")
    assert places.forget(UID, "/run/netns/cni-2")
    assert not places.forget(UID)


def test_pods_are_found_when_the_kubelet_comes_later(tmp_path: Path, child: int) -> None:
    places = Places()
    assert places.find([UID]) == {}
    put(tmp_path / "v2", f"kubepods/burstable/pod{UID}/c1", child)
    assert places.find([UID]).keys() == {UID}


def test_class_that_gets_its_first_pod_later_is_seen(tmp_path: Path, child: int) -> None:
    other = "66666666-2222-3333-4444-555555555555"
    put(tmp_path / "v2", f"kubepods/burstable/pod{UID}/c1", child)
    places = Places()
    assert places.find([UID, other]).keys() == {UID}
    put(tmp_path / "v2", f"kubepods/besteffort/pod{other}/c1", child)
    assert places.find([UID, other]).keys() == {UID, other}


def test_without_a_hierarchy_every_process_is_asked(monkeypatch: pytest.MonkeyPatch, child: int) -> None:
    monkeypatch.setattr(process_cgroups, "hierarchies", list)
    texts = [(os.getpid(), "1:name=systemd:/\n0::/init.scope\n"), (child, f"4:memory:/x\n0::/kubepods/pod{UID}/c1\n")]
    monkeypatch.setattr(process_cgroups, "all_cgroups", lambda: iter(texts))
    place = Places().find([UID])[UID]
    assert (place.netns, place.cgroup) == (f"/proc/{child}/ns/net", f"/kubepods/pod{UID}")


def test_process_of_the_nodes_namespace_is_of_the_node(
    tmp_path: Path, child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "v2", f"kubepods/pod{UID}/c1", child)
    number = Path(f"/proc/{child}/ns/net").stat().st_ino
    monkeypatch.setattr(process_cgroups, "own_namespace", lambda: number)
    assert Places().find([UID])[UID].of_node


def test_place_whose_path_leads_elsewhere_by_now_does_not_hold(tmp_path: Path, child: int) -> None:
    put(tmp_path / "v2", f"kubepods/pod{UID}/c1", child)
    named = tmp_path / "cni-1"
    named.touch()
    place = Places().find([UID])[UID]
    assert place.holds
    assert not module.Place(str(named), place.number).holds
    assert not module.Place(str(tmp_path / "gone"), place.number).holds


def test_sandbox_that_is_told_of_while_the_former_one_is_looked_for_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places()
    places.hint(UID, str(tmp_path / "gone"))

    class Looked(type(tmp_path)):  # type: ignore[misc]
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            if self.name == "gone":
                places.hint(UID, "/run/netns/cni-2")
            found: os.stat_result = super().stat(follow_symlinks=follow_symlinks)
            return found

    monkeypatch.setattr(module, "Path", Looked)
    assert places.find([UID]) == {}
    assert places.forget(UID, "/run/netns/cni-2")
