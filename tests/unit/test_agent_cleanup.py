"""Cleanup of a run directory: processes, publication, files. What capture leaves is tested with a real kernel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nodeseal.cores.process import CoreOptions
from nodeseal.daemon.cleanup import CleanupError, cleanup
from nodeseal.linux.lock_file import LockFile, holder
from nodeseal.local import generations, run_directory
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.directory.claim import DirectoryClaim
from nodeseal.sources.directory.publications import publish
from nodeseal.sources.directory.source import DirectorySource
from nodeseal.sources.source import PublicationError
from support.agent_fakes import fake_spawn

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="cleanup is for root only")

_HOLDER = (
    "import signal, sys; from pathlib import Path; from nodeseal.linux.lock_file import LockFile\n"
    "lock = LockFile(Path(sys.argv[1]))\n"
    "print('held', flush=True)\n"
    "signal.pause()\n"
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait(timeout=20)
        if child.stdout is not None:
            child.stdout.close()


def reference(mesh: Path, node: str = "node1") -> Mapping[str, str]:
    return DirectorySource(mesh, node, Path("/nowhere")).reference()


def hold(lock: Path, children: list[subprocess.Popen[bytes]]) -> int:
    """A process that holds a lock and does nothing; SIGTERM ends it."""
    child = subprocess.Popen([sys.executable, "-c", _HOLDER, str(lock)], stdout=subprocess.PIPE)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child.pid


def test_nothing_to_remove(run_dir: Path) -> None:
    report = cleanup(run_dir)
    assert (report.removed, report.failed) == ([], [])
    assert list(run_dir.iterdir()) == []


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    report = cleanup(tmp_path / "none")
    assert (report.removed, report.failed) == ([], [])


def test_core_is_asked_to_end(run_dir: Path, children: list[subprocess.Popen[bytes]]) -> None:
    core = fake_spawn(run_dir, CoreOptions(1, "example.org"))
    children.append(core)
    report = cleanup(run_dir)
    assert report.failed == []
    assert report.removed[0] == f"core, pid {core.pid}"
    assert core.wait(timeout=20) == 0
    assert not run_dir.exists()


def test_core_that_does_not_serve_its_socket_is_ended_by_its_lock(
    run_dir: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    pid = hold(generations.lock_path(run_dir, 7), children)
    assert cleanup(run_dir).removed[0] == f"core, pid {pid}"
    assert children[0].wait(timeout=20) == -signal.SIGTERM


def test_running_agent_is_ended_first_and_said(run_dir: Path, children: list[subprocess.Popen[bytes]]) -> None:
    pid = hold(run_dir / run_directory.AGENT_LOCK, children)
    report = cleanup(run_dir)
    assert report.removed[0] == f"agent, pid {pid} (it ran, and was ended)"
    assert children[0].wait(timeout=20) == -signal.SIGTERM


def test_pid_in_a_stale_file_is_not_touched(run_dir: Path, children: list[subprocess.Popen[bytes]]) -> None:
    """The file names a process that has nothing to do with us and holds no lock."""
    innocent = subprocess.Popen(["sleep", "60"])
    children.append(innocent)
    for path in (
        generations.lock_path(run_dir, 1),
        run_dir / run_directory.AGENT_PID,
        run_dir / run_directory.AGENT_LOCK,
    ):
        path.write_text(f"{innocent.pid}\n")
    report = cleanup(run_dir)
    assert report.failed == []
    assert innocent.poll() is None
    assert not run_dir.exists()


def test_publication_is_withdrawn_without_a_configuration(run_dir: Path, tmp_path: Path) -> None:
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    publish(mesh, "node1", [WorkloadName("default", "shipper")])
    publish(mesh, "node2", [])
    run_directory.remember_publication(run_dir, reference(mesh))
    report = cleanup(run_dir)
    assert f"publication {mesh}/enrolled/node1.yaml" in report.removed
    assert [path.name for path in (mesh / "enrolled").iterdir()] == ["node2.yaml"]


def test_publication_that_cannot_be_withdrawn_is_tried_again(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_directory: Path, _node: str) -> None:
        raise PublicationError("cannot withdraw: read-only file system")

    publish(tmp_path, "node1", [])
    run_directory.remember_publication(run_dir, reference(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("nodeseal.sources.directory.claim.withdraw", refuse)
        assert "read-only file system" in cleanup(run_dir).failed[0]
    assert run_directory.remembered_publications(run_dir) == [reference(tmp_path)]
    assert cleanup(run_dir).failed == []
    assert not run_dir.exists()


def test_everything_that_the_run_directory_ever_published_is_withdrawn(run_dir: Path, tmp_path: Path) -> None:
    """Its node was renamed, its mesh directory moved, and no agent came to withdraw what it had published before."""
    meshes = [tmp_path / "old", tmp_path / "new"]
    for mesh, node in ((meshes[0], "node1"), (meshes[1], "node1"), (meshes[1], "renamed")):
        mesh.mkdir(exist_ok=True)
        asyncio.run(DirectoryClaim(mesh, node, run_dir).release())
        publish(mesh, node, [WorkloadName("default", "shipper")])
        run_directory.remember_publication(run_dir, reference(mesh, node))
    report = cleanup(run_dir)
    assert report.failed == []
    assert [line for line in report.removed if line.startswith("publication")] == [
        f"publication {meshes[1]}/enrolled/renamed.yaml",
        f"publication {meshes[1]}/enrolled/node1.yaml",
        f"publication {meshes[0]}/enrolled/node1.yaml",
    ]
    assert [list((mesh / "enrolled").iterdir()) for mesh in meshes] == [[], []]


def test_note_of_a_former_version_is_understood(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / run_directory.PUBLICATION).write_text(json.dumps({"directory": str(tmp_path), "node": "node1"}))
    assert run_directory.remembered_publications(run_dir) == [reference(tmp_path)]


def test_damaged_note_of_the_publication_is_a_failure_that_is_told(run_dir: Path) -> None:
    (run_dir / run_directory.PUBLICATION).write_text("nonsense")
    (failure,) = cleanup(run_dir).failed
    assert failure.startswith("the publication of this node was not withdrawn: ")


def test_second_run_finds_nothing(run_dir: Path) -> None:
    LockFile(run_dir / run_directory.AGENT_LOCK).release()
    (run_dir / run_directory.CORE_LOG).write_text("a line\n")
    assert cleanup(run_dir).removed == [f"files in {run_dir}: agent.lock, core.log"]
    assert cleanup(run_dir).removed == []


def test_files_of_others_stay(run_dir: Path) -> None:
    (run_dir / run_directory.AGENT_SOCKET).touch()
    (run_dir / "agent.yaml").touch()
    assert cleanup(run_dir).failed == []
    assert [path.name for path in run_dir.iterdir()] == ["agent.yaml"]


def test_needs_root(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CleanupError, match="run it as root"):
        cleanup(run_dir)
    assert holder(run_dir / run_directory.AGENT_LOCK) is None
